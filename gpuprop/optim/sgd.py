"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .._axpby import axpby
from ..cuda.optim import flat
from ..errors import OptionError
from ._shared import direction, not_negative
from .optimizer import Optimizer


class SGD(Optimizer, cuda=flat("Sgd", "momentum_buffer")):
    """b = momentum * b + (1 - dampening) * g, the first b being g; p = p - lr * b.

    With nesterov p = p - lr * (g + momentum * b). `weight_decay` adds `weight_decay * p` to g.
    Raises: OptionError for negative options, and for nesterov without momentum or with dampening.
    Source: Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning", with lr outside b.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
    ):
        options = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(
            params,
            {**options, "nesterov": nesterov, "maximize": maximize},
            max_grad_norm=max_grad_norm,
            ema_decay=ema_decay,
        )

    def check(self, group: dict[str, Any]) -> None:
        not_negative("SGD", group, "lr", "momentum", "weight_decay")
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise OptionError("SGD: expected momentum > 0 and dampening = 0 with nesterov")

    def state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def scalars(self, group: dict[str, Any], least: float) -> tuple[float, ...]:
        return group["lr"], group["momentum"], 1 - group["dampening"], float(group["nesterov"])

    def update(self, xp: Any, group: dict[str, Any], step: int, blocks: list[tuple]) -> None:
        lr, momentum, keep = group["lr"], group["momentum"], 1 - group["dampening"]
        for p, g, *state, s, t in blocks:
            g = direction(xp, group, group["weight_decay"], p, g, s, t)
            if momentum:
                (b,) = state
                if step == 1:
                    xp.copyto(b, g)
                else:
                    axpby(xp, keep, g, momentum, b, s)
                if group["nesterov"]:
                    xp.multiply(b, momentum, s)
                    g = xp.add(g, s, s)
                else:
                    g = b
            axpby(xp, -lr, g, 1, p, s)
