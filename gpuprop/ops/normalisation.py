"""Normalisation: layer, root mean square, batch. Variances divide by the number of elements, as PyTorch's do."""

from __future__ import annotations

import math

import numpy as np

from .._op import op
from ..cuda import columns
from ..cuda.rowwise import Norm
from ..errors import ShapeError
from ..testing import Draw, ErrorSample, Sample

# --- Over the last axes ---------------------------------------------------------------------------------------------


def _last_axes(name, x, normalized_shape, *parameters):
    """The axes to normalise over. Raises: ShapeError where the shapes do not fit."""
    shape = x.shape[-1:] if normalized_shape is None else normalized_shape
    shape = shape if isinstance(shape, tuple) else (shape,)
    if not shape or x.shape[-len(shape) :] != shape or not math.prod(shape):
        raise ShapeError(f"{name}: expected x (..., *normalized_shape), not empty there, got x {x.shape}, {shape}")
    for parameter in parameters:
        if parameter is not None and parameter.shape != shape:
            raise ShapeError(f"{name}: expected weight and bias of shape {shape}, got {parameter.shape}")
    return tuple(range(-len(shape), 0))


def _scaled(y, weight, bias=None):
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _standardised(xp, x, axes, eps):
    """x with mean 0 and variance 1 over the axes, and 1 over its standard deviation."""
    centred = x - xp.mean(x, axis=axes, keepdims=True)
    scale = 1 / xp.sqrt(xp.mean(centred * centred, axis=axes, keepdims=True) + eps)
    return centred * scale, scale


def _layers(draw: Draw):
    yield Sample(draw.normal(5))
    yield Sample(draw.normal(2, 5), draw.normal(5), draw.normal(5))
    yield Sample(draw.normal(2, 5), None, draw.normal(5), eps=0.3)
    yield Sample(draw.normal(2, 3, 4), draw.normal(3, 4), draw.normal(3, 4), normalized_shape=(3, 4))
    yield Sample(draw.normal(0, 3), draw.normal(3), draw.normal(3))


def _bad_layers(draw: Draw):
    yield ErrorSample(draw.normal(2, 5), draw.normal(4), error=ShapeError, match=r"\(5,\).*\(4,\)")
    yield ErrorSample(draw.normal(2, 5), normalized_shape=(4,), error=ShapeError, match=r"\(2, 5\).*\(4,\)")
    yield ErrorSample(draw.normal(2, 0), error=ShapeError, match=r"\(2, 0\)")
    yield ErrorSample(draw.normal(), error=ShapeError, match=r"\(\)")


@op(samples=_layers, errors=_bad_layers)
def layer_norm(xp, x, weight=None, bias=None, *, normalized_shape=None, eps=1e-5):
    """Layer normalisation: y = (x - mean) / sqrt(variance + eps) * weight + bias, over the last axes of each sample.

    normalized_shape: the lengths of those axes; the last one if None.
    Shapes: x (..., *normalized_shape); weight, bias normalized_shape. Raises: ShapeError.
    Source: Ba et al. 2016, arXiv:1607.06450, eq. 4.
    """
    axes = _last_axes("layer_norm", x, normalized_shape, weight, bias)
    return _scaled(_standardised(xp, x, axes, eps)[0], weight, bias)


@layer_norm.grad("x", "weight")
def _(xp, dy, x, weight, *, normalized_shape, eps):
    axes = _last_axes("layer_norm", x, normalized_shape)
    standard, scale = _standardised(xp, x, axes, eps)
    d = _scaled(dy, weight)
    along = standard * xp.mean(d * standard, axis=axes, keepdims=True)
    dx = scale * (d - xp.mean(d, axis=axes, keepdims=True) - along)
    return dx, None if weight is None else dy * standard


@layer_norm.grad("bias")
def _(xp, dy):
    return dy


layer_norm.cuda = Norm(centred=True)


def _without_bias(draw: Draw):
    for sample in _layers(draw):
        yield Sample(*sample.inputs[:2], **sample.options)


def _epsilon(dtype, eps):
    if eps is not None:
        return eps
    return float(np.finfo(dtype).eps) if dtype.kind == "f" else 2.0**-7  # NumPy does not know bfloat16


