"""autograd: gradients of NumPy code; the update by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..problem import Problem
from . import Contestant, in_turns
from .updates import updater


def make(problem: Problem, mode: str) -> Contestant:
    import autograd
    import autograd.numpy as anp
    from autograd.scipy.special import erf, expit, logsumexp

    activation = {
        "relu": lambda z: anp.maximum(z, 0),
        "gelu": lambda z: 0.5 * z * (1 + erf(z * 0.5**0.5)),
        "tanh": anp.tanh,
        "sigmoid": expit,
        "silu": lambda z: z * expit(z),
    }[problem.activation]
    parameters = [a for w in problem.weights() for a in (w, np.zeros(len(w), np.float32))]
    update = updater(np, problem, parameters)

    def loss_of(parameters: Any, x: Any, targets: Any) -> Any:
        for w, b in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
            x = activation(anp.dot(x, w.T) + b)
        logits = anp.dot(x, parameters[-2].T) + parameters[-1]
        return -anp.sum(targets * (logits - logsumexp(logits, axis=1, keepdims=True))) * (1 / problem.batch)

    differentiate = autograd.value_and_grad(loss_of)

    def step(x: Any, targets: Any) -> Any:
        loss, gradients = differentiate(parameters, x, targets)
        update(gradients)
        return loss

    classes = np.eye(problem.sizes[-1], dtype=np.float32)
    return Contestant(in_turns([(x, classes[labels]) for x, labels in problem.batches()], step))
