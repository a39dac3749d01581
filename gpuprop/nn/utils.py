"""Clipping gradients in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

from .._tensor import Tensor, zeros
from ..device import BACKENDS, backend_for, copy_to, device_scope
from ..errors import AnomalyError, ArgumentError, OptionError
from ..tape import compute


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """Scales all gradients by min(1, max_norm / (norm + 1e-6)), norm being that of all of them as one vector; returns the norm.

    The norm stays on the device and nobody waits for it, unless `error_if_nonfinite` asks for its value. An optimizer with
    `max_grad_norm` does the same within its step, and leaves the gradients as they are.
    Raises: OptionError for norm_type <= 0; AnomalyError for a norm that is not finite, if asked for.
    """
    if not norm_type > 0:
        raise OptionError(f"clip_grad_norm_: expected norm_type > 0, got {norm_type}")
    gradients = _gradients("clip_grad_norm_", parameters)
    if not gradients:
        return zeros(())
    by_device: dict[Any, list[Any]] = {}
    for g in gradients:
        by_device.setdefault(g.device, []).append(g.data)
    norm = norm_of_all(by_device, norm_type)
    if error_if_nonfinite and not isfinite(Tensor(norm).item()):
        raise AnomalyError(
            f"clip_grad_norm_: expected a finite norm, got {Tensor(norm).item()}; gp.detect_anomaly() finds the cause"
        )
    for device, arrays in by_device.items():
        with device_scope(device):
            compute(backend_for(device).xp.clip_all, arrays, copy_to(norm, device), max_norm)
    for g in gradients:
        g._changed()
    return Tensor(norm)


def norm_of_all(by_device: Mapping[Any, list[Any]], norm_type: float = 2.0) -> Any:
    """The norm of arrays on one or several devices, as a 0-d array on the first of these."""
    norms = []
    for device, arrays in by_device.items():
        with device_scope(device):
            norms.append(compute(backend_for(device).xp.norm_all, arrays, norm_type))
    if len(norms) == 1:
        return norms[0]
    first = next(iter(by_device))
    with device_scope(first):
        return compute(backend_for(first).xp.norm_all, [copy_to(norm, first) for norm in norms], norm_type)


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Clips each element of all gradients to [-clip_value, clip_value]."""
    for g in _gradients("clip_grad_value_", parameters):
        backend = BACKENDS[type(g.data)]
        with backend.scope(g.device):
            compute(_clip, backend.xp, g.data, clip_value)
        g._changed()


def _clip(xp: Any, array: Any, limit: float) -> None:
    xp.clip(array, -limit, limit, out=array)


def _gradients(function: str, parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for p in given:
        if not isinstance(p, Tensor):
            raise ArgumentError(f"{function}: expected parameters, got {type(p).__name__}; use model.parameters()")
    return [p.grad for p in given if p.grad is not None]
