"""The optimizers on arrays of NumPy or CuPy, in place and without temporaries: for the libraries that bring none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any

from ..problem import BETA1, BETA2, EPSILON, MOMENTUM, WEIGHT_DECAY, Problem


def updater(xp: Any, problem: Problem, parameters: Sequence[Any]) -> Callable[[Sequence[Any]], None]:
    """A function of gradients that changes the parameters."""
    scratch = xp.empty(max(p.size for p in parameters), parameters[0].dtype)
    scratches = [scratch[: p.size].reshape(p.shape) for p in parameters]
    states = {"sgd": 0, "momentum": 1, "adam": 2, "adamw": 2}[problem.optimizer]
    state = [tuple(xp.zeros_like(p) for _ in range(states)) for p in parameters]
    rule = {"sgd": _sgd, "momentum": _momentum, "adam": _adam, "adamw": _adam}[problem.optimizer]
    decay = 1 - problem.rate * WEIGHT_DECAY if problem.optimizer == "adamw" else 1.0
    steps = 0

    def update(gradients: Sequence[Any]) -> None:
        nonlocal steps
        steps += 1
        for p, g, kept, s in zip(parameters, gradients, state, scratches, strict=True):
            if decay != 1:
                xp.multiply(p, decay, p)
            rule(xp, problem.rate, steps, p, g, s, *kept)

    return update


def _sgd(xp: Any, rate: float, step: int, p: Any, g: Any, s: Any) -> None:
    xp.multiply(g, rate, s)
    xp.subtract(p, s, p)


def _momentum(xp: Any, rate: float, step: int, p: Any, g: Any, s: Any, b: Any) -> None:
    xp.multiply(b, MOMENTUM, b)
    xp.add(b, g, b)
    _sgd(xp, rate, step, p, b, s)


def _adam(xp: Any, rate: float, step: int, p: Any, g: Any, s: Any, m: Any, v: Any) -> None:
    root = sqrt(1 - BETA2**step)
    xp.multiply(g, 1 - BETA1, s)
    xp.multiply(m, BETA1, m)
    xp.add(m, s, m)
    xp.multiply(g, g, s)
    xp.multiply(s, 1 - BETA2, s)
    xp.multiply(v, BETA2, v)
    xp.add(v, s, v)
    xp.sqrt(v, s)
    xp.add(s, EPSILON * root, s)
    xp.divide(m, s, s)
    xp.multiply(s, rate * root / (1 - BETA1**step), s)
    xp.subtract(p, s, p)
