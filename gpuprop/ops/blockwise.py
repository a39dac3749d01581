"""Smooth activations on a CPU: value and slope in one go, block by block in the caches.

The slope is computed with the value, where nearly all of its terms are at hand, and kept: backward is one multiplication. Other dtypes
than float32 get both from the generic rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .._blocks import filled, in_blocks, number
from .._op import Op
from .._trace import primitive
from ..device import HOST
from .activations import EXP_VANISHES, GAUSSIAN_VANISHES, gelu, silu


@primitive(writes=("y", "slope"))
def _compute(block, scratch, bias, x, y, slope):
    with np.errstate(over="ignore"):  # 1 / (1 + inf) = 0 is what is meant
        in_blocks(block, x, y, slope, scratch=scratch, bias=bias)


def blockwise(op: Op, scratch: int, **choices: Callable) -> None:
    """Binds functions of (x, y, slope, *scratch) on blocks to an op, by the value of its one option, if it has one.

    The implementation takes a `bias` besides: then y is of x + bias, and written over x.
    """

    @op.cpu(residuals=["slope"])
    def forward(x, *, keep, out=None, bias=None, **options):
        block = choices.get(next(iter(options.values()), "none"))
        out = out if bias is None else x
        flat = x.flags.c_contiguous and (out is None or out.flags.c_contiguous)
        if x.dtype != np.float32 or not flat or block is None:
            x = x if bias is None else np.add(x, bias, out=x)
            y, slope = op.rule(HOST.xp, x, **options), op.gradients[0].function(HOST.xp, 1.0, x, **options)
            if out is not None:
                np.copyto(out, y)
            return y if out is None else out, slope
        y = np.empty_like(x) if out is None else out
        slope = np.empty_like(x)
        _compute(block, scratch, bias, x, y, slope)
        return y, slope

    @op.cpu.grad("x")
    def backward(dy, slope, *, out=None):
        return np.multiply(dy, slope, out=out)


def _within(x: Any, limit: float, y: Any, inside: Any) -> None:
    """y = max(x, -limit), inside = min(y, limit): beyond the limits a factor of 0 would meet an infinity."""
    np.maximum(x, filled(-limit, x), out=y)
    np.minimum(y, filled(limit, x), out=inside)


def _logistic(u: Any, s: Any) -> None:
    """s = 1 / (1 + exp(-u)); s may be u."""
    np.negative(u, s)
    np.exp(s, s)
    np.add(s, 1, s)
    np.reciprocal(s, s)


def _singles(*values: float) -> list[np.ndarray]:
    return [number(value, np.float32) for value in values]


def _monic(u: Any, coefficients: list[np.ndarray], out: Any) -> None:
    """out = u^n + c1 u^(n - 1) + ... + cn, by Horner's rule."""
    np.add(u, coefficients[0], out)
    for coefficient in coefficients[1:]:
        np.multiply(out, u, out)
        np.add(out, coefficient, out)


# P(X <= -u) = p(u) N(u) / D(u) for a standard normal X of density p and u >= 0, with polynomials that begin with u^3 and u^4, so that the
# quotient tends to 1 / u, as it should. Fitted over 0 <= u <= 40 by reweighted least squares: P is within 4e-8 / max(u, 1), and for u <= 5
# within 5e-6 of itself.
_NUMERATOR = _singles(7.085941779, 21.50420708, 29.48747231)
_DENOMINATOR = _singles(7.084296092, 22.55942041, 35.93005451, 23.5276007)
_ONE, _HALF_LESS, _DENSITY, _LARGE = _singles(1, -0.5, 1 / math.sqrt(2 * math.pi), 2.0**40)
# From here on p(x) and P(X <= -x) count as 0. They would be 1e-32, and soon subnormal, with which processors compute forty times slower:
# x in the tens took three times as long as x around 0.
_FAR = 12.0
_EXP_FAR = np.exp(np.full(1, -_FAR * _FAR / 2, np.float32)).reshape(())


def _gelu(x, y, slope, u, tail, share):
    """y = x P(X <= x), slope = P(X <= x) + x p(x), with P(X <= x) made of u = |x| without a look at the sign of each x: `copysign`
    takes three times as long as a product.

    With tail = P(X <= -u), P(X <= x) is tail below 0 and 1 - tail >= tail above: so it is x, made very large, within these limits. (29
    passes, where polynomials of 1 / (1 + u) in the manner of Abramowitz and Stegun, 7.1.26, took 33 and a fifth more time.)
    """
    multiply = np.multiply
    _within(x, _FAR, y, slope)
    np.absolute(slope, u)
    _monic(u, _NUMERATOR, tail)
    _monic(u, _DENOMINATOR, share)
    np.divide(tail, share, tail)
    multiply(u, _HALF_LESS, share)
    multiply(share, u, u)
    np.exp(u, u)
    np.subtract(u, _EXP_FAR, u)
    multiply(u, _DENSITY, u)  # p(x)
    multiply(tail, u, tail)
    multiply(slope, u, slope)
    multiply(x, _LARGE, share)
    np.subtract(_ONE, tail, u)
    np.maximum(share, tail, out=share)
    np.minimum(share, u, out=share)  # P(X <= x)
    np.add(slope, share, slope)
    multiply(y, share, y)


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
    np.multiply(slope, np.minimum(y, filled(EXP_VANISHES, x)), slope)  # nothing of something infinite is nothing
    np.add(slope, s, slope)


blockwise(gelu, 3, none=_gelu, tanh=_tanh_gelu)
blockwise(silu, 1, none=_silu)
