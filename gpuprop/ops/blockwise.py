"""Smooth activations on a CPU: value and slope in one go, block by block in the caches.

The slope is computed with the value, where nearly all of its terms are at hand, and kept: backward is one multiplication. Other dtypes
than float32 get both from the generic rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .._blocks import in_blocks
from .._op import Op
from .._trace import primitive
from ..device import HOST
from .activations import EXP_VANISHES, GAUSSIAN_VANISHES, gelu, silu


@primitive(writes=("y", "slope"))
def _compute(block, scratch, x, y, slope):
    in_blocks(np.errstate(over="ignore")(block), x, y, slope, scratch=scratch)  # 1 / (1 + inf) = 0 is what is meant


def blockwise(op: Op, scratch: int, **choices: Callable) -> None:
    """Binds functions of (x, y, slope, *scratch) on blocks to an op, by the value of its one option, if it has one."""

    @op.cpu(residuals=["slope"])
    def forward(x, *, keep, out=None, **options):
        block = choices.get(next(iter(options.values()), "none"))
        flat = x.flags.c_contiguous and (out is None or out.flags.c_contiguous)
        if x.dtype != np.float32 or not flat or block is None:
            y, slope = op.rule(HOST.xp, x, **options), op.gradients[0].function(HOST.xp, 1.0, x, **options)
            if out is not None:
                np.copyto(out, y)
            return y if out is None else out, slope
        y = np.empty_like(x) if out is None else out
        slope = np.empty_like(x)
        _compute(block, scratch, x, y, slope)
        return y, slope

    @op.cpu.grad("x")
    def backward(dy, slope, *, out=None):
        return np.multiply(dy, slope, out=out)


def _within(x: Any, limit: float, y: Any, inside: Any) -> None:
    """y = max(x, -limit), inside = min(y, limit): beyond the limits a factor of 0 would meet an infinity."""
    np.maximum(x, -limit, out=y)
    np.minimum(y, limit, out=inside)


def _logistic(u: Any, s: Any) -> None:
    """s = 1 / (1 + exp(-u)); s may be u."""
    np.negative(u, s)
    np.exp(s, s)
    np.add(s, 1, s)
    np.reciprocal(s, s)


# P(X <= -u) = exp(-u^2 / 2) (c1 t + ... + c8 t^8) with t = 1 / (1 + c0 u), for a standard normal X and u >= 0: within 1.5e-7 of itself. The
# form is that of Abramowitz and Stegun 1964, formula 7.1.26; fitted by reweighted least squares over 0 <= u <= 14.
_TAIL = (
    0.3,
    0.1196292173,
    0.1207552119,
    0.0999056851,
    0.1285871594,
    -0.0537311772,
    0.2064040692,
    -0.1572316519,
    0.0356814135,
)


def _gelu(x, y, slope, t, tail, e):
    multiply, add = np.multiply, np.add
    _within(x, GAUSSIAN_VANISHES, y, slope)
    np.absolute(slope, t)
    multiply(t, _TAIL[0], t)
    add(t, 1, t)
    np.reciprocal(t, t)
    multiply(t, _TAIL[8], tail)
    for coefficient in _TAIL[7:0:-1]:
        add(tail, coefficient, tail)
        multiply(tail, t, tail)
    multiply(slope, slope, e)
    multiply(e, -0.5, e)
    np.exp(e, e)
    multiply(tail, e, tail)
    np.copysign(tail, slope, tail)  # P(X <= x) = (0 or 1, by the sign of x) -+ tail, to the last bit of a small tail
    np.copysign(0.5, slope, t)
    add(t, 0.5, t)
    np.subtract(t, tail, tail)
    multiply(e, slope, e)
    multiply(e, 1 / math.sqrt(2 * math.pi), e)
    add(e, tail, slope)
    multiply(y, tail, y)


def _tanh_gelu(x, y, slope, s, u, du):
    multiply, add = np.multiply, np.add
    scale, cubic = 2 * math.sqrt(2 / math.pi), 0.044715
    _within(x, GAUSSIAN_VANISHES, y, slope)
    multiply(slope, slope, u)
    multiply(u, 3 * cubic * scale, du)
    add(du, scale, du)
    multiply(u, cubic * scale, u)
    add(u, scale, u)
    multiply(u, slope, u)
    _logistic(u, s)
    multiply(du, slope, slope)
    np.subtract(1, s, u)
    multiply(slope, u, slope)
    add(slope, 1, slope)
    multiply(slope, s, slope)
    multiply(y, s, y)


def _silu(x, y, slope, s):
    _within(x, EXP_VANISHES, y, slope)
    _logistic(slope, s)
    np.multiply(y, s, y)
    np.subtract(1, s, slope)
    np.multiply(slope, np.minimum(y, EXP_VANISHES), slope)  # nothing of something infinite is nothing
    np.add(slope, s, slope)


blockwise(gelu, 3, none=_gelu, tanh=_tanh_gelu)
blockwise(silu, 1, none=_silu)
