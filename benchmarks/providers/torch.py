"""PyTorch: as in its tutorials, with the fused optimizer, compiled, and as a CUDA graph."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ..problem import Problem
from . import Contestant, Unsupported, in_turns

WARM_UP = 3  # steps before a graph is captured, as PyTorch's documentation asks for


def make(problem: Problem, mode: str) -> Contestant:
    import torch

    model = _model(problem)
    kind = {"sgd": torch.optim.SGD, "momentum": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    options: dict[str, Any] = problem.optimizer_options()
    if mode != "eager":
        options["fused"] = True
    if mode == "graphs" and "betas" in options:
        options["capturable"] = True
    optimizer = kind[problem.optimizer](model.parameters(), lr=problem.rate, **options)

    def loss_of(x: Any, labels: Any) -> Any:
        return torch.nn.functional.cross_entropy(model(x), labels)

    if mode == "compile":
        loss_of = torch.compile(loss_of)

    def step(x: Any, labels: Any) -> Any:
        optimizer.zero_grad()
        loss = loss_of(x, labels)
        loss.backward()
        optimizer.step()
        return loss

    if mode == "graphs":
        step = _captured(step, optimizer)
    batches = [tuple(torch.from_numpy(a).to(problem.device) for a in batch) for batch in problem.batches()]
    return _contestant(in_turns(batches, step), problem)


def product(problem: Problem, n: int) -> Contestant:
    import torch

    a = _prepare(problem).randn(n, n, device=problem.device)
    out = torch.empty_like(a)
    return _contestant(lambda: torch.mm(a, a, out=out), problem)


def _prepare(problem: Problem) -> Any:
    import torch

    if problem.device.startswith("cuda") and not torch.cuda.is_available():
        raise Unsupported("PyTorch finds no GPU, or was built without CUDA")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.set_float32_matmul_precision(problem.precision)
    return torch


def _model(problem: Problem) -> Any:
    torch = _prepare(problem)
    activation = {
        "relu": torch.nn.ReLU,
        "gelu": torch.nn.GELU,
        "tanh": torch.nn.Tanh,
        "sigmoid": torch.nn.Sigmoid,
        "silu": torch.nn.SiLU,
    }[problem.activation]
    layers: list[Any] = []
    for w in problem.weights():
        linear = torch.nn.Linear(w.shape[1], w.shape[0])
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(w))
            linear.bias.zero_()
        layers += [linear, activation()]
    return torch.nn.Sequential(*layers[:-1]).to(problem.device)


def _captured(step: Callable[[Any, Any], Any], optimizer: Any) -> Callable[[Any, Any], Any]:
    """The step as one CUDA graph, after some steps on a stream of their own."""
    import torch

    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    inputs: list[Any] = []
    losses: list[Any] = []
    steps = 0

    def run(*batch: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps <= WARM_UP:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                loss = step(*batch)
            torch.cuda.current_stream().wait_stream(stream)
            return loss
        if not inputs:
            inputs[:] = [a.clone() for a in batch]
            optimizer.zero_grad()
            with torch.cuda.graph(graph):
                losses.append(step(*inputs))
        for own, given in zip(inputs, batch, strict=True):
            own.copy_(given)
        graph.replay()
        return losses[0]

    return run


def _contestant(step: Callable[[], Any], problem: Problem) -> Contestant:
    import torch

    value = lambda loss: loss.item()
    if not problem.device.startswith("cuda"):
        return Contestant(step, value=value)

    def start() -> Callable[[], float]:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()

        def stop() -> float:
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) / 1e3

        return stop

    peak = lambda: torch.cuda.max_memory_reserved(problem.device)
    return Contestant(step, torch.cuda.synchronize, value, start, peak)
