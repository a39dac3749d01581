"""Clipping gradients in place."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf, isfinite
from typing import Any

import numpy as np

from .._tensor import Tensor, zeros
from ..device import BACKENDS, copy_to
from ..errors import AnomalyError, ArgumentError, OptionError


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """Scales all gradients by min(1, max_norm / (norm + 1e-6)), norm being that of all of them as one vector; returns the norm.

    The norm is summed parameter by parameter, so that its bits do not depend on where they lie. It stays on the device and
    nobody waits for it, unless `error_if_nonfinite` asks for its value.
    Raises: OptionError for norm_type <= 0; AnomalyError for a norm that is not finite, if asked for.
    """
    if not norm_type > 0:
        raise OptionError(f"clip_grad_norm_: expected norm_type > 0, got {norm_type}")
    gradients = _gradients("clip_grad_norm_", parameters)
    if not gradients:
        return zeros(())
    place = gradients[0].device
    apart = any(g.device != place for g in gradients)
    parts = [_total(g.data, norm_type) for g in gradients]
    if apart:
        parts = [copy_to(part, place) for part in parts]
    backend = BACKENDS[type(parts[0])]
    with backend.scope(place):
        total = backend.xp.stack(parts)
        total = total.max() if norm_type == inf else total.sum() ** (1.0 / norm_type)
        norm = Tensor(_array(total))
        scale = _array(backend.xp.minimum(max_norm / (total + 1e-6), 1.0))
    if error_if_nonfinite and not isfinite(norm.item()):
        raise AnomalyError(
            f"clip_grad_norm_: expected a finite norm, got {norm.item()}; gp.detect_anomaly() finds the cause"
        )
    for g in gradients:
        own = BACKENDS[type(g.data)]
        with own.scope(g.device):
            own.xp.multiply(g.data, copy_to(scale, g.device) if apart else scale, out=g.data, casting="same_kind")
        g._changed()
    return norm


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Clips each element of all gradients to [-clip_value, clip_value]."""
    for g in _gradients("clip_grad_value_", parameters):
        backend = BACKENDS[type(g.data)]
        with backend.scope(g.device):
            backend.xp.clip(g.data, -clip_value, clip_value, out=g.data)
        g._changed()


def _gradients(function: str, parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for p in given:
        if not isinstance(p, Tensor):
            raise ArgumentError(f"{function}: expected parameters, got {type(p).__name__}; use model.parameters()")
    return [p.grad for p in given if p.grad is not None]


def _total(array: Any, norm_type: float) -> Any:
    """The sum of |g|^norm_type, or the maximum of |g|, as a 0-d array; float16 is summed in float32."""
    backend = BACKENDS[type(array)]
    xp = backend.xp
    with backend.scope(backend.device_of(array)):
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
