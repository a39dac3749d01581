"""Clipping gradients in place."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Any

from .._tensor import Tensor, zeros
from ..device import BACKENDS, copy_to, device_scope
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
    with device_scope(place):
        xp = BACKENDS[type(gradients[0].data)].xp
        parts = [copy_to(_total(g, norm_type), place) for g in gradients]
        total = parts[0]
        for part in parts[1:]:
            total = xp.maximum(total, part) if norm_type == inf else total + part
        if norm_type == 2:
            total = xp.sqrt(total)
        elif norm_type != inf:
            total = total ** (1.0 / norm_type)
        norm = Tensor(xp.asarray(total))
        scale = xp.asarray(xp.minimum(max_norm / (total + 1e-6), 1.0))
    if error_if_nonfinite and not bool(xp.isfinite(norm.data)):
        raise AnomalyError(f"clip_grad_norm_: expected a finite norm, got {norm.item()}; gp.detect_anomaly() finds the cause")
    for g in gradients:
        with device_scope(g.device):
            BACKENDS[type(g.data)].xp.multiply(g.data, copy_to(scale, g.device), out=g.data, casting="same_kind")
        g._changed()
    return norm


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Clips each element of all gradients to [-clip_value, clip_value]."""
    for g in _gradients("clip_grad_value_", parameters):
        with device_scope(g.device):
            BACKENDS[type(g.data)].xp.clip(g.data, -clip_value, clip_value, out=g.data)
        g._changed()


def _gradients(function: str, parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for p in given:
        if not isinstance(p, Tensor):
            raise ArgumentError(f"{function}: expected parameters, got {type(p).__name__}; use model.parameters()")
    return [p.grad for p in given if p.grad is not None]


def _total(g: Tensor, norm_type: float) -> Any:
    """The sum of |g|^norm_type, or the maximum of |g|; float16 is summed in float32."""
    with device_scope(g.device):
        xp = BACKENDS[type(g.data)].xp
        array = g.data.astype(xp.float32) if g.dtype.itemsize < 4 else g.data
        if norm_type == 2:
            return xp.asarray(xp.sum(xp.square(array)))
        if norm_type == inf:
            return xp.asarray(xp.max(xp.abs(array))) if array.size else xp.zeros((), array.dtype)
        return xp.asarray(xp.sum(xp.abs(array) ** norm_type))
