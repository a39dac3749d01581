"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Iterable
from math import expm1, inf, log, sqrt
from typing import Any

from .._axpby import axpby
from ..cuda.optim import flat
from ._shared import direction, fraction, not_negative, not_nothing
from .optimizer import Optimizer


def correction(beta: float, step: int) -> float:
    """1 - beta^step: how much of a running mean that began at 0 is filled."""
    return -expm1(step * log(beta)) if beta else 1.0


class Adam(Optimizer, cuda=flat("Adam", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")):
    """m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2, p = p - lr m' / (sqrt(v') + eps), with m' = m / (1 - beta1^t), v' alike.

    `weight_decay` adds `weight_decay * p` to g; `amsgrad` uses the largest v so far.
    Raises: OptionError for negative options and betas outside [0, 1).
    Source: Kingma and Ba 2015, arXiv:1412.6980, algorithm 1; Reddi et al. 2018, arXiv:1904.09237, algorithm 2.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
    ):
        options = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(
            params,
            {**options, "amsgrad": amsgrad, "maximize": maximize},
            max_grad_norm=max_grad_norm,
            ema_decay=ema_decay,
        )

    def check(self, group: dict[str, Any]) -> None:
        not_negative(type(self).__name__, group, "lr", "eps", "weight_decay")
        for index, beta in enumerate(group["betas"]):
            fraction(type(self).__name__, f"betas[{index}]", beta)

    def state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if group["amsgrad"] else ("exp_avg", "exp_avg_sq")

    def scalars(self, group: dict[str, Any], least: float) -> tuple[float, ...]:
        # In float64 here: the logarithm of a rounded beta would miss 1 - beta^t by 1e-5.
        parts = [part for beta in group["betas"] for part in (beta, 1 - beta, log(beta) if beta else -inf)]
        return group["lr"], *parts, group["eps"], least

    def update(self, xp: Any, group: dict[str, Any], step: int, blocks: list[tuple]) -> None:
        beta1, beta2 = group["betas"]
        # lr m' / (sqrt(v') + eps) = rate m / (sqrt(v) + eps root): one pass less than with m' and v'.
        root = sqrt(correction(beta2, step))
        rate, eps = group["lr"] / correction(beta1, step) * root, not_nothing(group["eps"] * root, blocks)
        decay, keep = self.decays(group)
        for p, g, m, v, *largest, s, t in blocks:
            g = direction(xp, group, decay, p, g, s, t)
            axpby(xp, 1 - beta1, g, beta1, m, s)
            xp.multiply(g, g, s)
            axpby(xp, 1 - beta2, s, beta2, v, s)
            if largest:
                v = xp.maximum(v, largest[0], out=largest[0])
            xp.sqrt(v, s)
            xp.add(s, eps, s)
            xp.divide(m, s, s)
            axpby(xp, -rate, s, keep, p, s)


class AdamW(Adam, **Adam.fused):
    """Adam with the decay outside of the moments: p = (1 - lr weight_decay) p, then Adam's step.

    Raises: as Adam.
    Source: Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2, with lr also scaling the decay.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
    ):
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            max_grad_norm=max_grad_norm,
            ema_decay=ema_decay,
        )

    def decays(self, group: dict[str, Any]) -> tuple[float, float]:
        return 0.0, 1 - group["lr"] * group["weight_decay"]
