"""Ops that are several others in one record: what an MLP consists of, at the price of one op, with its passes over memory joined."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from .._blocks import BLOCK, row_blocks
from .._op import REGISTRY, Op, op
from ..cuda._elementwise import Dropout, Elementwise
from ..device import HOST
from ..errors import ArgumentError, OptionError
from ..testing import Draw, ErrorSample, Sample
from .linalg import check_linear, linear, rows
from .random import check_probability, dropout, scale_of, threshold_of


class Fusible(NamedTuple):
    """An activation that a linear map can be fused with, with its options."""

    op: Op
    options: dict[str, Any]
    keeps_y: bool  # its gradient is computed from y, so z may be overwritten
    of_sign: bool  # from the sign of y alone, so that y may be overwritten by what dropout leaves of it
    learns: bool  # it has a second input
    backward_options: dict[str, Any]


@functools.cache
def fusible(name: str, options: tuple = ()) -> Fusible | None:
    """The activation of a name, if it has a kernel that adds a bias: an op of one input, element by element, and of what it learns."""
    activation = REGISTRY.get(name)
    twin = activation.cuda.implementation if activation is not None else None
    binder = twin.binder if twin is not None else None
    if activation is None or not isinstance(binder, Elementwise):
        return None
    rule, settings = activation.gradients[0], {**activation.defaults, **dict(options)}
    chosen = {name: settings[name] for name in rule.options}
    learns = len(activation.inputs) > 1
    return Fusible(activation, settings, rule.keeps == ("y",), binder.of_sign, learns, chosen)


def _fusible(name: str, options: tuple, learnt: Any) -> Fusible:
    activation = fusible(name, options)
    if activation is None:
        raise OptionError(
            f"linear_activation: expected an activation with a kernel of its own, got {name!r}; call linear and then the activation"
        )
    if activation.learns != (learnt is not None):
        expected, got = ("what it learns", "none") if activation.learns else ("nothing learnt", "an array")
        raise ArgumentError(f"linear_activation: expected {expected} for {name!r}, got {got}; it is the last input")
    return activation


def _inputs(z: Any, learnt: Any) -> tuple:
    """Of the activation."""
    return (z,) if learnt is None else (z, learnt)


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
    for bias, learnt in [(draw.normal(5), draw.normal(5)), (draw.normal(5), draw.normal(1)), (None, draw.normal(5))]:
        yield Sample(draw.normal(4, 3), draw.normal(5, 3), bias, learnt, activation="prelu")
    yield Sample(draw.normal(2, 4, 3), draw.normal(5, 3), draw.normal(5), draw.normal(4), activation="prelu")
    yield Sample(draw.normal(0, 3), draw.normal(5, 3), draw.normal(5), draw.normal(5), activation="prelu")


def _errors(draw: Draw):
    x, weight = draw.normal(2, 3), draw.normal(5, 3)
    yield ErrorSample(x, weight, activation="swoosh", error=OptionError, match="linear_activation: .*'swoosh'")
    yield ErrorSample(x, weight, activation="add", error=OptionError, match="linear_activation: .*'add'")
    yield ErrorSample(x, weight, activation="prelu", error=ArgumentError, match="what it learns for 'prelu', got none")
    learnt = draw.normal(5)
    yield ErrorSample(
        x, weight, None, learnt, activation="relu", error=ArgumentError, match="nothing learnt for 'relu'"
    )


@op(samples=_samples, errors=_errors)
def linear_activation(xp, x, weight, bias=None, learnt=None, *, activation, options=()):
    """Affine map and activation: y = f(x @ weight.T + bias).

    Shapes: x (..., in), weight (out, in), bias (out,) or None -> y (..., out).
    activation: the name of an op of one input, or of two, of which the second is `learnt`; options: its options as (name, value) pairs.
    Raises: ShapeError; OptionError for a name that is none; ArgumentError unless f learns what is given.
    """
    f = _fusible(activation, options, learnt)
    return f.op(xp, *_inputs(linear(xp, x, weight, bias), learnt), **f.options)


@linear_activation.grad("x", "weight", "bias", "learnt")
def _(xp, dy, x, weight, bias, learnt, *, activation, options, wanted):
    f = _fusible(activation, options, learnt)
    inputs = _inputs(linear(xp, x, weight, bias), learnt)  # computed again: generic rules keep no residuals
    dz = f.op.gradient_of(0, xp, dy, inputs, f.options)
    return (
        xp.matmul(dz, weight) if wanted[0] else None,
        xp.matmul(xp.transpose(rows(xp, dz)), rows(xp, x)) if wanted[1] else None,
        dz if wanted[2] else None,
        f.op.gradient_of(1, xp, dy, inputs, f.options) if wanted[3] else None,
    )


def _dropped_samples(draw: Draw):
    base, key = np.array([2**63 + 5], np.uint64), {"seed": 7, "offset": 2**40}
    for activation, p in [
        ("relu", 0.3),
        ("leaky_relu", 0.5),
        ("tanh", 0.3),
        ("gelu", 0.5),
        ("elu", 1.0),
        ("relu", 0.0),
    ]:
        x, weight, bias = draw.normal(3, 7, 2), draw.normal(5, 2), draw.normal(5)
        yield Sample(x, weight, bias, base, activation=activation, p=p, **key)
    arrays, beta = [draw.normal(9, 3), draw.normal(12, 3), draw.normal(12), base], (("beta", 2.0),)
    yield Sample(*arrays, activation="softplus", options=beta, p=0.4, **key)
    yield Sample(draw.normal(9, 3), draw.normal(16, 3), None, base, activation="sigmoid", p=0.4, **key)
    yield Sample(draw.normal(0, 3), draw.normal(5, 3), draw.normal(5), base, activation="tanh", p=0.4, **key)
    for some in (draw.normal(12), None):
        x, weight, learnt = draw.normal(9, 3), draw.normal(12, 3), draw.normal(1 if some is None else 12)
        yield Sample(x, weight, some, base, learnt, activation="prelu", p=0.4, **key)


def _dropped_errors(draw: Draw):
    x, weight, base = draw.normal(2, 3), draw.normal(5, 3), np.zeros(1, np.uint64)
    options = {"activation": "relu", "p": 1.5, "seed": 0, "offset": 0}
    yield ErrorSample(x, weight, None, base, **options, error=OptionError, match="0 to 1.*1.5")


@op(samples=_dropped_samples, errors=_dropped_errors)
def linear_activation_dropout(xp, x, weight, bias, base, learnt=None, *, activation, options=(), p, seed, offset):
    """Affine map, activation and dropout: y = f(x @ weight.T + bias) / (1 - p) with probability 1 - p, else 0.

    Shapes: x (..., in), weight (out, in), bias (out,) or None, base (1,) uint64 -> y (..., out).
    Equal (seed, base, offset) drop the same elements, here and in `dropout`.
    Raises: as `linear_activation` and `dropout`.
    """
    check_probability("linear_activation_dropout", p)
    y = linear_activation(xp, x, weight, bias, learnt, activation=activation, options=options)
    return dropout(xp, y, base, p=p, seed=seed, offset=offset)


@linear_activation_dropout.grad("x", "weight", "bias", "learnt")
def _(xp, dy, x, weight, bias, base, learnt, *, activation, options, p, seed, offset, wanted):
    dy = dropout(xp, dy, base, p=p, seed=seed, offset=offset)
    (rule,) = linear_activation.gradients
    return rule.function(xp, dy, x, weight, bias, learnt, activation=activation, options=options, wanted=wanted)


# --- CPU ------------------------------------------------------------------------------------------------------------


@linear_activation.cpu(residuals=["kept"])
def _(x, weight, bias=None, learnt=None, *, activation, options, keep, out=None):
    f = _fusible(activation, options, learnt)
    if bias is not None:
        if bias.dtype is not x.dtype:
            return NotImplemented
        if bias.shape != weight.shape[:1]:
            check_linear(x, weight, bias)
    z = linear.cpu.implementation.forward(x, weight, out=out)
    if z is NotImplemented:
        return z
    y, kept = _activated(f, z, bias, learnt)
    return (y, kept) if keep else (y,)


def _activated(f: Fusible, z: Any, bias: Any, learnt: Any) -> tuple[Any, Any]:
    """The activation of z + bias on a CPU, written over z where that can be, and what its gradient needs.

    That is y, z + bias, or (of implementations with a residual) the slope.
    """
    twin = f.op.cpu.implementation
    if twin is not None and twin.residuals:
        return twin.forward(z, keep=True, out=z, bias=bias, **f.options)
    if twin is not None and f.keeps_y:
        for part in [z] if bias is None or z.size <= BLOCK else row_blocks(rows(np, z)):
            if bias is not None:
                np.add(part, bias, out=part)
            twin.forward(part, out=part, **f.options)  # nobody needs z any more
        return z, z
    if bias is not None:
        np.add(z, bias, out=z)
    y = f.op(HOST.xp, *_inputs(z, learnt), **f.options) if twin is None else twin.forward(z, **f.options)
    return y, y if f.keeps_y else z


@linear_activation.cpu.grad("learnt", replaces_dy=True)
def _(dy, learnt, kept, *, activation, options, wanted, scratch=None):
    f = _fusible(activation, options, learnt)
    twin = f.op.cpu.implementation
    if twin is not None and twin.gradients:
        rule = twin.gradients[0]
        return rule.function(dy, kept, out=scratch, **{name: f.options[name] for name in rule.options}), None
    if not f.learns:
        return f.op.gradients[0].function(HOST.xp, dy, kept, **f.backward_options), None
    both = HOST.xp, dy, (kept, learnt), f.options
    return f.op.gradient_of(0, *both), f.op.gradient_of(1, *both) if wanted[0] else None


@linear_activation_dropout.cpu(residuals=["kept", "mask"])
def _(x, weight, bias, base, learnt=None, *, activation, options, p, seed, offset, keep):
    """What the activation's gradient needs is kept as it was before dropout."""
    plain = linear_activation.cpu.implementation.forward
    made = plain(x, weight, bias, learnt, activation=activation, options=options, keep=True)
    if made is NotImplemented:
        return made
    y, kept = made
    place = y if y is not kept or _fusible(activation, options, learnt).of_sign else None
    made = dropout.cpu.implementation.forward(y, base, keep=keep, p=p, seed=seed, offset=offset, out=place)
    if made is NotImplemented:
        return made
    y, mask = made
    return (y, kept, mask) if keep else (y,)


