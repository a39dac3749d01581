"""MyGrad: tensors on NumPy; the update by hand, as it has no optimizers."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..problem import Problem
from . import Contestant, Unsupported, in_turns
from .updates import updater


def make(problem: Problem, mode: str) -> Contestant:
    import mygrad as mg
    from mygrad.nnet.activations import relu, sigmoid
    from mygrad.nnet.losses import softmax_crossentropy

    mg.turn_memory_guarding_off()  # as its documentation advises for speed
    activation = {"relu": relu, "tanh": mg.tanh, "sigmoid": sigmoid, "silu": lambda z: z * sigmoid(z)}.get(
        problem.activation
    )
    if activation is None:
        raise Unsupported(f"MyGrad has no {problem.activation}, nor the functions to compose it of")
    parameters = [mg.tensor(a) for w in problem.weights() for a in (w, np.zeros(len(w), np.float32))]
    update = updater(np, problem, [p.data for p in parameters])

    def step(x: Any, labels: Any) -> Any:
        for w, b in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
            x = activation(mg.matmul(x, w.T) + b)
        loss = softmax_crossentropy(mg.matmul(x, parameters[-2].T) + parameters[-1], labels)
        loss.backward()
        update([p.grad for p in parameters])
        return loss

    return Contestant(in_turns(problem.batches(), step), value=lambda loss: loss.item())
