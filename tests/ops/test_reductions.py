"""Reductions at their edges: ties, zeros, infinities, no elements. What all ops share is in `test_every_op.py`."""

import math
import weakref

import numpy as np
import pytest

import gpuprop as gp
from gpuprop import numpy as gnp
from gpuprop.errors import OptionError, ShapeError
from gpuprop.testing import check_gradients

inf, nan = math.inf, math.nan


def gradient(f, x, dtype=np.float64):
    t = gp.tensor(x, dtype=dtype, requires_grad=True)
    f(t).sum().backward()
    return t.grad.numpy()


@pytest.mark.parametrize("f, sign", [(gnp.max, 1.0), (gnp.min, -1.0)])
def test_equal_extremes_share_evenly(f, sign):
    x = sign * np.array([[3.0, 1.0, 3.0, 3.0], [0.0, -2.0, -2.0, -5.0]])
    np.testing.assert_allclose(gradient(f, x), [[1 / 3, 0, 1 / 3, 1 / 3], [0, 0, 0, 0]])
    np.testing.assert_allclose(gradient(lambda t: f(t, axis=1), x), [[1 / 3, 0, 1 / 3, 1 / 3], [1, 0, 0, 0]])
    np.testing.assert_allclose(gradient(f, [sign * inf, 1.0, sign * inf]), [0.5, 0.0, 0.5])


def test_largest_and_smallest_have_two_names():
    x = gp.tensor([[1.0, 5.0, 2.0], [4.0, 0.0, 3.0]])
    np.testing.assert_array_equal(x.amax(dim=1).numpy(), [5.0, 4.0])
    np.testing.assert_array_equal(x.amin(0, True).numpy(), [[1.0, 0.0, 2.0]])
    np.testing.assert_array_equal(gnp.amax(x, axis=-1).numpy(), gnp.max(x, axis=-1).numpy())


@pytest.mark.parametrize(
    "x",
    [[2.0, -3.0, 4.0, 0.5], [2.0, 0.0, 4.0, 0.5], [0.0, 3.0, 0.0, 2.0], [0.0, 0.0, 0.0, 5.0]],
    ids=["no zero", "one zero", "two zeros", "three zeros"],
)
def test_products_with_zeros_in_three_orders(x):
    """Each derivative of a product is the product of the others."""
    t = gp.tensor(x, dtype=np.float64, requires_grad=True)

    def derived(y, i):
        t.grad = None
        y.backward(create_graph=True)
        return t.grad[i]

    def others(*left_out):
        return math.prod(v for k, v in enumerate(x) if k not in left_out)

    for product in (gnp.prod, lambda t: gnp.cumprod(t)[-1]):
        for i, j, k in [(0, 1, 2), (1, 0, 3), (2, 3, 1), (3, 2, 0), (0, 2, 1)]:
            first = derived(product(t), i)
            assert first.item() == others(i)
            second = derived(first, j)
            assert second.item() == others(i, j)
            assert derived(second, k).item() == others(i, j, k)


def test_cumulative_products_of_zeros():
    x = np.array([[1.5, 0.0, 2.0, 0.0, 3.0], [0.0, 2.0, 4.0, 1.0, 0.0]])
    weights = np.arange(1.0, 11.0).reshape(2, 5)
    expected = np.zeros_like(x)
    for row, i in np.ndindex(x.shape):
        for k in range(i, 5):
            expected[row, i] += weights[row, k] * np.prod([x[row, j] for j in range(k + 1) if j != i])
    np.testing.assert_allclose(gradient(lambda t: gnp.cumprod(t, axis=1) * weights, x), expected)
    check_gradients(lambda t: t.cumprod(1), x)


def test_spread_of_equal_elements():
    x = np.full((2, 3), 0.25)
    np.testing.assert_array_equal(gradient(lambda t: t.std(axis=1), x), np.zeros((2, 3)))
    np.testing.assert_array_equal(gradient(lambda t: t.var(), x), np.zeros((2, 3)))


def test_corrections_as_numpy_and_as_pytorch_call_them():
    x = gp.tensor([1.0, 2.0, 4.0])
    assert x.var().item() == pytest.approx(np.var([1.0, 2.0, 4.0]))
    assert x.var(ddof=1).item() == x.var(correction=1).item() == pytest.approx(7 / 3)
    assert x.std(dim=0, correction=1, keepdim=True).shape == (1,)


