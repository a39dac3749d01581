"""Tables of flat memory on the device, and the norm of what they hold.

A launch over segments reads from a table where they lie. Tables, options and step counts reach the device as arguments of a small launch,
and only when they differ from what is there: that needs no copy, nothing waits, and a recorded launch can be replayed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..tape import aside, keep, tape
from .source import FORMATS, THREADS, Kernel, every_kernel, kernel

PACK = 16  # bytes of one vector access
CHUNK = THREADS * 4 * PACK  # bytes of each array that a block takes at a time
NORM_BLOCKS = 1024  # at most: enough for every GPU, and the same on all of them, so that the order of the sum is too
WORDS = 960  # of 4 bytes, that one launch carries

# As `Segment` in kernels/segments.cuh: addresses, numbers of elements, the row of the options, whether all addresses are packs'.
SEGMENT = np.dtype(
    {
        "names": ["parameter", "gradient", "state", "average", "size", "first", "options", "packs"],
        "formats": ["u8", "u8", "3u8", "u8", "i8", "i4", "i4", "i4"],
        "itemsize": 72,
    }
)


def arithmetic(dtype: Any) -> np.dtype:
    """The dtype that kernels compute in: float64's own, else float32."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def address(array: Any) -> int:
    """Where a flat array begins, or 0 for none."""
    return 0 if array is None else array.data.ptr


