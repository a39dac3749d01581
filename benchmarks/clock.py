"""How long work takes where it is done: on a CPU by the host's clock, on a GPU between two events of its stream."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def host_seconds(work: Callable[[], object], calls: int = 1) -> float:
    """Seconds per call, by the host's clock."""
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - start) / calls


def gpu_seconds(work: Callable[[], object], calls: int = 1) -> float:
    """Seconds per call on the current GPU, from the first call's start there to the last one's end. Waits for it."""
    import cupy

    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    begin.record()
    for _ in range(calls):
        work()
    end.record()
    end.synchronize()
    return cupy.cuda.get_elapsed_time(begin, end) / 1e3 / calls


def clock_of(device: Any) -> Callable[..., float]:
    """The clock for work on a device: `seconds(work, calls=1)`."""
    return gpu_seconds if str(device).partition(":")[0] == "cuda" else host_seconds