@pytest.mark.filterwarnings("ignore:Degrees of freedom:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_a_spread_without_degrees_of_freedom_is_not_a_number():
    assert np.isnan(gradient(lambda t: t.var(ddof=1), [2.0])).all()


def test_logsumexp_far_out():
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_allclose(
            gnp.logsumexp(np.array([[1e4, 1e4], [-1e4, -1e4], [-inf, 2.0], [-inf, -inf], [inf, 0.0]]), axis=1),
            [1e4 + math.log(2), -1e4 + math.log(2), 2.0, -inf, inf],
        )
        x = [[1e4, 1e4, -inf], [-1e4, -2e4, -1e4], [-inf, -inf, -inf]]
        expected = [[0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [0.0, 0.0, 0.0]]
        np.testing.assert_allclose(gradient(lambda t: t.logsumexp(dim=1), x, np.float32), expected)


@pytest.mark.parametrize("order", [None, 1, 2, 3, 1.5, inf])
def test_norms_of_the_zero_vector_have_slope_zero_there(order):
    x = np.array([[0.0, 0.0, 0.0], [3.0, 0.0, -4.0]])
    got = gradient(lambda t: gnp.norm(t, ord=order, axis=1), x)
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got[0], 0.0)
    assert got[1, 0] >= 0 > got[1, 2]


def test_the_largest_elements_share_the_slope_of_a_norm():
    np.testing.assert_array_equal(gradient(lambda t: t.norm(ord=inf), [2.0, -2.0, 1.0]), [0.5, -0.5, 0.0])


def test_a_norm_of_matrices_is_never_meant_by_accident():
    x = gp.tensor(np.arange(6.0).reshape(2, 3))
    assert x.norm().item() == x.norm(ord="fro").item() == pytest.approx(math.sqrt(55))
    with pytest.raises(OptionError, match=r"norm: expected one axis for ord=2, got 2, .*ravel"):
        x.norm(2)
    assert x.ravel().norm(1).item() == 15.0
    assert gnp.norm(gp.tensor([100, 100], dtype=np.int8)).item() == pytest.approx(math.sqrt(20000))


def test_no_elements():
    empty = gp.tensor(np.zeros((0, 3)))
    np.testing.assert_array_equal(empty.sum(axis=0).numpy(), [0.0, 0.0, 0.0])
    assert empty.prod().item() == 1.0 and empty.norm().item() == 0.0
    for name in ("max", "min", "argmax", "logsumexp"):
        with pytest.raises(ShapeError, match=rf"^{name}: "):
            getattr(empty, name)(axis=0)


def test_axes_are_counted_once():
    x = gp.tensor(np.ones((2, 3, 4)))
    assert x.sum(axis=-1).shape == x.sum(dim=2).shape == (2, 3)
    assert x.mean(axis=[0, 2], keepdims=True).shape == (1, 3, 1)
    with pytest.raises(ShapeError, match=r"^sum: duplicate"):
        x.sum(axis=(0, 0))


def test_dtypes_of_sums():
    assert gp.tensor([True, True]).sum().dtype == np.int64
    assert gp.tensor([1, 2]).mean().dtype == np.float64
    x = gp.tensor([1.0, 2.0], requires_grad=True)
    total = x.sum(dtype=np.float64)
    total.backward()
    assert total.dtype == np.float64 and x.grad.dtype == np.float32
    half = gp.tensor(np.full(70000, 1.0), dtype=np.float16, requires_grad=True)
    half.mean().backward()  # the sum, 70000, would be infinite in float16
    assert half.mean().item() == 1.0 and half.grad.dtype == np.float16


def test_a_sum_keeps_nothing_but_a_shape():
    x = gp.tensor(np.ones((2, 3)), requires_grad=True)
    between = x * 2.0
    memory = weakref.ref(between.data)
    total = between.sum()
    del between
    assert memory() is None
    total.backward()
    np.testing.assert_array_equal(x.grad.numpy(), np.full((2, 3), 2.0))
