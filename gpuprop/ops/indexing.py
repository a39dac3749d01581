"""Choosing elements by place: `x[index]`, take, sort, and what puts gradients back where they came from.

An index is split in two: its arrays are inputs of the op, and the rest is an option that can be compared and hashed: a
tuple of integers, None, Ellipsis, (start, stop, step) for slices, and `ARRAY` where the next array belongs.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._op import op
from .._tensor import Tensor, get_default_dtype
from ..cuda import indexing as kernels
from ..device import backend_of, device_of, is_array
from ..errors import BoundsError, DtypeError, OptionError, ShapeError
from ..testing import Draw, ErrorSample, Sample
from .shape import at_axis

ARRAY = "array"


def as_index(name: str, x: Any, index: Any, kinds: str = "iub") -> Any:
    """Integers (and booleans) as an array where x is; a Tensor as it is. Raises: DtypeError."""
    if not isinstance(index, Tensor) and not is_array(index):
        index = np.asarray(index)
        if not index.size:
            index = index.astype(np.int64)  # an empty list has no dtype of its own
    if index.dtype.kind not in kinds:
        expected = "integers or booleans" if "b" in kinds else "integers"
        raise DtypeError(f"{name}: expected {expected} as indices, got {index.dtype} {index.shape}")
    if isinstance(index, np.ndarray):
        array = x.data if isinstance(x, Tensor) else x
        if is_array(array):
            index = backend_of(array).asarray(index, device_of(array))
    return index


def split_index(name: str, x: Any, index: Any) -> tuple[tuple, tuple]:
    """An index as (its arrays, the rest)."""
    arrays: list[Any] = []
    rest: list[Any] = []
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


def _without_masks(arrays: Sequence) -> bool:
    """Whether nobody has to count what a mask chooses."""
    return all(index.dtype != np.bool_ for index in arrays[1:])


@op(
    samples=_getitem_samples,
    errors=_getitem_errors,
    spelling=_getitem_spelling,
    method="__getitem__",
    view=True,
    capturable=_without_masks,
)
def getitem(xp, x, *indices, index):
    """y = x[index]: a view by integers, slices, None and Ellipsis, a copy by arrays of integers or booleans.

    Shapes: as NumPy's. The gradients of an element that was taken several times add up.
    Raises: BoundsError, DtypeError.
    """
    return xp.getitem(x, joined_index(indices, index))


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
    yield ErrorSample(
        draw.normal(2), np.array([0, 3]), shape=(3,), index=(ARRAY,), error=BoundsError, match="index_add: "
    )
    yield ErrorSample(
        draw.normal(4), np.array([0, 1]), shape=(3,), index=(ARRAY,), error=ShapeError, match="index_add: "
    )


def _index_add_spelling(shape: tuple[int, ...], index: Any, values: Any) -> tuple[tuple, dict]:
    arrays, rest = split_index("index_add", values, index)
    return (values, *arrays), {"shape": shape, "index": rest}


@op(samples=_index_add_samples, errors=_index_add_errors, spelling=_index_add_spelling, capturable=_without_masks)
def index_add(xp, values, *indices, shape, index):
    """Zeros of `shape` with y[index] += values; what is added to a position several times adds up.

    Called `index_add(shape, index, values)`. Shapes: values as y[index]. Raises: BoundsError, ShapeError.
    """
    return xp.index_add(shape, joined_index(indices, index), values)


@index_add.grad("values")
def _(xp, dy, *indices, index):
    return getitem(xp, dy, *indices, index=index)


# --- take -----------------------------------------------------------------------------------------------------------


def _integers_apart(name: str) -> Any:
    """The indices may be a list, a number, or an array on the host."""

    def spelling(x: Any, indices: Any, *args: Any, **given: Any) -> tuple[tuple, dict]:
        return (x, as_index(name, x, indices, kinds="iu"), *args), given

    return spelling


TAKE_MODES = ("raise", "wrap", "clip")


def _take_samples(draw: Draw):
    i = np.array([2, 0, 2, -1])
    yield Sample(draw.normal(3), i)
    yield Sample(draw.normal(3, 4), np.array(5))
    yield Sample(draw.normal(3, 4), i, axis=0)
    yield Sample(draw.normal(2, 3, 4), i.reshape(2, 2), axis=1)
    yield Sample(draw.normal(2, 3), i, axis=-1)
    yield Sample(draw.normal(2, 3), np.zeros(0, np.int64), axis=0)
    yield Sample(draw.normal(2, 3), i * 4, axis=1, mode="wrap")
    yield Sample(draw.normal(2, 3), i * 4, mode="clip")


def _take_errors(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), np.array([0, 2]), axis=0, error=BoundsError, match="take: ")
    yield ErrorSample(
        draw.normal(2, 3), np.array([0.5]), axis=0, error=DtypeError, match="take: expected integers.*float64"
    )
    yield ErrorSample(draw.normal(2, 3), np.array([0]), mode="mirror", error=OptionError, match="take: .*'mirror'")


@op(samples=_take_samples, errors=_take_errors, spelling=_integers_apart("take"), method=True)
def take(xp, x, indices, *, axis=None, mode="raise"):
    """The slices of x at these places of an axis; x is flattened without `axis`.

    mode: what indices out of range do: "raise", "wrap" around, or "clip" to the first and the last.
    Shapes: x (2, 3, 4), indices (5,) int, axis=1 -> y (2, 5, 4). Raises: BoundsError, DtypeError, OptionError.
    """
    return xp.take(x, _within(xp, indices, x.shape, axis, mode), axis=axis)


def _within(xp, indices: Any, shape: tuple[int, ...], axis: int | None, mode: str) -> Any:
    """The indices as `mode` has them."""
    if mode not in TAKE_MODES:
        raise OptionError(f"take: expected mode to be one of {', '.join(TAKE_MODES)}, got {mode!r}")
    if mode == "raise":
        return indices
    count = math.prod(shape) if axis is None else shape[axis]
    return xp.mod(indices, count) if mode == "wrap" else xp.clip(indices, 0, count - 1)


@take.grad("x")
def _(xp, dy, x_shape, indices, *, axis, mode):
    indices = _within(xp, indices, x_shape, axis, mode)
    if axis is None:
        return xp.reshape(xp.index_add((math.prod(x_shape),), (indices,), dy), x_shape)
    return xp.index_add(x_shape, at_axis(axis % len(x_shape), indices)[:-1], dy)


def _take_along_axis_samples(draw: Draw):
    yield Sample(draw.normal(4), np.array([1, 1, -1]))
    yield Sample(draw.normal(2, 3), draw.integers(0, 3, 2, 5))
    yield Sample(draw.normal(4, 3), draw.integers(0, 4, 2, 3), axis=0)
    yield Sample(draw.normal(2, 1, 4), draw.integers(0, 4, 1, 3, 2), axis=2)
    yield Sample(draw.normal(2, 3), draw.integers(0, 6, 4), axis=None)
    yield Sample(draw.normal(2, 3), np.zeros((2, 0), np.int64))


def _take_along_axis_errors(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), np.array([[3], [0]]), error=BoundsError, match="take_along_axis: ")
    yield ErrorSample(draw.normal(2, 3), np.array([0]), error=ShapeError, match=r"take_along_axis: .*\(2, 3\).*\(1,\)")


@op(
    samples=_take_along_axis_samples,
    errors=_take_along_axis_errors,
    spelling=_integers_apart("take_along_axis"),
    method=True,
)
def take_along_axis(xp, x, indices, *, axis=-1):
    """y[..., i, ...] = x[..., indices[..., i, ...], ...] along an axis: what `argsort` and `argmax` point at.

    Shapes: x (2, 3), indices (2, 5) int -> y (2, 5); the other axes broadcast. x is flattened with `axis=None`.
    Raises: BoundsError, ShapeError.
    """
    return xp.take_along_axis(x, indices, axis=axis)


@take_along_axis.grad("x")
def _(xp, dy, x_shape, indices, *, axis):
    shape = (math.prod(x_shape),) if axis is None else x_shape
    axis = 0 if axis is None else axis % len(shape)
    lengths = [tuple(n if i == k else 1 for i in range(len(shape))) for k, n in enumerate(shape)]
    places = (indices if k == axis else xp.reshape(xp.arange(n), lengths[k]) for k, n in enumerate(shape))
    return xp.reshape(xp.index_add(shape, tuple(places), dy), x_shape)


# --- gather_rows ----------------------------------------------------------------------------------------------------


def _gather_rows_samples(draw: Draw):
    i = np.array([2, 0, 2, -1])
    pixels = draw.integers(0, 256, 3, 5).astype(np.uint8)
    yield Sample(draw.normal(3), i)
    yield Sample(draw.normal(3, 4), i.reshape(2, 2))
    yield Sample(draw.normal(3, 2, 5), i, scale=-0.5, shift=2.0)
    yield Sample(draw.normal(3, 4), np.zeros(0, np.int64))
    yield Sample(draw.integers(-5, 5, 3), i, order=0)
    yield Sample(pixels, i, order=0)
    yield Sample(pixels, i, order=0, scale=1 / 255, shift=-0.5, dtype=np.dtype(np.float32))


def _gather_rows_errors(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), np.array([0, 2]), error=BoundsError, match="gather_rows: ")
    yield ErrorSample(draw.normal(2, 3), np.array([0.5]), error=DtypeError, match="gather_rows: expected integers")


@op(samples=_gather_rows_samples, errors=_gather_rows_errors, spelling=_integers_apart("gather_rows"))
def gather_rows(xp, x, indices, *, scale=1.0, shift=0.0, dtype=None):
    """Rows of a data set as a batch: y_i = x[indices_i] * scale + shift, in `dtype` (that of x if None).

    On a GPU also uint8 becomes floating in the same pass: pixels may stay one byte each until they are used.
    Shapes: x (N, ...), indices (B,) int -> y (B, ...). Raises: BoundsError, DtypeError.
    """
    rows = xp.asarray(xp.take(x, indices, axis=0), dtype=dtype)
    rows = rows if scale == 1 else rows * scale
    return rows if shift == 0 else rows + shift


@gather_rows.grad("x")
def _(xp, dy, x_shape, indices, *, scale):
    return xp.index_add(x_shape, (indices,), dy if scale == 1 else dy * scale)


gather_rows.cuda = kernels.gather_rows


# --- sort -----------------------------------------------------------------------------------------------------------


def _sort_samples(draw: Draw):
    yield Sample(draw.apart(5))
    yield Sample(draw.apart(2, 3))
    yield Sample(draw.apart(4, 3, 2), axis=0)
    yield Sample(draw.apart(2, 3), axis=None)
    yield Sample(draw.apart(0, 3))


def _stably(*args: Any, kind: Any = None, stable: Any = None, **given: Any) -> tuple[tuple, dict]:
    """NumPy's `kind` and `stable` ask for no more than what is always done: equal elements keep their order."""
    return args, given


