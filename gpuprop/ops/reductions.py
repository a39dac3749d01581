"""Reductions over axes."""
from __future__ import annotations

from .._op import op
from ..testing import Draw, Sample


def _axes(draw: Draw):
    yield Sample(draw.normal())
    yield Sample(draw.normal(2, 3))
    yield Sample(draw.normal(2, 3, 4), axis=1)
    yield Sample(draw.normal(2, 3, 4), axis=(0, -1), keepdims=True)
    yield Sample(draw.normal(0, 3), axis=0)


def expanded(xp, dy, shape, axis, keepdims):
    """A reduction's cotangent with the reduced axes back, of length 1."""
    if keepdims or not shape:
        return dy
    axes = range(len(shape)) if axis is None else [a % len(shape) for a in (axis if isinstance(axis, tuple) else (axis,))]
    return xp.reshape(dy, tuple(1 if i in axes else n for i, n in enumerate(shape)))


@op(samples=_axes, method=True)
def sum(xp, x, *, axis=None, keepdims=False):
    """Sum over axes: y = sum_i x_i."""
    return xp.sum(x, axis=axis, keepdims=keepdims)


@sum.grad("x")
def _(xp, dy, x_shape, *, axis, keepdims):
    return xp.broadcast_to(expanded(xp, dy, x_shape, axis, keepdims), x_shape)
