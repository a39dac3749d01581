"""Products of vectors, matrices and tensors."""

from __future__ import annotations

import functools
import math
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._op import op
from .._tensor import install
from ..errors import ArgumentError, BoundsError, ShapeError
from ..testing import Draw, ErrorSample, Sample
from .shape import normal_axis


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

    Shapes: a (..., m, k), b (..., k, n) -> y (..., m, n), leading axes broadcast; a vector is a row on the left, a
    column on the right, and that axis is then missing in y. Raises: ShapeError.
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
    da = dy * b if b.ndim == 1 else xp.matmul(dy, xp.swapaxes(b, -1, -2))
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


install(matmul, method="mm")


# --- Products of vectors and tensors --------------------------------------------------------------------------------


def _contracted_a(xp, dy: Any, b: Any, a_axes: Sequence[int], b_axes: Sequence[int], a_ndim: int) -> Any:
    """The gradient of a where axes `a_axes` of a and `b_axes` of b were multiplied and summed.

    dy has the other axes of a, then those of b.
    """
    free_a, free_b = _others(a_axes, a_ndim), _others(b_axes, b.ndim)
    da = xp.tensordot(dy, b, axes=(tuple(range(len(free_a), dy.ndim)), free_b))
    pairs = sorted(zip(b_axes, a_axes, strict=True))
    return _placed(xp, da, (*free_a, *(a for _, a in pairs)))


def _contracted_b(xp, dy: Any, a: Any, a_axes: Sequence[int], b_axes: Sequence[int], b_ndim: int) -> Any:
    """The gradient of b, as in `_contracted_a`."""
    free_a, free_b = _others(a_axes, a.ndim), _others(b_axes, b_ndim)
    db = xp.tensordot(a, dy, axes=(free_a, tuple(range(len(free_a)))))
    pairs = sorted(zip(a_axes, b_axes, strict=True))
    return _placed(xp, db, (*(b for _, b in pairs), *free_b))


def _others(axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    return tuple(i for i in range(ndim) if i not in axes)


def _placed(xp, x: Any, places: tuple[int, ...]) -> Any:
    """Axis i of x becomes axis places[i]."""
    return xp.transpose(x, tuple(sorted(range(len(places)), key=places.__getitem__)))


def _dot_samples(draw: Draw):
    yield Sample(draw.normal(3), draw.normal(3))
    yield Sample(draw.normal(), draw.normal(2, 3))
    yield Sample(draw.normal(2, 3), draw.normal())
    yield Sample(draw.normal(2, 3), draw.normal(3, 4))
    yield Sample(draw.normal(2, 3), draw.normal(3))
    yield Sample(draw.normal(4, 2, 3), draw.normal(5, 3, 2))
    yield Sample(draw.normal(0, 3), draw.normal(3, 2))


def _dot_errors(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), draw.normal(2, 3), error=ShapeError, match=r"dot: .*\(2, 3\)")


def _dot_axes(a_ndim: int, b_ndim: int) -> tuple[tuple[int], tuple[int]]:
    return (a_ndim - 1,), (max(b_ndim - 2, 0),)


@op(samples=_dot_samples, errors=_dot_errors, method=True)
def dot(xp, a, b):
    """The last axis of a times the last but one of b (or its only one), summed; a plain product with a 0-d array.

    Shapes: a (..., m, k), b (..., k, n) -> y (..., m, ..., n): unlike matmul's, leading axes do not broadcast.
    Raises: ShapeError.
    """
    return xp.dot(a, b)


@dot.grad("a")
def _(xp, dy, a_shape, b, b_shape):
    if not a_shape or not b_shape:
        return dy * b
    return _contracted_a(xp, dy, b, *_dot_axes(len(a_shape), len(b_shape)), len(a_shape))


@dot.grad("b")
def _(xp, dy, a, a_shape, b_shape):
    if not a_shape or not b_shape:
        return dy * a
    return _contracted_b(xp, dy, a, *_dot_axes(len(a_shape), len(b_shape)), len(b_shape))


def _inner_samples(draw: Draw):
    yield Sample(draw.normal(3), draw.normal(3))
    yield Sample(draw.normal(), draw.normal(2, 3))
    yield Sample(draw.normal(2, 3), draw.normal(4, 3))
    yield Sample(draw.normal(2, 4, 3), draw.normal(3))
    yield Sample(draw.normal(0, 3), draw.normal(2, 3))


