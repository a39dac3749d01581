"""What the optimizers share: checks of options, and parts of a step."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

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


def direction(xp: Any, group: dict[str, Any], decay: float, p: Any, g: Any, s: Any, t: Any) -> Any:
    """The gradient of what is minimised: negated for `maximize`, with `decay * p` added. In `t`, or `g` itself."""
    if group["maximize"]:
        g = xp.negative(g, t)
    if decay:
        xp.multiply(p, decay, s)
        g = xp.add(g, s, t)
    return g


def not_nothing(eps: float, blocks: list[tuple]) -> Any:
    """`eps`, or the smallest normal number where the parameters' dtype (float16) would round it to 0, and 0 / 0 give no number."""
    if not blocks:
        return eps
    p = blocks[0][0]
    eps = max(eps, smallest(p.dtype))
    if type(p) is not np.ndarray:
        return eps
    return np.array(eps, p.dtype)  # a Python float costs each of NumPy's calls 0.2 to 0.4 us more


@cache
def smallest(dtype: Any) -> float:
    """The smallest normal number of a dtype."""
    return float(np.finfo(dtype if dtype.kind == "f" else np.float32).tiny)  # bfloat16 has the range of float32
