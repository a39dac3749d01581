"""What the options of the optimizers have to be, and the part of a step that they share."""

from __future__ import annotations

from typing import Any

from ..errors import OptionError


def not_negative(optimizer: str, group: dict[str, Any], *names: str) -> None:
    """Raises OptionError for an option below 0, or one that is no number."""
    for name in names:
        if not group[name] >= 0:
            raise OptionError(f"{optimizer}: expected {name} >= 0, got {group[name]}")


def fraction(optimizer: str, name: str, value: float) -> None:
    """Raises OptionError for a decay rate outside [0, 1)."""
    if not 0 <= value < 1:
        raise OptionError(f"{optimizer}: expected 0 <= {name} < 1, got {value}")


def direction(xp: Any, group: dict[str, Any], p: Any, g: Any, s: Any, t: Any) -> Any:
    """The gradient of what is minimised: negated for `maximize`, with `weight_decay * p` added. In `t`, or `g` itself."""
    if group["maximize"]:
        g = xp.negative(g, t)
    if group["weight_decay"]:
        xp.multiply(p, group["weight_decay"], s)
        g = xp.add(g, s, t)
    return g
