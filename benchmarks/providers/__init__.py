"""Who takes part: each provider writes a training step as the users of its library do.

A module of this folder has `make(problem, mode)`, which returns a `Contestant`; where the library brings matrix products of its own,
`product(problem, n)`; and where it looks at environment variables when it is imported, `environment(problem)`. Modules import their
library in these functions, in a process where nobody else computes.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ..problem import Problem


class Unsupported(Exception):
    """A library that does not have what a problem asks for."""


@dataclass
class Contestant:
    """A training step that can be timed.

    step: makes one step on the next batch and returns its loss, as the library does; it need not wait for a device.
    wait: returns when all steps are done. value: the loss as a number.
    start: starts a clock on the device that steps run on; what it returns waits for the steps and returns the seconds.
    peak_bytes: what the library took of the device's memory, where that is not the memory of the process.
    """

    step: Callable[[], Any]
    wait: Callable[[], object] = lambda: None
    value: Callable[[Any], float] = float
    start: Callable[[], Callable[[], float]] | None = None
    peak_bytes: Callable[[], int] | None = None

    def time(self, calls: int) -> tuple[float, float]:
        """Seconds per step, and those after which the call returns."""
        begin = time.perf_counter()
        stop = self.start() if self.start is not None else None
        for _ in range(calls):
            self.step()
        host = time.perf_counter() - begin
        if stop is not None:
            return stop() / calls, host / calls
        self.wait()
        return (time.perf_counter() - begin) / calls, host / calls


@dataclass(frozen=True)
class Provider:
    """A row of the table: what it is called, the module that makes it (of this folder, if it begins with a dot), and the package that has
    to be installed."""

    name: str
    module: str
    package: str
    mode: str = ""
    devices: tuple[str, ...] = ("cpu", "cuda")
    role: str = "peer"  # or "ours", or "floor": what no step can do without, which is no step
    quick: bool = False  # of those that are also shown against the batch size

    @property
    def installed(self) -> bool:
        return find_spec(self.package) is not None


PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider("gpuprop-captured", ".gpuprop", "gpuprop", "captured", role="ours", quick=True),
        Provider("gpuprop-eager", ".gpuprop", "gpuprop", "eager", role="ours", quick=True),
        Provider("numpy", ".by_hand", "numpy", devices=("cpu",), quick=True),
        Provider("cupy", ".by_hand", "cupy", devices=("cuda",), quick=True),
        Provider("torch", ".torch", "torch", "eager"),
        Provider("torch-fused", ".torch", "torch", "fused", quick=True),
        Provider("torch-compile", ".torch", "torch", "compile"),
        Provider("torch-graphs", ".torch", "torch", "graphs", devices=("cuda",), quick=True),
        Provider("jax", ".jax", "jax", quick=True),
        Provider("tinygrad", ".tinygrad", "tinygrad"),
        Provider("autograd", ".autograd", "autograd", devices=("cpu",)),
        Provider("mygrad", ".mygrad", "mygrad", devices=("cpu",)),
        Provider("scikit-learn", ".sklearn", "sklearn", devices=("cpu",)),
        Provider("thinc", ".thinc", "thinc", devices=("cpu",)),
        Provider("floor", ".floor", "numpy", devices=("cpu",), role="floor"),
    )
}


def in_turns(batches: list[Any], step: Callable[..., Any]) -> Callable[[], Any]:
    """`step(*batch)` on the next batch at each call."""
    following: Iterator[Any] = itertools.cycle(batches)
    return lambda: step(*next(following))


def cupy_clock() -> Callable[[], float]:
    """Two events on CuPy's current stream."""
    import cupy

    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    begin.record()

    def stop() -> float:
        end.record()
        end.synchronize()
        return cupy.cuda.get_elapsed_time(begin, end) / 1e3

    return stop


def cupy_contestant(step: Callable[[], Any], **extra: Any) -> Contestant:
    """A step that runs on CuPy's current stream."""
    import cupy

    wait = cupy.cuda.get_current_stream().synchronize
    return Contestant(step, wait, start=cupy_clock, peak_bytes=cupy.get_default_memory_pool().total_bytes, **extra)
