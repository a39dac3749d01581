"""A linear map with its activation on a GPU: a matrix product and one kernel forward; one kernel and two products backward."""

from __future__ import annotations

from typing import Any

import cupy

from .._op import Op
from ..ops.linalg import check_linear, rows
from . import launch
from ._elementwise import Elementwise


def _matrix(array: Any) -> Any:
    return rows(cupy, array)


def linear_activation(f: Op, x: Any, weight: Any, bias: Any, options: dict[str, Any], keep: bool, out: Any) -> Any:
    """(y, kept): kept is y where the activation's gradient names y (then one buffer holds both), else the product without bias."""
    binder = getattr(f.cuda.implementation, "binder", None)
    if not isinstance(binder, Elementwise) or not launch.takes(x, weight, *([] if bias is None else [bias])):
        return NotImplemented
    check_linear(x, weight, bias)
    settings = {**f.defaults, **options}
    z = cupy.matmul(_matrix(x), weight.T)
    y = z if binder.keeps == "y" else cupy.empty_like(z)
    if bias is None:
        binder.forward(z, out=y, **settings)
    else:
        binder.bias_forward(z, launch.packed(bias), y, **settings)
    shape = (*x.shape[:-1], weight.shape[0])
    y, z = y.reshape(shape), z.reshape(shape)
    if out is not None:
        y = launch.finished(y, out)
    return (y, y if binder.keeps == "y" else z) if keep else (y,)


def linear_activation_gradients(
    f: Op,
    dy: Any,
    x: Any,
    weight: Any,
    bias: Any,
    kept: Any,
    options: dict[str, Any],
    wanted: tuple[bool, ...],
    out: tuple,
    accumulate: tuple[bool, ...],
    scratch: Any,
) -> tuple:
    """dx, dweight and dbias; a gradient with a place in `out` is written there, or added to it."""
    binder, settings = f.cuda.implementation.binder, {**f.defaults, **options}  # type: ignore[union-attr]
    dy, kept = launch.packed(_matrix(dy)), launch.packed(_matrix(kept))
    dz = dy if scratch is not None else cupy.empty_like(dy)
    db = out[2] if out[2] is not None else cupy.empty(weight.shape[0], dy.dtype) if wanted[2] else None
    if bias is None:
        binder.backward(dy, kept, out=dz, **settings)
    else:
        # Without a wanted bias gradient its sum is written all the same: one launch, 4 bytes per column.
        place = db if db is not None else cupy.empty(weight.shape[0], dy.dtype)
        binder.bias_backward(dy, kept, launch.packed(bias), dz, place, accumulate=accumulate[2], **settings)
    return (
        _product(dz, weight, None if out[0] is None else _matrix(out[0]), accumulate[0]).reshape(x.shape)
        if wanted[0]
        else None,
        _product(dz.T, _matrix(x), out[1], accumulate[1]) if wanted[1] else None,
        db if wanted[2] else None,
    )


def _product(a: Any, b: Any, out: Any, accumulate: bool) -> Any:
    if out is None:
        return cupy.matmul(a, b)
    if accumulate:
        out += cupy.matmul(a, b)
        return out
    return cupy.matmul(a, b, out=out)
