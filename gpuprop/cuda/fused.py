"""A linear map with its activation and dropout on a GPU: a matrix product and one kernel forward; one kernel and two products backward."""

from __future__ import annotations

from typing import Any

import cupy

from ..ops.fused import Fusible
from ..ops.linalg import check_linear, rows
from . import launch
from ._elementwise import Dropout, Elementwise
from .gemm import product


def _matrix(array: Any) -> Any:
    return rows(cupy, array)


def linear_activation(f: Fusible, x: Any, weight: Any, bias: Any, dropout: Dropout | None, keep: bool, out: Any) -> Any:
    """(y, kept): kept is y where `keeps_of` says so (then one buffer holds both), else the product without bias."""
    if not launch.takes(x, weight, *([] if bias is None else [bias])):
        return NotImplemented
    check_linear(x, weight, bias)
    binder = _binder(f)
    z = product(_matrix(x), weight.T)
    keeps_y = binder.keeps_of(dropout is not None) == "y"
    y = z if keeps_y else cupy.empty_like(z)
    if bias is None and dropout is None:
        binder.forward(z, out=y, **f.options)
    else:
        binder.bias_forward(z, _packed_bias(bias, z), y, dropout, **f.options)
    shape = (*x.shape[:-1], weight.shape[0])
    y, z = y.reshape(shape), z.reshape(shape)
    if out is not None:
        y = launch.finished(y, out)
    return (y, y if keeps_y else z) if keep else (y,)


def activation_gradients(
    f: Fusible,
    dy: Any,
    bias: Any,
    kept: Any,
    dropout: Dropout | None,
    wanted: bool,
    out: Any,
    accumulate: bool,
    scratch: Any,
) -> tuple:
    """The gradients of the activation's input and of the bias; the latter is written, or added, to `out` if there is one."""
    binder, shape = _binder(f), dy.shape
    dy, kept = launch.packed(_matrix(dy)), launch.packed(_matrix(kept))
    dz = dy if scratch is not None else cupy.empty_like(dy)
    if bias is None and dropout is None:
        binder.backward(dy, kept, out=dz, **f.options)
        return dz.reshape(shape), None
    # Without a wanted bias gradient its sum is written all the same: one launch, 4 bytes per column.
    db = out if out is not None else cupy.empty(dy.shape[-1], dy.dtype)
    binder.bias_backward(dy, kept, _packed_bias(bias, dy), dz, db, dropout, accumulate=accumulate, **f.options)
    return dz.reshape(shape), db if wanted else None


def input_gradient(dy: Any, weight: Any) -> Any:
    """dy @ weight."""
    return product(_matrix(dy), weight).reshape(*dy.shape[:-1], weight.shape[1])


def weight_gradient(dy: Any, x: Any, out: Any, accumulate: bool) -> Any:
    """dy^T @ x, written or added to `out` if there is one."""
    return product(_matrix(dy).T, _matrix(x), out=out, accumulate=accumulate)


def _packed_bias(bias: Any, z: Any) -> Any:
    """For kernels that always add one: zeros where there is none."""
    return cupy.zeros(z.shape[-1], z.dtype) if bias is None else launch.packed(bias)


def _binder(f: Fusible) -> Elementwise:
    return f.op.cuda.implementation.binder  # type: ignore[union-attr]
