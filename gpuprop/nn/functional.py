"""Functions under PyTorch's names, with its argument orders: activations, losses, normalisation and noise.

Most are the ops themselves: options follow the arrays by position or by name, `dim` being another name of `axis`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import numpy as gnp
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

tanh = gnp.tanh
logsigmoid = log_sigmoid

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "celu",
    "cosine_similarity",
    "cross_entropy",
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
    "leaky_relu",
    "linear",
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
