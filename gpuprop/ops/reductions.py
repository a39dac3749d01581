"""Reductions over axes, cumulative sums and products, positions of extremes.

`axis`: None (all axes), an integer, or a tuple of them; negative ones count from the end. `keepdims` keeps the reduced
axes, with length 1. PyTorch's `dim`, `keepdim` and `correction` are understood too.
"""

from __future__ import annotations

import math

import numpy as np

from .._op import op
from .._tensor import install
from ..cuda.rowwise import LogSumExp
from ..errors import BoundsError, OptionError, ShapeError
from ..tape import is_floating
from ..testing import Draw, ErrorSample, Sample
from .arithmetic import quotient

# --- Axes -----------------------------------------------------------------------------------------------------------


def reduced_axes(shape, axis):
    """The reduced axes as a tuple of positions from the start."""
    if axis is None:
        return tuple(range(len(shape)))
    return tuple(a % len(shape) for a in (axis if isinstance(axis, tuple) else (axis,))) if shape else ()


def reduced_size(shape, axis):
    """How many elements are reduced to one."""
    return math.prod(shape[a] for a in reduced_axes(shape, axis))


def expanded(xp, dy, shape, axis, keepdims):
    """A reduction's result or cotangent with the reduced axes back, of length 1, so that it broadcasts to `shape`."""
    if keepdims or axis is None or not shape:
        return dy
    axes = reduced_axes(shape, axis)
    return xp.reshape(dy, tuple(1 if i in axes else n for i, n in enumerate(shape)))


def _axes_of(draw, **options):
    """Samples with every kind of axis, of elements that are nowhere equal."""
    yield Sample(draw.apart(), **options)
    yield Sample(draw.apart(2, 3), **options)
    yield Sample(draw.apart(2, 3), keepdims=True, **options)
    yield Sample(draw.apart(2, 3, 4), axis=1, **options)
    yield Sample(draw.apart(2, 3, 4), axis=(0, -1), keepdims=True, **options)
    yield Sample(draw.apart(3, 1, 4), axis=(-1, 1), **options)
    yield Sample(draw.apart(0, 3), axis=-1, **options)


def _axes(draw: Draw):
    yield from _axes_of(draw)
    yield Sample(draw.normal(2, 3, 4), axis=())


def _axes_and_empty(draw: Draw):
    yield from _axes(draw)
    yield Sample(draw.normal(0, 3), axis=0)
    yield Sample(draw.normal(2, 0))


def _bad_axes(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), axis=2, error=BoundsError, match="axis 2 is out of bounds")


def _bad_axes_or_empty(draw: Draw):
    yield from _bad_axes(draw)
    yield ErrorSample(draw.normal(0, 3), axis=0, error=ShapeError, match="zero-size")


# --- Sums -----------------------------------------------------------------------------------------------------------


def _sums(draw: Draw):
    yield from _axes_and_empty(draw)
    yield Sample(draw.normal(2, 3), axis=0, dtype=np.dtype(np.float64))


@op(samples=_sums, errors=_bad_axes, method=True)
def sum(xp, x, *, axis=None, dtype=None, keepdims=False):
    """Sum over axes: y = sum_i x_i. Bools and integers give int64, unless `dtype` says otherwise."""
    return xp.sum(x, axis=axis, dtype=dtype, keepdims=keepdims)


@sum.grad("x")
def _(xp, dy, x_shape, *, axis, keepdims):
    return xp.broadcast_to(expanded(xp, dy, x_shape, axis, keepdims), x_shape)


sum.cpu = np.add.reduce


@sum.cuda
def _(x, *, axis=None, dtype=None, keepdims=False, out=None):
    """Over the first axes alone, where others are left: the columns of a matrix."""
    axes = reduced_axes(x.shape, axis)
    if not 0 < len(axes) < x.ndim or sorted(axes) != list(range(len(axes))) or (dtype or x.dtype) != x.dtype:
        return NotImplemented
    from ..cuda.column_sums import sum_of_rows

    return sum_of_rows(x, len(axes), keepdims, out)


def _means(draw: Draw):
    yield from _axes(draw)
    yield Sample(draw.normal(2, 3), axis=0, dtype=np.dtype(np.float64))


@op(samples=_means, errors=_bad_axes, method=True)
def mean(xp, x, *, axis=None, dtype=None, keepdims=False):
    """Mean over axes: y = sum_i x_i / n. Bools and integers give float64, unless `dtype` says otherwise."""
    return xp.mean(x, axis=axis, dtype=dtype, keepdims=keepdims)


