"""Activation functions, with PyTorch's names and definitions.

Shapes, unless said otherwise: x (...) -> y (...), same dtype.

Values, gradients and second derivatives are finite at +-1e4 in every floating dtype, and right at +-inf where a limit
exists: rules exponentiate negative numbers only, and limit what is multiplied by something that vanishes. Gradients
keep y rather than x where they are a function of y, because the next layer keeps y anyway. Where a derivative jumps,
the docstring says which value is returned.
"""

from __future__ import annotations

import math

import numpy as np

from .._blocks import BLOCK, cut, filled
from .._op import op
from ..cuda._elementwise import elementwise
from ..cuda.rowwise import rowwise
from ..errors import BoundsError, OptionError, ShapeError
from ..testing import SHAPES, Draw, ErrorSample, Sample, apart, real_line

# Where functions that saturate have reached their limit, to the last bit of a float64.
EXP_VANISHES = 1000.0  # exp(-1000) = 0
GAUSSIAN_VANISHES = 40.0  # exp(-40^2 / 2) = 0
SELU_SCALE = 1.0507009873554805
SELU_ALPHA = 1.6732632423543772


def _wide(draw: Draw):
    """On all pieces of functions with kinks at -3, -1, 0, 1, 3 and 6, away from each."""
    for shape in SHAPES:
        yield Sample(draw.apart(*shape, gap=1.3))


# --- Rectifiers -----------------------------------------------------------------------------------------------------


@op(samples=apart, method=True)
def relu(xp, x):
    """Rectifier: y = max(x, 0). At 0 the gradient is 0."""
    return xp.maximum(x, 0)


@relu.grad("x")
def _(xp, dy, y):
    return dy * (y > 0)


@relu.cpu
def _(x, *, out=None):
    if x.size <= BLOCK and x.dtype.char in "fd":
        return np.maximum(x, filled(0, x), out=out)
    if x.dtype.char not in "fd" or not x.flags.c_contiguous or not (out is None or out.flags.c_contiguous):
        return np.maximum(x, 0, out=out)
    y = np.empty_like(x) if out is None else out
    flat, flat_y = x.reshape(-1), y.reshape(-1)
    for block in cut(x.size):
        np.maximum(flat[block], filled(0, flat[block]), out=flat_y[block])
    return y


@relu.cpu.grad("x")
def _(dy, y, *, out=None):
    return np.multiply(dy, y > 0, out=out)


@op(samples=_wide)
def relu6(xp, x):
    """Rectifier with a ceiling: y = min(max(x, 0), 6). At 0 and at 6 the gradient is 0."""
    return xp.clip(x, 0, 6)


@relu6.grad("x")
def _(xp, dy, y):
    return dy * xp.logical_and(y > 0, y < 6)


def _slopes(draw: Draw):
    yield from apart(draw)
    yield Sample(draw.apart(2, 3), negative_slope=0.3)
    yield Sample(draw.apart(2, 3), negative_slope=0)


def _bad_slopes(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), negative_slope=-0.1, error=OptionError, match="negative_slope.*-0.1")


@op(samples=_slopes, errors=_bad_slopes)
def leaky_relu(xp, x, *, negative_slope=0.01):
    """Leaky rectifier: y = max(x, 0) + negative_slope * min(x, 0). At 0 the gradient is negative_slope.

    Raises: OptionError for a slope below 0: then the sign of y would not tell the sign of x, and y is all that is kept.
    """
    _at_least_zero("leaky_relu", "negative_slope", negative_slope)
    return xp.maximum(x, 0) + negative_slope * xp.minimum(x, 0)


@leaky_relu.grad("x")
def _(xp, dy, y, *, negative_slope):
    return xp.where(y > 0, dy, dy * negative_slope)


def _per_channel(draw: Draw):
    yield Sample(draw.apart(), draw.normal(1))
    yield Sample(draw.apart(3), draw.normal(1))
    yield Sample(draw.apart(2, 5), draw.normal())
    yield Sample(draw.apart(2, 5), draw.normal(5))
    yield Sample(draw.apart(2, 3, 4), draw.normal(3))
    yield Sample(draw.apart(0, 3), draw.normal(3))


