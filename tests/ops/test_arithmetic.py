"""Arithmetic at its edges: ties, zeros, infinities, large values. What all ops share is in `test_every_op.py`."""

import math
import operator

import numpy as np
import pytest

import gpuprop as gp
from gpuprop import numpy as gnp
from gpuprop.errors import ArgumentError, UndefinedGradientError

inf, nan = math.inf, math.nan


def gradients(f, *values, order=1, dtype=np.float64):
    """The derivatives of f's sum with respect to each argument; of order 2, of the sum of the first gradients."""
    tensors = [gp.tensor(v, dtype=dtype, requires_grad=True) for v in values]
    with np.errstate(all="ignore"):  # at a pole, NumPy warns
        y = f(*tensors).sum()
        for _ in range(order - 1):
            y.backward(create_graph=True)
            y = sum(t.grad.sum() for t in tensors)
            for t in tensors:
                t.grad = None
        y.backward()
    return [t.grad.numpy() for t in tensors]


def check(f, values, expected, **options):
    for got, wanted in zip(gradients(f, *values, **options), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-12)


@pytest.mark.parametrize(
    "f, expected",
    [
        (gnp.maximum, ([1.0, 0.0, 0.5, 0.5, 1.0], [0.0, 1.0, 0.5, 0.5, 0.0])),
        (gnp.minimum, ([0.0, 1.0, 0.5, 0.5, 0.0], [1.0, 0.0, 0.5, 0.5, 1.0])),
        (gnp.fmax, ([1.0, 0.0, 1.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0, 0.0])),
        (gnp.fmin, ([0.0, 1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0, 1.0])),
    ],
)
def test_ties_of_two(f, expected):
    check(f, ([2.0, -1.0, 3.0, inf, inf], [1.0, 4.0, 3.0, inf, 0.0]), expected)


@pytest.mark.parametrize("f", [gnp.fmax, gnp.fmin])
def test_a_nan_that_loses_gets_no_gradient(f):
    check(f, ([nan, 1.0], [2.0, nan]), ([0.0, 1.0], [1.0, 0.0]))


@pytest.mark.parametrize("f", [gnp.maximum, gnp.minimum])
def test_a_nan_that_wins_keeps_the_gradient(f):
    check(f, ([nan, 1.0], [2.0, nan]), ([1.0, 1.0], [1.0, 1.0]))


def test_clip_at_and_beyond_its_bounds():
    x = [-2.0, -1.0, 0.0, 1.0, 5.0, inf]
    check(lambda x: gnp.clip(x, -1.0, 1.0), (x,), ([0, 1, 1, 1, 0, 0],))
    check(gnp.clip, (x, [-1.0] * 6, [1.0] * 6), ([0, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1]))
    check(gnp.clip, ([0.0], [2.0], [1.0]), ([0.0], [0.0], [1.0]))  # min > max: max is the result
    t = gp.tensor(x)
    for limited in (t.clamp(min=0), t.clamp(0), t.clip(0, None), gnp.clip(t, min=0)):
        np.testing.assert_array_equal(limited.numpy(), [0, 0, 0, 1, 5, inf])
    with pytest.raises(ArgumentError, match="clip: expected min or max, got neither"):
        t.clamp()


def test_where_stops_what_was_not_selected():
    """The gradient of an infinity that was not selected is 0, not 0 * inf."""
    x = gp.tensor([0.0, 4.0], requires_grad=True)
    y = gnp.where(x > 0, 2.0, x)
    y.backward(gp.tensor([3.0, inf]))
    np.testing.assert_array_equal(x.grad.numpy(), [3.0, 0.0])


def test_a_condition_has_no_gradient():
    condition = gp.tensor([1.0, 0.0], requires_grad=True)
    with pytest.raises(UndefinedGradientError, match="'condition'"):
        gnp.where(condition, condition, 0.0).sum().backward()


# --- Powers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "exponent, first, second",
    [(1, 1.0, 0.0), (2, 0.0, 2.0), (3, 0.0, 0.0), (1.5, 0.0, inf), (0.5, inf, -inf), (-1, -inf, inf)],
)
def test_power_at_zero(exponent, first, second):
    for f in (lambda x: x**exponent, lambda x: x ** np.full(1, float(exponent))):
        check(f, ([0.0],), ([first],))
    check(lambda x: x**exponent, ([0.0],), ([second],), order=2)


def test_a_power_of_zero_is_constant_even_at_zero():
    check(lambda x: x**0, ([0.0, inf],), ([0.0, 0.0],))
    check(lambda x: x ** np.zeros(2), ([0.0, inf],), ([0.0, 0.0],))


def test_power_of_negative_bases():
    check(lambda x: x ** gp.tensor([2, 3, -1, 0]), ([-2.0, -2.0, -2.0, -2.0],), ([-4.0, 12.0, -0.25, 0.0],))
    check(lambda x: x**3, ([-2.0],), ([-12.0],), order=2)


def test_power_by_its_exponent():
    check(lambda b: 0.0**b, ([2.0, 0.0, 0.5],), ([0.0, 0.0, 0.0],))
    check(lambda b: 1.0**b, ([2.0, inf],), ([0.0, 0.0],))
    check(lambda b: 2**b, ([3.0],), ([8 * math.log(2)],))
    assert np.isnan(gradients(lambda b: gp.tensor([-2.0], dtype=np.float64) ** b, [2.0])[0]).all()


