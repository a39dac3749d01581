"""What the optimizers share: checks of options, and parts of a step."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from .._blocks import number
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


def not_nothing(eps: float, blocks: list[tuple]) -> float:
    """`eps`, or the smallest normal number where the parameters' dtype (float16) would round it to 0, and 0 / 0 give no number."""
    return max(eps, smallest(blocks[0][0].dtype)) if blocks else eps


@cache
def smallest(dtype: Any) -> float:
    """The smallest normal number of a dtype."""
    return float(np.finfo(dtype if dtype.kind == "f" else np.float32).tiny)  # bfloat16 has the range of float32


def numbers(xp: Any, blocks: list[tuple], *values: float) -> tuple[Any, ...]:
    """Numbers as calls on blocks take them fastest: for NumPy as arrays, which takes 6 % off an Adam step of a million float32."""
    return tuple(number(value, blocks[0][0].dtype) for value in values) if xp is np and blocks else values
