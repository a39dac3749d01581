"""thinc: layers with callbacks; its loss needs no value, so that is taken from the probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..problem import BETA1, BETA2, EPSILON, WEIGHT_DECAY, Problem
from . import Contestant, Unsupported, in_turns


def make(problem: Problem, mode: str) -> Contestant:
    from thinc import api

    layer = {"relu": api.Relu, "gelu": api.Gelu, "silu": api.Swish, "sigmoid": api.Sigmoid}.get(problem.activation)
    if layer is None:
        raise Unsupported(f"thinc has no {problem.activation}")
    if problem.optimizer == "momentum":
        raise Unsupported("thinc has no momentum")
    hidden = [layer(n, m) for m, n in zip(problem.sizes, problem.sizes[1:-1], strict=False)]
    model = api.chain(*hidden, api.Softmax(problem.sizes[-1], problem.sizes[-2]))
    model.initialize()
    for node, w in zip(model.layers, problem.weights(), strict=True):
        node.set_param("W", w)
        node.set_param("b", np.zeros(len(w), np.float32))
    betas = {} if problem.optimizer == "sgd" else {"beta1": BETA1, "beta2": BETA2, "eps": EPSILON}
    decay = WEIGHT_DECAY if problem.optimizer == "adamw" else 0.0
    kind = api.SGD if problem.optimizer == "sgd" else api.Adam
    optimizer = kind(problem.rate, L2=decay, grad_clip=0.0, use_averages=False, **betas)
    rows, share = np.arange(problem.batch), 1 / problem.batch

    def step(x: Any, labels: Any) -> float:
        y, backprop = model.begin_update(x)
        loss = -np.log(y[rows, labels]).mean()
        y[rows, labels] -= 1
        backprop(y * share)
        model.finish_update(optimizer)
        return loss

    return Contestant(in_turns(problem.batches(), step))
