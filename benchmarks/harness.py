"""Timing side by side: the contestants take turns within one run, so that a machine whose speed drifts treats them alike."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from .clock import host_seconds


@dataclass
class Timing:
    """Seconds per call, one entry per round."""

    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def spread(self) -> tuple[float, float]:
        return spread(self.seconds)


def spread(values: list[float]) -> tuple[float, float]:
    """The 10th and the 90th percentile."""
    if len(values) < 2:
        return values[0], values[0]
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return tenths[0], tenths[-1]


def interleave(
    contestants: dict[str, Callable[[], object]],
    *,
    rounds: int,
    seconds: float,
    clock: Callable[..., float] = host_seconds,
) -> dict[str, Timing]:
    """Times each contestant `rounds` times, in turns; a round calls it often enough to last about `seconds`."""
    calls = {}
    for name, run in contestants.items():
        run()  # compiles, allocates, warms caches
        calls[name] = max(1, round(seconds / max(clock(run), 1e-7)))
    timings = {name: Timing() for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            timings[name].seconds.append(clock(run, calls[name]))
    return timings


def same_threads(threads: int) -> None:
    """Has every contestant compute on the CPU with as many threads. Call it before NumPy and PyTorch are imported."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    import gpuprop as gp

    gp.set_default_device("cpu")
    try:
        import torch

        torch.set_num_threads(threads)
    except ImportError:
        pass


def rows(what: str, timings: dict[str, Timing], ours: str, scale: float, unit: str) -> Iterator[tuple[str, ...]]:
    """Rows of a table: what, who, median, spread, and what `ours` takes of each other's median."""
    for name, timing in timings.items():
        low, high = timing.spread()
        ratio = "" if name == ours else f"{timings[ours].median / timing.median:.2f}x {name.partition(':')[0]}"
        yield what, name, f"{timing.median * scale:.3g} {unit}", f"{low * scale:.3g} to {high * scale:.3g}", ratio
        what = ""
