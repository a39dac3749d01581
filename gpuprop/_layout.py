"""How arrays lie in memory: products and sums of one layout may be rounded unlike those of another."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._trace import owner
from .device import BACKENDS


def memory_of(array: Any) -> Any:
    """What owns the memory that an array shows: for NumPy the array at the root of its views."""
    return owner(array) if isinstance(array, np.ndarray) else array.data.mem


def is_foreign(memory: Any) -> bool:
    """Whether what owns memory got it from elsewhere (another library, a file), so that others may own the same."""
    if isinstance(memory, np.ndarray):
        return memory.base is not None
    return type(memory).__name__ in ("UnownedMemory", "DLPackMemory")  # of CuPy


def span(array: Any) -> tuple[int, int]:
    """The addresses at which an array's memory begins and ends."""
    start = array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr
    if not array.size:
        return start, start
    steps = [stride * (n - 1) for n, stride in zip(array.shape, array.strides)]
    return start + sum(s for s in steps if s < 0), start + sum(s for s in steps if s > 0) + array.itemsize


def layout_of(array: Any) -> tuple:
    """Strides, 0 for axes of one element, where any will do; and whether elements begin at multiples of their size."""
    strides = (stride if size > 1 else 0 for size, stride in zip(array.shape, array.strides))
    return (*strides, is_aligned(array))


def is_aligned(array: Any) -> bool:
    """Whether elements begin at multiples of their size; CuPy's always do."""
    return not isinstance(array, np.ndarray) or array.flags.aligned


def copied_alike(array: Any) -> Any:
    """A copy in the layout of an array, gaps between its elements and repeated ones (stride 0) included."""
    if is_aligned(array) and (array.flags.c_contiguous or array.flags.f_contiguous):
        return array.copy(order="K")
    xp, size = BACKENDS[type(array)].xp, array.itemsize
    steps = [stride * (n - 1) for n, stride in zip(array.shape, array.strides)]
    before = -sum(step for step in steps if step < 0)
    start = -(-before // size) * size + (0 if is_aligned(array) else array.ctypes.data % size)
    memory = xp.empty(start + sum(step for step in steps if step > 0) + size, np.uint8)
    first = memory[start : start + size].view(array.dtype)
    made = xp.lib.stride_tricks.as_strided(first, array.shape, array.strides)
    fill(made, array)
    return made


def fill(buffer: Any, array: Any) -> None:
    """Copies an array into a buffer in its layout; where elements share memory, that is written once."""
    xp = BACKENDS[type(array)].xp
    if not array.flags.c_contiguous and not any(stride % array.itemsize for stride in array.strides):
        span = 1 + sum(abs(stride) * (n - 1) for n, stride in zip(array.shape, array.strides)) // array.itemsize
        if span < array.size:
            buffer, array = _flat(xp, buffer, span), _flat(xp, array, span)
    xp.copyto(buffer, array)


def _flat(xp: Any, array: Any, count: int) -> Any:
    """The first elements of the memory that an array shows, from its lowest address on, as a vector."""
    lowest = array[tuple(slice(-1, None) if stride < 0 else slice(1) for stride in array.strides)]
    return xp.lib.stride_tricks.as_strided(lowest, (count,), (array.itemsize,))