@mean.grad("x")
def _(xp, dy, x_shape, *, axis, keepdims):
    share = 1 / (reduced_size(x_shape, axis) or 1)  # a number: as a float16, a count may be infinite
    return xp.broadcast_to(expanded(xp, dy * share, x_shape, axis, keepdims), x_shape)


def _with_ddof(draw: Draw):
    yield from _axes_of(draw)
    yield Sample(draw.apart(3, 4), axis=0, ddof=1)
    yield Sample(draw.apart(3, 4), ddof=1.5, keepdims=True)


def _scale(count, ddof):
    return 1 / (count - ddof) if count > ddof else math.nan


@op(samples=_with_ddof, errors=_bad_axes, method=True)
def var(xp, x, *, axis=None, dtype=None, ddof=0, keepdims=False):
    """Variance over axes: y = sum_i (x_i - mean)^2 / (n - ddof). As in NumPy, `ddof` is 0 unless given.

    PyTorch calls it `correction`, and takes 1.
    """
    return xp.var(x, axis=axis, dtype=dtype, ddof=ddof, keepdims=keepdims)


@var.grad("x")
def _(xp, dy, x, *, axis, ddof, keepdims):
    deviation = x - xp.mean(x, axis=axis, keepdims=True)
    scale = 2 * _scale(reduced_size(x.shape, axis), ddof)
    return expanded(xp, dy * scale, x.shape, axis, keepdims) * deviation


def _spreads(draw: Draw):
    for sample in _with_ddof(draw):
        alone = reduced_size(sample.inputs[0].shape, sample.options.get("axis")) <= 1
        sample.order = 0 if alone else 2  # constantly 0: a kink for finite differences
        yield sample


@op(samples=_spreads, errors=_bad_axes, method=True)
def std(xp, x, *, axis=None, dtype=None, ddof=0, keepdims=False):
    """Standard deviation over axes: y = sqrt(sum_i (x_i - mean)^2 / (n - ddof)). `ddof` is as for `var`.

    Where all elements are equal, the gradient is 0.
    """
    return xp.std(x, axis=axis, dtype=dtype, ddof=ddof, keepdims=keepdims)


@std.grad("x")
def _(xp, dy, x, y, *, axis, ddof, keepdims):
    deviation = x - xp.mean(x, axis=axis, keepdims=True)
    slope = quotient(xp, dy * _scale(reduced_size(x.shape, axis), ddof), y)
    return expanded(xp, slope, x.shape, axis, keepdims) * deviation


@op(samples=_axes, errors=_bad_axes_or_empty, method=True)
def logsumexp(xp, x, *, axis=None, keepdims=False):
    """Logarithm of a sum of exponentials, without overflow: y = log(sum_i exp(x_i)).

    Where every x_i is -inf, the gradient is 0.
    """
    largest = xp.max(x, axis=axis, keepdims=True)
    shift = xp.where(xp.isfinite(largest), largest, 0)
    total = xp.sum(xp.exp(x - shift), axis=axis, keepdims=keepdims)
    # The sum is at least 1, unless every x_i is -inf.
    return xp.log(xp.where(total == 0, 1, total)) + xp.reshape(largest, total.shape)


@logsumexp.grad("x")
def _(xp, dy, x, y, *, axis, keepdims):
    y = expanded(xp, xp.where(y == -math.inf, 0, y), x.shape, axis, keepdims)
    shares = xp.exp(x - y)  # but for the rounding of y, which matters where it is large: divided by their sum
    shares = quotient(xp, shares, xp.sum(shares, axis=axis, keepdims=True))
    return expanded(xp, dy, x.shape, axis, keepdims) * shares


logsumexp.cuda = LogSumExp()


# --- Norms ----------------------------------------------------------------------------------------------------------


def _norms(draw: Draw):
    yield from _axes_norms(draw)
    yield Sample(draw.apart(5), ord=1)
    yield Sample(draw.apart(2, 5), ord=math.inf, axis=1)
    yield Sample(draw.apart(2, 5), ord=-math.inf, axis=0, keepdims=True)
    yield Sample(draw.apart(2, 5), ord=3, axis=-1)
    yield Sample(draw.apart(2, 5), ord=1.5, axis=(1,))
    yield Sample(draw.apart(2, 3, 4), ord="fro", axis=(0, 2))
    yield Sample(draw.apart(2, 3), ord="fro")