def _sort_errors(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), axis=2, error=BoundsError, match="sort: ")


@op(samples=_sort_samples, errors=_sort_errors, spelling=_stably, method=True)
def sort(xp, x, *, axis=-1):
    """Rising along an axis, NaN last; flattened with `axis=None`. Raises: BoundsError."""
    return xp.sort(x, axis=axis)


@sort.grad("x")
def _(xp, dy, x, *, axis):
    order = argsort(xp, x, axis=axis)
    back = argsort(xp, order, axis=-1 if axis is None else axis)  # the inverse permutation
    return xp.reshape(xp.take_along_axis(dy, back, axis=-1 if axis is None else axis), x.shape)


@op(samples=_sort_samples, errors=_sort_errors, spelling=_stably, method=True, smooth=False)
def argsort(xp, x, *, axis=-1):
    """The indices that sort x along an axis, NaN last; equal elements keep their order.

    Shapes: x (2, 3) -> y (2, 3) int64. Raises: BoundsError.
    """
    return xp.argsort(x, axis=axis, kind="stable")


# --- one_hot --------------------------------------------------------------------------------------------------------


def _one_hot_samples(draw: Draw):
    yield Sample(draw.integers(0, 3), num_classes=3)
    yield Sample(draw.integers(0, 3, 5), num_classes=3)
    yield Sample(draw.integers(0, 4, 2, 3), num_classes=4, dtype=np.dtype(np.int64))
    yield Sample(draw.integers(0, 3, 0), num_classes=3)


