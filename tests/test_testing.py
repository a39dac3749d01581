"""The gradient checker itself: a mistake of 0.05 % is found wherever it hides."""

import numpy as np
import pytest

import gpuprop as gp
from gpuprop import testing
from gpuprop._op import REGISTRY, Op
from gpuprop.errors import DtypeError
from gpuprop.testing import GradientCheckError, Sample, check_gradients, real_line

SLIGHTLY = 1.0005
X = testing.Draw(3).normal(3, 5)


@pytest.fixture(autouse=True)
def forget_new_ops():
    before = set(REGISTRY)
    yield
    for name in set(REGISTRY) - before:
        del REGISTRY[name]


def declared(forward, gradient) -> Op:
    """An op of one input with the gradient rule to be found out."""
    made = gp.op(forward, samples=real_line, name="examined")
    made.grad("x")(gradient)
    return made


def sine(xp, x):
    """Sine: y = sin(x)."""
    return xp.sin(x)


def test_a_right_gradient_passes_in_both_orders():
    check_gradients(declared(sine, lambda xp, dy, x: dy * xp.cos(x)), X)
    check_gradients(lambda a, b: (a @ b, a * 2.0), X, X.T)
    check_gradients(lambda x: x.sum(axis=0), np.ones((2, 3)))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("place", [(0, 0), (1, 3), (2, 4)])
def test_a_single_wrong_element_fails(place, seed):
    wrong = np.ones((3, 5))
    wrong[place] = SLIGHTLY
    op = declared(lambda xp, x: 3.0 * x, lambda xp, dy: 3.0 * dy * wrong)
    with pytest.raises(GradientCheckError, match="argument 0"):
        check_gradients(op, X, order=1, seed=seed)


@pytest.mark.parametrize("seed", range(10))
def test_a_slightly_wrong_factor_fails(seed):
    op = declared(sine, lambda xp, dy, x: dy * xp.cos(x) * SLIGHTLY)
    with pytest.raises(GradientCheckError, match=r"^examined: the gradient with respect to argument 0 is .* give"):
        check_gradients(op, X, order=1, seed=seed)


@pytest.mark.parametrize("seed", range(10))
def test_a_wrong_second_derivative_fails_in_the_second_order_only(seed):
    """The first gradient is right in value, and 0.05 % of its dependence on x is lost."""

    def gradient(xp, dy, x):
        constant = np.cos(x.data if isinstance(x, gp.Tensor) else x)
        return dy * (xp.cos(x) * 0.9995 + constant * 0.0005)

    op = declared(sine, gradient)
    check_gradients(op, X, order=1, seed=seed)
    with pytest.raises(GradientCheckError, match="gradient of examined"):
        check_gradients(op, X, order=2, seed=seed)


def test_a_wrong_second_argument_fails_and_is_named():
    with pytest.raises(GradientCheckError, match="argument 1"):
        check_gradients(lambda a, b: a * b.detach() + 0.0 * b, X, X, order=1)


def test_a_gradient_that_is_lost_or_broadcast_wrongly_fails():
    with pytest.raises(GradientCheckError):
        check_gradients(lambda x: x.detach() * 2.0, X, order=1)
    with pytest.raises(GradientCheckError):
        check_gradients(declared(sine, lambda xp, dy, x: dy * xp.cos(x[:1])), X, order=1)


def test_a_gradient_that_is_not_a_number_fails():
    with pytest.raises(GradientCheckError):
        check_gradients(declared(sine, lambda xp, dy, x: dy * float("nan")), X, order=1)


def test_something_real_is_needed():
    with pytest.raises(DtypeError, match="check_gradients: expected at least one real argument"):
        check_gradients(lambda x: x, np.arange(3))
    for nothing in (lambda x: {"y": x}, lambda x: 2.0, lambda x: x > 0):
        with pytest.raises(DtypeError, match="expected f to return a real Tensor"):
            check_gradients(nothing, np.ones(3))


def test_lists_and_scalars_of_numpy_are_checked_too():
    wrong = gp.no_grad()(lambda x: x * x)
    for argument in ([0.5, 2.0], 0.5, np.float32(0.5)):
        gp.no_grad()(check_gradients)(gp.numpy.sin, argument)
        with pytest.raises(GradientCheckError):
            check_gradients(wrong, argument)


def test_numbers_tensors_and_float32_are_checked_in_float64():
    seen = []

    def f(x, factor):
        seen.append((x.dtype, factor.dtype))
        return x * factor

    check_gradients(f, gp.tensor(X, dtype=gp.float32), 2.0)
    assert set(seen) == {(np.dtype(np.float64), np.dtype(np.float64))}


def test_samples_are_drawn_alike_and_say_what_they_are():
    one, two = testing.Draw(5), testing.Draw(5)
    np.testing.assert_array_equal(one.apart(3, 4), two.apart(3, 4))
    values = np.sort(testing.Draw(1).apart(4, 5), axis=None)
    assert np.diff(values).min() > 0.1 - 1e-12 and np.abs(values).min() > 0.05
    np.testing.assert_allclose(one.probabilities(3, 4).sum(-1), 1.0)
    assert one.integers(0, 3, 2).dtype == np.int64
    assert isinstance(Sample(np.ones(3).sum()).inputs[0], np.ndarray)
    assert repr(Sample(np.ones((2, 3)), 2, axis=1)) == "Sample(d(2, 3), 2, axis=1)"
