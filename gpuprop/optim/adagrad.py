"""Adagrad."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .._axpby import axpby
from ..cuda.optim import flat
from ._shared import direction, not_negative, not_nothing
from .optimizer import Optimizer


class Adagrad(Optimizer, cuda=flat("Adagrad", "sum")):
    """a = a + g^2; p = p - lr / (1 + (t - 1) lr_decay) * g / (sqrt(a) + eps).

    a begins at `initial_accumulator_value`; `weight_decay` adds `weight_decay * p` to g.
    Raises: OptionError for negative options.
    Source: Duchi et al. 2011, "Adaptive subgradient methods", figure 1 (diagonal).
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
    ):
        options = {"lr": lr, "lr_decay": lr_decay, "eps": eps, "weight_decay": weight_decay}
        super().__init__(
            params,
            {**options, "initial_accumulator_value": initial_accumulator_value, "maximize": maximize},
            max_grad_norm=max_grad_norm,
            ema_decay=ema_decay,
        )

    def check(self, group: dict[str, Any]) -> None:
        not_negative("Adagrad", group, "lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps")

    def state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("sum",)

    def first_value(self, group: dict[str, Any]) -> float:
        return group["initial_accumulator_value"]

    def scalars(self, group: dict[str, Any], least: float) -> tuple[float, ...]:
        return group["lr"], group["lr_decay"], max(group["eps"], least)

    def update(self, xp: Any, group: dict[str, Any], step: int, blocks: list[tuple]) -> None:
        rate = group["lr"] / (1 + (step - 1) * group["lr_decay"])
        eps = not_nothing(group["eps"], blocks)
        for p, g, a, s, t in blocks:
            g = direction(xp, group, group["weight_decay"], p, g, s, t)
            xp.multiply(g, g, s)
            xp.add(a, s, a)
            xp.sqrt(a, s)
            xp.add(s, eps, s)
            xp.divide(g, s, s)
            axpby(xp, -rate, s, 1, p, s)
