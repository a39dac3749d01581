"""A loss of what a linear map gives, with the map's bias: where a GPU adds the bias and sums its gradient in the launch of the loss."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._op import REGISTRY, Op, op
from ..errors import OptionError, ShapeError
from ..testing import Draw, ErrorSample, Sample
from .losses import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    huber_loss,
    l1_loss,
    mse_loss,
    poisson_nll_loss,
    smooth_l1_loss,
)


def _loss(name: str) -> Op:
    loss = REGISTRY.get(name)
    if loss is None or loss.variadic or "reduction" not in loss.defaults:
        raise OptionError(f"bias_loss: expected the name of a loss, an op with the option `reduction`, got {name!r}")
    return loss


def _settings(loss: Op, options: tuple) -> dict[str, Any]:
    return {**loss.defaults, **dict(options)}


def _check_bias(x: Any, bias: Any) -> None:
    if not x.ndim or bias.shape != x.shape[-1:]:
        raise ShapeError(f"bias_loss: expected x (..., C) and a bias (C,), got {x.shape} and {bias.shape}")


def _samples(draw: Draw):
    for reduction in ("mean", "sum", "none"):
        options = (("reduction", reduction),)
        yield Sample(draw.normal(4, 3), draw.normal(3), draw.integers(0, 3, 4), loss="cross_entropy", options=options)
        yield Sample(draw.normal(4, 3), draw.normal(3), draw.probabilities(4, 3), loss="cross_entropy", options=options)
        yield Sample(draw.normal(2, 4, 3), draw.normal(3), draw.normal(2, 4, 3), loss="mse_loss", options=options)
    labels = np.array([3, 1, -100, 0, 4])
    yield Sample(draw.normal(5, 6), draw.normal(6), labels, None, loss="cross_entropy")
    yield Sample(draw.normal(5, 6), draw.normal(6), labels, loss="cross_entropy", options=(("label_smoothing", 0.2),))
    yield Sample(draw.normal(6), draw.normal(6), np.array(2), loss="cross_entropy")
    for loss in ("binary_cross_entropy_with_logits", "poisson_nll_loss", "mse_loss"):
        yield Sample(draw.normal(3, 5), draw.normal(5), draw.uniform(0, 1, 3, 5), loss=loss)
    for loss in ("l1_loss", "huber_loss", "smooth_l1_loss"):
        yield Sample(draw.apart(3, 5), draw.uniform(-0.01, 0.01, 5), draw.apart(3, 5) * 1.5 + 0.05, loss=loss)
    yield Sample(draw.normal(3, 5), draw.normal(5), draw.normal(3, 5), draw.positive(3, 5), loss="gaussian_nll_loss")
    yield Sample(draw.normal(5), draw.normal(5), draw.normal(5), loss="mse_loss")
    yield Sample(draw.normal(0, 3), draw.normal(3), draw.normal(0, 3), loss="mse_loss", options=(("reduction", "sum"),))


def _errors(draw: Draw):
    x, bias, target = draw.normal(2, 3), draw.normal(3), draw.normal(2, 3)
    yield ErrorSample(x, bias, target, loss="relu", error=OptionError, match="a loss.*'relu'")
    yield ErrorSample(x, bias, target, loss="misfortune", error=OptionError, match="'misfortune'")
    yield ErrorSample(x, draw.normal(2), target, loss="mse_loss", error=ShapeError, match=r"\(2, 3\) and \(2,\)")


@op(samples=_samples, errors=_errors)
def bias_loss(xp, x, bias, *others, loss, options=()):
    """Loss of a sum: y = f(x + bias, *others).

    Shapes: x (..., C), bias (C,); others and y as f has them.
    loss: the name of f; options: its options as (name, value) pairs. A gradient of `others` is that of f.
    Raises: ShapeError; OptionError for a name that is none.
    """
    f = _loss(loss)
    _check_bias(x, bias)
    return f(xp, x + bias, *others, **_settings(f, options))


@bias_loss.grad("x", "bias")
def _(xp, dy, x, bias, *others, loss, options):
    f = _loss(loss)
    dx = f.gradient_of(0, xp, dy, (x + bias, *others), _settings(f, options))
    return dx, dx  # the walk sums over the rows


@bias_loss.grad("others")
def _(xp, dy, x, bias, *others, loss, options, wanted):
    f, inputs = _loss(loss), (x + bias, *others)
    settings = _settings(f, options)
    return tuple(f.gradient_of(i, xp, dy, inputs, settings) if want else None for i, want in enumerate(wanted, 1))


# --- CUDA: the loss's kernel, which takes a bias ---------------------------------------------------------------------


@bias_loss.cuda(residuals=["dx", "dbias"])
def _(x, bias, *others, loss, options, keep):
    f = _loss(loss)
    _check_bias(x, bias)
    with_bias = getattr(getattr(f.cuda.implementation, "binder", None), "with_bias", None)
    return with_bias(x, bias, *others, keep=keep, **_settings(f, options)) if with_bias else NotImplemented


@bias_loss.cuda.grad("x", "bias", unit_seed=True)
def _(dy, dx, dbias, *, wanted, out=(None, None), accumulate=(False, False)):
    from ..cuda.losses import bias_gradients

    return bias_gradients(dy, dx, dbias, wanted, out, accumulate)


for _biasable in (
    cross_entropy,
    mse_loss,
    l1_loss,
    smooth_l1_loss,
    huber_loss,
    binary_cross_entropy_with_logits,
    poisson_nll_loss,
):
    _biasable.biased = bias_loss