def _bad_channels(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), draw.normal(4), error=ShapeError, match=r"3.*\(2, 3\).*\(4,\)")
    yield ErrorSample(
        draw.normal(3), draw.normal(3), error=ShapeError, match=r"a weight of 1 number, for x \(3,\), got \(3,\)"
    )
    yield ErrorSample(draw.normal(2, 3), draw.normal(1, 3), error=ShapeError, match=r"\(1, 3\)")


def _slope_per_channel(xp, weight, ndim):
    """prelu's weight in a shape that broadcasts along x's second axis."""
    return xp.reshape(weight, (-1,) + (1,) * (ndim - 2)) if weight.size != 1 else xp.reshape(weight, ())


@op(samples=_per_channel, errors=_bad_channels)
def prelu(xp, x, weight):
    """Parametric rectifier: y = max(x, 0) + weight * min(x, 0). At 0 the gradient of x is weight times dy.

    Shapes: x (N, C, ...), weight (C,), or (1,) or () for any x.
    Raises: ShapeError where weight is neither one number nor one per channel.
    Source: He et al. 2015, arXiv:1502.01852, eq. 1.
    """
    channels = x.shape[1] if x.ndim > 1 else 1
    if weight.ndim > 1 or weight.size not in (1, channels):
        several = f" or {channels} numbers, one per channel (axis 1)" if x.ndim > 1 else " number"
        raise ShapeError(f"prelu: expected a weight of 1{several}, for x {x.shape}, got {weight.shape}")
    return xp.maximum(x, 0) + _slope_per_channel(xp, weight, x.ndim) * xp.minimum(x, 0)


@prelu.grad("x")
def _(xp, dy, x, weight):
    return xp.where(x > 0, dy, dy * _slope_per_channel(xp, weight, x.ndim))


@prelu.grad("weight")
def _(xp, dy, x, weight_shape):
    per_element = dy * xp.minimum(x, 0)
    if math.prod(weight_shape) == 1:
        return xp.reshape(xp.sum(per_element), weight_shape)
    return xp.sum(per_element, axis=(0, *range(2, x.ndim)))


# --- Exponential units ----------------------------------------------------------------------------------------------


def _at_least_zero(name, option, value):
    if not value >= 0:
        raise OptionError(f"{name}: expected {option} >= 0, got {value}")


def _alphas(draw: Draw):
    yield from apart(draw)
    yield Sample(draw.apart(2, 3), alpha=0.4)


def _negative_alpha(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), alpha=-1.0, error=OptionError, match="alpha.*-1.0")


@op(samples=_alphas, errors=_negative_alpha)
def elu(xp, x, *, alpha=1.0):
    """Exponential linear unit: y = x for x > 0, alpha * (exp(x) - 1) elsewhere. At 0 the gradient is alpha.

    Raises: OptionError for an alpha below 0.
    Source: Clevert et al. 2015, arXiv:1511.07289, eq. 15.
    """
    _at_least_zero("elu", "alpha", alpha)
    return xp.maximum(x, 0) + alpha * xp.expm1(xp.minimum(x, 0))


@elu.grad("x")
def _(xp, dy, y, *, alpha):
    return dy * xp.where(y > 0, 1, y + alpha)


@op(samples=apart)
def selu(xp, x):
    """Self-normalising unit: y = 1.0507 * elu(x, 1.6733). At 0 the gradient is 1.7581.

    Source: Klambauer et al. 2017, arXiv:1706.02515, eq. 2.
    """
    return SELU_SCALE * (xp.maximum(x, 0) + SELU_ALPHA * xp.expm1(xp.minimum(x, 0)))


@selu.grad("x")
def _(xp, dy, y):
    return dy * xp.where(y > 0, SELU_SCALE, y + SELU_SCALE * SELU_ALPHA)


def _no_alpha(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), alpha=0.0, error=OptionError, match="alpha.*0.0")


@op(samples=_alphas, errors=_no_alpha)
def celu(xp, x, *, alpha=1.0):
    """Continuously differentiable exponential unit: y = max(x, 0) + min(alpha * (exp(x / alpha) - 1), 0).

    Raises: OptionError for an alpha that is not above 0.
    Source: Barron 2017, arXiv:1704.07483, eq. 2.
    """
    if not alpha > 0:
        raise OptionError(f"celu: expected alpha > 0, got {alpha}")
    return xp.maximum(x, 0) + alpha * xp.expm1(xp.minimum(x, 0) / alpha)


