"""Sums of the columns of a matrix: one launch, one pass, the same bits in every run."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from .rowwise import SIZES, arithmetic
from .source import FORMATS, THREADS, Kernel, every_kernel, kernel

ACROSS = 32  # threads that share a row of a block, in column_sums.cuh
BLOCKS_PER_PROCESSOR = 4  # enough to hide their reads, few partial sums
PARTIAL = 200  # bytes that a block reads of a column, at least, where there are many rows: its sum is then less than 5 % of them
INDEX_TYPES = ("int", "long long")
SUMS = "A* partials, T* sums, unsigned int* tickets, I rows, I columns"
LOOPS = {
    "column_sums": f"const T* x, {SUMS}, int accumulate",
    "scaled_column_sums": f"const T* x, const T* dy, T* scaled, {SUMS}, I inner, int accumulate",
}


def columns_at_once(columns: int, itemsize: int) -> int:
    """Columns that a thread takes at a time: a pack of 16 bytes where that divides the rows."""
    pack = 16 // itemsize
    return pack if columns % pack == 0 else 1


def grid(rows: int, columns: int, itemsize: int) -> tuple[int, int]:
    """(stripes of columns, parts of the rows): the blocks of a kernel of column_sums.cuh."""
    from . import launch

    taken = columns_at_once(columns, itemsize)
    stripes = -(-columns // (ACROSS * taken))
    down = THREADS // min(ACROSS, columns // taken)
    wanted = -(-BLOCKS_PER_PROCESSOR * launch.multiprocessors() // stripes)
    return stripes, max(1, min(-(-rows // down), wanted, max(rows * itemsize // PARTIAL, wanted // 4)))


def places(blocks: tuple[int, int], columns: int, dtype: Any) -> tuple[Any, Any]:
    """Partial sums and tickets."""
    import cupy

    from . import launch

    return cupy.empty((blocks[1], columns), arithmetic(dtype)), launch.tickets(blocks[0])


def column_sums(x: Any, *, out: Any = None, accumulate: bool = False) -> Any:
    """The sums of the columns of x (rows, columns), in `out` or added to it if there is one."""
    return _summed(x, None, out, accumulate)[0]


def scaled_column_sums(x: Any, dy: Any, *, out: Any = None, accumulate: bool = False) -> tuple[Any, Any]:
    """The same of x dy, and x dy. dy: one number, or one for each row or element."""
    return _summed(x, dy, out, accumulate)


def sum_of_rows(x: Any, axes: int, keepdims: bool, out: Any) -> Any:
    """The sum over the first `axes` axes of an array in C order; of another it would copy the array first, so it is not taken."""
    from . import launch

    if not launch.takes(x) or not x.flags.c_contiguous:
        return NotImplemented
    left = x.shape[axes:]
    sums = column_sums(x.reshape(math.prod(x.shape[:axes]), math.prod(left)))
    return launch.finished(sums.reshape((1,) * axes + left if keepdims else left), out)


def _summed(x: Any, dy: Any, out: Any, accumulate: bool) -> tuple[Any, Any]:
    import cupy

    from . import launch

    rows, columns = x.shape
    scaled = None if dy is None else cupy.empty(x.shape, x.dtype)
    if not x.size:
        if out is None:
            out = cupy.zeros(columns, x.dtype)
        elif not accumulate:
            out.fill(0)
        return out, scaled
    sums = out if _reaches(out, x) else cupy.empty(columns, x.dtype)
    blocks = grid(rows, columns, x.itemsize)
    partials, tickets = places(blocks, columns, x.dtype)
    sizes = launch.index(rows, x.size), launch.index(columns, x.size)
    add, x = np.int32(accumulate and sums is out), launch.packed(x)
    index, taken = launch.index_type(x.size), columns_at_once(columns, x.itemsize)
    if scaled is None:
        arguments: tuple = (x, partials, sums, tickets, *sizes, add)
        name = "column_sums"
    else:
        inner = launch.index(x.size // dy.size, x.size)
        arguments = (x, launch.packed(dy), scaled, partials, sums, tickets, *sizes, inner, add)
        name = "scaled_column_sums"
    _kernel(name, x.dtype.name, index, taken)(blocks, (THREADS,), arguments)
    if out is not None and sums is not out:
        if accumulate:
            out += sums
        else:
            out[...] = sums
        sums = out
    return sums, scaled


def _reaches(out: Any, x: Any) -> bool:
    """Whether the kernel can write there: element after element, in x's dtype."""
    return out is not None and out.dtype == x.dtype and out.shape == x.shape[1:] and out.flags.c_contiguous


@functools.cache
def _kernel(loop: str, dtype: str, index: str, taken: int) -> Kernel:
    computing = "double" if dtype == "float64" else "float"
    types = f"typedef {FORMATS[dtype][0]} T;\ntypedef {computing} A;\ntypedef {index} I;"
    names = ", ".join(parameter.split()[-1] for parameter in LOOPS[loop].split(", "))
    name = f"{loop}_{dtype}_{index}_{taken}".replace(" ", "_")
    return kernel("column_sums.cu", name, LOOPS[loop], f"{loop}<T, I, A, {taken}>({names});", (dtype,), THREADS, types)


def _kernels(loop: str, packs: bool) -> Iterator[Kernel]:
    for dtype, size in SIZES.items():
        for index in INDEX_TYPES:
            yield _kernel(loop, dtype, index, 16 // size if packs else 1)


every_kernel(lambda: _kernels("scaled_column_sums", True))
every_kernel(lambda: _kernels("scaled_column_sums", False), streaming=False)
every_kernel(lambda: [*_kernels("column_sums", True), *_kernels("column_sums", False)], streaming=False)