def _inner_errors(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), draw.normal(3, 2), error=ShapeError, match=r"inner: .*\(2, 3\).*\(3, 2\)")


@op(samples=_inner_samples, errors=_inner_errors)
def inner(xp, a, b):
    """The last axes of both multiplied and summed. Shapes: a (2, 3), b (4, 3) -> y (2, 4). Raises: ShapeError."""
    return xp.inner(a, b)


@inner.grad("a")
def _(xp, dy, a_shape, b, b_shape):
    if not a_shape or not b_shape:
        return dy * b
    return _contracted_a(xp, dy, b, (len(a_shape) - 1,), (len(b_shape) - 1,), len(a_shape))


@inner.grad("b")
def _(xp, dy, a, a_shape, b_shape):
    if not a_shape or not b_shape:
        return dy * a
    return _contracted_b(xp, dy, a, (len(a_shape) - 1,), (len(b_shape) - 1,), len(b_shape))


def _vdot_samples(draw: Draw):
    yield Sample(draw.normal(), draw.normal())
    yield Sample(draw.normal(3), draw.normal(3))
    yield Sample(draw.normal(2, 3), draw.normal(3, 2))
    yield Sample(draw.normal(0, 3), draw.normal(0))


def _vdot_errors(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), draw.normal(4), error=ShapeError, match=r"vdot: .*\(2, 3\).*\(4,\)")


@op(samples=_vdot_samples, errors=_vdot_errors)
def vdot(xp, a, b):
    """The sum of the products of all elements, both flattened.

    Shapes: a and b with as many elements -> y (). Raises: ShapeError.
    """
    return xp.vdot(a, b)


@vdot.grad("a")
def _(xp, dy, a_shape, b):
    return dy * xp.reshape(b, a_shape)


@vdot.grad("b")
def _(xp, dy, a, b_shape):
    return dy * xp.reshape(a, b_shape)


def _outer_samples(draw: Draw):
    yield Sample(draw.normal(), draw.normal())
    yield Sample(draw.normal(2), draw.normal(3))
    yield Sample(draw.normal(2, 2), draw.normal(1, 3))
    yield Sample(draw.normal(0), draw.normal(3))


@op(samples=_outer_samples, method=True)
def outer(xp, a, b):
    """Every element of a times every one of b, both flattened: y[i, j] = a[i] b[j]. Shapes: (m,), (n,) -> (m, n)."""
    return xp.outer(a, b)


@outer.grad("a")
def _(xp, dy, a_shape, b):
    return xp.reshape(xp.matmul(dy, xp.ravel(b)), a_shape)


@outer.grad("b")
def _(xp, dy, a, b_shape):
    return xp.reshape(xp.matmul(xp.ravel(a), dy), b_shape)


def _tensordot_samples(draw: Draw):
    yield Sample(draw.normal(2, 3, 4), draw.normal(3, 4, 5))
    yield Sample(draw.normal(2, 3), draw.normal(4), axes=0)
    yield Sample(draw.normal(2, 3), draw.normal(4, 3), axes=(1, -1))
    yield Sample(draw.normal(2, 3, 4), draw.normal(4, 5, 2), axes=((0, -1), (2, 0)))
    yield Sample(draw.normal(2, 3), draw.normal(3, 2), axes=((1, 0), (0, 1)))
    yield Sample(draw.normal(), draw.normal(), axes=0)
    yield Sample(draw.normal(0, 3), draw.normal(3, 2), axes=1)


def _tensordot_errors(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), draw.normal(2, 3), error=ShapeError, axes=1, match=r"tensordot: .*\(2, 3\)")
    yield ErrorSample(
        draw.normal(2, 3), draw.normal(2, 3), error=BoundsError, axes=((2,), (0,)), match="tensordot: .*2"
    )
    yield ErrorSample(draw.normal(2, 3), draw.normal(2, 3), error=ShapeError, axes=((0, 1), (0,)), match="tensordot: ")