def _axes_norms(draw: Draw):
    yield Sample(draw.apart(3))
    yield Sample(draw.apart(2, 3, 4))
    yield Sample(draw.apart(2, 3), keepdims=True)
    yield Sample(draw.apart(2, 3, 4), axis=1)
    yield Sample(draw.apart(2, 3, 4), axis=(0, -1), keepdims=True)
    yield Sample(draw.apart(0, 3), axis=-1)
    yield Sample(draw.apart())


def _bad_norms(draw: Draw):
    yield from _bad_axes(draw)
    yield ErrorSample(draw.normal(2, 3), ord=1, error=OptionError, match="ravel")
    yield ErrorSample(draw.normal(2, 3), ord=math.inf, axis=(0, 1), error=OptionError, match="ravel")
    yield ErrorSample(draw.normal(3), ord="fro", error=OptionError, match="two axes")
    yield ErrorSample(draw.normal(3), ord=0, error=OptionError, match="ord")
    yield ErrorSample(draw.normal(3), ord="nuclear", error=OptionError, match="ord")


def _exponent(shape, ord, axis):
    """The p of the vector norm that is meant. Matrix norms that are none, unlike Frobenius's, are refused."""
    axes = reduced_axes(shape, axis)
    if ord is None or (ord == "fro" and len(axes) == 2):
        return 2
    if ord == "fro":
        raise OptionError(f"norm: expected two axes for ord='fro', got {len(axes)}; leave ord out")
    if isinstance(ord, str) or not ord:
        raise OptionError(f"norm: expected ord to be None, 'fro', inf, -inf or a number other than 0, got {ord!r}")
    if len(axes) != 1:
        raise OptionError(
            f"norm: expected one axis for ord={ord!r}, got {len(axes)}, which would be another norm of matrices; "
            "ravel() the tensor for the norm of its elements"
        )
    return ord


@op(samples=_norms, errors=_bad_norms, method=True)
def norm(xp, x, *, ord=None, axis=None, keepdims=False):
    """Norm of vectors: y = (sum_i |x_i|^p)^(1/p), as `numpy.linalg.norm` has it. At the zero vector the gradient is 0.

    ord: p, inf (the largest |x_i|; ties share the gradient), -inf (the smallest), None (p = 2, over any axes) or "fro"
    (the same over two).
    """
    p = _exponent(x.shape, ord, axis)
    if not is_floating(x.dtype):
        x = x * 1.0  # squares of small integers overflow
    if p == 2:
        return xp.sqrt(xp.sum(x * x, axis=axis, keepdims=keepdims))
    size = xp.absolute(x)
    if p == 1:
        return xp.sum(size, axis=axis, keepdims=keepdims)
    if math.isinf(p):
        return (xp.max if p > 0 else xp.min)(size, axis=axis, keepdims=keepdims)
    return xp.power(xp.sum(xp.power(size, p), axis=axis, keepdims=keepdims), 1 / p)


@norm.grad("x")
def _(xp, dy, x, y, *, ord, axis, keepdims):
    p = _exponent(x.shape, ord, axis)
    dy, y = expanded(xp, dy, x.shape, axis, keepdims), expanded(xp, y, x.shape, axis, keepdims)
    if p == 2:
        return dy * quotient(xp, x, y)
    if p == 1:
        return dy * xp.sign(x)
    size = xp.absolute(x)
    if math.isinf(p):
        return dy * xp.sign(x) * _shares(xp, size, y, axis)
    return dy * xp.sign(x) * xp.power(quotient(xp, size, y), p - 1)


# --- Extremes -------------------------------------------------------------------------------------------------------


def _shares(xp, x, y, axis):
    """Each element's share in an extreme y: those equal to it share evenly."""
    hit = x == y
    return hit / xp.sum(hit, axis=axis, dtype=y.dtype, keepdims=True)


@op(samples=_axes, errors=_bad_axes_or_empty, method=True)
def max(xp, x, *, axis=None, keepdims=False):
    """Largest element over axes: y = max_i x_i, NaN where there is one. Equal maxima share the gradient evenly."""
    return xp.max(x, axis=axis, keepdims=keepdims)


@max.grad("x")
def _(xp, dy, x, y, *, axis, keepdims):
    y = expanded(xp, y, x.shape, axis, keepdims)
    return expanded(xp, dy, x.shape, axis, keepdims) * _shares(xp, x, y, axis)


max.cpu = np.maximum.reduce


@op(samples=_axes, errors=_bad_axes_or_empty, method=True)
def min(xp, x, *, axis=None, keepdims=False):
    """Smallest element over axes: y = min_i x_i, NaN where there is one. Equal minima share the gradient evenly."""
    return xp.min(x, axis=axis, keepdims=keepdims)