class Mirror:
    """An array on the host whose bytes the device has too, as 4-byte words: `update` sends what has changed."""

    def __init__(self) -> None:
        self.memory: Any = None
        self.words = np.empty(0, np.uint32)

    def update(self, host: np.ndarray) -> None:
        """Makes the device's bytes those of `host`."""
        import cupy

        words = np.ascontiguousarray(host).view(np.uint32).reshape(-1)
        if words.size != self.words.size:
            if self.memory is None or self.memory.size < words.size:
                self.memory = cupy.empty(words.size, np.uint32)
            first, stop = 0, words.size
        else:
            changed = np.flatnonzero(words != self.words)
            if not changed.size:
                return
            first, stop = int(changed[0]), int(changed[-1]) + 1
        self.words = words.copy()
        for start in range(first, stop, WORDS):
            count = min(WORDS, stop - start)
            sent = np.zeros(WORDS, np.uint32)
            sent[:count] = words[start : start + count]
            to = self.memory[start : start + count]
            _receive()((-(-count // THREADS),), (THREADS,), (sent.view(f"V{4 * WORDS}"), to, np.int32(count)))


class SegmentTable:
    """Segments of one dtype, on the device."""

    def __init__(self, dtype: Any):
        self.dtype = np.dtype(dtype)
        self.mirror = Mirror()
        self.count = self.chunks = 0
        self.partials: Any = None

    def load(self, rows: np.ndarray) -> None:
        """Takes these segments (of dtype SEGMENT), for which it works out `first` and `packs`."""
        chunks = -(-rows["size"] * self.dtype.itemsize // CHUNK)
        rows["first"] = np.cumsum(chunks) - chunks
        addresses = rows["parameter"] | rows["gradient"] | rows["average"]
        for k in range(3):
            addresses = addresses | rows["state"][:, k]
        rows["packs"] = addresses % PACK == 0
        self.count, self.chunks = len(rows), int(chunks.sum())
        self.mirror.update(rows)

    def arguments(self) -> tuple[Any, ...]:
        """What every kernel over segments gets first."""
        return None, self.mirror.memory, np.int32(self.count), np.int32(self.chunks)

    def norm(self, out: Any = None) -> Any:
        """The Euclidean norm of all gradients, as a 0-d array."""
        import cupy

        from .launch import tickets

        result = cupy.empty((), arithmetic(self.dtype)) if out is None else out
        blocks = min(self.chunks, NORM_BLOCKS)
        if not blocks:
            result.fill(0)
            return result
        if self.partials is None:  # kept: a recorded launch writes here again
            self.partials = cupy.empty(NORM_BLOCKS, result.dtype)
        _norm(self.dtype.name)((blocks,), (THREADS,), (*self.arguments(), self.partials, result, tickets(1)))
        return result

    def clip(self, norm: Any, max_norm: float) -> None:
        """Multiplies all gradients by min(1, max_norm / (norm + 1e-6))."""
        from .launch import multiprocessors

        if self.chunks:
            blocks = min(self.chunks, 16 * multiprocessors())
            limit = norm.dtype.type(max_norm)
            _clip(self.dtype.name)((blocks,), (THREADS,), (*self.arguments(), norm, limit))


# --- Gradients as they come -----------------------------------------------------------------------------------------


def norm_all(arrays: Sequence[Any], norm_type: float = 2.0) -> Any:
    """The norm of all arrays as one vector, as a 0-d array: for the Euclidean norm of one dtype one launch."""
    from .. import _norm as rule

    table = _table_for(arrays) if norm_type == 2 else None
    return rule.norm_all(_cupy(), arrays, norm_type) if table is None else table.norm()


def clip_all(arrays: Sequence[Any], norm: Any, max_norm: float) -> None:
    """Multiplies all arrays by min(1, max_norm / (norm + 1e-6)), in place: for one dtype one launch."""
    from .. import _norm as rule

    table = _table_for(arrays)
    if table is None or norm.dtype != arithmetic(table.dtype):
        rule.clip_all(_cupy(), arrays, norm, max_norm)
    else:
        table.clip(norm, max_norm)


def _cupy() -> Any:
    import cupy

    return cupy


def _table_for(arrays: Sequence[Any]) -> SegmentTable | None:
    """A table of these arrays, or None where no kernel takes them."""
    from .launch import takes

    if not takes(*arrays) or not all(a.flags.c_contiguous for a in arrays):
        return None
    key = arrays[0].device.id, arrays[0].dtype.name, tuple((a.data.ptr, a.size) for a in arrays)
    return _table(*key) if tape.recorder is None else keep(_table.__wrapped__(*key))


@functools.lru_cache(maxsize=64)  # gradients lie where they lay a step before
def _table(device: int, dtype: str, places: tuple[tuple[int, int], ...]) -> SegmentTable:
    table = SegmentTable(dtype)
    rows = np.zeros(len(places), SEGMENT)
    rows["gradient"], rows["size"] = zip(*places)
    with aside():
        table.load(rows)
    return table


# --- Kernels --------------------------------------------------------------------------------------------------------

SEGMENTS = "char* origin, const Segment* segments, int count, int chunks"
HERE = "{origin, segments, count, chunks}"


def types(dtype: str) -> str:
    """Typedefs for kernels over segments of a dtype."""
    return f"typedef {FORMATS[dtype][0]} T;\ntypedef Arithmetic<T>::type A;"


def _receive() -> Kernel:
    return kernel(
        "segments.cuh", "receive_words", "Words sent, unsigned int* to, int count", "receive(sent, to, count);", ()
    )


def _norm(dtype: str) -> Kernel:
    parameters = f"{SEGMENTS}, A* partials, A* norm, unsigned int* ticket"
    body = f"norm_of<T, A>({HERE}, partials, norm, ticket);"
    return kernel("norm.cu", f"norm_{dtype}", parameters, body, (dtype,), THREADS, types(dtype))


def _clip(dtype: str) -> Kernel:
    body = f"clip_to<T, A>({HERE}, norm, max_norm);"
    return kernel(
        "norm.cu", f"clip_{dtype}", f"{SEGMENTS}, const A* norm, A max_norm", body, (dtype,), THREADS, types(dtype)
    )


@every_kernel
def _() -> Iterator[Kernel]:
    return map(_clip, FORMATS)


@every_kernel(streaming=False)  # they store next to nothing
def _() -> Iterator[Kernel]:
    yield _receive()
    yield from map(_norm, FORMATS)
