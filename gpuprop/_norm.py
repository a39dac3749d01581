"""Norms of many arrays as one vector, and clipping by them. A backend may have faster ones, as `xp.norm_all` and `xp.clip_all`."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import numpy as np


def norm_all(xp: Any, arrays: Sequence[Any], norm_type: float = 2.0) -> Any:
    """(sum of |a|^norm_type over all arrays)^(1 / norm_type), or the largest |a|, as a 0-d array; 16-bit floats are summed in float32.

    Summed array by array, so that the bits do not depend on where they lie.
    """
    parts = xp.stack([_total(xp, a, norm_type) for a in arrays])
    if norm_type == inf:
        return _array(parts.max())
    # The power of an array: NumPy's scalars have another, with other last bits.
    return (parts.sum(keepdims=True) ** (1.0 / norm_type)).reshape(())


def clip_all(xp: Any, arrays: Sequence[Any], norm: Any, max_norm: float) -> None:
    """Multiplies all arrays by min(1, max_norm / (norm + 1e-6)), in place."""
    factor = clipping_factor(xp, norm, max_norm)
    for a in arrays:
        xp.multiply(a, factor, out=a, casting="same_kind")


def clipping_factor(xp: Any, norm: Any, max_norm: float) -> Any:
    """min(1, max_norm / (norm + 1e-6)), as a 0-d array."""
    return _array(xp.minimum(max_norm / (norm + 1e-6), 1.0))


def host_norm_all(arrays: Sequence[np.ndarray], norm_type: float = 2.0) -> np.ndarray:
    return norm_all(np, arrays, norm_type)


def host_clip_all(arrays: Sequence[np.ndarray], norm: np.ndarray, max_norm: float) -> None:
    clip_all(np, arrays, norm, max_norm)


def _total(xp: Any, array: Any, norm_type: float) -> Any:
    if array.dtype.itemsize < 4:
        array = array.astype(xp.float32)
    if norm_type == 2:
        return _array(xp.multiply(array, array).sum())
    if norm_type == inf:
        return _array(xp.abs(array).max()) if array.size else xp.zeros((), array.dtype)
    return _array((xp.abs(array) ** norm_type).sum())


def _array(value: Any) -> Any:
    """A 0-d array where NumPy has made a scalar of one."""
    return np.asarray(value) if isinstance(value, np.generic) else value
