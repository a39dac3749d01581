"""What kernels do beside ops, by CuPy alone: for `GPUPROP_KERNELS=off`, and for what no kernel takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cupy

from .. import _norm, _philox
from .backend import report_outside_shape


def index_add(shape: tuple[int, ...], index: tuple, values: Any) -> Any:
    """Zeros of `shape` with `values` added at `index`; repeated positions add up, floats in no fixed order."""
    report_outside_shape("index_add", shape, index)
    result = cupy.zeros(shape, values.dtype)
    if any(hasattr(item, "dtype") for item in index):
        cupy.add.at(result, index, values)
    else:  # without arrays no place is named twice
        view = result[index]
        view += values
    return result


def norm_all(arrays: Sequence[Any], norm_type: float = 2.0) -> Any:
    """The norm of all arrays as one vector."""
    return _norm.norm_all(cupy, arrays, norm_type)


def clip_all(arrays: Sequence[Any], norm: Any, max_norm: float) -> None:
    """Multiplies all arrays by min(1, max_norm / (norm + 1e-6)), in place."""
    _norm.clip_all(cupy, arrays, norm, max_norm)


def philox(base: Any, seed: int, offset: int, count: int) -> Any:
    """The random words of `_philox.words`."""
    return _philox.words(cupy, base, seed, offset, count)
