"""Modules, parameters, losses and initialisers, with PyTorch's names."""

from . import functional, init, utils
from .functions import (
    CELU,
    ELU,
    GELU,
    SELU,
    BCELoss,
    BCEWithLogitsLoss,
    CosineSimilarity,
    CrossEntropyLoss,
    GaussianNLLLoss,
    Hardsigmoid,
    Hardswish,
    Hardtanh,
    HingeEmbeddingLoss,
    HuberLoss,
    KLDivLoss,
    L1Loss,
    LeakyReLU,
    LogSigmoid,
    LogSoftmax,
    Mish,
    MSELoss,
    NLLLoss,
    PoissonNLLLoss,
    PReLU,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    SmoothL1Loss,
    Softmax,
    Softplus,
    Softsign,
    Tanh,
)
from .layers import (
    MLP,
    BatchNorm1d,
    Dropout,
    Embedding,
    Flatten,
    Identity,
    LayerNorm,
    Linear,
    ModuleList,
    RMSNorm,
    Sequential,
)
from .module import Module
from .parameter import Parameter

__all__ = [name for name in dir() if not name.startswith("_")]
