"""Functions under PyTorch's names, with its argument orders: activations, losses, normalisation and noise.

Most are the ops themselves: options follow the arrays by position or by name, `dim` being another name of `axis`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import numpy as gnp
from .. import ops
from .._random import Generator, default_generator
from .._tensor import Tensor
from ..device import Device, backend_of, device_of
from ..errors import ArgumentError
from ..ops.activations import (
    celu,
    elu,
    gelu,
    hardsigmoid,
    hardswish,
    hardtanh,
    leaky_relu,
    log_sigmoid,
    log_softmax,
    mish,
    prelu,
    relu,
    relu6,
    selu,
    sigmoid,
    silu,
    softmax,
    softplus,
    softsign,
)
from ..ops.fused import linear_activation, linear_activation_dropout
from ..ops.linalg import linear
from ..ops.losses import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cosine_similarity,
    cross_entropy,
    gaussian_nll_loss,
    hinge_embedding_loss,
    huber_loss,
    kl_div,
    l1_loss,
    mse_loss,
    nll_loss,
    poisson_nll_loss,
    smooth_l1_loss,
)
from ..ops.random import blocks_of_lanes, check_probability
from ..tape import no_grad

tanh = gnp.tanh
logsigmoid = log_sigmoid

__all__ = [
    "batch_norm",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "celu",
    "cosine_similarity",
    "cross_entropy",
    "dropout",
    "elu",
    "gaussian_nll_loss",
    "gelu",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "hinge_embedding_loss",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear",
    "linear_activation",
    "linear_activation_dropout",
    "log_softmax",
    "logsigmoid",
    "mish",
    "mse_loss",
    "nll_loss",
    "normalize",
    "one_hot",
    "poisson_nll_loss",
    "prelu",
    "relu",
    "relu6",
    "rms_norm",
    "selu",
    "sigmoid",
    "silu",
    "smooth_l1_loss",
    "softmax",
    "softmin",
    "softplus",
    "softsign",
    "tanh",
]


def softmin(input: Any, dim: int = -1) -> Any:
    """Softmax of the negative: y_i = exp(-x_i) / sum_j exp(-x_j)."""
    return softmax(-input, axis=dim)


def normalize(input: Any, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Any:
    """Vectors of p-norm 1 along an axis: y = x / max(|x|_p, eps)."""
    return input / gnp.maximum(gnp.norm(input, ord=p, axis=dim, keepdims=True), eps)


def one_hot(tensor: Any, num_classes: int = -1) -> Any:
    """y[..., c] = 1 where tensor[...] = c, else 0. Shapes: tensor (...) int -> y (..., num_classes) int64.

    num_classes=-1 takes the largest label plus one, for which it reads the labels on the host.
    """
    if num_classes == -1:
        num_classes = int(gnp.max(tensor)) + 1
    return gnp.one_hot(tensor, num_classes=num_classes, dtype=np.int64)


def dropout(input: Any, p: float = 0.5, training: bool = True, generator: Generator | None = None) -> Any:
    """Inverted dropout: each element is 0 with probability p, else divided by 1 - p; the input itself outside training.

    generator: draws the mask; the default one of the input's device if None.
    """
    check_probability("dropout", p)
    if not training or p == 0:
        return input
    taped = isinstance(input, Tensor)
    device = device_of(input.data if taped else np.asarray(input))
    base, key = reserve_mask(math.prod(gnp.shape(input)), device, generator)
    return ops.random.dropout(input, base if taped else base.data, p=p, **key)


def reserve_mask(count: int, device: Device, generator: Generator | None = None) -> tuple[Tensor, dict[str, int]]:
    """The key of a mask of so many elements: the base, and seed and offset by name."""
    generator = generator or default_generator(device)
    seed, offset = generator.reserve(blocks_of_lanes(count))
    return generator.base, {"seed": seed, "offset": offset}


def layer_norm(input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    """Layer normalisation over the last axes, whose lengths are normalized_shape: see `gp.numpy.layer_norm`."""
    return ops.normalisation.layer_norm(input, weight, bias, normalized_shape=normalized_shape, eps=eps)


def rms_norm(input: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    """Root mean square normalisation over the last axes of lengths normalized_shape: see `gp.numpy.rms_norm`."""
    return ops.normalisation.rms_norm(input, weight, normalized_shape=normalized_shape, eps=eps)


def batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """Batch normalisation per channel (axis 1): by the batch's own statistics in training, else by the running ones.

    In training the running statistics, if given, are updated in place and on their device:
    running = (1 - momentum) * running + momentum * batch, with the unbiased variance of the batch.
    Shapes: input (N, C, ...), all others (C,). Raises: ShapeError, ArgumentError.
    """
    if not training:
        if running_mean is None or running_var is None:
            raise ArgumentError("batch_norm: expected running_mean and running_var outside training, got None")
        return ops.normalisation.standardize(input, running_mean, running_var, weight, bias, eps=eps)
    y, mean, variance = ops.normalisation.batch_norm(input, weight, bias, eps=eps)
    count = math.prod(y.shape) // max(1, y.shape[1])
    unbiased = momentum * count / max(1, count - 1)
    for running, batch, share in ((running_mean, mean, momentum), (running_var, variance, unbiased)):
        if running is not None:
            _blend(running, 1 - momentum, batch, share)
    return y


def _blend(x: Any, a: float, y: Any, b: float) -> None:
    """x = a x + b y, in place and off the tape."""
    y = y.data if isinstance(y, Tensor) else y
    with no_grad():
        if isinstance(x, Tensor):
            x._check_mutable("batch_norm")
            x._write("batch_norm", backend_of(x.data).xp.blend, x.data, a, y, b)
        else:
            backend_of(x).xp.blend(x, a, y, b)
