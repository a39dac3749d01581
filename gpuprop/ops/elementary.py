"""Elementary functions of one number, under their NumPy names.

Shapes: x (...) -> y (...), of the same floating dtype; integers give float64, or stay integers where they can (square).
Where a derivative is undefined, the docstring says what is returned instead.
"""

from __future__ import annotations

import math

import numpy as np

from .._op import op
from .._tensor import install
from ..cuda._elementwise import elementwise
from ..testing import Draw, Sample, apart, between, positive, real_line
from .arithmetic import LN2

# --- Absolute value and rounding ------------------------------------------------------------------------------------


@op(samples=apart, operator="abs", method=True)
def absolute(xp, x):
    """Absolute value: y = |x|. At 0 the gradient is 0."""
    return xp.absolute(x)


@absolute.grad("x")
def _(xp, dy, x):
    return dy * xp.sign(x)


absolute.cpu = np.absolute


@op(samples=apart, method=True)
def sign(xp, x):
    """Sign: y = -1, 0 or 1, with gradient 0."""
    return xp.sign(x)


@sign.grad("x")
def _(xp, dy):
    return xp.zeros_like(dy)


sign.cpu = np.sign


@op(samples=real_line, method=True)
def floor(xp, x):
    """Rounded down: y = floor(x), with gradient 0."""
    return xp.floor(x)


@floor.grad("x")
def _(xp, dy):
    return xp.zeros_like(dy)


floor.cpu = np.floor


@op(samples=real_line, method=True)
def ceil(xp, x):
    """Rounded up: y = ceil(x), with gradient 0."""
    return xp.ceil(x)


@ceil.grad("x")
def _(xp, dy):
    return xp.zeros_like(dy)


ceil.cpu = np.ceil


@op(samples=real_line, method=True)
def trunc(xp, x):
    """Rounded towards 0: y = trunc(x), with gradient 0."""
    return xp.trunc(x)


@trunc.grad("x")
def _(xp, dy):
    return xp.zeros_like(dy)


trunc.cpu = np.trunc


def _rounded(draw: Draw):
    yield from real_line(draw)
    yield Sample(draw.normal(2, 3), decimals=1)


@op(samples=_rounded, method=True)
def round(xp, x, *, decimals=0):
    """Rounded to `decimals` decimals, halves to even: y = round(x), with gradient 0."""
    return xp.round(x, decimals)


@round.grad("x")
def _(xp, dy):
    return xp.zeros_like(dy)


# --- Powers and roots -----------------------------------------------------------------------------------------------


@op(samples=real_line, method=True)
def square(xp, x):
    """Square: y = x^2."""
    return xp.square(x)


@square.grad("x")
def _(xp, dy, x):
    return dy * (2 * x)


square.cpu = np.square


@op(samples=positive, method=True)
def sqrt(xp, x):
    """Square root: y = x^(1/2). At 0 the gradient is infinite."""
    return xp.sqrt(x)


@sqrt.grad("x")
def _(xp, dy, y):
    return dy / (2 * y)


sqrt.cpu = np.sqrt


@op(samples=apart)
def cbrt(xp, x):
    """Cube root, of negative numbers too: y = x^(1/3). At 0 the gradient is infinite."""
    return xp.cbrt(x)


@cbrt.grad("x")
def _(xp, dy, y):
    return dy / (3 * y * y)


cbrt.cpu = np.cbrt


@op(samples=positive, method=True)
def reciprocal(xp, x):
    """Reciprocal: y = 1 / x."""
    return xp.reciprocal(x)


@reciprocal.grad("x")
def _(xp, dy, y):
    return -dy * y * y


reciprocal.cpu = np.reciprocal


# --- Exponentials and logarithms ------------------------------------------------------------------------------------


@op(samples=real_line, method=True)
def exp(xp, x):
    """Exponential: y = e^x."""
    return xp.exp(x)


@exp.grad("x")
def _(xp, dy, y):
    return dy * y


exp.cpu = np.exp


@op(samples=real_line, method=True)
def exp2(xp, x):
    """Power of two: y = 2^x."""
    return xp.exp2(x)


@exp2.grad("x")
def _(xp, dy, y):
    return dy * (LN2 * y)


exp2.cpu = np.exp2