@linear_activation_dropout.cpu.grad("learnt", replaces_dy=True)
def _(dy, learnt, kept, mask, *, activation, options, p, wanted, scratch=None):
    dy = dropout.cpu.implementation.gradients[0].function(dy, mask, p=p, out=scratch)
    rule = linear_activation.cpu.implementation.gradients[0]
    return rule.function(dy, learnt, kept, activation=activation, options=options, wanted=wanted, scratch=dy)


for _op in (linear_activation, linear_activation_dropout):
    for _rule in linear.cpu.implementation.gradients:
        _op.cpu.grad(*_rule.targets)(_rule.function)


# --- CUDA: the activation's kernels with a bias, between the products of `linear` ----------------------------------


@linear_activation.cuda(residuals=["kept"])
def _(x, weight, bias=None, learnt=None, *, activation, options, keep, out=None):
    from ..cuda.fused import linear_activation as forward

    return forward(_fusible(activation, options, learnt), x, weight, bias, learnt, None, keep, out)


@linear_activation.cuda.grad("bias", "learnt", replaces_dy=True, joins=True)
def _(dy, bias, learnt, kept, *, activation, options, wanted, out=None, accumulate=(False, False), scratch=None):
    from ..cuda.fused import activation_gradients as backward

    f = _fusible(activation, options, learnt)
    return backward(f, dy, bias, learnt, kept, None, wanted, out, accumulate, scratch)


