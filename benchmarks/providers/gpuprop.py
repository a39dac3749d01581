"""gpuprop itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gpuprop as gp
import gpuprop.nn.functional as F

from ..problem import Problem
from . import Contestant, cupy_contestant, in_turns

OPTIMIZERS = {"sgd": gp.optim.SGD, "momentum": gp.optim.SGD, "adam": gp.optim.Adam, "adamw": gp.optim.AdamW}


def make(problem: Problem, mode: str) -> Contestant:
    step, _ = training_step(problem)
    if mode == "captured":
        step = gp.capture(step)
    batches = [(gp.tensor(x), gp.tensor(labels)) for x, labels in problem.batches()]
    run = in_turns(batches, step)
    value = lambda loss: loss.item()
    return cupy_contestant(run, value=value) if problem.device.startswith("cuda") else Contestant(run, value=value)


def training_step(problem: Problem) -> tuple[Callable[[Any, Any], Any], gp.optim.Optimizer]:
    """The step as a function of inputs and labels on the problem's device, which becomes the default one; and its optimizer."""
    gp.set_default_device(problem.device)
    gp.set_float32_matmul_precision(problem.precision)
    model = gp.nn.MLP(problem.sizes, activation=problem.activation)
    linears = [layer for layer in model.modules() if isinstance(layer, gp.nn.Linear)]
    with gp.no_grad():
        for linear, w in zip(linears, problem.weights(), strict=True):
            linear.weight.copy_(gp.tensor(w))
            linear.bias.zero_()
    optimizer = OPTIMIZERS[problem.optimizer](model.parameters(), lr=problem.rate, **problem.optimizer_options())

    def step(x: Any, labels: Any) -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss

    return step, optimizer