def _of_unit_size(xp, x, axes, eps):
    """x with mean square 1 over the axes, and 1 over its root mean square."""
    scale = 1 / xp.sqrt(xp.mean(x * x, axis=axes, keepdims=True) + _epsilon(x.dtype, eps))
    return x * scale, scale


@op(samples=_without_bias, errors=_bad_layers)
def rms_norm(xp, x, weight=None, *, normalized_shape=None, eps=None):
    """Root mean square normalisation: y = x / sqrt(mean(x^2) + eps) * weight, over the last axes of each sample.

    normalized_shape: the lengths of those axes; the last one if None. eps: the epsilon of x's dtype if None.
    Shapes: x (..., *normalized_shape); weight normalized_shape. Raises: ShapeError.
    Source: Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4.
    """
    axes = _last_axes("rms_norm", x, normalized_shape, weight)
    return _scaled(_of_unit_size(xp, x, axes, eps)[0], weight)


@rms_norm.grad("x", "weight")
def _(xp, dy, x, weight, *, normalized_shape, eps):
    axes = _last_axes("rms_norm", x, normalized_shape)
    unit, scale = _of_unit_size(xp, x, axes, eps)
    d = _scaled(dy, weight)
    dx = scale * (d - unit * xp.mean(d * unit, axis=axes, keepdims=True))
    return dx, None if weight is None else dy * unit


rms_norm.cuda = Norm(centred=False, epsilon=_epsilon)


# --- Per channel ----------------------------------------------------------------------------------------------------


def _check_channels(name, x, **vectors):
    if x.ndim < 2:
        raise ShapeError(f"{name}: expected x (N, C) or (N, C, ...), got {x.shape}")
    for vector, array in vectors.items():
        if array is not None and array.shape != x.shape[1:2]:
            raise ShapeError(
                f"{name}: expected {vector} {x.shape[1:2]}, one per channel of x {x.shape}, got {array.shape}"
            )


def _other_axes(ndim):
    return (0, *range(2, ndim))


def _per_channel(xp, vector, ndim):
    """Values (C,) in a shape that broadcasts with (N, C, ...)."""
    return None if vector is None else xp.reshape(vector, (-1,) + (1,) * (ndim - 2))


def _batches(draw: Draw):
    yield Sample(draw.normal(4, 3), draw.normal(3), draw.normal(3))
    yield Sample(draw.normal(4, 3))
    yield Sample(draw.normal(3, 2, 5), draw.normal(2), eps=0.3)
    yield Sample(draw.normal(2, 3, 2, 4), None, draw.normal(3))


def _bad_batches(draw: Draw):
    yield ErrorSample(draw.normal(4), error=ShapeError, match=r"\(4,\)")
    yield ErrorSample(draw.normal(4, 3), draw.normal(4), error=ShapeError, match=r"weight \(3,\).*\(4,\)")
    yield ErrorSample(draw.normal(1, 3), error=ShapeError, match=r"more than one value.*\(1, 3\)")


@op(samples=_batches, errors=_bad_batches)
def batch_norm(xp, x, weight=None, bias=None, *, eps=1e-5):
    """Batch normalisation: y = (x - mean) / sqrt(variance + eps) * weight + bias, over all axes but the second.

    Returns (y, mean, variance); the last two, of which running averages are made, are differentiable as well.
    Shapes: x (N, C, ...), weight and bias (C,) -> y (N, C, ...), mean and variance (C,).
    Raises: ShapeError where a channel has fewer than two values, for then there is no variance.
    Source: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1.
    """
    _check_channels("batch_norm", x, weight=weight, bias=bias)
    axes = _other_axes(x.ndim)
    if x.shape[1] and x.size // x.shape[1] < 2:
        raise ShapeError(f"batch_norm: expected more than one value per channel to normalise by, got x {x.shape}")
    mean = xp.mean(x, axis=axes)
    centred = x - _per_channel(xp, mean, x.ndim)
    variance = xp.mean(centred * centred, axis=axes)
    y = centred * _per_channel(xp, 1 / xp.sqrt(variance + eps), x.ndim)
    return _scaled(y, _per_channel(xp, weight, x.ndim), _per_channel(xp, bias, x.ndim)), mean, variance


