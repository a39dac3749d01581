"""Arithmetic on pairs: sums, products, powers, maxima, selection. Inputs broadcast; dtypes promote as NumPy's do.

Where a derivative is undefined, the docstring says what is returned instead.
"""

from __future__ import annotations

import math

import numpy as np

from .._op import op
from .._tensor import install
from ..errors import ArgumentError, ShapeError
from ..testing import Draw, ErrorSample, Sample, apart_pairs, positive_pairs, real_line, real_pairs
from .activations import sigmoid

LN2 = math.log(2)


def quotient(xp, a, b):
    """a / b, and 0 where b is 0, there without a division, so that its derivatives are finite too."""
    zero = b == 0
    return xp.where(zero, 0, a / xp.where(zero, 1, b))


def _incompatible(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), draw.normal(4), error=ShapeError, match=r"\(2, 3\).*\(4,\)")


def _numbers(draw: Draw):
    """Pairs, and a Python number on either side."""
    yield from real_pairs(draw)
    yield Sample(draw.normal(2, 3), 2)
    yield Sample(3, draw.normal(2, 3))


# --- The four operations --------------------------------------------------------------------------------------------


@op(samples=_numbers, errors=_incompatible, operator="add", method=True)
def add(xp, a, b):
    """Sum: y = a + b. Shapes: a, b broadcast."""
    return xp.add(a, b)


@add.grad("a")
def _(xp, dy):
    return dy


@add.grad("b")
def _(xp, dy):
    return dy


add.cpu = np.add


@op(samples=_numbers, errors=_incompatible, operator="sub", method=True)
def subtract(xp, a, b):
    """Difference: y = a - b. Shapes: a, b broadcast."""
    return xp.subtract(a, b)


@subtract.grad("a")
def _(xp, dy):
    return dy


@subtract.grad("b")
def _(xp, dy):
    return -dy


subtract.cpu = np.subtract


@op(samples=_numbers, errors=_incompatible, operator="mul", method=True)
def multiply(xp, a, b):
    """Product: y = a * b. Shapes: a, b broadcast."""
    return xp.multiply(a, b)


@multiply.grad("a")
def _(xp, dy, b):
    return dy * b


@multiply.grad("b")
def _(xp, dy, a):
    return dy * a


multiply.cpu = np.multiply


def _quotients(draw: Draw):
    yield from positive_pairs(draw)
    yield Sample(draw.normal(2, 3), 4)
    yield Sample(1, -draw.positive(2, 3))


@op(samples=_quotients, errors=_incompatible, operator="truediv", method=True)
def divide(xp, a, b):
    """Quotient: y = a / b. Shapes: a, b broadcast; integers give float64."""
    return xp.divide(a, b)


@divide.grad("a")
def _(xp, dy, b):
    return dy / b


@divide.grad("b")
def _(xp, dy, b, y):
    return -dy * y / b


divide.cpu = np.divide


@op(samples=real_line, operator="neg", method=True)
def negative(xp, x):
    """Negation: y = -x."""
    return xp.negative(x)


@negative.grad("x")
def _(xp, dy):
    return -dy


negative.cpu = np.negative


@op(samples=real_line, operator="pos", method=True)
def positive(xp, x):
    """A copy: y = +x."""
    return xp.positive(x)


@positive.grad("x")
def _(xp, dy):
    return dy


positive.cpu = np.positive


# --- Powers and remainders ------------------------------------------------------------------------------------------


def _powers(draw: Draw):
    yield from positive_pairs(draw)
    for exponent in (0, 1, 2, 3, -1, 0.5, -1.5):
        yield Sample(draw.positive(2, 3), exponent)
    yield Sample(2, draw.normal(2, 3))
    yield Sample(-draw.positive(2, 3), draw.integers(-2, 4, 3))
    yield Sample(np.zeros((2, 3)), np.array([2, 3, 4]))
    yield Sample(np.array([0.0, -1.0, 2.0]), 2)
    yield Sample(np.array([0.0, -1.0, 2.0]), 1)


@op(samples=_powers, errors=_incompatible, operator="pow", method=True)
def power(xp, a, b):
    """Power: y = a ** b. Shapes: a, b broadcast.

    At a = 0 the gradient of a is the limit (inf for b < 1), and that of b is 0 for b >= 0. For a < 0 the gradient of b
    is NaN: there is no real power next to it.
    """
    return xp.power(a, b)


@power.grad("a")
def _(xp, dy, a, b):
    if isinstance(b, (int, float)):
        return dy * (b * xp.power(a, b - 1)) if b else xp.zeros_like(dy)
    # 0 ** 0 is constant in a; as 0 * 0 ** -1 it would be 0 * inf.
    constant = xp.logical_and(a == 0, b == 0)
    return dy * (b * xp.power(a, xp.where(constant, 0, b - 1)))


@power.grad("b")
def _(xp, dy, a, y):
    a = a + xp.zeros_like(y)  # a number becomes an array of the result's dtype, on its device
    return dy * y * xp.log(xp.where(xp.logical_and(a == 0, xp.isfinite(y)), 1, a))