@celu.grad("x")
def _(xp, dy, y, *, alpha):
    return dy * xp.where(y > 0, 1, y / alpha + 1)


# --- Sigmoid and its kin --------------------------------------------------------------------------------------------


@op(samples=real_line, method=True)
def sigmoid(xp, x):
    """Logistic function: y = 1 / (1 + exp(-x))."""
    return xp.exp(xp.minimum(x, 0)) / (1 + xp.exp(-xp.absolute(x)))


@sigmoid.grad("x")
def _(xp, dy, y):
    return dy * (y * (1 - y))


@op(samples=real_line)
def log_sigmoid(xp, x):
    """Logarithm of the logistic function: y = -log(1 + exp(-x))."""
    return xp.minimum(x, 0) - xp.log1p(xp.exp(-xp.absolute(x)))


@log_sigmoid.grad("x")
def _(xp, dy, x):
    return dy * sigmoid(xp, -x)


def _betas(draw: Draw):
    yield from real_line(draw)
    yield Sample(draw.normal(2, 5), beta=2.5)
    yield Sample(draw.normal(2, 5), beta=-0.5)
    yield Sample(draw.apart(2, 5, gap=1.3), threshold=3)


def _no_beta(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), beta=0, error=OptionError, match="beta.*0")


@op(samples=_betas, errors=_no_beta)
def softplus(xp, x, *, beta=1.0, threshold=20.0):
    """Smooth rectifier: y = log(1 + exp(beta * x)) / beta, and y = x where beta * x > threshold (with gradient 1).

    Raises: OptionError for beta = 0.
    """
    if beta == 0:
        raise OptionError(f"softplus: expected beta other than 0, got {beta}")
    z = x * beta
    return xp.where(z > threshold, x, (xp.maximum(z, 0) + xp.log1p(xp.exp(-xp.absolute(z)))) / beta)


@softplus.grad("x")
def _(xp, dy, x, *, beta, threshold):
    z = x * beta
    return dy * xp.where(z > threshold, 1, sigmoid(xp, z))


@op(samples=apart)
def softsign(xp, x):
    """Softsign: y = x / (1 + |x|). At 0 the second derivative, which jumps there, is 0."""
    size = xp.absolute(x)  # for sizes above 1, x / (1 + |x|) is divided through by |x|: no inf / inf
    return xp.clip(x, -1, 1) / (1 + xp.minimum(size, 1 / xp.maximum(size, 1)))


@softsign.grad("x")
def _(xp, dy, x):
    share = 1 / (1 + xp.absolute(x))
    return dy * share * share


# --- Smooth rectifiers: x times something between 0 and 1 -----------------------------------------------------------


@op(samples=real_line)
def ndtr(xp, x):
    """Cumulative distribution of the standard normal: y = (1 + erf(x / sqrt(2))) / 2, exact in both tails."""
    y = xp.ndtr(x)
    return xp.asarray(y, dtype=x.dtype) if x.dtype.kind == "f" else y  # SciPy and CuPy make more of a float16


@ndtr.grad("x")
def _(xp, dy, x):
    return dy * _normal_density(xp, x)


def _normal_density(xp, x):
    x = xp.clip(x, -GAUSSIAN_VANISHES, GAUSSIAN_VANISHES)
    return xp.exp(x * x * -0.5) * (1 / math.sqrt(2 * math.pi))


def _gelus(draw: Draw):
    yield from real_line(draw)
    yield Sample(2 * draw.normal(2, 5), approximate="tanh")
    yield Sample(draw.normal(0, 3), approximate="tanh")


def _bad_approximation(draw: Draw):
    yield ErrorSample(draw.normal(2), approximate="erf", error=OptionError, match="'none' or 'tanh'.*'erf'")


def _tanh_gelu_slope(xp, x):
    """u and du/dx with gelu's tanh form x * sigmoid(u): (1 + tanh(u / 2)) / 2 = sigmoid(u), exact in the tail."""
    scale, cubic = 2 * math.sqrt(2 / math.pi), 0.044715
    square = x * x
    return scale * x * (1 + cubic * square), scale * (1 + 3 * cubic * square)


