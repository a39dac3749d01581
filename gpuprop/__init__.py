"""gpuprop: GPU-accelerated backpropagation on plain arrays.

A tape records what is computed with Tensors, one walk backwards differentiates it, and every op runs on the device that its data
is on: NumPy arrays on a CPU, CuPy arrays on a GPU. The README shows a training loop.
"""

import importlib

from numpy import bool_, float16, float32, float64, int8, int16, int32, int64, uint8
from numpy import bool_ as bool
from numpy import float16 as half
from numpy import float32 as float
from numpy import float64 as double
from numpy import int32 as int
from numpy import int64 as long

from . import cuda, data, errors, nn, ops, optim, testing
from . import numpy as numpy
from ._capture import capture
from ._matmul import (
    get_float32_matmul_precision,
    get_matmul_choices,
    get_matmul_epilogues,
    set_float32_matmul_precision,
    set_matmul_autotuning,
    set_matmul_choices,
    set_matmul_epilogues,
)
from ._op import op
from ._random import (
    Generator,
    default_generator,
    manual_seed,
    normal,
    rand,
    rand_like,
    randint,
    randint_like,
    randn,
    randn_like,
    randperm,
)
from ._tensor import (
    Tensor,
    arange,
    asarray,
    empty,
    empty_like,
    eye,
    from_numpy,
    full,
    full_like,
    get_default_dtype,
    linspace,
    ones,
    ones_like,
    set_default_dtype,
    tensor,
    zeros,
    zeros_like,
)
from .device import Device, default_device, device_report, is_available, set_default_device, synchronize
from .errors import Error
from .serialization import load, save
from .tape import detect_anomaly, enable_grad, is_grad_enabled, no_grad
from .transforms import checkpoint, grad, hessian, hvp, jacobian, jvp, value_and_grad, vjp

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`gp.train` on first use: training steps by hand do not need it."""
    if name == "train":
        return importlib.import_module(".train", __name__)
    raise AttributeError(f"module 'gpuprop' has no attribute {name!r}")