def _tensordot_axes(axes: Any, a_ndim: int, b_ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if isinstance(axes, int):
        return tuple(range(a_ndim - axes, a_ndim)), tuple(range(axes))
    a_axes, b_axes = ((x,) if isinstance(x, int) else x for x in axes)
    if len(a_axes) != len(b_axes):
        raise ShapeError(f"tensordot: expected as many axes of a as of b, got {a_axes} and {b_axes}")
    a_axes = tuple(normal_axis(i, a_ndim, "tensordot") for i in a_axes)
    return a_axes, tuple(normal_axis(i, b_ndim, "tensordot") for i in b_axes)


@op(samples=_tensordot_samples, errors=_tensordot_errors)
def tensordot(xp, a, b, *, axes=2):
    """Axes of both multiplied and summed: the last `axes` of a with the first of b, or two tuples of axes that pair up.

    Shapes: a (2, 3, 4), b (4, 5, 3), axes ((1, 2), (2, 0)) -> y (2, 5). Raises: ShapeError, BoundsError.
    """
    return xp.tensordot(a, b, axes=_tensordot_axes(axes, a.ndim, b.ndim))


@tensordot.grad("a")
def _(xp, dy, a_shape, b, *, axes):
    return _contracted_a(xp, dy, b, *_tensordot_axes(axes, len(a_shape), b.ndim), len(a_shape))


@tensordot.grad("b")
def _(xp, dy, a, b_shape, *, axes):
    return _contracted_b(xp, dy, a, *_tensordot_axes(axes, a.ndim, len(b_shape)), len(b_shape))


def _kron_samples(draw: Draw):
    yield Sample(draw.normal(), draw.normal(2))
    yield Sample(draw.normal(2, 3), draw.normal(4, 1))
    yield Sample(draw.normal(3), draw.normal(2, 4))
    yield Sample(draw.normal(2, 1, 3), draw.normal(2))
    yield Sample(draw.normal(0, 3), draw.normal(2, 2))


@op(samples=_kron_samples)
def kron(xp, a, b):
    """Kronecker product: blocks a[i, j] * b.

    Shapes: a (m, n), b (p, q) -> y (m p, n q); missing axes in front have length 1.
    """
    return xp.kron(a, b)


def _kron_parts(
    xp, dy: Any, a_shape: tuple[int, ...], b_shape: tuple[int, ...]
) -> tuple[Any, tuple[int, ...], tuple[int, ...]]:
    """dy with an axis of a and one of b in turn, and the shapes that let a and b broadcast against it."""
    ones = (1,) * dy.ndim
    a_full, b_full = (*ones, *a_shape)[-dy.ndim :], (*ones, *b_shape)[-dy.ndim :]
    in_turn = tuple(n for pair in zip(a_full, b_full, strict=True) for n in pair)
    a_spread = tuple(n for size in a_full for n in (size, 1))
    b_spread = tuple(n for size in b_full for n in (1, size))
    return xp.reshape(dy, in_turn), a_spread, b_spread


@kron.grad("a")
def _(xp, dy, a_shape, b, b_shape):
    parts, _, b_spread = _kron_parts(xp, dy, a_shape, b_shape)
    return xp.reshape(xp.sum(parts * xp.reshape(b, b_spread), axis=tuple(range(1, parts.ndim, 2))), a_shape)


@kron.grad("b")
def _(xp, dy, a, a_shape, b_shape):
    parts, a_spread, _ = _kron_parts(xp, dy, a_shape, b_shape)
    return xp.reshape(xp.sum(parts * xp.reshape(a, a_spread), axis=tuple(range(0, parts.ndim, 2))), b_shape)


# --- einsum ---------------------------------------------------------------------------------------------------------


def _einsum_samples(draw: Draw):
    shapes: dict[str, list[tuple[int, ...]]] = {
        "ij,jk->ik": [(2, 3), (3, 4)],
        "ij,kj": [(2, 3), (4, 3)],  # implicit
        "bij , bjk -> bki": [(2, 3, 4), (2, 4, 5)],
        "i,j,k->ikj": [(2,), (3,), (4,)],
        "ij->": [(2, 3)],
        "ijk->j": [(2, 3, 4)],
        "ij->ji": [(2, 3)],
        "ii": [(3, 3)],
        "ii->i": [(3, 3)],
        "iji,j->i": [(2, 3, 2), (3,)],
        "ijj,k->i": [(2, 3, 3), (4,)],  # k occurs in one operand only
        "...ij,...jk->...ik": [(5, 1, 2, 3), (4, 3, 2)],
        "...i,i": [(2, 4, 3), (3,)],
        "i...,...->...i": [(2, 3, 4), (4,)],
        "ij,jk": [(2, 1), (3, 4)],  # an axis of length 1 broadcasts
        ",i->i": [(), (3,)],
        "ij,jk->ki": [(0, 3), (3, 2)],
    }
    for subscripts, operands in shapes.items():
        yield Sample(*(draw.normal(*shape) for shape in operands), subscripts=subscripts)


def _einsum_errors(draw: Draw):
    yield ErrorSample(
        draw.normal(2, 3), draw.normal(2, 3), subscripts="ij,jk", error=ShapeError, match=r"einsum: .*\(2, 3\)"
    )
    yield ErrorSample(draw.normal(2, 3), subscripts="ijk", error=ShapeError, match=r"einsum: .*\(2, 3\)")
    yield ErrorSample(draw.normal(2, 3), subscripts="ij->k", error=ShapeError, match="einsum: ")


def _subscripts_first(*args: Any, **given: Any) -> tuple[tuple, dict]:
    if not args or not isinstance(args[0], str):
        came = type(args[0]).__name__ if args else "nothing"
        raise ArgumentError(f"einsum: expected subscripts first, as in einsum('ij,jk->ik', a, b), got {came}")
    given.pop("optimize", None)  # NumPy's: always done
    return args[1:], {"subscripts": args[0], **given}


def einsum_labels(subscripts: str, ndims: Sequence[int]) -> tuple[list[str], str]:
    """One letter per axis: for each operand, and for the result. Ellipses become letters, aligned at the right."""
    given, arrow, result = subscripts.replace(" ", "").partition("->")
    operands = given.split(",")
    counts = [ndim - len(o) + 3 if "..." in o else 0 for o, ndim in zip(operands, ndims, strict=True)]
    unused = [c for c in string.ascii_letters if c not in subscripts]
    dots = "".join(unused[: max(counts)])
    if not arrow:
        letters = given.replace(",", "").replace(".", "")
        result = "..." + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    labels = [o.replace("...", dots[len(dots) - count :]) for o, count in zip(operands, counts, strict=True)]
    return labels, result.replace("...", dots)


@op(samples=_einsum_samples, errors=_einsum_errors, spelling=_subscripts_first, view=True)
def einsum(xp, *operands, subscripts):
    """Products of elements, summed over letters that the result does not have: `einsum("ij,jk->ik", a, b)` is a @ b.

    Without an arrow the result has the letters that occur once, in alphabetical order. A letter that occurs twice in an
    operand takes the diagonal; `...` stands for axes that broadcast. Raises: ShapeError.
    """
    return xp.einsum(subscripts, *operands, optimize=len(operands) > 1)


@einsum.grad("operands")
def _(xp, dy, *operands, subscripts, wanted):
    labels, result = einsum_labels(subscripts, [x.ndim for x in operands])
    sizes: dict[str, int] = {}
    for letters, x in zip(labels, operands, strict=True):
        for letter, n in zip(letters, x.shape, strict=True):
            sizes[letter] = n if n != 1 else sizes.get(letter, 1)

    def gradient(k: int) -> Any:
        mine, shape = labels[k], dict(zip(labels[k], operands[k].shape, strict=True))
        rest = [labels[i] for i in range(len(operands)) if i != k]
        elsewhere = set("".join([result, *rest]))
        # What was broadcast is summed; what occurs nowhere else is repeated below.
        kept = "".join(c for c in shape if c in elsewhere and shape[c] == sizes[c])
        others = [x for i, x in enumerate(operands) if i != k]
        dx = einsum(xp, dy, *others, subscripts=f"{','.join([result, *rest])}->{kept}")
        found = dict(zip(kept, dx.shape, strict=True))
        dx = xp.broadcast_to(xp.reshape(dx, tuple(found.get(c, 1) for c in shape)), tuple(shape.values()))
        return _onto_diagonals(xp, dx, mine)

    return tuple(gradient(k) if want else None for k, want in enumerate(wanted))


def _onto_diagonals(xp, dx: Any, letters: str) -> Any:
    """An axis for each letter, from one for each different letter: zeros where the places of a repeated one differ."""
    for place, letter in enumerate(letters):
        first = letters.index(letter)
        if first != place:
            n = dx.shape[first]
            dx = xp.expand_dims(dx, place)
            same = xp.reshape(xp.eye(n, dtype=bool), tuple(n if i in (first, place) else 1 for i in range(dx.ndim)))
            dx = xp.where(same, dx, 0)
    return dx


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


def check_linear(x: Any, weight: Any, bias: Any) -> None:
    w = weight.shape
    if len(w) != 2 or x.shape[-1:] != w[1:] or (bias is not None and bias.shape != w[:1]):
        came = ", ".join(str(a.shape) for a in (x, weight, bias) if a is not None)
        raise ShapeError(
            f"linear: expected x (..., in), weight (out, in), bias (out,), got {came}; "
            "a weight has one row per output and one column per input"
        )


@op(samples=_linear_samples, errors=_linear_errors)
def linear(xp, x, weight, bias=None):
    """Affine map: y = x @ weight.T + bias.

    Shapes: x (..., in), weight (out, in), bias (out,) or None -> y (..., out). Raises: ShapeError.
    """
    check_linear(x, weight, bias)
    y = xp.matmul(x, xp.transpose(weight))
    return y if bias is None else y + bias


@linear.grad("x")
def _(xp, dy, weight):
    return xp.matmul(dy, weight)


@linear.grad("weight")
def _(xp, dy, x):
    return xp.matmul(xp.transpose(rows(xp, dy)), rows(xp, x))


@linear.grad("bias")
def _(xp, dy):
    return dy  # the walk sums over the rows


@linear.cpu
def _(x, weight, bias=None, *, out=None):
    if x.dtype is not weight.dtype or (bias is not None and bias.dtype is not x.dtype):
        return NotImplemented
    check_linear(x, weight, bias)
    y = np.empty((*x.shape[:-1], weight.shape[0]), x.dtype, like=x) if out is None else out
    np.dot(rows(np, x), weight.T, out=rows(np, y))
    if bias is not None:
        np.add(y, bias, out=y)
    return y


@linear.cpu.grad("x")
def _(dy, weight):
    return np.dot(rows(np, dy), weight).reshape(*dy.shape[:-1], weight.shape[1])


@linear.cpu.grad("weight")
def _(dy, x, *, out=None, accumulate=False):
    return product(rows(np, dy).T, rows(np, x), out, accumulate)


@linear.cpu.grad("bias")
def _(dy, *, out=None, accumulate=False):
    dy = rows(np, dy)
    return product(ones_of(len(dy), dy.dtype), dy, out, accumulate)  # 512 x 1024 in 25 us, where dy.sum(0) takes 65


@linear.cuda
def _(x, weight, bias=None, *, out=None):
    from ..cuda.products import linear

    return linear(x, weight, bias, out)


@linear.cuda.grad("weight", "bias")
def _(dy, x, *, out=(None, None), accumulate=(False, False)):
    from ..cuda.fused import linear_gradients

    return linear_gradients(dy, x, out, accumulate)


@linear.cuda.grad("weight")
def _(dy, x, *, out=None, accumulate=False):
    from ..cuda.fused import weight_gradient

    return weight_gradient(dy, x, out, accumulate)


@linear.cuda.grad("bias")
def _(dy, *, out=None, accumulate=False):
    from ..cuda.fused import bias_gradient

    return bias_gradient(dy, out, accumulate)


@linear.cuda.grad("x", defers=True)
def _(dy, weight):
    from ..cuda.fused import input_gradient

    return input_gradient(dy, weight)


def product(a: np.ndarray, b: np.ndarray, out: np.ndarray | None, accumulate: bool) -> np.ndarray:
    """a @ b, written to `out` or added to it. (np.dot starts 0.3 us sooner than np.matmul.)"""
    if accumulate and out is not None:
        out += np.dot(a, b)
        return out
    return np.dot(a, b, out=out)


@functools.lru_cache(maxsize=64)
def ones_of(count: int, dtype: Any) -> np.ndarray:
    return np.ones(count, dtype)
