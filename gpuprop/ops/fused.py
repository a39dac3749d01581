"""Ops that are several others in one record: what an MLP consists of, at the price of one op, with its passes over memory joined."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from .._op import REGISTRY, Op, op
from ..cuda._elementwise import Elementwise
from ..device import HOST
from ..errors import OptionError
from ..testing import Draw, ErrorSample, Sample
from .linalg import linear, rows


class Fusible(NamedTuple):
    """An activation that a linear map can be fused with, with its options."""

    op: Op
    options: dict[str, Any]
    keeps_y: bool  # its gradient is computed from y, so z may be overwritten
    backward_options: dict[str, Any]


@functools.cache
def fusible(name: str, options: tuple = ()) -> Fusible | None:
    """The activation of a name, if it has a kernel that adds a bias: an op of one input, element by element."""
    activation = REGISTRY.get(name)
    twin = activation.cuda.implementation if activation is not None else None
    if activation is None or not isinstance(getattr(twin, "binder", None), Elementwise):
        return None
    rule, settings = activation.gradients[0], {**activation.defaults, **dict(options)}
    return Fusible(activation, settings, rule.keeps == ("y",), {name: settings[name] for name in rule.options})


def _fusible(name: str, options: tuple) -> Fusible:
    activation = fusible(name, options)
    if activation is None:
        raise OptionError(
            f"linear_activation: expected an activation with a kernel of its own, got {name!r}; call linear and then the activation"
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
    f = _fusible(activation, options)
    return f.op(xp, linear(xp, x, weight, bias), **f.options)


@linear_activation.grad("x", "weight", "bias")
def _(xp, dy, x, weight, bias, *, activation, options, wanted):
    f = _fusible(activation, options)
    z = linear(xp, x, weight, bias)  # computed again: generic rules keep no residuals
    kept = f.op(xp, z, **f.options) if f.keeps_y else z
    dz = f.op.gradients[0].function(xp, dy, kept, **f.backward_options)
    return (
        xp.matmul(dz, weight) if wanted[0] else None,
        xp.matmul(xp.transpose(rows(xp, dz)), rows(xp, x)) if wanted[1] else None,
        dz if wanted[2] else None,
    )


# --- CPU ------------------------------------------------------------------------------------------------------------


@linear_activation.cpu(residuals=["kept"])
def _(x, weight, bias=None, *, activation, options, keep, out=None):
    z = linear.cpu.implementation.forward(x, weight, bias, out=out)
    if z is NotImplemented:
        return z
    f = _fusible(activation, options)
    y, kept = _activated(f, z)
    return (y, kept) if keep else (y,)


def _activated(f: Fusible, z: Any) -> tuple[Any, Any]:
    """The activation's value on a CPU and what its gradient needs: y, z, or (of implementations with a residual) the slope."""
    twin = f.op.cpu.implementation
    if twin is not None and twin.residuals:
        return twin.forward(z, keep=True, **f.options)
    if twin is not None and f.keeps_y:
        y = twin.forward(z, out=z, **f.options)  # nobody needs z any more
    elif twin is not None:
        y = twin.forward(z, **f.options)
    else:
        y = f.op(HOST.xp, z, **f.options)
    return y, y if f.keeps_y else z


@linear_activation.cpu.grad(replaces_dy=True)
def _(dy, kept, *, activation, options, scratch=None):
    f = _fusible(activation, options)
    twin = f.op.cpu.implementation
    if twin is not None and twin.gradients:
        rule = twin.gradients[0]
        return (rule.function(dy, kept, out=scratch, **{name: f.options[name] for name in rule.options}),)
    return (f.op.gradients[0].function(HOST.xp, dy, kept, **f.backward_options),)


for _rule in linear.cpu.implementation.gradients:
    linear_activation.cpu.grad(*_rule.targets)(_rule.function)


# --- CUDA: the activation's kernels with a bias, between the products of `linear` ----------------------------------


@linear_activation.cuda(residuals=["kept"])
def _(x, weight, bias=None, *, activation, options, keep, out=None):
    from ..cuda.fused import linear_activation as forward

    return forward(_fusible(activation, options), x, weight, bias, keep, out)


@linear_activation.cuda.grad("bias", replaces_dy=True)
def _(dy, bias, kept, *, activation, options, wanted, out=(None,), accumulate=(False,), scratch=None):
    from ..cuda.fused import activation_gradients as backward

    return backward(_fusible(activation, options), dy, bias, kept, wanted[0], out[0], accumulate[0], scratch)


@linear_activation.cuda.grad("x")
def _(dy, weight):
    from ..cuda.fused import input_gradient

    return input_gradient(dy, weight)


@linear_activation.cuda.grad("weight")
def _(dy, x, *, out=None, accumulate=False):
    from ..cuda.fused import weight_gradient

    return weight_gradient(dy, x, out, accumulate)
