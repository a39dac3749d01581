"""tinygrad: the whole step under `TinyJit`."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..problem import BETA1, BETA2, EPSILON, MOMENTUM, WEIGHT_DECAY, Problem
from . import Contestant, Unsupported, in_turns


def make(problem: Problem, mode: str) -> Contestant:
    tensor = _prepare(problem)
    from tinygrad import TinyJit, nn

    activation = {
        "relu": lambda x: x.relu(),
        "tanh": lambda x: x.tanh(),
        "sigmoid": lambda x: x.sigmoid(),
        "silu": lambda x: x.silu(),
        "gelu": lambda x: 0.5 * x * (1 + (x * 0.5**0.5).erf()),  # its own gelu is the one with tanh
    }[problem.activation]
    layers = [(tensor(w), tensor(np.zeros(len(w), np.float32))) for w in problem.weights()]
    parameters = [p for layer in layers for p in layer]
    betas = {"b1": BETA1, "b2": BETA2, "eps": EPSILON}
    optimizer = {
        "sgd": lambda: nn.optim.SGD(parameters, lr=problem.rate),
        "momentum": lambda: nn.optim.SGD(parameters, lr=problem.rate, momentum=MOMENTUM),
        "adam": lambda: nn.optim.Adam(parameters, lr=problem.rate, **betas),
        "adamw": lambda: nn.optim.AdamW(parameters, lr=problem.rate, weight_decay=WEIGHT_DECAY, **betas),
    }[problem.optimizer]()

    @TinyJit
    def step(x: Any, labels: Any) -> Any:
        optimizer.zero_grad()
        for w, b in layers[:-1]:
            x = activation(x.linear(w.T, b))
        w, b = layers[-1]
        loss = x.linear(w.T, b).sparse_categorical_crossentropy(labels)
        loss.backward()
        return loss.realize(*optimizer.schedule_step())

    batches = [(tensor(x), tensor(labels.astype(np.int32))) for x, labels in problem.batches()]
    return Contestant(in_turns(batches, step), _waiting(batches[0][0]), value=lambda loss: loss.item())


def environment(problem: Problem) -> dict[str, str]:
    kind = problem.device.partition(":")[0]
    return {"DEV": kind.upper(), "TRAINING": "1", "NUM_CPU_THREADS": os.environ["OMP_NUM_THREADS"]}


def _prepare(problem: Problem) -> Any:
    """A function that puts an array on the device."""
    from tinygrad import Tensor

    kind, _, index = problem.device.partition(":")
    if problem.precision != "highest" and kind == "cuda":
        raise Unsupported("tinygrad is not asked for TF32 here")
    device = kind.upper() + (f":{index}" if index else "")
    return lambda array: Tensor(array, device=device).contiguous().realize()


def _waiting(tensor: Any) -> Any:
    from tinygrad import Device

    return Device[tensor.device].synchronize