@op(samples=real_line, method=True)
def expm1(xp, x):
    """Exponential less one, exact near 0: y = e^x - 1."""
    return xp.expm1(x)


@expm1.grad("x")
def _(xp, dy, y):
    return dy * (y + 1)


expm1.cpu = np.expm1


@op(samples=positive, method=True)
def log(xp, x):
    """Natural logarithm: y = ln(x)."""
    return xp.log(x)


@log.grad("x")
def _(xp, dy, x):
    return dy / x


log.cpu = np.log


@op(samples=positive, method=True)
def log2(xp, x):
    """Logarithm of base 2: y = ln(x) / ln(2)."""
    return xp.log2(x)


@log2.grad("x")
def _(xp, dy, x):
    return dy / (LN2 * x)


log2.cpu = np.log2


@op(samples=positive, method=True)
def log10(xp, x):
    """Logarithm of base 10: y = ln(x) / ln(10)."""
    return xp.log10(x)


@log10.grad("x")
def _(xp, dy, x):
    return dy / (math.log(10) * x)


log10.cpu = np.log10


@op(samples=between(-0.8, 3.0), method=True)
def log1p(xp, x):
    """Logarithm of one more, exact near 0: y = ln(1 + x)."""
    return xp.log1p(x)


@log1p.grad("x")
def _(xp, dy, x):
    return dy / (1 + x)


log1p.cpu = np.log1p


# --- Circular functions ---------------------------------------------------------------------------------------------


@op(samples=real_line, method=True)
def sin(xp, x):
    """Sine of radians: y = sin(x)."""
    return xp.sin(x)


@sin.grad("x")
def _(xp, dy, x):
    return dy * xp.cos(x)


sin.cpu = np.sin


@op(samples=real_line, method=True)
def cos(xp, x):
    """Cosine of radians: y = cos(x)."""
    return xp.cos(x)


@cos.grad("x")
def _(xp, dy, x):
    return -dy * xp.sin(x)


cos.cpu = np.cos


@op(samples=between(-1.2, 1.2), method=True)
def tan(xp, x):
    """Tangent of radians: y = tan(x)."""
    return xp.tan(x)


@tan.grad("x")
def _(xp, dy, y):
    return dy * (1 + y * y)


tan.cpu = np.tan


@op(samples=between(-0.9, 0.9), method=True)
def arcsin(xp, x):
    """Inverse sine, in radians: y = arcsin(x). At -1 and 1 the gradient is infinite."""
    return xp.arcsin(x)


@arcsin.grad("x")
def _(xp, dy, x):
    return dy / xp.sqrt((1 - x) * (1 + x))  # 1 - x * x would cancel near 1


arcsin.cpu = np.arcsin


@op(samples=between(-0.9, 0.9), method=True)
def arccos(xp, x):
    """Inverse cosine, in radians: y = arccos(x). At -1 and 1 the gradient is infinite."""
    return xp.arccos(x)


@arccos.grad("x")
def _(xp, dy, x):
    return -dy / xp.sqrt((1 - x) * (1 + x))


arccos.cpu = np.arccos


@op(samples=real_line, method=True)
def arctan(xp, x):
    """Inverse tangent, in radians: y = arctan(x)."""
    return xp.arctan(x)


@arctan.grad("x")
def _(xp, dy, x):
    return dy / (1 + x * x)


arctan.cpu = np.arctan


# The Taylor series of sinc' / (-pi^2 x / 3) in t = (pi x)^2: 6 k (-1)^(k - 1) / (2 k + 1)! for k = 1, 2, ...
_SINC_SLOPE = [(-1) ** (k - 1) * 6 * k / math.factorial(2 * k + 1) for k in range(1, 9)]


def _around_zero(draw: Draw):
    yield from real_line(draw)
    yield Sample(np.array([-1e-9, 0.0, 0.05, 0.11, 1.0]))


@op(samples=_around_zero, method=True)
def sinc(xp, x):
    """Normalised sine cardinal: y = sin(pi x) / (pi x), and 1 at 0."""
    zero = x == 0  # where NumPy before 2.3 has no number in float16
    angle = math.pi * xp.where(zero, 1, x)
    return xp.where(zero, 1, xp.sin(angle) / angle)