@batch_norm.grad("x", "weight")
def _(xp, dy, x, weight, *, eps):
    dy, dmean, dvariance = dy
    axes = _other_axes(x.ndim)
    centred = x - xp.mean(x, axis=axes, keepdims=True)
    scale = 1 / xp.sqrt(xp.mean(centred * centred, axis=axes, keepdims=True) + eps)
    standard = centred * scale
    d = _scaled(dy, _per_channel(xp, weight, x.ndim))
    along = standard * xp.mean(d * standard, axis=axes, keepdims=True)
    dx = scale * (d - xp.mean(d, axis=axes, keepdims=True) - along)
    count = math.prod(x.shape[i] for i in axes)
    of_statistics = _per_channel(xp, dmean, x.ndim) + centred * _per_channel(xp, 2 * dvariance, x.ndim)
    return dx + of_statistics / count, None if weight is None else xp.sum(dy * standard, axis=axes)


@batch_norm.grad("bias")
def _(xp, dy):
    return xp.sum(dy[0], axis=_other_axes(dy[0].ndim))


batch_norm.cuda = columns.BatchNorm()


def _known_statistics(draw: Draw):
    yield Sample(draw.normal(4, 3), draw.normal(3), draw.positive(3), draw.normal(3), draw.normal(3))
    yield Sample(draw.normal(1, 3), draw.normal(3), draw.positive(3))
    yield Sample(draw.normal(3, 2, 5), draw.normal(2), draw.positive(2), draw.normal(2), eps=0.3)
    yield Sample(draw.normal(0, 3), draw.normal(3), draw.positive(3), None, draw.normal(3))


def _bad_statistics(draw: Draw):
    yield ErrorSample(draw.normal(4), draw.normal(4), draw.positive(4), error=ShapeError, match=r"\(4,\)")
    x, mean = draw.normal(4, 3), draw.normal(4)
    yield ErrorSample(x, mean, draw.positive(3), error=ShapeError, match=r"mean \(3,\).*\(4,\)")


@op(samples=_known_statistics, errors=_bad_statistics)
def standardize(xp, x, mean, variance, weight=None, bias=None, *, eps=1e-5):
    """Normalisation by given statistics: y = (x - mean) / sqrt(variance + eps) * weight + bias, per channel.

    Shapes: x (N, C, ...); mean, variance, weight, bias (C,). Batch normalisation of what is not a training batch.
    """
    _check_channels("standardize", x, mean=mean, variance=variance, weight=weight, bias=bias)
    scale = _scaled(1 / xp.sqrt(variance + eps), weight)
    y = (x - _per_channel(xp, mean, x.ndim)) * _per_channel(xp, scale, x.ndim)
    return y if bias is None else y + _per_channel(xp, bias, x.ndim)


@standardize.grad("x")
def _(xp, dy, variance, weight, *, eps):
    return dy * _per_channel(xp, _scaled(1 / xp.sqrt(variance + eps), weight), dy.ndim)


@standardize.grad("mean")
def _(xp, dy, variance, weight, *, eps):
    return -_scaled(1 / xp.sqrt(variance + eps), weight) * xp.sum(dy, axis=_other_axes(dy.ndim))


@standardize.grad("variance")
def _(xp, dy, x, mean, variance, weight, *, eps):
    scale = 1 / xp.sqrt(variance + eps)
    total = xp.sum(dy * (x - _per_channel(xp, mean, x.ndim)), axis=_other_axes(x.ndim))
    return total * (-0.5 * _scaled(scale * scale * scale, weight))


@standardize.grad("weight")
def _(xp, dy, x, mean, variance, *, eps):
    total = xp.sum(dy * (x - _per_channel(xp, mean, x.ndim)), axis=_other_axes(x.ndim))
    return total / xp.sqrt(variance + eps)


@standardize.grad("bias")
def _(xp, dy):
    return xp.sum(dy, axis=_other_axes(dy.ndim))


standardize.cuda = columns.standardize
