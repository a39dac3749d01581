"""Initial values, written into tensors in place. `generator=` draws from a stream of one's own; else that of the tensor's device.

fan_in and fan_out of a weight of shape (out, in, ...) are in and out, times the size of what follows.
"""

from __future__ import annotations

from math import prod, sqrt
from typing import Any

import numpy as np

from .._random import Generator, rand, randn
from .._tensor import Tensor
from ..errors import OptionError, ShapeError
from ..tape import no_grad

_GAINS = {
    "linear": 1.0,
    "sigmoid": 1.0,
    "tanh": 5.0 / 3,
    "relu": sqrt(2.0),
    "selu": 3.0 / 4,
}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor that keeps the variance through a nonlinearity: sqrt(2) for relu, sqrt(2 / (1 + a^2)) for leaky_relu of slope a.

    Raises: OptionError for an unknown one. Source: He et al. 2015, arXiv:1502.01852, eq. 10 and 15.
    """
    if nonlinearity == "leaky_relu":
        return sqrt(2.0 / (1 + (0.01 if param is None else param) ** 2))
    if nonlinearity not in _GAINS:
        raise OptionError(f"calculate_gain: expected leaky_relu, {', '.join(_GAINS)}, got {nonlinearity!r}")
    return _GAINS[nonlinearity]


def _fans(name: str, tensor: Tensor) -> tuple[int, int]:
    if tensor.ndim < 2:
        raise ShapeError(f"{name}: expected a weight of two or more axes, got shape {tensor.shape}")
    field = prod(tensor.shape[2:])
    return tensor.shape[1] * field, tensor.shape[0] * field


def _fill(tensor: Tensor, values: Any) -> Tensor:
    with no_grad():
        return tensor.copy_(values)


def _drawn(draw: Any, tensor: Tensor, generator: Generator | None) -> Tensor:
    return draw(
        tensor.shape, dtype=tensor.dtype, device=tensor.device if generator is None else None, generator=generator
    )


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Uniform in [a, b)."""
    return _fill(tensor, _drawn(rand, tensor, generator) * (b - a) + a)


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Normal with this mean and standard deviation."""
    return _fill(tensor, _drawn(randn, tensor, generator) * std + mean)


def constant_(tensor: Tensor, val: float) -> Tensor:
    """One value."""
    with no_grad():
        return tensor.fill_(val)


def zeros_(tensor: Tensor) -> Tensor:
    """Zeros."""
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """Ones."""
    return constant_(tensor, 1.0)


def _scaled(tensor: Tensor, std: float, normal: bool, generator: Generator | None) -> Tensor:
    """Of mean 0 and this standard deviation: normal, or uniform."""
    if normal:
        return normal_(tensor, 0.0, std, generator)
    bound = sqrt(3.0) * std
    return uniform_(tensor, -bound, bound, generator)


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Glorot's: uniform in +-gain sqrt(6 / (fan_in + fan_out)). Source: Glorot and Bengio 2010, eq. 16."""
    return _scaled(tensor, gain * sqrt(2.0 / sum(_fans("xavier_uniform_", tensor))), False, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Glorot's: normal with std gain sqrt(2 / (fan_in + fan_out)). Source: Glorot and Bengio 2010, eq. 12."""
    return _scaled(tensor, gain * sqrt(2.0 / sum(_fans("xavier_normal_", tensor))), True, generator)


def _kaiming_std(name: str, tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise OptionError(f"{name}: expected mode 'fan_in' or 'fan_out', got {mode!r}")
    fan = _fans(name, tensor)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / sqrt(fan) if fan else 0.0


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """He's: uniform in +-gain sqrt(3 / fan); a is the slope of leaky_relu. Source: He et al. 2015, arXiv:1502.01852, eq. 10."""
    return _scaled(tensor, _kaiming_std("kaiming_uniform_", tensor, a, mode, nonlinearity), False, generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """He's: normal with std gain / sqrt(fan); a is the slope of leaky_relu. Source: He et al. 2015, arXiv:1502.01852, eq. 10."""
    return _scaled(tensor, _kaiming_std("kaiming_normal_", tensor, a, mode, nonlinearity), True, generator)


def lecun_uniform_(tensor: Tensor, generator: Generator | None = None) -> Tensor:
    """LeCun's: uniform in +-sqrt(3 / fan_in). Source: LeCun et al. 1998, "Efficient BackProp", section 4.6."""
    return _scaled(tensor, _kaiming_std("lecun_uniform_", tensor, 0.0, "fan_in", "linear"), False, generator)


def lecun_normal_(tensor: Tensor, generator: Generator | None = None) -> Tensor:
    """LeCun's: normal with std 1 / sqrt(fan_in), as selu wants it. Source: LeCun et al. 1998, "Efficient BackProp", eq. 16."""
    return _scaled(tensor, _kaiming_std("lecun_normal_", tensor, 0.0, "fan_in", "linear"), True, generator)


def orthogonal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """gain Q, with orthonormal rows or columns of Q, whichever are fewer, uniformly distributed; (out, in, ...) counts as a matrix.

    Source: Saxe et al. 2014, arXiv:1312.6120; Mezzadri 2007, arXiv:math-ph/0609050, section 5 (signs).
    """
    _fans("orthogonal_", tensor)
    rows, columns = tensor.shape[0], prod(tensor.shape[1:])
    drawn = _drawn(randn, tensor, generator).numpy().reshape(rows, columns).astype(np.float64)
    q, r = np.linalg.qr(drawn if rows >= columns else drawn.T)
    q *= np.where(np.diag(r) < 0, -1.0, 1.0)
    return _fill(tensor, gain * (q if rows >= columns else q.T).reshape(tensor.shape))


glorot_uniform_, glorot_normal_ = xavier_uniform_, xavier_normal_
he_uniform_, he_normal_ = kaiming_uniform_, kaiming_normal_
