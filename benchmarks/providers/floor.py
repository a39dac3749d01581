"""What no step on NumPy can do without: its matrix products, and one pass of the optimizer in blocks that stay in cache."""

from __future__ import annotations

import numpy as np

from ..problem import Problem
from . import Contestant
from .by_hand import BLOCK
from .updates import updater


def make(problem: Problem, mode: str) -> Contestant:
    batch, weights = problem.batch, problem.weights()
    activations = [problem.batches()[0][0], *(np.ones((batch, n), np.float32) for n in problem.sizes[1:])]
    products = []
    for k, w in enumerate(weights):
        products.append((activations[k], w.T, np.empty((batch, len(w)), np.float32)))
        products.append((activations[k + 1].T, activations[k], np.empty_like(w)))
        if k:
            products.append((activations[k + 1], w, np.empty_like(activations[k])))
    flat, gradient = (np.ones(problem.parameters, np.float32) for _ in range(2))
    blocks = [slice(i, i + BLOCK) for i in range(0, len(flat), BLOCK)]
    update, pieces = updater(np, problem, [flat[part] for part in blocks]), [gradient[part] for part in blocks]

    def step() -> float:
        for a, b, out in products:
            np.dot(a, b, out)
        update(pieces)
        return float("nan")  # it has no loss

    return Contestant(step)