@linear_activation_dropout.cuda(residuals=["kept"])
def _(x, weight, bias, base, learnt=None, *, activation, options, p, seed, offset, keep, out=None):
    from ..cuda.fused import linear_activation as forward

    if not 0 <= p <= 1:
        return NotImplemented
    drops = Dropout(base, threshold_of(p), scale_of(p), seed, offset)
    return forward(_fusible(activation, options, learnt), x, weight, bias, learnt, drops, keep, out)


@linear_activation_dropout.cuda.grad("bias", "learnt", replaces_dy=True)
def _(
    dy,
    bias,
    base,
    learnt,
    kept,
    *,
    activation,
    options,
    p,
    seed,
    offset,
    wanted,
    out=None,
    accumulate=(False, False),
    scratch=None,
):
    from ..cuda.fused import activation_gradients as backward

    f = _fusible(activation, options, learnt)
    drops = Dropout(base, threshold_of(p), scale_of(p), seed, offset)
    return backward(f, dy, bias, learnt, kept, drops, wanted, out, accumulate, scratch)


def _input_gradient(dy, weight):
    from ..cuda.fused import input_gradient

    return input_gradient(dy, weight)


def _weight_gradient(dy, x, *, out=None, accumulate=False):
    from ..cuda.fused import weight_gradient

    return weight_gradient(dy, x, out, accumulate)


for _op in (linear_activation, linear_activation_dropout):
    _op.cuda.grad("weight")(_weight_gradient)
    _op.cuda.grad("x", defers=True)(_input_gradient)
