"""Metrics: sums over samples that stay on the device, and what they amount to once an epoch is over."""

from __future__ import annotations

import math
from typing import Protocol

from .._tensor import Tensor
from ..errors import ShapeError


class Metric(Protocol):
    """Something measured over many batches: `sums` of one batch's samples, and the `result` of their totals."""

    def sums(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]: ...

    def result(self, totals: list[float], count: int) -> dict[str, float]: ...


class Accuracy:
    """The share of samples whose largest output is that of their class: outputs (N, C), targets (N,) class numbers."""

    def sums(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        return ((outputs.argmax(axis=-1) == targets).sum(),)

    def result(self, totals: list[float], count: int) -> dict[str, float]:
        return {"accuracy": totals[0] / count}


class RegressionFit:
    """Coefficient of determination and root mean squared error: outputs and targets (N, 1).

    R2 = 1 - sum (t - y)^2 / sum (t - mean t)^2, nan for equal targets; RMSE = scale * sqrt(mean (t - y)^2).
    scale: units of the target per unit of the outputs.
    """

    def __init__(self, scale: float = 1.0):
        self.scale = scale

    def sums(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        errors = outputs - targets
        return (errors * errors).sum(), targets.sum(), (targets * targets).sum()

    def result(self, totals: list[float], count: int) -> dict[str, float]:
        squared_errors, total, squares = totals
        spread = squares - total * total / count
        r2 = 1 - squared_errors / spread if spread > 0 else math.nan
        return {"r2": r2, "rmse": self.scale * math.sqrt(squared_errors / count)}


class Totals:
    """The loss and the metrics of one pass over the data. Adding stays on the device; only `read` waits for it."""

    def __init__(self, metrics: tuple[Metric, ...]):
        self.metrics = metrics
        self.count = 0
        self._loss: Tensor | None = None
        self._sums: list[tuple[Tensor, ...]] = []

    def add(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Counts a batch: its mean loss (0-d), its outputs and its targets; under `no_grad`."""
        loss = loss * len(outputs)
        sums = [metric.sums(outputs, targets) for metric in self.metrics]
        if self._loss is None:
            self._loss, self._sums = loss, sums
        else:
            self._loss = self._loss + loss
            self._sums = [
                tuple(a + b for a, b in zip(old, new, strict=True)) for old, new in zip(self._sums, sums, strict=True)
            ]
        self.count += len(outputs)

    def read(self) -> dict[str, float]:
        """The mean loss and every metric's figures."""
        if self._loss is None:
            raise ShapeError("Totals: expected at least one batch, got none")
        figures = {"loss": self._loss.item() / self.count}
        for metric, sums in zip(self.metrics, self._sums, strict=True):
            figures |= metric.result([float(part.item()) for part in sums], self.count)
        return figures
