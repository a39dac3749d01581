"""A linear map with its activation and dropout on a GPU: a matrix product and one kernel forward; one kernel and two products backward."""

from __future__ import annotations

from typing import Any

import cupy

from ..ops.fused import Fusible
from ..ops.linalg import check_linear, rows
from . import launch
from ._elementwise import Dropout, Elementwise, Learnt
from .gemm import product


def _matrix(array: Any) -> Any:
    return rows(cupy, array)


def linear_activation(
    f: Fusible, x: Any, weight: Any, bias: Any, learnt: Any, dropout: Dropout | None, keep: bool, out: Any
) -> Any:
    """(y, kept): kept is y where `keeps_of` says so (then one buffer holds both), else the product without bias."""
    if not launch.takes(x, weight, *[a for a in (bias, learnt) if a is not None]):
        return NotImplemented
    check_linear(x, weight, bias)
    if learnt is not None and not (learnt.shape in ((1,), ()) or (x.ndim == 2 and learnt.shape == weight.shape[:1])):
        return NotImplemented  # channels that are no columns; or a wrong shape, which the rule explains
    binder = _binder(f)
    z = product(_matrix(x), weight.T)
    keeps_y = binder.keeps_of(dropout is not None) == "y"
    y = z if keeps_y else cupy.empty_like(z)
    if bias is None and learnt is None and dropout is None:
        binder.forward(z, out=y, **f.options)
    else:
        given = None if learnt is None else Learnt(launch.packed(learnt))
        binder.bias_forward(z, _packed(bias), y, dropout, given, **f.options)
    shape = (*x.shape[:-1], weight.shape[0])
    y, z = y.reshape(shape), z.reshape(shape)
    if out is not None:
        y = launch.finished(y, out)
    return (y, y if keeps_y else z) if keep else (y,)


def activation_gradients(
    f: Fusible,
    dy: Any,
    bias: Any,
    learnt: Any,
    kept: Any,
    dropout: Dropout | None,
    wanted: tuple[bool, ...],
    out: tuple | None,
    accumulate: tuple[bool, ...],
    scratch: Any,
) -> tuple:
    """The gradients of the activation's input, of the bias and of what is learnt; the latter two where `out` says, or added there."""
    binder, shape = _binder(f), dy.shape
    dy, kept = launch.packed(_matrix(dy)), launch.packed(_matrix(kept))
    dz = dy if scratch is not None else cupy.empty_like(dy)
    if bias is None and learnt is None and dropout is None:
        binder.backward(dy, kept, out=dz, **f.options)
        return dz.reshape(shape), None, None
    places = out or (None, None)
    db, dlearnt = (
        None if not want else cupy.empty(a.shape, a.dtype) if place is None else place
        for a, place, want in zip((bias, learnt), places, wanted)
    )
    given = None if learnt is None else Learnt(launch.packed(learnt), dlearnt, accumulate[1])
    binder.bias_backward(dy, kept, _packed(bias), dz, db, dropout, given, accumulate=accumulate[0], **f.options)
    return dz.reshape(shape), db, dlearnt


def input_gradient(dy: Any, weight: Any) -> Any:
    """dy @ weight."""
    return product(_matrix(dy), weight).reshape(*dy.shape[:-1], weight.shape[1])


def weight_gradient(dy: Any, x: Any, out: Any, accumulate: bool) -> Any:
    """dy^T @ x, written or added to `out` if there is one."""
    return product(_matrix(dy).T, _matrix(x), out=out, accumulate=accumulate)


def _packed(array: Any) -> Any:
    return None if array is None else launch.packed(array)


def _binder(f: Fusible) -> Elementwise:
    return f.op.cuda.implementation.binder  # type: ignore[union-attr]
