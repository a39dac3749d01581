"""Choosing elements by place: `x[index]`, take, sort, and what puts gradients back where they came from.

An index is split in two: its arrays are inputs of the op, and the rest is an option that can be compared and hashed: a tuple
of integers, None, Ellipsis, (start, stop, step) for slices, and `ARRAY` where the next array belongs.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from .._op import op
from .._tensor import Tensor, get_default_dtype
from ..device import backend_of, device_of, is_array
from ..errors import BoundsError, DtypeError, OptionError, ShapeError
from ..testing import Draw, ErrorSample, Sample
from .shape import at_axis, normal_axis

ARRAY = "array"


def as_index(name: str, x: Any, index: Any) -> Any:
    """Integers or booleans as an array where x is; a Tensor as it is."""
    if not isinstance(index, Tensor) and not is_array(index):
        index = np.asarray(index)
        if not index.size:
            index = index.astype(np.int64)  # an empty list has no dtype of its own
    if index.dtype.kind not in "iub":
        raise DtypeError(f"{name}: expected integers or booleans as indices, got {index.dtype} {index.shape}")
    if isinstance(index, np.ndarray):
        array = x.data if isinstance(x, Tensor) else x
        if is_array(array):
            index = backend_of(array).asarray(index, device_of(array))
    return index


def split_index(name: str, x: Any, index: Any) -> tuple[tuple, tuple]:
    """An index as (its arrays, the rest)."""
    arrays, rest = [], []
    for item in index if isinstance(index, tuple) else (index,):
        if item is None or item is Ellipsis:
            rest.append(item)
        elif isinstance(item, slice):
            bounds = (item.start, item.stop, item.step)
            rest.append(tuple(b if b is None else operator.index(b) for b in bounds))
        elif isinstance(item, (int, np.integer)) and not isinstance(item, bool):
            rest.append(int(item))
        else:
            arrays.append(as_index(name, x, item))
            rest.append(ARRAY)
    if not arrays and Ellipsis not in rest:
        rest.append(Ellipsis)  # NumPy then makes a 0-d view of what would be a scalar
    return tuple(arrays), tuple(rest)


def joined_index(arrays: tuple, rest: tuple) -> tuple:
    """The index that `split_index` took apart."""
    waiting = iter(arrays)
    return tuple(slice(*i) if isinstance(i, tuple) else next(waiting) if i == ARRAY else i for i in rest)


# --- x[index] -------------------------------------------------------------------------------------------------------


def _getitem_samples(draw: Draw):
    whole = (None, None, None)
    i = np.array([2, 0, 2])
    yield Sample(draw.normal(3), index=(1, ...))
    yield Sample(draw.normal(), index=(None, ...))
    yield Sample(draw.normal(3, 4), index=((None, None, -1), (1, 3, None), ...))
    yield Sample(draw.normal(2, 3, 4), index=(..., None, -1))
    yield Sample(draw.normal(0, 3), index=(whole, 1, ...))
    yield Sample(draw.normal(3, 4), i, index=(ARRAY,))
    yield Sample(draw.normal(3, 4), i, np.array([[1], [-1]]), index=(ARRAY, ARRAY))
    yield Sample(draw.normal(2, 3, 4), i, index=(whole, ARRAY, None, (1, None, 2)))
    yield Sample(draw.normal(4, 2, 3), i, i, index=(ARRAY, 1, ARRAY))
    yield Sample(draw.normal(3, 4, 2), np.array([True, False, True]), index=(ARRAY, ..., 0))
    yield Sample(draw.normal(2, 3), np.array([[True, False, True], [False, False, True]]), index=(ARRAY,))
    yield Sample(draw.normal(3, 4), np.zeros(0, np.int64), index=(ARRAY,))


def _getitem_errors(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), index=(2, ...), error=BoundsError, match=r"getitem: .*2.*\(2, 3\)")
    yield ErrorSample(draw.normal(2, 3), index=(0, 0, 0, ...), error=BoundsError, match=r"getitem: .*\(2, 3\)")


def _getitem_spelling(x: Any, index: Any) -> tuple[tuple, dict]:
    arrays, rest = split_index("getitem", x, index)
    return (x, *arrays), {"index": rest}


@op(samples=_getitem_samples, errors=_getitem_errors, spelling=_getitem_spelling, method="__getitem__", view=True)
def getitem(xp, x, *indices, index):
    """y = x[index]: integers, slices, None and Ellipsis give a view; arrays of integers or booleans, among them, a copy.

    Shapes: as NumPy's. The gradients of an element that was taken several times add up. Raises: BoundsError, DtypeError.
    """
    return x[joined_index(indices, index)]


@getitem.grad("x")
def _(xp, dy, x_shape, *indices, index):
    return xp.index_add(x_shape, joined_index(indices, index), dy)


def _index_add_samples(draw: Draw):
    i = np.array([2, 0, 2])
    yield Sample(draw.normal(), shape=(3,), index=(1, ...))
    yield Sample(draw.normal(3, 2), shape=(3, 4), index=((None, None, -1), (1, 3, None), ...))
    yield Sample(draw.normal(3, 4), i, shape=(3, 4), index=(ARRAY,))
    yield Sample(draw.normal(2, 3), i, np.array([[1], [-1]]), shape=(3, 4), index=(ARRAY, ARRAY))
    yield Sample(draw.normal(2, 4), np.array([True, False, True]), shape=(3, 4), index=(ARRAY,))
    yield Sample(draw.normal(0, 4), np.zeros(0, np.int64), shape=(3, 4), index=(ARRAY,))


def _index_add_errors(draw: Draw):
    yield ErrorSample(draw.normal(2), np.array([0, 3]), shape=(3,), index=(ARRAY,), error=BoundsError, match="index_add: ")
    yield ErrorSample(draw.normal(4), np.array([0, 1]), shape=(3,), index=(ARRAY,), error=ShapeError, match="index_add: ")


def _index_add_spelling(shape: tuple[int, ...], index: Any, values: Any) -> tuple[tuple, dict]:
    arrays, rest = split_index("index_add", values, index)
    return (values, *arrays), {"shape": shape, "index": rest}


@op(samples=_index_add_samples, errors=_index_add_errors, spelling=_index_add_spelling)
def index_add(xp, values, *indices, shape, index):
    """Zeros of `shape` with y[index] += values; positions that occur several times add up. Called `index_add(shape, index, values)`.

    Shapes: values as y[index]. Raises: BoundsError, ShapeError.
    """
    return xp.index_add(shape, joined_index(indices, index), values)


@index_add.grad("values")
def _(xp, dy, *indices, index):
    return getitem(xp, dy, *indices, index=index)