power.cpu = np.power


def _remainders(draw: Draw):
    for left, right in [((), ()), ((2, 5), (5,)), ((3, 1), (1, 4)), ((0, 3), (3,))]:
        quotients, divisors = draw.integers(-3, 4, *left), draw.uniform(1.0, 2.0, *right)
        yield Sample(quotients * divisors + draw.uniform(0.1, 0.9, *left), divisors)
        yield Sample(quotients * divisors + draw.uniform(0.1, 0.9, *left), -divisors)
    yield Sample(draw.apart(2, 3) + 0.01, 0.5)


@op(samples=_remainders, errors=_incompatible, operator="mod", method=True)
def mod(xp, a, b):
    """Remainder with the sign of b: y = a - b * floor(a / b). Shapes: a, b broadcast.

    At a jump the gradient is the one from the right.
    """
    return xp.remainder(a, b)


@mod.grad("a")
def _(xp, dy):
    return dy


@mod.grad("b")
def _(xp, dy, a, b):
    return -dy * floor_divide(xp, a, b)


mod.cpu = np.remainder


@op(samples=_remainders, errors=_incompatible, operator="floordiv", method=True)
def floor_divide(xp, a, b):
    """Rounded quotient: y = floor(a / b), with gradient 0. Shapes: a, b broadcast."""
    return xp.floor_divide(a, b)


@floor_divide.grad("a", "b")
def _(xp, dy):
    zeros = xp.zeros_like(dy)
    return zeros, zeros


floor_divide.cpu = np.floor_divide


# --- The larger and the smaller -------------------------------------------------------------------------------------


def _beside_numbers(draw: Draw):
    yield from apart_pairs(draw)
    yield Sample(draw.apart(2, 3), 0)
    yield Sample(0, draw.apart(2, 3))


@op(samples=_beside_numbers, errors=_incompatible, method=True)
def maximum(xp, a, b):
    """The larger: y = max(a, b), NaN where either is. Shapes: a, b broadcast. At a tie each gets half the gradient."""
    return xp.maximum(a, b)


@maximum.grad("a")
def _(xp, dy, a, b):
    return xp.where(a < b, 0, xp.where(a == b, dy * 0.5, dy))


@maximum.grad("b")
def _(xp, dy, a, b):
    return xp.where(b < a, 0, xp.where(a == b, dy * 0.5, dy))


maximum.cpu = np.maximum


@op(samples=_beside_numbers, errors=_incompatible, method=True)
def minimum(xp, a, b):
    """The smaller: y = min(a, b), NaN where either is. Shapes: a, b broadcast. At a tie each gets half the gradient."""
    return xp.minimum(a, b)


@minimum.grad("a")
def _(xp, dy, a, b):
    return xp.where(a > b, 0, xp.where(a == b, dy * 0.5, dy))


@minimum.grad("b")
def _(xp, dy, a, b):
    return xp.where(b > a, 0, xp.where(a == b, dy * 0.5, dy))


minimum.cpu = np.minimum


@op(samples=_beside_numbers, errors=_incompatible, method=True)
def fmax(xp, a, b):
    """The larger, a NaN losing to a number: y = max(a, b). Shapes: a, b broadcast. At a tie a gets the gradient."""
    return xp.fmax(a, b)


@fmax.grad("a")
def _(xp, dy, a, b):
    return xp.where(xp.logical_or(a >= b, b != b), dy, 0)


@fmax.grad("b")
def _(xp, dy, a, b):
    return xp.where(xp.logical_or(a >= b, b != b), 0, dy)


fmax.cpu = np.fmax


@op(samples=_beside_numbers, errors=_incompatible, method=True)
def fmin(xp, a, b):
    """The smaller, a NaN losing to a number: y = min(a, b). Shapes: a, b broadcast. At a tie a gets the gradient."""
    return xp.fmin(a, b)


@fmin.grad("a")
def _(xp, dy, a, b):
    return xp.where(xp.logical_or(a <= b, b != b), dy, 0)


@fmin.grad("b")
def _(xp, dy, a, b):
    return xp.where(xp.logical_or(a <= b, b != b), 0, dy)


fmin.cpu = np.fmin


def _clips(draw: Draw):
    for shape in [(), (2, 5), (3, 1, 4), (0, 3)]:
        yield Sample(draw.apart(*shape), -0.2, 0.3)
    yield Sample(draw.apart(2, 5), 0, None)
    yield Sample(draw.apart(2, 5), None, 0)
    yield Sample(draw.apart(3, 4), draw.apart(4) - 0.04, draw.apart(3, 1) + 0.04)


def _no_bounds(draw: Draw):
    yield ErrorSample(draw.normal(2), error=ArgumentError, match="min or max")
    yield ErrorSample(draw.normal(2, 3), draw.normal(4), error=ShapeError, match=r"\(4,\)")