@min.grad("x")
def _(xp, dy, x, y, *, axis, keepdims):
    y = expanded(xp, y, x.shape, axis, keepdims)
    return expanded(xp, dy, x.shape, axis, keepdims) * _shares(xp, x, y, axis)


min.cpu = np.minimum.reduce


def _positions(draw: Draw):
    yield Sample(draw.apart())
    yield Sample(draw.apart(2, 3))
    yield Sample(draw.apart(2, 3, 4), axis=1)
    yield Sample(draw.apart(2, 3, 4), axis=-1, keepdims=True)
    yield Sample(draw.integers(0, 2, 4, 5), axis=0)
    yield Sample(draw.normal(0, 3), axis=1)


def _no_position(draw: Draw):
    yield from _bad_axes(draw)
    yield ErrorSample(draw.normal(0, 3), axis=0, error=ShapeError, match="empty")


@op(samples=_positions, errors=_no_position, method=True, smooth=False)
def argmax(xp, x, *, axis=None, keepdims=False):
    """Position of the largest element along one axis, or over all in C order: y = argmax_i x_i (int64).

    At a tie, the first.
    """
    return xp.argmax(x, axis=axis, keepdims=keepdims)


@op(samples=_positions, errors=_no_position, method=True, smooth=False)
def argmin(xp, x, *, axis=None, keepdims=False):
    """Position of the smallest element along one axis, or over all in C order: y = argmin_i x_i (int64).

    At a tie, the first.
    """
    return xp.argmin(x, axis=axis, keepdims=keepdims)


# --- Truth ----------------------------------------------------------------------------------------------------------


def _truths(draw: Draw):
    yield Sample(draw.booleans())
    yield Sample(draw.booleans(2, 3, 4), axis=1)
    yield Sample(draw.integers(0, 2, 2, 3, 2), axis=(0, -1), keepdims=True)
    yield Sample(draw.normal(2, 3))
    yield Sample(draw.booleans(0, 3), axis=0)


@op(samples=_truths, errors=_bad_axes, method=True, smooth=False)
def any(xp, x, *, axis=None, keepdims=False):
    """Whether some element is not 0: y = x_1 or x_2 or ... (bool)."""
    return xp.any(x, axis=axis, keepdims=keepdims)


@op(samples=_truths, errors=_bad_axes, method=True, smooth=False)
def all(xp, x, *, axis=None, keepdims=False):
    """Whether no element is 0: y = x_1 and x_2 and ... (bool)."""
    return xp.all(x, axis=axis, keepdims=keepdims)


@op(samples=_truths, errors=_bad_axes, method=True, smooth=False)
def count_nonzero(xp, x, *, axis=None, keepdims=False):
    """How many elements are not 0 (int64)."""
    return xp.sum(x != 0, axis=axis, keepdims=keepdims)


# --- Products -------------------------------------------------------------------------------------------------------


def _before(xp, x):
    """Products of what stands before each element of the last axis: 1, x_0, x_0 x_1, ..."""
    return xp.concatenate([xp.ones_like(x[..., :1]), xp.cumprod(x[..., :-1], axis=-1)], axis=-1)


def _products(draw: Draw):
    yield from _axes_and_empty(draw)
    yield Sample(np.array([[0.0, 2.0, -3.0], [0.0, 0.0, 1.5], [0.0, 0.0, 0.0], [0.5, 4.0, 1.0]]), axis=1)
    yield Sample(draw.normal(2, 3) * np.array([1.0, 0.0, 1.0]))
    yield Sample(draw.normal(2, 3), dtype=np.dtype(np.float64))


@op(samples=_products, errors=_bad_axes, method=True)
def prod(xp, x, *, axis=None, dtype=None, keepdims=False):
    """Product over axes: y = x_1 x_2 ... Its derivatives are right where elements are 0, too."""
    return xp.prod(x, axis=axis, dtype=dtype, keepdims=keepdims)


@prod.grad("x")
def _(xp, dy, x, *, axis, keepdims):
    # The product of all others, as what stands before times what stands behind: y / x_i fails at 0.
    dy, shape = expanded(xp, dy, x.shape, axis, keepdims), x.shape
    axes = reduced_axes(shape, axis)
    order = [*(i for i in range(x.ndim) if i not in axes), *axes]
    rows = xp.transpose(x, order)
    moved = rows.shape
    rows = xp.reshape(rows, (*moved[: x.ndim - len(axes)], math.prod(moved[x.ndim - len(axes) :])))
    others = _before(xp, rows) * xp.flip(_before(xp, xp.flip(rows, -1)), -1)
    return dy * xp.transpose(xp.reshape(others, moved), [order.index(i) for i in range(x.ndim)])