@sinc.grad("x")
def _(xp, dy, x):
    # (cos(pi x) - sinc(x)) / x cancels near 0; for |x| < 0.1 eight terms of the series are exact to 1e-20.
    near = xp.absolute(x) < 0.1
    small, large = xp.where(near, x, 0), xp.where(near, 1, x)
    t = (math.pi**2) * small * small
    series = _SINC_SLOPE[-1] + 0 * t
    for coefficient in _SINC_SLOPE[-2::-1]:
        series = coefficient + t * series
    return dy * xp.where(near, (-(math.pi**2) / 3) * x * series, (xp.cos(math.pi * large) - sinc(xp, large)) / large)


@op(samples=real_line, method=True)
def deg2rad(xp, x):
    """Degrees as radians: y = x pi / 180."""
    return xp.deg2rad(x)


@deg2rad.grad("x")
def _(xp, dy):
    return dy * (math.pi / 180)


deg2rad.cpu = np.deg2rad


@op(samples=real_line, method=True)
def rad2deg(xp, x):
    """Radians as degrees: y = x 180 / pi."""
    return xp.rad2deg(x)


@rad2deg.grad("x")
def _(xp, dy):
    return dy * (180 / math.pi)


rad2deg.cpu = np.rad2deg


# --- Hyperbolic functions and the error function --------------------------------------------------------------------


@op(samples=real_line, method=True)
def sinh(xp, x):
    """Hyperbolic sine: y = (e^x - e^-x) / 2."""
    return xp.sinh(x)


@sinh.grad("x")
def _(xp, dy, x):
    return dy * xp.cosh(x)


sinh.cpu = np.sinh


@op(samples=real_line, method=True)
def cosh(xp, x):
    """Hyperbolic cosine: y = (e^x + e^-x) / 2."""
    return xp.cosh(x)


@cosh.grad("x")
def _(xp, dy, x):
    return dy * xp.sinh(x)


cosh.cpu = np.cosh


@op(samples=real_line, method=True)
def tanh(xp, x):
    """Hyperbolic tangent: y = (e^x - e^-x) / (e^x + e^-x)."""
    return xp.tanh(x)


@tanh.grad("x")
def _(xp, dy, y):
    return dy * (1 - y * y)


tanh.cpu = np.tanh
tanh.cuda = elementwise("activations.cu", "Tanh")


@op(samples=real_line, method=True)
def arcsinh(xp, x):
    """Inverse hyperbolic sine: y = ln(x + sqrt(x^2 + 1))."""
    return xp.arcsinh(x)


@arcsinh.grad("x")
def _(xp, dy, x):
    return dy / xp.hypot(x, 1)  # x * x would overflow


arcsinh.cpu = np.arcsinh


@op(samples=between(1.2, 4.0), method=True)
def arccosh(xp, x):
    """Inverse hyperbolic cosine: y = ln(x + sqrt(x^2 - 1)). At 1 the gradient is infinite."""
    return xp.arccosh(x)


@arccosh.grad("x")
def _(xp, dy, x):
    return dy / (xp.sqrt(x - 1) * xp.sqrt(x + 1))


arccosh.cpu = np.arccosh


@op(samples=between(-0.9, 0.9), method=True)
def arctanh(xp, x):
    """Inverse hyperbolic tangent: y = ln((1 + x) / (1 - x)) / 2. At -1 and 1 the gradient is infinite."""
    return xp.arctanh(x)


@arctanh.grad("x")
def _(xp, dy, x):
    return dy / ((1 - x) * (1 + x))


arctanh.cpu = np.arctanh


@op(samples=real_line, method=True)
def erf(xp, x):
    """Error function: y = 2 / sqrt(pi) * integral of exp(-t^2) from 0 to x."""
    return xp.erf(x)


@erf.grad("x")
def _(xp, dy, x):
    return dy * (2 / math.sqrt(math.pi) * xp.exp(-x * x))


# Other names of the same methods, that users of PyTorch know.
for _name, _op in {
    "abs": absolute,
    "asin": arcsin,
    "acos": arccos,
    "atan": arctan,
    "asinh": arcsinh,
    "acosh": arccosh,
    "atanh": arctanh,
}.items():
    install(_op, method=_name)