def _one_hot_errors(draw: Draw):
    yield ErrorSample(np.array([0, 3]), num_classes=3, error=BoundsError, match="one_hot: expected labels from 0 to 2")
    yield ErrorSample(np.array([0, -1]), num_classes=3, error=BoundsError, match="one_hot: expected labels from 0 to 2")
    yield ErrorSample(np.array([0.0]), num_classes=3, error=DtypeError, match="one_hot: expected integers, got float64")


@op(samples=_one_hot_samples, errors=_one_hot_errors, smooth=False)
def one_hot(xp, labels, *, num_classes, dtype=None):
    """y[..., c] = 1 where labels[...] = c, else 0.

    Shapes: labels (...) int -> y (..., num_classes) in `dtype`, the default dtype if None.
    Raises: BoundsError, DtypeError.
    """
    if labels.dtype.kind not in "iu":
        raise DtypeError(f"one_hot: expected integers, got {labels.dtype} {labels.shape}")
    outside = (labels < 0) | (labels >= num_classes)
    xp.report_if(outside, f"one_hot: expected labels from 0 to {num_classes - 1}, got one outside")
    chosen = xp.expand_dims(labels, -1) == xp.arange(num_classes)
    return xp.array(chosen, dtype=get_default_dtype() if dtype is None else dtype)
