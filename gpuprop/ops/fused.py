"""Ops that are several others in one record: what an MLP consists of, at the price of one op, with its passes over memory joined."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .._op import REGISTRY, Op, op
from ..device import HOST
from ..errors import OptionError
from ..testing import Draw, ErrorSample, Sample
from .linalg import check_linear, linear, ones_of, product, rows


@functools.cache
def fusible(name: str) -> Op | None:
    """The activation of a name, if a linear map can be fused with it: an op of one input, whose gradient names x or y."""
    activation = REGISTRY.get(name)
    if activation is None or len(activation.inputs) != 1 or len(activation.gradients) != 1:
        return None
    return activation if activation.gradients[0].keeps in (("x",), ("y",)) else None


def _fusible(name: str) -> Op:
    activation = fusible(name)
    if activation is None:
        raise OptionError(
            f"linear_activation: expected an op of one input whose gradient names x or y, got {name!r}; call linear and then the activation"
        )
    return activation


def _samples(draw: Draw):
    for activation, options in [
        ("relu", ()),
        ("gelu", ()),
        ("gelu", (("approximate", "tanh"),)),
        ("tanh", ()),
        ("elu", (("alpha", 0.5),)),
        ("softplus", ()),
    ]:
        yield Sample(draw.normal(4, 3), draw.normal(5, 3), draw.normal(5), activation=activation, options=options)
    yield Sample(draw.normal(3), draw.normal(5, 3), activation="silu")
    yield Sample(draw.normal(2, 4, 3), draw.normal(6, 3), draw.normal(6), activation="sigmoid")
    yield Sample(draw.normal(0, 3), draw.normal(5, 3), draw.normal(5), activation="relu")


def _errors(draw: Draw):
    x, weight = draw.normal(2, 3), draw.normal(5, 3)
    yield ErrorSample(x, weight, activation="swoosh", error=OptionError, match="linear_activation: .*'swoosh'")
    yield ErrorSample(x, weight, activation="add", error=OptionError, match="linear_activation: .*'add'")


@op(samples=_samples, errors=_errors)
def linear_activation(xp, x, weight, bias=None, *, activation, options=()):
    """Affine map and activation: y = f(x @ weight.T + bias).

    Shapes: x (..., in), weight (out, in), bias (out,) or None -> y (..., out).
    activation: the name of an op of one input; options: its options as (name, value) pairs.
    Raises: ShapeError; OptionError for a name that is none.
    """
    f = _fusible(activation)
    return f(xp, linear(xp, x, weight, bias), **dict(options))


@linear_activation.grad("x", "weight", "bias")
def _(xp, dy, x, weight, bias, *, activation, options, wanted):
    f = _fusible(activation)
    z = linear(xp, x, weight, bias)  # computed again: generic rules keep no residuals
    settings = {**f.defaults, **dict(options)}
    kept = z if f.gradients[0].keeps == ("x",) else f(xp, z, **settings)
    dz = _backward(f, functools.partial(f.gradients[0].function, xp), dy, kept, settings)
    return (
        xp.matmul(dz, weight) if wanted[0] else None,
        xp.matmul(xp.transpose(rows(xp, dz)), rows(xp, x)) if wanted[1] else None,
        dz if wanted[2] else None,
    )


def _backward(f: Op, rule: Any, dy: Any, kept: Any, settings: dict[str, Any], **places: Any) -> Any:
    return rule(dy, kept, **{name: settings[name] for name in f.gradients[0].options}, **places)


def flat_or_none(xp, place: Any) -> Any:
    """A place for a gradient as a matrix of rows, or None where there is no place."""
    return None if place is None else rows(xp, place)


# --- CPU ------------------------------------------------------------------------------------------------------------


@linear_activation.cpu(residuals=["kept"])
def _(x, weight, bias=None, *, activation, options, keep, out=None):
    if x.dtype is not weight.dtype or (bias is not None and bias.dtype is not x.dtype):
        return NotImplemented
    f = _fusible(activation)
    check_linear(x, weight, bias)
    z = np.empty((*x.shape[:-1], weight.shape[0]), x.dtype) if out is None else out
    np.dot(rows(np, x), weight.T, out=rows(np, z))
    if bias is not None:
        np.add(z, bias, out=z)
    twin, settings = f.cpu.implementation, {**f.defaults, **dict(options)}
    keeps_y = f.gradients[0].keeps == ("y",)
    if twin is not None and keeps_y:
        y = twin.forward(z, out=z, **settings)  # nobody needs z any more
    elif twin is not None:
        y = twin.forward(z, **settings)
    else:
        y = f(HOST.xp, z, **settings)
    return (y, y if keeps_y else z) if keep else (y,)


@linear_activation.cpu.grad("x", "weight", "bias")
def _(dy, x, weight, kept, *, activation, options, wanted, out=(None,) * 3, accumulate=(False,) * 3, scratch=None):
    f = _fusible(activation)
    twin, settings = f.cpu.implementation, {**f.defaults, **dict(options)}
    if twin is not None and twin.gradients:
        dz = _backward(f, twin.gradients[0].function, dy, kept, settings, out=scratch)
    else:
        dz = _backward(f, functools.partial(f.gradients[0].function, HOST.xp), dy, kept, settings)
    flat = rows(np, dz)
    return (
        product(flat, weight, flat_or_none(np, out[0]), accumulate[0]).reshape(x.shape) if wanted[0] else None,
        product(flat.T, rows(np, x), out[1], accumulate[1]) if wanted[1] else None,
        product(ones_of(len(flat), flat.dtype), flat, out[2], accumulate[2]) if wanted[2] else None,
    )


# --- CUDA: the activation's kernels with a bias, around two products -------------------------------------------------


@linear_activation.cuda(residuals=["kept"])
def _(x, weight, bias=None, *, activation, options, keep, out=None):
    from ..cuda.fused import linear_activation as forward

    return forward(_fusible(activation), x, weight, bias, dict(options), keep, out)


@linear_activation.cuda.grad("x", "weight", "bias")
def _(
    dy, x, weight, bias, kept, *, activation, options, wanted, out=(None,) * 3, accumulate=(False,) * 3, scratch=None
):
    from ..cuda.fused import linear_activation_gradients as backward

    return backward(_fusible(activation), dy, x, weight, bias, kept, dict(options), wanted, out, accumulate, scratch)