@op(samples=_gelus, errors=_bad_approximation)
def gelu(xp, x, *, approximate="none"):
    """Gaussian error linear unit: y = x * P(X <= x) for a standard normal X.

    approximate: "none", or "tanh" for y = x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2.
    Raises: OptionError for another approximation.
    Source: Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2.
    """
    if approximate not in ("none", "tanh"):
        raise OptionError(f"gelu: expected approximate='none' or 'tanh', got {approximate!r}")
    from_below = xp.maximum(x, -GAUSSIAN_VANISHES)  # the other factor is 0 there, and -inf * 0 is NaN
    if approximate == "none":
        return from_below * ndtr(xp, x)
    u, _ = _tanh_gelu_slope(xp, xp.minimum(from_below, GAUSSIAN_VANISHES))
    return from_below * sigmoid(xp, u)


@gelu.grad("x")
def _(xp, dy, x, *, approximate):
    x = xp.clip(x, -GAUSSIAN_VANISHES, GAUSSIAN_VANISHES)
    if approximate == "none":
        return dy * (ndtr(xp, x) + x * _normal_density(xp, x))
    u, slope = _tanh_gelu_slope(xp, x)
    s = sigmoid(xp, u)
    return dy * (s + x * (s * (1 - s)) * slope)


@op(samples=real_line)
def silu(xp, x):
    """SiLU (swish): y = x * sigmoid(x).

    Source: Elfwing et al. 2017, arXiv:1702.03118, eq. 1.
    """
    return xp.maximum(x, -EXP_VANISHES) * sigmoid(xp, x)


@silu.grad("x")
def _(xp, dy, x):
    x = xp.clip(x, -EXP_VANISHES, EXP_VANISHES)
    s = sigmoid(xp, x)
    return dy * (s * (1 + x * (1 - s)))


@op(samples=real_line)
def mish(xp, x):
    """Mish: y = x * tanh(log(1 + exp(x))).

    Source: Misra 2019, arXiv:1908.08681, eq. 1.
    """
    return xp.maximum(x, -EXP_VANISHES) * xp.tanh(softplus(xp, x))


@mish.grad("x")
def _(xp, dy, x):
    x = xp.clip(x, -EXP_VANISHES, EXP_VANISHES)
    t = xp.tanh(softplus(xp, x, beta=1.0, threshold=20.0))
    return dy * (t + x * (1 - t * t) * sigmoid(xp, x))


# --- Piecewise linear approximations --------------------------------------------------------------------------------


def _limits(draw: Draw):
    yield from _wide(draw)
    yield Sample(draw.apart(2, 5, gap=1.3), min_val=-2.5, max_val=0.5)


def _empty_range(draw: Draw):
    yield ErrorSample(draw.normal(2), min_val=1, max_val=0, error=OptionError, match="min_val.*max_val.*1.*0")


@op(samples=_limits, errors=_empty_range)
def hardtanh(xp, x, *, min_val=-1.0, max_val=1.0):
    """Limited identity: y = min(max(x, min_val), max_val). At both limits the gradient is 0.

    Raises: OptionError unless min_val <= max_val.
    """
    if not min_val <= max_val:
        raise OptionError(f"hardtanh: expected min_val <= max_val, got {min_val} and {max_val}")
    return xp.clip(x, min_val, max_val)


@hardtanh.grad("x")
def _(xp, dy, y, *, min_val, max_val):
    return dy * xp.logical_and(y > min_val, y < max_val)


@op(samples=_wide)
def hardsigmoid(xp, x):
    """Piecewise linear sigmoid: y = min(max(x + 3, 0), 6) / 6. At -3 and at 3 the gradient is 0."""
    return xp.clip(x + 3, 0, 6) / 6


@hardsigmoid.grad("x")
def _(xp, dy, y):
    return dy * xp.logical_and(y > 0, y < 1) / 6


