"""Metrics: sums over samples that stay on the device, and what they amount to once an epoch is over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from .._tensor import Tensor, zeros_like
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


def measure(metrics: Sequence[Metric], loss: Tensor, outputs: Tensor, targets: Tensor) -> list[Any]:
    """What `Totals` add up of a batch, of its mean loss (0-d), its outputs and its targets: one list for it and for each metric."""
    return [[loss * len(outputs)], *(list(metric.sums(outputs, targets)) for metric in metrics)]


class Totals:
    """The loss and the metrics of one pass over the data. Adding stays on the device; only `read` waits for it."""

    def __init__(self, metrics: tuple[Metric, ...]):
        self.metrics = metrics
        self.count = 0
        self._sums: list[list[Tensor]] = []  # of the losses, then those of each metric

    def add(self, sums: list[list[Tensor]], count: int) -> None:
        """Counts what `measure` returned for a batch of `count` samples; under `no_grad`."""
        before = self._sums or [[zeros_like(part) for part in parts] for parts in sums]
        self._sums = [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(before, sums, strict=True)]
        self.count += count

    def read(self) -> dict[str, float]:
        """The mean loss and every metric's figures."""
        if not self._sums:
            raise ShapeError("Totals: expected at least one batch, got none")
        (loss,), *sums = [[float(part.item()) for part in parts] for parts in self._sums]
        figures = {"loss": loss / self.count}
        for metric, totals in zip(self.metrics, sums, strict=True):
            figures |= metric.result(totals, self.count)
        return figures
