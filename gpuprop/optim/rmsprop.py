"""RMSprop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .._axpby import axpby
from ..cuda.optim import flat
from ._shared import direction, fraction, not_negative, not_nothing
from .optimizer import Optimizer


class RMSprop(Optimizer, cuda=flat("RmsProp", "square_avg", "grad_avg", "momentum_buffer")):
    """v = alpha v + (1 - alpha) g^2; p = p - lr g / (sqrt(v) + eps).

    centered: the mean a of the gradients is kept too, and sqrt(v - a^2) divides. momentum: b = momentum b + g / (...), p = p - lr b.
    `weight_decay` adds `weight_decay * p` to g.
    Raises: OptionError for negative options and alpha outside [0, 1).
    Source: Tieleman and Hinton 2012, lecture 6.5; centered: Graves 2013, arXiv:1308.0850, eq. 38-45.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
    ):
        options = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(
            params,
            {**options, "centered": centered, "maximize": maximize},
            max_grad_norm=max_grad_norm,
            ema_decay=ema_decay,
        )

    def check(self, group: dict[str, Any]) -> None:
        not_negative("RMSprop", group, "lr", "eps", "weight_decay", "momentum")
        fraction("RMSprop", "alpha", group["alpha"])

    def state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        names = ["square_avg"]
        if group["centered"]:
            names.append("grad_avg")
        if group["momentum"]:
            names.append("momentum_buffer")
        return tuple(names)

    def scalars(self, group: dict[str, Any], least: float) -> tuple[float, ...]:
        alpha, eps = group["alpha"], max(group["eps"], least)
        return group["lr"], alpha, 1 - alpha, eps, group["momentum"], float(group["centered"])

    def update(self, xp: Any, group: dict[str, Any], step: int, blocks: list[tuple]) -> None:
        lr, alpha, momentum = group["lr"], group["alpha"], group["momentum"]
        eps = not_nothing(group["eps"], blocks)
        for p, g, v, *state, s, t in blocks:
            g = direction(xp, group, group["weight_decay"], p, g, s, t)
            xp.multiply(g, g, s)
            axpby(xp, 1 - alpha, s, alpha, v, s)
            if group["centered"]:
                a = state[0]
                axpby(xp, 1 - alpha, g, alpha, a, s)
                xp.multiply(a, a, s)
                xp.subtract(v, s, s)
                xp.maximum(s, 0.0, out=s)  # a variance; rounding may take it below 0, whose root is no number
                xp.sqrt(s, s)
            else:
                xp.sqrt(v, s)
            xp.add(s, eps, s)
            xp.divide(g, s, s)
            if momentum:
                axpby(xp, 1, s, momentum, state[-1], s)
            axpby(xp, -lr, state[-1] if momentum else s, 1, p, s)
