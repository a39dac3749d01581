"""Products of vectors, matrices and tensors."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from .._op import op
from ..errors import ShapeError
from ..testing import Draw, ErrorSample, Sample


def rows(xp, x: Any) -> Any:
    """All axes but the last as one."""
    return x if x.ndim == 2 else xp.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


# --- matmul ---------------------------------------------------------------------------------------------------------


def _matmul_samples(draw: Draw):
    yield Sample(draw.normal(3), draw.normal(3))
    yield Sample(draw.normal(2, 3), draw.normal(3, 4))
    yield Sample(draw.normal(2, 3), draw.normal(3))
    yield Sample(draw.normal(3), draw.normal(3, 2))
    yield Sample(draw.normal(5, 2, 3), draw.normal(3, 4))
    yield Sample(draw.normal(2, 3), draw.normal(5, 3, 4))
    yield Sample(draw.normal(5, 1, 2, 3), draw.normal(4, 3, 2))
    yield Sample(draw.normal(5, 2, 3), draw.normal(3))
    yield Sample(draw.normal(3), draw.normal(5, 3, 2))
    yield Sample(draw.normal(0, 3), draw.normal(3, 2))
    yield Sample(draw.normal(2, 0), draw.normal(0, 3))


def _matmul_errors(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), draw.normal(4, 2), error=ShapeError, match=r"matmul: .*\(2, 3\).*\(4, 2\)")
    yield ErrorSample(draw.normal(), draw.normal(3), error=ShapeError, match=r"matmul: ")
    yield ErrorSample(draw.normal(2, 2, 3), draw.normal(3, 3, 2), error=ShapeError, match=r"matmul: ")


@op(samples=_matmul_samples, errors=_matmul_errors, operator="matmul", method=True)
def matmul(xp, a, b):
    """Matrix product: y = a @ b.

    Shapes: a (..., m, k), b (..., k, n) -> y (..., m, n), leading axes broadcast; a vector is a row on the left, a column on the
    right, and that axis is then missing in y. Raises: ShapeError.
    """
    return xp.matmul(a, b)


def _with_matrix_axes(xp, dy: Any, a_ndim: int, b_ndim: int) -> Any:
    """The cotangent as that of a product of matrices: with the axes that vectors had left out."""
    if b_ndim == 1:
        dy = xp.expand_dims(dy, -1)
    return xp.expand_dims(dy, -2) if a_ndim == 1 else dy


@matmul.grad("a")
def _(xp, dy, a_shape, b):
    dy = _with_matrix_axes(xp, dy, len(a_shape), b.ndim)
    if b.ndim == 1:
        da = dy * b
    else:
        da = xp.matmul(dy, xp.swapaxes(b, -1, -2))
    return xp.squeeze(da, axis=-2) if len(a_shape) == 1 else da


@matmul.grad("b")
def _(xp, dy, a, b_shape):
    dy = _with_matrix_axes(xp, dy, a.ndim, len(b_shape))
    if a.ndim == 1:
        db = xp.expand_dims(a, -1) * dy
    elif len(b_shape) <= 2:
        db = xp.matmul(xp.transpose(rows(xp, a)), rows(xp, dy))  # one product sums over the batch as well
    else:
        db = xp.matmul(xp.swapaxes(a, -1, -2), dy)
    return xp.squeeze(db, axis=-1) if len(b_shape) == 1 else db


# --- linear ---------------------------------------------------------------------------------------------------------


def _linear_samples(draw: Draw):
    for shape in [(3,), (2, 3), (2, 4, 3), (0, 3)]:
        yield Sample(draw.normal(*shape), draw.normal(5, 3))
        yield Sample(draw.normal(*shape), draw.normal(5, 3), draw.normal(5))
    yield Sample(draw.normal(2, 0), draw.normal(3, 0), draw.normal(3))


def _linear_errors(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), draw.normal(3, 5), error=ShapeError, match=r"linear: .*\(2, 3\).*\(3, 5\)")
    yield ErrorSample(draw.normal(2, 3), draw.normal(3), error=ShapeError, match=r"linear: .*\(2, 3\).*\(3,\)")
    yield ErrorSample(draw.normal(2, 3), draw.normal(5, 3), draw.normal(1), error=ShapeError, match=r"linear: .*\(1,\)")
    yield ErrorSample(draw.normal(), draw.normal(5, 3), error=ShapeError, match=r"linear: .*\(\)")


def _check_linear(x: Any, weight: Any, bias: Any) -> None:
    w = weight.shape
    if len(w) != 2 or x.shape[-1:] != w[1:] or (bias is not None and bias.shape != w[:1]):
        came = ", ".join(str(a.shape) for a in (x, weight, bias) if a is not None)
        raise ShapeError(
            f"linear: expected x (..., in), weight (out, in), bias (out,), got {came}; weight's rows are the outputs, its columns the inputs"
        )


@op(samples=_linear_samples, errors=_linear_errors)
def linear(xp, x, weight, bias=None):
    """Affine map: y = x @ weight.T + bias.

    Shapes: x (..., in), weight (out, in), bias (out,) or None -> y (..., out). Raises: ShapeError.
    """
    _check_linear(x, weight, bias)
    y = xp.matmul(x, xp.transpose(weight))
    return y if bias is None else y + bias


@linear.grad("x")
def _(xp, dy, weight):
    return xp.matmul(dy, weight)


@linear.grad("weight")
def _(xp, dy, x):
    if x.ndim == 1:
        return xp.expand_dims(dy, 1) * x
    return xp.matmul(xp.transpose(rows(xp, dy)), rows(xp, x))


@linear.grad("bias")
def _(xp, dy):
    return dy  # the walk sums over the rows


@linear.cpu
def _(x, weight, bias=None, *, out=None):
    if x.dtype is not weight.dtype or (bias is not None and bias.dtype is not x.dtype):
        return NotImplemented
    _check_linear(x, weight, bias)
    y = np.matmul(x, weight.T, out=out)
    if bias is not None:
        np.add(y, bias, out=y)
    return y


@linear.cpu.grad("x")
def _(dy, weight):
    return np.matmul(dy, weight)


@linear.cpu.grad("weight")
def _(dy, x, *, out=None, accumulate=False):
    dy, x = np.atleast_2d(dy), np.atleast_2d(x)
    product = np.matmul(rows(np, dy).T, rows(np, x), out=None if accumulate else out)
    if accumulate:
        out += product
        return out
    return product


@functools.lru_cache(maxsize=64)
def _ones(count: int, dtype: Any) -> np.ndarray:
    return np.ones(count, dtype)


@linear.cpu.grad("bias")
def _(dy, *, out=None, accumulate=False):
    # A product sums the rows faster than `sum` does.
    dy = rows(np, np.atleast_2d(dy))
    total = np.matmul(_ones(len(dy), dy.dtype), dy, out=None if accumulate else out)
    if accumulate:
        out += total
        return out
    return total
