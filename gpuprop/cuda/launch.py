"""What all binders do at the border of a kernel: dtypes, layout, alignment, places for results, launch geometry."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import cupy
import numpy as np

from ..tape import aside, keep
from .source import FORMATS, THREADS

PACK = 16  # bytes of one vector access
BLOCKS = 2**20  # of the largest grid
FAR = (
    2**31 - BLOCKS * THREADS
)  # from so many elements on, indices need 64 bits: loops count to a stride beyond their last element


def takes(*arrays: Any) -> bool:
    """Whether kernels are made for these arrays: one dtype, and one of those in `FORMATS`."""
    dtype = arrays[0].dtype
    return dtype.name in FORMATS and all(a.dtype == dtype for a in arrays[1:])


def packed(array: Any) -> Any:
    """The array as a kernel reads it: in C order, starting at a multiple of 16 bytes. Kernels do not see strides."""
    if not array.flags.c_contiguous:  # 0-d arrays always are: `ascontiguousarray` would make them 1-d
        array = cupy.ascontiguousarray(array)
    return array if array.data.ptr % PACK == 0 else array.copy()


def place_for(out: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """Where a kernel writes: `out` if it can be written to in packs, else new memory."""
    if (
        out is not None
        and out.flags.c_contiguous
        and out.data.ptr % PACK == 0
        and out.shape == shape
        and out.dtype == dtype
    ):
        return out
    return cupy.empty(shape, dtype)


def finished(result: Any, out: Any) -> Any:
    """The result in `out`, where one was asked for."""
    if out is not None and result is not out:
        out[...] = result
        return out
    return result


def index_type(count: int) -> str:
    """The C++ type that counts so many elements; 32 bits where they do, because 64 take more registers and instructions."""
    return "int" if count < FAR else "long long"


def index(count: int, size: int = 0) -> Any:
    """A count as a kernel's argument, of the type that indexes an array of `size` elements (left out: of so many)."""
    return np.int32(count) if (size or count) < FAR else np.int64(count)


def blocks_for(count: int, itemsize: int) -> int:
    """Blocks of `THREADS` threads of which each takes one pack; loops take care of what lies beyond the largest grid."""
    per_block = THREADS * (PACK // itemsize)
    return max(1, min(-(-count // per_block), BLOCKS))


Tickets = dict[tuple[int, int], Any]  # counters by device and stream: launches of one stream do not overlap


_everybodys: Tickets = {}


class _Here(threading.local):
    tickets = _everybodys


_here = _Here()


@contextlib.contextmanager
def tickets_in(owned: Tickets) -> Iterator[Tickets]:
    """Kernels of this thread count in `owned` while the context lasts, as a graph needs: it may be replayed on any stream."""
    before, _here.tickets = _here.tickets, owned
    try:
        yield owned
    finally:
        _here.tickets = before


def tickets(count: int) -> Any:
    """At least `count` counters, all zero, for kernels whose last block finishes the work; each kernel leaves them at zero."""
    key = cupy.cuda.Device().id, cupy.cuda.get_current_stream().ptr
    counters = _here.tickets.get(key)
    if counters is None or counters.size < count:
        keep(counters)
        with aside():
            counters = _here.tickets[key] = cupy.zeros(max(count, 1024), np.uint32)
    return counters


def multiprocessors() -> int:
    """How many blocks the current device works on side by side, at least."""
    return cupy.cuda.Device().attributes["MultiProcessorCount"]