def test_power_mixes_its_second_derivatives_where_the_exponent_is_zero():
    """d/da d/db a^b = a^(b-1) (1 + b log a), which at b = 0 is 1 / a."""
    a, b = gp.tensor(4.0, requires_grad=True), gp.tensor(0.0, requires_grad=True)
    (a**b).backward(create_graph=True)
    first, a.grad = a.grad, None
    b.grad = None
    first.backward()
    assert b.grad.item() == 0.25


# --- Infinities and large values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("f, half", [(gnp.logaddexp, math.log(2)), (gnp.logaddexp2, 1.0)])
def test_logaddexp_far_out(f, half):
    a = [inf, -inf, inf, -inf, 1e4, -1e4, 3.0]
    b = [inf, -inf, 0.0, 1.0, -1e4, 1e4, 3.0]
    np.testing.assert_allclose(f(np.array(a), np.array(b)), [inf, -inf, inf, 1.0, 1e4, 1e4, 3.0 + half])
    check(f, (a, b), ([0.5, 0.5, 1.0, 0.0, 1.0, 0.0, 0.5], [0.5, 0.5, 0.0, 1.0, 0.0, 1.0, 0.5]))


def test_logaddexp_has_exact_slopes_far_out():
    """In float32, 1e4 + log(2) is rounded by up to 5e-4, and its exponential would be wrong by as much."""
    for f in (gnp.logaddexp, gnp.logaddexp2):
        np.testing.assert_array_equal(gradients(f, [1e4, -1e4], [1e4, -1e4], dtype=np.float32), np.full((2, 2), 0.5))


def test_logaddexp_is_smooth_where_its_arguments_are_equal():
    """The second derivative there is p (1 - p) with p = 1/2; along (1, 1) the function is linear."""
    a, b = (gp.tensor(3.0, requires_grad=True) for _ in range(2))
    gnp.logaddexp(a, b).backward(create_graph=True)
    first, a.grad, b.grad = a.grad, None, None
    first.backward()
    np.testing.assert_allclose([a.grad.item(), b.grad.item()], [0.25, -0.25], rtol=1e-6)


@pytest.mark.parametrize("dtype, large", [(np.float32, 1e30), (np.float64, 1e200)])
def test_lengths_and_angles_do_not_overflow(dtype, large):
    for f, expected in (gnp.hypot, [0.6, 0.8]), (gnp.arctan2, [0.16 / large, -0.12 / large]):
        got = np.concatenate(gradients(f, [3 * large], [4 * large], dtype=dtype))
        np.testing.assert_allclose(got, expected, rtol=8 * np.finfo(dtype).eps)


def test_the_origin_has_no_direction():
    check(gnp.hypot, ([0.0, 0.0], [0.0, 2.0]), ([0.0, 0.0], [0.0, 1.0]))
    check(gnp.arctan2, ([0.0, 0.0], [0.0, 2.0]), ([0.0, 0.5], [0.0, 0.0]))
    for f in (gnp.hypot, gnp.arctan2):
        assert all(np.isfinite(g).all() for g in gradients(f, [0.0], [0.0], order=2))


# --- Operators ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "f",
    [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.mod, operator.floordiv],
)
def test_operators_from_both_sides(f):
    x, other = np.array([[0.5, 1.0, 2.0]], np.float32), np.array([[4.0], [3.0]], np.float32)
    t = gp.tensor(x)
    for left, right in [(t, gp.tensor(other)), (t, other), (t, 2), (t, 2.5), (t, np.float32(2.5)), (3, t), (other, t)]:
        result = f(left, right)
        plain = [v.numpy() if isinstance(v, gp.Tensor) else v for v in (left, right)]
        assert isinstance(result, gp.Tensor) and result.dtype == np.float32
        np.testing.assert_allclose(result.numpy(), f(*plain), rtol=1e-6)


@pytest.mark.parametrize("f", [operator.and_, operator.or_, operator.xor])
def test_operators_of_bits_from_both_sides(f):
    a, b = np.array([True, True, False]), np.array([True, False, False])
    for left, right in [(gp.tensor(a), gp.tensor(b)), (gp.tensor(a), b), (a, gp.tensor(b))]:
        np.testing.assert_array_equal(f(left, right).numpy(), f(a, b))
    assert f(6, gp.tensor(3)).item() == f(6, 3)


def test_signs_and_methods():
    x = gp.tensor([-1.5, 2.0])
    for got, expected in [
        (-x, [1.5, -2.0]),
        (+x, [-1.5, 2.0]),
        (abs(x), [1.5, 2.0]),
        (~(x > 0), [True, False]),
        (x.mul(2).sub(1).div(4).neg().pow(2), [1.0, 0.5625]),
        (x.remainder(2), [0.5, 0.0]),
        (x.maximum(0.0).add(1.0), [1.0, 3.0]),
        (x.gt(0), [False, True]),
        (x == x, [True, True]),
        (x != 2.0, [True, False]),
    ]:
        np.testing.assert_array_equal(got.numpy(), expected)
