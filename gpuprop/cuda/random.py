"""Random numbers by kernels: the words of `_philox.py`, and what `ops/random.py` makes of them, each in one launch.

Key and base are arguments of the launch, the base by its place on the device: nothing is stored, nothing waits.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from .source import FORMATS, INTEGERS, Kernel, every_kernel, format_of, kernel

FILE = "random.cu"
KEY = "const Word* base, Word seed, Word offset"
FLOATS = ("float16", "float32", "float64")


def philox(base: Any, seed: int, offset: int, count: int) -> Any:
    """The words of `_philox.words`."""
    return _filled("Words", base, seed, offset, (count,), np.dtype(np.uint64))


def uniform(base: Any, *, shape: tuple[int, ...], dtype: np.dtype, seed: int, offset: int, out: Any = None) -> Any:
    """The numbers of `random_uniform`."""
    if dtype.name not in FLOATS:
        return NotImplemented
    return _filled("Uniform", base, seed, offset, shape, dtype, out)


def normal(base: Any, *, shape: tuple[int, ...], dtype: np.dtype, seed: int, offset: int, out: Any = None) -> Any:
    """The numbers of `random_normal`."""
    if dtype.name not in FLOATS:
        return NotImplemented
    return _filled("Normal", base, seed, offset, shape, dtype, out)


def integers(
    base: Any, *, low: int, high: int, shape: tuple[int, ...], dtype: np.dtype, seed: int, offset: int, out: Any = None
) -> Any:
    """The numbers of `random_integers`."""
    if dtype.name not in INTEGERS or not np.iinfo(dtype).min <= low < high <= np.iinfo(dtype).max + 1:
        return NotImplemented
    members = np.uint64((high - low) % 2**64), np.uint64(low % 2**64)
    return _filled("Integers", base, seed, offset, shape, dtype, out, members)


def permutation(base: Any, n: int, half_bits: int, seed: int, offset: int, out: Any = None) -> Any:
    """Cycle walks over the numbers below 4^half_bits, as `random_permutation` defines them."""
    from . import launch

    y = launch.place_for(out, (n,), np.dtype(np.int64))
    if n:
        arguments = (*_key(base, seed, offset), y, np.uint32(n), np.int32(half_bits))
        _permutation_kernel()((launch.blocks_for(n, y.itemsize),), (launch.THREADS,), arguments)
    return launch.finished(y, out)


def dropout(x: Any, base: Any, threshold: int, scale: float, seed: int, offset: int, out: Any = None) -> Any:
    """y = x * scale where the element's lane is below the threshold (from 0 to 2^32), else x * 0."""
    from . import launch

    if not launch.takes(x):
        return NotImplemented
    x = launch.packed(x)
    y = launch.place_for(out, x.shape, x.dtype)
    if y.size:
        function = _dropout_kernel(y.dtype.name, launch.index_type(y.size))
        real = np.float64 if y.dtype == np.float64 else np.float32
        arguments = (x, *_key(base, seed, offset), y, launch.index(y.size), np.uint64(threshold), real(scale))
        function((_blocks(y.size, 4),), (launch.THREADS,), arguments)
    return launch.finished(y, out)


def _filled(
    maker: str, base: Any, seed: int, offset: int, shape: Any, dtype: Any, out: Any = None, members: tuple = ()
) -> Any:
    """An array of the numbers that a maker of `random.cu` makes."""
    from . import launch

    y = launch.place_for(out, shape, dtype)
    if y.size:
        function = _fill_kernel(maker, dtype.name, launch.index_type(y.size))
        of_lanes = maker in ("Uniform", "Normal") and dtype.itemsize < 8
        arguments = (*_key(base, seed, offset), y, launch.index(y.size), *members)
        function((_blocks(y.size, 4 if of_lanes else 2),), (launch.THREADS,), arguments)
    return launch.finished(y, out)


def _key(base: Any, seed: int, offset: int) -> tuple:
    return base, np.uint64(seed), np.uint64(offset)


def _blocks(count: int, per_half: int) -> int:
    """Blocks of threads of which each computes one block of the stream: two halves, of so many numbers each."""
    from . import launch

    return launch.blocks_for(-(-count // per_half), launch.PACK // 2)


# --- Kernels --------------------------------------------------------------------------------------------------------


@functools.cache
def _fill_kernel(maker: str, dtype: str, index: str) -> Kernel:
    members = ("range", "low") if maker == "Integers" else ()
    made = maker if maker == "Words" else f"{maker}<T>"
    types = f"typedef {format_of(dtype)} T;\ntypedef {index} I;"
    parameters = ", ".join([f"{KEY}, T* y, I n", *(f"Word {member}" for member in members)])
    body = f"fill<T, I>(base, seed, offset, y, n, {made}{{{', '.join(members)}}});"
    return kernel(FILE, _name("random", maker, dtype, index), parameters, body, (dtype,), types=types)


@functools.cache
def _dropout_kernel(dtype: str, index: str) -> Kernel:
    scale = "double" if dtype == "float64" else "float"
    types = f"typedef {FORMATS[dtype][0]} T;\ntypedef {index} I;\ntypedef {scale} A;"
    parameters = f"const T* x, {KEY}, T* y, I n, Word threshold, A scale"
    body = "dropout<T, I, A>(x, base, seed, offset, y, n, threshold, scale);"
    return kernel(FILE, _name("dropout", dtype, index), parameters, body, (dtype,), types=types)


def _permutation_kernel() -> Kernel:
    body = "permutation(base, seed, offset, y, n, half_bits);"
    return kernel(FILE, "random_permutation", f"{KEY}, long long* y, Lane n, int half_bits", body, ())


def _name(*parts: str) -> str:
    return "_".join(parts).replace(" ", "_").lower()


@every_kernel(streaming=False)  # nothing is read
def _() -> Iterator[Kernel]:
    yield _permutation_kernel()
    for index in ("int", "long long"):
        yield _fill_kernel("Words", "uint64", index)
        for dtype in FLOATS:
            yield _fill_kernel("Uniform", dtype, index)
            yield _fill_kernel("Normal", dtype, index)
        for dtype in INTEGERS:
            yield _fill_kernel("Integers", dtype, index)
        for dtype in ("float16", "bfloat16"):  # four elements at a time, as many as a word and its neighbour have lanes
            yield _dropout_kernel(dtype, index)


@every_kernel
def _() -> Iterator[Kernel]:
    for index in ("int", "long long"):
        for dtype in ("float32", "float64"):
            yield _dropout_kernel(dtype, index)
