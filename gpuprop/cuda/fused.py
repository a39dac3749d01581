"""A linear map with its activation on a GPU: a matrix product and one kernel forward; one kernel and two products backward."""

from __future__ import annotations

from typing import Any

import cupy

from ..ops.fused import Fusible
from ..ops.linalg import check_linear, rows
from . import launch
from ._elementwise import Elementwise
from .gemm import product


def _matrix(array: Any) -> Any:
    return rows(cupy, array)


def linear_activation(f: Fusible, x: Any, weight: Any, bias: Any, keep: bool, out: Any) -> Any:
    """(y, kept): kept is y where the activation's gradient names y (then one buffer holds both), else the product without bias."""
    if not launch.takes(x, weight, *([] if bias is None else [bias])):
        return NotImplemented
    check_linear(x, weight, bias)
    binder = _binder(f)
    z = product(_matrix(x), weight.T)
    y = z if f.keeps_y else cupy.empty_like(z)
    if bias is None:
        binder.forward(z, out=y, **f.options)
    else:
        binder.bias_forward(z, launch.packed(bias), y, **f.options)
    shape = (*x.shape[:-1], weight.shape[0])
    y, z = y.reshape(shape), z.reshape(shape)
    if out is not None:
        y = launch.finished(y, out)
    return (y, y if f.keeps_y else z) if keep else (y,)


def activation_gradients(
    f: Fusible, dy: Any, bias: Any, kept: Any, wanted: bool, out: Any, accumulate: bool, scratch: Any
) -> tuple:
    """The gradients of the activation's input and of the bias; the latter is written, or added, to `out` if there is one."""
    binder, shape = _binder(f), dy.shape
    dy, kept = launch.packed(_matrix(dy)), launch.packed(_matrix(kept))
    dz = dy if scratch is not None else cupy.empty_like(dy)
    if bias is None:
        binder.backward(dy, kept, out=dz, **f.options)
        return dz.reshape(shape), None
    # Without a wanted bias gradient its sum is written all the same: one launch, 4 bytes per column.
    db = out if out is not None else cupy.empty(bias.shape, dy.dtype)
    binder.bias_backward(dy, kept, launch.packed(bias), dz, db, accumulate=accumulate, **f.options)
    return dz.reshape(shape), db if wanted else None


def input_gradient(dy: Any, weight: Any) -> Any:
    """dy @ weight."""
    return product(_matrix(dy), weight).reshape(*dy.shape[:-1], weight.shape[1])


def weight_gradient(dy: Any, x: Any, out: Any, accumulate: bool) -> Any:
    """dy^T @ x, written or added to `out` if there is one."""
    return product(_matrix(dy).T, _matrix(x), out=out, accumulate=accumulate)


def _binder(f: Fusible) -> Elementwise:
    return f.op.cuda.implementation.binder  # type: ignore[union-attr]
