"""Comparisons and logic, under their NumPy names. Not differentiable: the results are bools (or integers, for bits).

Shapes: inputs broadcast.
"""

from __future__ import annotations

import numpy as np

from .._op import op
from .._tensor import install
from ..errors import DtypeError, ShapeError
from ..testing import Draw, ErrorSample, Sample


def _with_ties(draw: Draw):
    for left, right in [((), ()), ((2, 5), (5,)), ((3, 1), (1, 4)), ((0, 3), (3,))]:
        yield Sample(draw.integers(-1, 2, *left), draw.integers(-1, 2, *right))
    yield Sample(draw.normal(2, 3), 0)
    yield Sample(np.array([1.0, np.nan, np.inf, -np.inf]), np.array([1.0, np.nan, np.inf, np.inf]))


def _incompatible(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), draw.normal(4), error=ShapeError, match=r"\(2, 3\).*\(4,\)")


@op(samples=_with_ties, errors=_incompatible, operator="gt", method="gt", smooth=False)
def greater(xp, a, b):
    """Comparison: y = a > b."""
    return xp.greater(a, b)


greater.cpu = np.greater


@op(samples=_with_ties, errors=_incompatible, operator="ge", method="ge", smooth=False)
def greater_equal(xp, a, b):
    """Comparison: y = a >= b."""
    return xp.greater_equal(a, b)


greater_equal.cpu = np.greater_equal


@op(samples=_with_ties, errors=_incompatible, operator="lt", method="lt", smooth=False)
def less(xp, a, b):
    """Comparison: y = a < b."""
    return xp.less(a, b)


less.cpu = np.less


@op(samples=_with_ties, errors=_incompatible, operator="le", method="le", smooth=False)
def less_equal(xp, a, b):
    """Comparison: y = a <= b."""
    return xp.less_equal(a, b)


less_equal.cpu = np.less_equal


@op(samples=_with_ties, errors=_incompatible, operator="eq", method="eq", smooth=False)
def equal(xp, a, b):
    """Comparison: y = (a equals b)."""
    return xp.equal(a, b)


equal.cpu = np.equal


@op(samples=_with_ties, errors=_incompatible, operator="ne", method="ne", smooth=False)
def not_equal(xp, a, b):
    """Comparison: y = (a differs from b); NaN differs from everything."""
    return xp.not_equal(a, b)


not_equal.cpu = np.not_equal


def _close(draw: Draw):
    x = draw.normal(2, 5)
    yield Sample(x, x + draw.uniform(-2e-8, 2e-8, 5))
    yield Sample(x, x + draw.normal(2, 5), rtol=0.5, atol=0.1)
    yield Sample(np.array([np.nan, np.inf, 0.0]), np.array([np.nan, np.inf, -0.0]), equal_nan=True)


@op(samples=_close, errors=_incompatible, method=True, smooth=False)
def isclose(xp, a, b, *, rtol=1e-5, atol=1e-8, equal_nan=False):
    """Comparison: y = |a - b| <= atol + rtol * |b|; equal infinities are close, NaNs where `equal_nan` says so."""
    return xp.isclose(a, b, rtol=rtol, atol=atol, equal_nan=equal_nan)


# --- What kind of number --------------------------------------------------------------------------------------------


def _unusual(draw: Draw):
    yield Sample(draw.normal())
    yield Sample(draw.normal(0, 3))
    yield Sample(np.array([[1.0, np.nan, 0.0], [np.inf, -np.inf, -2.0]]))
    yield Sample(draw.integers(-2, 3, 4))


@op(samples=_unusual, method=True, smooth=False)
def isnan(xp, x):
    """Whether x is not a number."""
    return xp.isnan(x)


isnan.cpu = np.isnan


@op(samples=_unusual, method=True, smooth=False)
def isfinite(xp, x):
    """Whether x is neither infinite nor NaN."""
    return xp.isfinite(x)


isfinite.cpu = np.isfinite


@op(samples=_unusual, method=True, smooth=False)
def isinf(xp, x):
    """Whether x is infinite."""
    return xp.isinf(x)


isinf.cpu = np.isinf


# --- Logic ----------------------------------------------------------------------------------------------------------


def _truths(draw: Draw):
    for left, right in [((), ()), ((2, 5), (5,)), ((3, 1), (1, 4)), ((0, 3), (3,))]:
        yield Sample(draw.booleans(*left), draw.booleans(*right))
    yield Sample(draw.integers(-1, 2, 2, 3), draw.normal(3))


@op(samples=_truths, errors=_incompatible, method=True, smooth=False)
def logical_and(xp, a, b):
    """Both: y = a and b; whatever is not 0 is true."""
    return xp.logical_and(a, b)


logical_and.cpu = np.logical_and


@op(samples=_truths, errors=_incompatible, method=True, smooth=False)
def logical_or(xp, a, b):
    """Either: y = a or b; whatever is not 0 is true."""
    return xp.logical_or(a, b)


logical_or.cpu = np.logical_or


@op(samples=_truths, errors=_incompatible, method=True, smooth=False)
def logical_xor(xp, a, b):
    """Exactly one: y = (a or b) and not (a and b); whatever is not 0 is true."""
    return xp.logical_xor(a, b)


logical_xor.cpu = np.logical_xor


@op(samples=_unusual, method=True, smooth=False)
def logical_not(xp, x):
    """Neither: y = not x; whatever is not 0 is true."""
    return xp.logical_not(x)


logical_not.cpu = np.logical_not


def _bits(draw: Draw):
    for left, right in [((), ()), ((2, 5), (5,)), ((3, 1), (1, 4)), ((0, 3), (3,))]:
        yield Sample(draw.booleans(*left), draw.booleans(*right))
        yield Sample(draw.integers(-9, 9, *left), draw.integers(-9, 9, *right))


def _bits_of_floats(draw: Draw):
    yield ErrorSample(draw.integers(0, 2, 3), draw.normal(3), error=DtypeError, match="float64")


@op(samples=_bits, errors=_bits_of_floats, operator="and", method=True, smooth=False)
def bitwise_and(xp, a, b):
    """Bit by bit: y = a & b, for bools and integers."""
    return xp.bitwise_and(a, b)


bitwise_and.cpu = np.bitwise_and


@op(samples=_bits, errors=_bits_of_floats, operator="or", method=True, smooth=False)
def bitwise_or(xp, a, b):
    """Bit by bit: y = a | b, for bools and integers."""
    return xp.bitwise_or(a, b)


bitwise_or.cpu = np.bitwise_or


@op(samples=_bits, errors=_bits_of_floats, operator="xor", method=True, smooth=False)
def bitwise_xor(xp, a, b):
    """Bit by bit: y = a ^ b, for bools and integers."""
    return xp.bitwise_xor(a, b)


bitwise_xor.cpu = np.bitwise_xor


def _one_of_bits(draw: Draw):
    yield Sample(draw.booleans())
    yield Sample(draw.integers(-9, 9, 2, 5))


@op(samples=_one_of_bits, operator="invert", method=True, smooth=False)
def invert(xp, x):
    """Bit by bit: y = ~x, for bools and integers; not x for bools."""
    return xp.invert(x)


invert.cpu = np.invert


install(invert, method="bitwise_not")
