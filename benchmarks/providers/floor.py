"""What no step on NumPy can do without: its matrix products, and the optimizer's pass over all parameters as one array.

The pass is gpuprop's own, which is quicker than any written with NumPy's functions alone.
"""

from __future__ import annotations

import numpy as np

import gpuprop as gp

from ..problem import Problem
from . import Contestant
from .gpuprop import OPTIMIZERS


def make(problem: Problem, mode: str) -> Contestant:
    batch, weights = problem.batch, problem.weights()
    activations = [problem.batches()[0][0], *(np.ones((batch, n), np.float32) for n in problem.sizes[1:])]
    products = []
    for k, w in enumerate(weights):
        products.append((activations[k], w.T, np.empty((batch, len(w)), np.float32)))
        products.append((activations[k + 1].T, activations[k], np.empty_like(w)))
        if k:
            products.append((activations[k + 1], w, np.empty_like(activations[k])))
    flat = gp.nn.Parameter(gp.ones(problem.parameters, dtype=np.float32, device="cpu"))
    flat.sum().backward()
    optimizer = OPTIMIZERS[problem.optimizer]([flat], lr=problem.rate, **problem.optimizer_options())

    def step() -> float:
        for a, b, out in products:
            np.dot(a, b, out)
        optimizer.step()
        return float("nan")  # it has no loss

    return Contestant(step)
