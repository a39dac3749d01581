"""What kernels do beside ops, by CuPy alone: for `GPUPROP_KERNELS=off`, and for what no kernel takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cupy
import numpy as np

from .. import _norm, _philox
from .backend import report_outside_shape


def index_add(shape: tuple[int, ...], index: tuple, values: Any) -> Any:
    """Zeros of `shape` with `values` added at `index`; repeated positions add up, floats in no fixed order."""
    report_outside_shape("index_add", shape, index)
    if any(hasattr(item, "dtype") for item in index):
        narrow = (
            values.dtype.itemsize < 4
        )  # atomics are for 32 and 64 bits; what integers lose when cast back they would have wrapped
        result = cupy.zeros(shape, (np.int32 if values.dtype.kind in "iub" else np.float32) if narrow else values.dtype)
        cupy.add.at(result, index, values.astype(result.dtype, copy=False))
        return result.astype(values.dtype, copy=False)
    result = cupy.zeros(shape, values.dtype)
    view = result[index]  # without arrays no place is named twice
    view += values
    return result


def blend(x: Any, a: float, y: Any, b: float) -> None:
    """x = a x + b y, in place."""
    x *= a
    x += b * y


def norm_all(arrays: Sequence[Any], norm_type: float = 2.0) -> Any:
    """The norm of all arrays as one vector."""
    return _norm.norm_all(cupy, arrays, norm_type)


def clip_all(arrays: Sequence[Any], norm: Any, max_norm: float) -> None:
    """Multiplies all arrays by min(1, max_norm / (norm + 1e-6)), in place."""
    _norm.clip_all(cupy, arrays, norm, max_norm)


def philox(base: Any, seed: int, offset: int, count: int) -> Any:
    """The random words of `_philox.words`."""
    return _philox.words(cupy, base, seed, offset, count)
