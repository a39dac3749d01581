"""What a worker is asked to do: rehearse a provider's step, and take turns with it."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from . import memory
from .problem import Problem
from .providers import Contestant, Provider, Unsupported, in_turns

STEPS = 20  # whose losses are compared
MOST_CALLS = 1000  # in a turn: more would fill the queue of a GPU, and the host would wait for it
LULL = 0.01  # seconds without computing after which a process counts as at rest
_contestant: Contestant | None = None
_estimate = 0.0  # seconds per step


@dataclass(frozen=True)
class Rehearsal:
    """The losses of the first steps, and what is to be said of a provider beside its speed."""

    losses: list[float]
    first_step_seconds: float
    peak_bytes: int
    version: str
    thread_pools: list[dict[str, Any]]


def reference(problem: Problem) -> list[float]:
    """The losses in float64, by NumPy by hand."""
    import numpy as np

    from .providers.by_hand import training_step

    batches = [(x.astype(np.float64), labels) for x, labels in problem.batches()]
    step = in_turns(batches, training_step(np, problem.rehearsal(), np.float64))
    return [float(step()) for _ in range(STEPS)]


def rehearse(provider: Provider, problem: Problem, patience: float) -> Rehearsal:
    """Makes the first steps. Raises: Unsupported, where they take longer than `patience` seconds in all."""
    from threadpoolctl import threadpool_info

    module = _module(provider.module, problem)
    import_module(provider.package)  # what the library itself takes is not counted
    before = memory.resident()
    contestant = module.make(problem.rehearsal(), provider.mode)
    start = time.perf_counter()
    losses = [contestant.value(contestant.step())]
    first = time.perf_counter() - start
    memory.reset_peak()
    for done in range(1, STEPS if provider.role != "floor" else 3):
        if time.perf_counter() - start > patience:
            raise Unsupported(
                f"too slow: {done} steps took {time.perf_counter() - start:.0f} s, the first of them {first:.0f} s"
            )
        losses.append(contestant.value(contestant.step()))
    contestant.wait()
    peak = contestant.peak_bytes() if contestant.peak_bytes is not None else memory.peak() - before
    keys = "user_api", "internal_api", "version", "threading_layer", "architecture", "num_threads"
    pools = [{key: pool[key] for key in keys if key in pool} for pool in threadpool_info()]
    come_to_rest()
    return Rehearsal(losses, first, peak, _version(provider.package), pools)


def enter(provider: Provider, problem: Problem, seconds: float) -> None:
    """Makes the step that is timed, at its own learning rate, and brings it to speed."""
    _enter(_module(provider.module, problem).make(problem, provider.mode), seconds)


def enter_product(module: str, problem: Problem, n: int, seconds: float) -> None:
    """The same for a product of two n x n matrices by the library of a provider."""
    _enter(_module(module, problem).product(problem, n), seconds)


def turn(seconds: float) -> tuple[float, float]:
    """Seconds per step, and those after which the call returns, over as many steps as take about `seconds` in all."""
    if _estimate < 1:  # wakes threads, fills caches
        _contestant.time(1)
    taken = _contestant.time(min(MOST_CALLS, max(1, round(seconds / _estimate))))
    come_to_rest()
    return taken


def come_to_rest() -> None:
    """Returns when no thread of the process computes any more, or after a second.

    OpenBLAS' threads wait for the next product busily, for 0.12 s after the last one: as long as a whole turn of whoever comes next, which
    had one processor less (a captured step of 784-256-128-10 took 3.4 ms instead of 2.3).
    """
    end = time.perf_counter() + 1
    while time.perf_counter() < end:
        before = time.process_time()
        time.sleep(LULL)
        if time.process_time() - before < 0.1 * LULL:
            return


def _module(name: str, problem: Problem) -> Any:
    """The module of a provider, with the environment that its library looks at when it is imported."""
    module = import_module(name, f"{__package__}.providers")
    os.environ.update(module.environment(problem) if hasattr(module, "environment") else {})
    return module


def _enter(contestant: Contestant, seconds: float) -> None:
    global _contestant, _estimate
    _contestant = contestant
    contestant.time(5)  # captures, compiles
    calls = 1
    while True:
        _estimate = contestant.time(calls)[0]
        if calls * _estimate > seconds / 4 or calls * 4 > MOST_CALLS:
            break
        calls *= 4
    come_to_rest()


def _version(package: str) -> str:
    found = getattr(sys.modules[package], "__version__", None)
    try:
        return str(found or version(package))
    except PackageNotFoundError:
        return "unknown"