@op(samples=_clips, errors=_no_bounds, method=True)
def clip(xp, x, min=None, max=None):
    """Limits: y = min(max(x, min), max), either bound optional. Shapes: x, min, max broadcast.

    At a bound, x gets the gradient; beyond it, the bound does (max where min > max).
    """
    if min is None and max is None:
        raise ArgumentError("clip: expected min or max, got neither")
    return xp.clip(x, min, max)


@clip.grad("x")
def _(xp, dy, x, min, max):
    dx = dy if min is None else xp.where(x < min, 0, dy)
    return dx if max is None else xp.where(x > max, 0, dx)


@clip.grad("min")
def _(xp, dy, x, min, max):
    below = xp.where(x < min, dy, 0)
    return below if max is None else xp.where(max < min, 0, below)


@clip.grad("max")
def _(xp, dy, x, min, max):
    above = x > max
    return xp.where(above if min is None else xp.logical_or(above, max < min), dy, 0)


def _selections(draw: Draw):
    yield Sample(draw.booleans(), draw.normal(), draw.normal())
    yield Sample(draw.booleans(2, 5), draw.normal(2, 5), draw.normal(5))
    yield Sample(draw.booleans(3, 1), draw.normal(1, 4), draw.normal())
    yield Sample(draw.booleans(5), draw.normal(2, 5), 0)
    yield Sample(draw.booleans(0, 3), 1.5, draw.normal(3))


def _bad_selections(draw: Draw):
    yield ErrorSample(draw.booleans(2), draw.normal(3), draw.normal(3), error=ShapeError, match=r"\(2,\).*\(3,\)")


@op(samples=_selections, errors=_bad_selections)
def where(xp, condition, a, b):
    """Selection: y = a where the condition holds, else b. Shapes: condition (bool), a, b broadcast."""
    return xp.where(condition, a, b)


@where.grad("a")
def _(xp, dy, condition):
    return xp.where(condition, dy, 0)


@where.grad("b")
def _(xp, dy, condition):
    return xp.where(condition, 0, dy)


# --- Two arguments, one curve ---------------------------------------------------------------------------------------


@op(samples=positive_pairs, errors=_incompatible, method=True)
def hypot(xp, a, b):
    """Length of the vector (a, b), without overflow: y = sqrt(a^2 + b^2). Shapes: a, b broadcast.

    At the origin the gradient is 0.
    """
    return xp.hypot(a, b)


@hypot.grad("a")
def _(xp, dy, a, y):
    return dy * quotient(xp, a, y)


@hypot.grad("b")
def _(xp, dy, b, y):
    return dy * quotient(xp, b, y)


hypot.cpu = np.hypot


@op(samples=apart_pairs, errors=_incompatible, method=True)
def arctan2(xp, a, b):
    """Angle of the point (b, a), in radians: y = arctan(a / b), in its quadrant. Shapes: a, b broadcast.

    At the origin the gradient is 0.
    """
    return xp.arctan2(a, b)


@arctan2.grad("a")
def _(xp, dy, a, b):
    length = hypot(xp, a, b)  # divided by twice: its square may overflow
    return dy * quotient(xp, quotient(xp, b, length), length)


@arctan2.grad("b")
def _(xp, dy, a, b):
    length = hypot(xp, a, b)
    return -dy * quotient(xp, quotient(xp, a, length), length)


arctan2.cpu = np.arctan2


def _lead(xp, a, b):
    """a - b, and 0 for equal infinities."""
    same = xp.logical_and(a == b, abs(a) == math.inf)
    return xp.where(same, 0, a) - xp.where(same, 0, b)


@op(samples=real_pairs, errors=_incompatible, method=True)
def logaddexp(xp, a, b):
    """Logarithm of a sum of exponentials, without overflow: y = log(exp(a) + exp(b)). Shapes: a, b broadcast."""
    return xp.logaddexp(a, b)


@logaddexp.grad("a")
def _(xp, dy, a, b):
    return dy * sigmoid(xp, _lead(xp, a, b))  # as exp(a - y) it would inherit the rounding of a large y


@logaddexp.grad("b")
def _(xp, dy, a, b):
    return dy * sigmoid(xp, _lead(xp, b, a))


logaddexp.cpu = np.logaddexp


@op(samples=real_pairs, errors=_incompatible, method=True)
def logaddexp2(xp, a, b):
    """Logarithm of a sum of powers of two, without overflow: y = log2(2^a + 2^b). Shapes: a, b broadcast."""
    return xp.logaddexp2(a, b)


@logaddexp2.grad("a")
def _(xp, dy, a, b):
    return dy * sigmoid(xp, LN2 * _lead(xp, a, b))


@logaddexp2.grad("b")
def _(xp, dy, a, b):
    return dy * sigmoid(xp, LN2 * _lead(xp, b, a))


logaddexp2.cpu = np.logaddexp2


# Other names of the same methods, that users of PyTorch know.
for _name, _op in {
    "sub": subtract,
    "mul": multiply,
    "div": divide,
    "neg": negative,
    "pow": power,
    "remainder": mod,
    "clamp": clip,
    "atan2": arctan2,
}.items():
    install(_op, method=_name)