@op(samples=_wide)
def hardswish(xp, x):
    """Piecewise SiLU: y = x * min(max(x + 3, 0), 6) / 6. At -3 the gradient is 0, at 3 it is 1.

    Source: Howard et al. 2019, arXiv:1905.02244, section 5.2.
    """
    return xp.maximum(x, -3) * (xp.clip(x + 3, 0, 6) / 6)


@hardswish.grad("x")
def _(xp, dy, x):
    return dy * xp.where(x <= -3, 0, xp.where(x < 3, x / 3 + 0.5, 1))


relu.cuda = elementwise("activations.cu", "Relu", of_sign=True)
relu6.cuda = elementwise("activations.cu", "Relu6")
prelu.cuda = elementwise("activations.cu", "PRelu", learns="weight")
leaky_relu.cuda = elementwise("activations.cu", "LeakyRelu", of_sign=True)
elu.cuda = elementwise("activations.cu", "Elu")
selu.cuda = elementwise("activations.cu", "Selu")
celu.cuda = elementwise("activations.cu", "Celu")
sigmoid.cuda = elementwise("activations.cu", "Sigmoid")
log_sigmoid.cuda = elementwise("activations.cu", "LogSigmoid")
softplus.cuda = elementwise("activations.cu", "Softplus")
softsign.cuda = elementwise("activations.cu", "Softsign")
silu.cuda = elementwise("activations.cu", "Silu")
mish.cuda = elementwise("activations.cu", "Mish")
hardtanh.cuda = elementwise("activations.cu", "Hardtanh")
hardsigmoid.cuda = elementwise("activations.cu", "Hardsigmoid")
hardswish.cuda = elementwise("activations.cu", "Hardswish")
gelu.cuda = elementwise("activations.cu", {"none": "Gelu", "tanh": "GeluTanh"}, by="approximate")


# --- Along an axis --------------------------------------------------------------------------------------------------


def _axes(draw: Draw):
    for shape, axis in [((3,), -1), ((2, 5), -1), ((2, 5), 0), ((2, 3, 4), 1), ((0, 3), -1), ((2, 0), -1)]:
        yield Sample(draw.normal(*shape), axis=axis)
    yield Sample(draw.normal())


def _bad_axes(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), axis=2, error=BoundsError, match=r"axis 2.*\(2, 3\)")


def _minus_maximum(xp, x, axis):
    """x minus its maximum along the axis, so that exp does not overflow."""
    largest = xp.minimum(xp.max(x, axis=axis, keepdims=True), _largest_finite(x.dtype))
    return xp.minimum(x - largest, 0)  # inf minus the largest finite number is inf, and stands for all of the sum


def _largest_finite(dtype):
    return float(np.finfo(dtype).max) if dtype.kind == "f" else 3.3e38  # NumPy does not know bfloat16


@op(samples=_axes, errors=_bad_axes, method=True)
def softmax(xp, x, *, axis=-1):
    """Softmax: y_i = exp(x_i) / sum_j exp(x_j), the sum over the axis.

    An entry of -inf gets 0, one of +inf all; where all are -inf there is no limit, and y is NaN.
    """
    if not x.size:
        return xp.zeros_like(x)
    axis = axis if x.ndim else None
    e = xp.exp(_minus_maximum(xp, x, axis))
    return e / xp.sum(e, axis=axis, keepdims=True)


@softmax.grad("x")
def _(xp, dy, y, *, axis):
    weighted = dy * y
    return weighted - y * xp.sum(weighted, axis=axis if y.ndim else None, keepdims=True)


@op(samples=_axes, errors=_bad_axes, method=True)
def log_softmax(xp, x, *, axis=-1):
    """Logarithm of the softmax: y_i = x_i - log(sum_j exp(x_j)), the sum over the axis. Infinities: as softmax."""
    if not x.size:
        return xp.zeros_like(x)
    axis = axis if x.ndim else None
    x = _minus_maximum(xp, x, axis)
    return x - xp.log(xp.sum(xp.exp(x), axis=axis, keepdims=True))


@log_softmax.grad("x")
def _(xp, dy, y, *, axis):
    return dy - xp.exp(y) * xp.sum(dy, axis=axis if y.ndim else None, keepdims=True)


softmax.cuda = rowwise("rows.cu", "Softmax")
log_softmax.cuda = rowwise("rows.cu", "LogSoftmax")
