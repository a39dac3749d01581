"""y = a x + b y in one pass over memory on a CPU, by NumPy's BLAS; NumPy's own functions take three.

OpenBLAS, which NumPy's wheels bring, has it besides the standard's functions. Its `axpy`, y = a x + y, is not used: on processors
with AVX2 it rounds the last elements of an array differently from the others, so that results depend on how parameters lie.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_info

NAMES = ("scipy_cblas_{}axpby64_", "cblas_{}axpby64_", "scipy_cblas_{}axpby", "cblas_{}axpby")
NUMBERS = {"f": ("s", ctypes.c_float), "d": ("d", ctypes.c_double)}  # dtype -> letter in BLAS, type in C
ONE = ctypes.c_int64(1)
MOST_PLACES = 4096


def axpby(xp: Any, a: float, x: Any, b: float, y: Any, spare: Any) -> None:
    """y = a x + b y, in place; in one pass for contiguous arrays of one dtype. spare: an array to compute in, perhaps x itself."""
    if type(y) is np.ndarray and a and b:  # BLAS does not look at what is multiplied by 0, be it no number
        place, other = _places.get(id(y)), _places.get(id(x))
        if place is None or place.array() is not y:
            place = _place(y)
        if other is None or other.array() is not x:
            other = _place(x)
        if place.function is not None and other.function is place.function:
            place.function(place.size, a, other.start, ONE, b, place.start, ONE)
            return
    xp.multiply(x, a, spare)
    if b != 1:
        xp.multiply(y, b, y)
    xp.add(y, spare, y)


class Place(NamedTuple):
    """An array as C sees it."""

    function: Callable | None  # of BLAS for its dtype, if it is contiguous
    size: Any
    start: Any
    array: weakref.ref


_places: dict[int, Place] = {}  # by id, because to ask an array for its address takes 0.8 us, as long as the whole call


def _place(array: np.ndarray) -> Place:
    """Notes where an array lies."""
    if len(_places) >= MOST_PLACES:
        _places.clear()
    usable = array.dtype.isnative and array.flags.c_contiguous
    function = _functions().get(array.dtype.char) if usable else None
    start = ctypes.c_void_p(array.ctypes.data)
    place = _places[id(array)] = Place(function, ctypes.c_int64(array.size), start, weakref.ref(array))
    return place


@functools.cache
def _functions() -> dict[str, Callable]:
    """By dtype, what was found."""
    libraries = [info["filepath"] for info in threadpool_info() if info["internal_api"] == "openblas"]
    libraries.sort(key=lambda path: "numpy" not in path)  # SciPy's wheels bring another one, with threads of its own
    found: dict[str, Callable] = {}
    for path in libraries:
        library = ctypes.CDLL(path)
        for dtype, (letter, number) in NUMBERS.items():
            for name in NAMES:
                function = getattr(library, name.format(letter), None)
                if function is not None and dtype not in found:
                    # Sizes as 64 bits: where a library takes 32, it reads the lower half of a register.
                    size, pointer = ctypes.c_int64, ctypes.c_void_p
                    function.restype, function.argtypes = None, (size, number, pointer, size, number, pointer, size)
                    found[dtype] = function
    return found
