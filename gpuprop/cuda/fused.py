"""A linear map with its activation and dropout on a GPU: a matrix product and one kernel forward; one kernel and two products backward.

Where the library offers that, bias and activation ride on the product forward; backward, their gradients ride on the product of the layer
above that would give dy, and that the walk leaves to this one (`tape.Deferred`). What one product keeps for the other is `Stored`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cupy

from ..ops.fused import Fusible
from ..ops.linalg import check_linear, rows
from ..tape import Deferred
from . import launch
from ._elementwise import Dropout, Elementwise, Learnt
from .column_sums import column_sums
from .gemm import fused_product, new_aux, offers, product


class Stored(NamedTuple):
    """What a product with an activation has left for the activation's gradient."""

    function: str  # "RELU" or "GELU", the library's name
    aux: Any  # the signs as bits, or what the function was applied to
    y: Any  # as a matrix, where the gradient's kernel would need that; else None


def library_function(f: Fusible) -> str | None:
    """The library's name of an activation that its products can apply."""
    if f.op.name == "relu":
        return "RELU"
    return "GELU" if f.op.name == "gelu" and f.options["approximate"] == "tanh" else None


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
    if dropout is None:
        riding = _riding(f, x, weight, bias, keep, out)
        if riding is not None:
            return riding
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


def _riding(f: Fusible, x: Any, weight: Any, bias: Any, keep: bool, out: Any) -> tuple | None:
    """The same in one product, where the library offers that."""
    function = library_function(f)
    if function is None:
        return None
    epilogue = function + "_AUX" * keep + "_BIAS" * (bias is not None)
    given = _matrix(x), weight.T
    if not offers(epilogue, *given):
        return None
    aux = new_aux(epilogue, len(given[0]), len(weight), x.dtype) if keep else None
    y = fused_product(epilogue, *given, bias=None if bias is None else launch.packed(bias), aux=aux)
    shaped = launch.finished(y.reshape(*x.shape[:-1], len(weight)), out)
    return (shaped, Stored(function, aux, y if f.keeps_y else None)) if keep else (shaped,)


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
    binder, shape, places = _binder(f), dy.shape, out or (None, None)
    if type(dy) is Deferred:
        if type(kept) is Stored and not accumulate[0]:  # the library's sums overwrite
            riding = _riding_gradients(kept, dy, wanted[0], places[0])
            if riding is not None:
                return riding
        scratch = dy = dy.made()  # nobody else refers to it
    added = bias
    if type(kept) is Stored:
        kept, added = (kept.y, bias) if f.keeps_y else (kept.aux[:, : dy.shape[-1]], None)  # the bias is in it already
    dy, kept = launch.packed(_matrix(dy)), launch.packed(_matrix(kept))
    dz = dy if scratch is not None else cupy.empty_like(dy)
    if bias is None and learnt is None and dropout is None:
        binder.backward(dy, kept, out=dz, **f.options)
        return dz.reshape(shape), None, None
    db, dlearnt = (
        None if not want else cupy.empty(a.shape, a.dtype) if place is None else place
        for a, place, want in zip((bias, learnt), places, wanted)
    )
    given = None if learnt is None else Learnt(launch.packed(learnt), dlearnt, accumulate[1])
    binder.bias_backward(dy, kept, _packed(added), dz, db, dropout, given, accumulate=accumulate[0], **f.options)
    return dz.reshape(shape), db, dlearnt


def _riding_gradients(kept: Stored, dy: Deferred, sums: bool, out: Any) -> tuple | None:
    """The same in the product that gives dy, where the library offers that."""
    epilogue = f"D{kept.function}" + "_BGRAD" * sums
    given = _matrix(dy.dy), dy.factor
    if not offers(epilogue, *given):
        return None
    db = launch.place_for(out, dy.shape[-1:], dy.dtype) if sums else None
    dz = fused_product(epilogue, *given, bias=db, aux=kept.aux)
    return dz.reshape(dy.shape), launch.finished(db, out) if sums else None, None


def linear_gradients(dy: Any, x: Any, out: tuple, accumulate: tuple) -> tuple:
    """The gradients of weight and bias; each written, or added, to its place in `out` if there is one."""
    given = _matrix(dy).T, _matrix(x)
    if any(accumulate) or not offers("BGRADB", *given):
        return weight_gradient(dy, x, out[0], accumulate[0]), bias_gradient(dy, out[1], accumulate[1])
    columns, terms = dy.shape[-1], x.shape[-1]
    dw = launch.place_for(out[0], (columns, terms), dy.dtype)
    db = launch.place_for(out[1], (columns,), dy.dtype)
    fused_product("BGRADB", *given, bias=db, out=dw)
    return launch.finished(dw, out[0]), launch.finished(db, out[1])


def bias_gradient(dy: Any, out: Any, accumulate: bool) -> Any:
    """dy summed over rows, written or added to `out` if there is one."""
    return column_sums(_matrix(dy), out=out, accumulate=accumulate)


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
