"""Elementary functions at their edges: poles, kinks, cancellation. What all ops share is in `test_every_op.py`."""

import math

import numpy as np
import pytest

import gpuprop as gp
from gpuprop import numpy as gnp

inf = math.inf


def derivatives(f, x, order=1, dtype=np.float64):
    """The derivative of each order of an elementwise function, at each x."""
    t = gp.tensor(x, dtype=dtype, requires_grad=True)
    found = []
    with np.errstate(all="ignore"):  # at a pole, NumPy warns
        y = f(t)
        for _ in range(order):
            y.sum().backward(create_graph=True)
            y, t.grad = t.grad, None
            found.append(y.numpy())
    return found


@pytest.mark.parametrize(
    "f, x, expected",
    [
        (gnp.sqrt, [0.0, 4.0], [inf, 0.25]),
        (gnp.cbrt, [0.0, -8.0], [inf, 1 / 12]),
        (gnp.absolute, [-2.0, 0.0, 3.0], [-1.0, 0.0, 1.0]),
        (gnp.sign, [-2.0, 0.0], [0.0, 0.0]),
        (gnp.log, [0.0], [inf]),
        (gnp.reciprocal, [0.0, -2.0], [-inf, -0.25]),
        (gnp.arcsin, [-1.0, 1.0], [inf, inf]),
        (gnp.arccos, [1.0], [-inf]),
        (gnp.arctanh, [1.0], [inf]),
        (gnp.arccosh, [1.0, inf], [inf, 0.0]),
        (gnp.exp, [-inf, -1e4], [0.0, 0.0]),
        (gnp.tanh, [-inf, -1e4, 1e4, inf], [0.0, 0.0, 0.0, 0.0]),
        (gnp.arctan, [-inf, inf], [0.0, 0.0]),
        (gnp.erf, [-inf, 0.0, 1e4], [0.0, 2 / math.sqrt(math.pi), 0.0]),
        (lambda x: gnp.round(x, 1), [0.26, 2.5], [0.0, 0.0]),
    ],
)
def test_slopes_at_edges(f, x, expected):
    np.testing.assert_allclose(derivatives(f, x)[0], expected, rtol=1e-14)


@pytest.mark.parametrize("x", [0.0, 1e-12, 1e-4, 0.03, 0.0999999, 0.1000001, 0.4])
def test_sinc_near_zero_in_all_orders(x):
    """Against its Taylor series, sum_k (-1)^k (pi x)^(2 k) / (2 k + 1)!, differentiated term by term."""
    first, second = derivatives(gnp.sinc, [x], order=2)
    terms = [((-1) ** k * math.pi ** (2 * k) / math.factorial(2 * k + 1), 2 * k) for k in range(1, 15)]
    np.testing.assert_allclose(first, sum(c * n * x ** (n - 1) for c, n in terms), rtol=1e-13, atol=1e-300)
    # At the seam, the quotient's second derivative has lost what 1 / x^2 amplifies: eps / 0.1^2.
    np.testing.assert_allclose(second, sum(c * n * (n - 1) * x ** (n - 2) for c, n in terms), rtol=1e-12)


def test_slopes_do_not_cancel_near_a_pole():
    """1 - x^2 at x = 1 - 2^-24 in float32 is 2^-23, but 0 if x^2 is rounded first to the next number, 1 - 2^-23."""
    x = np.float32(1) - np.float32(2) ** -24
    exact = 1 / math.sqrt((1 - float(x)) * (1 + float(x)))
    np.testing.assert_allclose(derivatives(gnp.arcsin, x, dtype=np.float32)[0], exact, rtol=1e-6)
    np.testing.assert_allclose(derivatives(gnp.arctanh, x, dtype=np.float32)[0], exact**2, rtol=1e-6)


def test_slopes_do_not_overflow():
    np.testing.assert_allclose(derivatives(gnp.arcsinh, [1e30], dtype=np.float32)[0], [1e-30], rtol=1e-6)
    np.testing.assert_allclose(derivatives(gnp.arccosh, [1e30], dtype=np.float32)[0], [1e-30], rtol=1e-6)


def test_methods_and_their_other_names():
    x = gp.tensor([0.25, 0.5])
    for method, function in {
        "exp": np.exp,
        "log": np.log,
        "abs": np.abs,
        "asin": np.arcsin,
        "atanh": np.arctanh,
    }.items():
        np.testing.assert_allclose(getattr(x, method)().numpy(), function(x.numpy()), rtol=1e-6)
    np.testing.assert_array_equal((x * 10).round().numpy(), [2.0, 5.0])
    np.testing.assert_array_equal(gnp.square(gp.tensor([3])).numpy(), [9])
    assert gnp.sqrt(gp.tensor([4])).dtype == np.float64