prod.cpu = np.multiply.reduce


# --- Cumulative -----------------------------------------------------------------------------------------------------


def _lines(draw: Draw):
    yield Sample(draw.normal())
    yield Sample(draw.normal(5))
    yield Sample(draw.normal(2, 3))
    yield Sample(draw.normal(2, 3, 4), axis=1)
    yield Sample(draw.normal(3, 4), axis=-2)
    yield Sample(draw.normal(0, 3), axis=0)
    yield Sample(draw.normal(2, 3), axis=0, dtype=np.dtype(np.float64))


def _reversed_sum(xp, x, axis):
    return xp.flip(xp.cumsum(xp.flip(x, axis), axis=axis), axis)


@op(samples=_lines, errors=_bad_axes, method=True)
def cumsum(xp, x, *, axis=None, dtype=None):
    """Cumulative sum along an axis, or over the elements in C order: y_k = x_1 + ... + x_k."""
    return xp.cumsum(x, axis=axis, dtype=dtype)


@cumsum.grad("x")
def _(xp, dy, x_shape, *, axis):
    return xp.reshape(_reversed_sum(xp, dy, 0 if axis is None else axis), x_shape)


def _lines_with_zeros(draw: Draw):
    yield from _lines(draw)
    yield Sample(np.array([[1.5, 0.0, 2.0, -1.0, 3.0], [0.0, 2.0, 0.0, 1.0, -2.0]]), axis=1)


@op(samples=_lines_with_zeros, errors=_bad_axes, method=True)
def cumprod(xp, x, *, axis=None, dtype=None):
    """Cumulative product along an axis, or over the elements in C order: y_k = x_1 ... x_k.

    Its derivatives are right where elements are 0, too.
    """
    return xp.cumprod(x, axis=axis, dtype=dtype)


@cumprod.grad("x")
def _(xp, dy, x, *, axis):
    # dx_i = (x_1 ... x_(i-1)) s_i, s_i = dy_i + x_(i+1) s_(i+1), because y / x_i fails at 0. It is solved by
    # doubling: after each step, s_i and the factor in front of the next reach twice as far.
    rows = xp.reshape(x, (-1,)) if axis is None else xp.moveaxis(x, axis, -1)
    reached = dy if axis is None else xp.moveaxis(dy, axis, -1)
    factor = xp.concatenate([rows[..., 1:], xp.zeros_like(rows[..., :1])], axis=-1)
    step = 1
    while step < rows.shape[-1]:
        nothing = xp.zeros_like(rows[..., :step])
        reached = reached + factor * xp.concatenate([reached[..., step:], nothing], axis=-1)
        factor = factor * xp.concatenate([factor[..., step:], nothing], axis=-1)
        step *= 2
    dx = _before(xp, rows) * reached
    return xp.reshape(dx, x.shape) if axis is None else xp.moveaxis(dx, -1, axis)


# --- Diagonals ------------------------------------------------------------------------------------------------------


def _matrices(draw: Draw):
    yield Sample(draw.normal(2, 3))
    yield Sample(draw.normal(3, 2), offset=-1)
    yield Sample(draw.normal(2, 3, 4), offset=1, axis1=-1, axis2=0)
    yield Sample(draw.normal(0, 3))
    yield Sample(draw.normal(2, 3), dtype=np.dtype(np.float64))


def _no_matrix(draw: Draw):
    yield ErrorSample(draw.normal(3), error=ShapeError, match=r"\(3,\)")


@op(samples=_matrices, errors=_no_matrix, method=True)
def trace(xp, x, *, offset=0, axis1=0, axis2=1, dtype=None):
    """Sum of a diagonal, `offset` above the main one: y = sum_i x_(i, i + offset).

    Shapes: x (..., n, m) -> y (...), where the last two stand for axis1 and axis2.
    """
    return xp.trace(x, offset=offset, axis1=axis1, axis2=axis2, dtype=dtype)


@trace.grad("x")
def _(xp, dy, x_shape, *, offset, axis1, axis2):
    diagonal = xp.eye(x_shape[axis1], x_shape[axis2], offset, dtype=dy.dtype)
    return xp.moveaxis(xp.reshape(dy, (*dy.shape, 1, 1)) * diagonal, (-2, -1), (axis1, axis2))


# The same methods under their other names.
install(max, method="amax")
install(min, method="amin")
