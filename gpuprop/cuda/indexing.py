"""Rows by index: added to in the order of the indices, and gathered into a batch."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from .source import FORMATS, THREADS, Kernel, every_kernel, format_of, kernel

FILE = "indexing.cu"
# Each block of index_add reads every index, from L2. With 8 blocks per multiprocessor, as many as fit side by side, 100,000 indices on an
# H100 are 0.8 GB, about 0.2 ms (computed, not measured). Sorting would read less, but takes several launches and cannot be captured.
BLOCKS_PER_PROCESSOR = 8


# --- Adding ---------------------------------------------------------------------------------------------------------


def index_add(shape: tuple[int, ...], index: tuple, values: Any) -> Any:
    """Zeros of `shape` with `values` added at `index`; repeated positions add up, in the order of `numpy.add.at`."""
    from . import generic

    if any(_has_kind(item, "iub") for item in index) and values.dtype.name in FORMATS:
        return _added_in_order(shape, index, values)
    # Integers add up to the same in any order, so they may go by atomics; and without arrays no place is named twice.
    return generic.index_add(shape, index, values)


def _added_in_order(shape: tuple[int, ...], index: tuple, values: Any) -> Any:
    import cupy

    from . import launch
    from .backend import flag_outside, report_outside_shape

    rows, axes = _rows(shape, index)
    height, width = math.prod(shape[:axes]), math.prod(shape[axes:])
    values = launch.packed(cupy.broadcast_to(values, rows.shape + shape[axes:]))
    sums = np.float64 if values.dtype == np.float64 else np.float32  # those of 16-bit numbers are rounded once
    y = cupy.empty(shape, sums)
    if not y.size:
        report_outside_shape("index_add", shape, index)
    else:
        columns = min(width, THREADS)
        strips = -(-width // columns)
        tile = -(-height // min(height, -(-BLOCKS_PER_PROCESSOR * launch.multiprocessors() // strips)))
        largest = max(y.size, values.size, rows.size)
        sizes = [launch.index(largest).dtype.type(n) for n in (rows.size, height, width, tile)]
        function = _index_add_kernel(values.dtype.name, launch.index_type(largest))
        flag = flag_outside("index_add", height)
        arguments = (launch.packed(rows), values, y, *sizes, np.int32(columns), flag)
        function((-(-height // tile) * strips,), (THREADS,), arguments)
    return y.astype(values.dtype, copy=False)


def _rows(shape: tuple[int, ...], index: tuple) -> tuple[Any, int]:
    """An index as numbers of rows (int64), and how many leading axes of `shape` these number; a row is all axes behind.

    A mask has as many numbers as it has true values, for which CuPy waits.
    """
    import cupy

    from .backend import report_outside_shape

    while index and (index[-1] is Ellipsis or (isinstance(index[-1], slice) and index[-1] == slice(None))):
        index = index[:-1]
    if any(item is Ellipsis for item in index):
        axes = len(shape)  # what the Ellipsis stands for lies before the last array
    else:
        axes = sum(0 if item is None else item.ndim if _has_kind(item, "b") else 1 for item in index)
    if len(index) == 1 and shape and _has_kind(index[0], "iu"):
        return index[0].astype(np.int64, copy=False), axes
    report_outside_shape("index_add", shape, index)  # before CuPy wraps them
    return cupy.arange(math.prod(shape[:axes])).reshape(shape[:axes])[index], axes


def _has_kind(item: Any, kinds: str) -> bool:
    return hasattr(item, "dtype") and item.dtype.kind in kinds


# --- Gathering ------------------------------------------------------------------------------------------------------


def gather_rows(
    x: Any, indices: Any, *, scale: float = 1.0, shift: float = 0.0, dtype: Any = None, out: Any = None
) -> Any:
    """Rows of any dtype as they are; or of uint8 as floating numbers, scaled and shifted."""
    from . import launch
    from .backend import flag_outside

    dtype = x.dtype if dtype is None else np.dtype(dtype)
    plain = dtype == x.dtype and scale == 1 and shift == 0 and dtype.itemsize <= 8
    if not (plain or (x.dtype == np.uint8 and dtype.name in FORMATS)) or not x.ndim or not x.flags.c_contiguous:
        return NotImplemented  # x, a whole data set, is not copied to be packed
    y = launch.place_for(out, indices.shape + x.shape[1:], dtype)
    if not y.size or not x.size:
        return NotImplemented
    rows = launch.packed(indices.astype(np.int64, copy=False))
    height, columns = x.shape[0], x.size // x.shape[0]
    size = launch.PACK // dtype.itemsize
    if columns % size or x.data.ptr % launch.PACK:
        size = 1
    lanes = min(32, 1 << (columns // size - 1).bit_length())
    largest = max(x.size, y.size)
    sizes = [launch.index(largest).dtype.type(n) for n in (rows.size, height, columns)]
    function = _gather_kernel(dtype.itemsize if plain else dtype.name, size, launch.index_type(largest))
    real = np.float64 if dtype == np.float64 else np.float32
    members = () if plain else (real(scale), real(shift))
    blocks = max(1, min(-(-rows.size * lanes // THREADS), 2**20))
    flag = flag_outside("gather_rows", height)
    function((blocks,), (THREADS,), (x, rows, y, *sizes, np.int32(lanes), flag, *members))
    return launch.finished(y, out)


# --- Kernels --------------------------------------------------------------------------------------------------------


@functools.cache
def _index_add_kernel(dtype: str, index: str) -> Kernel:
    types = f"typedef {FORMATS[dtype][0]} T;\ntypedef {_arithmetic(dtype)} A;\ntypedef {index} I;"
    parameters = (
        "const long long* rows, const T* values, A* y, I count, I height, I width, I tile, int columns, int* outside"
    )
    body = "index_add<T, A, I>(rows, values, y, count, height, width, tile, columns, outside);"
    return kernel(FILE, _name("index_add", dtype, index), parameters, body, (dtype,), THREADS, types)


@functools.cache
def _gather_kernel(target: str | int, size: int, index: str) -> Kernel:
    """From uint8 to a dtype; or of elements of so many bytes as they are."""
    plain = isinstance(target, int)
    dtype = f"uint{8 * int(target)}" if plain else str(target)
    source, functor = (dtype, "AsItIs") if plain else ("uint8", "Scaled<T, A>")
    members = () if plain else ("scale", "shift")
    types = f"typedef {format_of(source)} S;\ntypedef {format_of(dtype)} T;\ntypedef {index} I;\ntypedef {_arithmetic(dtype)} A;"
    parameters = "const S* x, const long long* rows, T* y, I count, I height, I columns, int lanes, int* outside"
    body = f"gather_rows<{size}, S, T, I>(x, rows, y, count, height, columns, lanes, outside, {functor}{{{', '.join(members)}}});"
    name = _name("gather_rows", source, dtype, index, str(size))
    return kernel(FILE, name, parameters + "".join(f", A {member}" for member in members), body, (dtype,), 0, types)


def _arithmetic(dtype: str) -> str:
    return "double" if dtype == "float64" else "float"


def _name(*parts: str) -> str:
    return "_".join(parts).replace(" ", "_").lower()


@every_kernel(streaming=False)
def _() -> Iterator[Kernel]:
    for index in ("int", "long long"):
        for dtype in FORMATS:
            yield _index_add_kernel(dtype, index)
            yield _gather_kernel(dtype, 1, index)
            yield _gather_kernel(dtype, 16 // (8 if dtype == "float64" else 4 if dtype == "float32" else 2), index)
        for itemsize in (1, 2, 4, 8):
            yield _gather_kernel(itemsize, 1, index)


@every_kernel
def _() -> Iterator[Kernel]:
    for index in ("int", "long long"):
        for itemsize in (1, 2, 4, 8):
            yield _gather_kernel(itemsize, 16 // itemsize, index)
