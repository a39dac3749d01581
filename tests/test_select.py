"""Choosing by bits is choosing."""

import numpy as np
import pytest

import gpuprop as gp
from gpuprop._select import FEW, where


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64])
@pytest.mark.parametrize("size", [0, 5, FEW, 3 * FEW + 1])
@pytest.mark.parametrize(
    "sides", ["arrays", "0 on the left", "0 on the right", "-0 on the right", "numbers", "a 0-d array"]
)
def test_it_is_numpys_where_to_the_bit(dtype, size, sides):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(size).astype(dtype) for _ in range(2))
    if size and np.issubdtype(dtype, np.floating):
        a[:4], b[1:5] = [np.nan, np.inf, -0.0, 0.0], [-np.nan, -0.0, -np.inf, 1e-40 if dtype == np.float32 else 0]
    condition = rng.random(size) < 0.5
    a, b = {
        "arrays": (a, b),
        "0 on the left": (0, b),
        "0 on the right": (a, 0),
        "-0 on the right": (a, -0.0),
        "numbers": (1, 2.5),
        "a 0-d array": (np.asarray(a.sum()), b),
    }[sides]
    expected, got = np.where(condition, a, b), where(condition, a, b)
    assert got.dtype == expected.dtype and got.shape == expected.shape
    assert got.tobytes() == expected.tobytes()


def test_what_broadcasts_and_what_is_strided_is_left_to_numpy():
    rng = np.random.default_rng(0)
    a, row = rng.standard_normal((140, 60)), rng.standard_normal(60)
    np.testing.assert_array_equal(where(a > 0, a, row), np.where(a > 0, a, row))
    np.testing.assert_array_equal(where(a.T > 0, a.T, 0), np.where(a.T > 0, a.T, 0))
    np.testing.assert_array_equal(where((a > 0)[:, :1], a, row), np.where((a > 0)[:, :1], a, row))


@pytest.mark.parametrize("condition", [True, 0, np.True_, [True, False, True]])
def test_the_condition_may_be_anything_that_numpy_takes(condition):
    np.testing.assert_array_equal(where(condition, np.ones(3), 0), np.where(condition, np.ones(3), 0))
    np.testing.assert_array_equal(gp.numpy.where(condition, np.ones(3), 0), np.where(condition, np.ones(3), 0))
