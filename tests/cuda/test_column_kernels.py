"""Kernels of whole columns against their rules: normalisation by given statistics, a slope per column."""

from __future__ import annotations

import numpy as np
import pytest
from native import DTYPES, SIZES, assert_agrees, by_rule, native, on_device, on_host

from gpuprop.ops.activations import prelu
from gpuprop.ops.normalisation import standardize

pytestmark = pytest.mark.cuda

every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def normal(*shape, dtype="float32", seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def implementation(op):
    native(prelu, normal(2, 3), normal(3))  # skips without a device
    return op.cuda.implementation


# --- By given statistics --------------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("columns", SIZES)
def test_given_statistics(dtype, columns):
    mean, variance, weight, bias = (normal(columns, dtype=dtype, seed=k) for k in range(4))
    for rows in (0, 1, 3, 33):
        x = normal(rows, columns, dtype=dtype)
        assert_agrees(standardize, x, mean, np.abs(variance), weight, bias, length=4, eps=0.1)
    assert_agrees(standardize, x, mean, np.abs(variance), length=4, eps=0.1, apart=True)


# --- A slope where x is negative ------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("columns", SIZES)
def test_slopes(dtype, columns):
    for rows in (0, 1, 3, 33, 1025) if columns < 100 else (1, 31):
        x, dy = normal(rows, columns, dtype=dtype), normal(rows, columns, dtype=dtype, seed=1)
        assert_agrees(prelu, x, normal(columns, dtype=dtype), dy=dy, length=rows)
    assert_agrees(prelu, x, normal(columns, dtype=dtype), dy=dy, length=rows, apart=True)


@every_dtype
def test_one_slope_for_all(dtype):
    for shape in [(), (0,), *((size,) for size in SIZES), (2, 0, 3), (33, 31), (5, 3, 20), (300, 1025)]:
        x, dy = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype, seed=1)
        for weight in (normal(dtype=dtype), normal(1, dtype=dtype)):
            assert_agrees(prelu, np.asarray(x), np.asarray(weight), dy=np.asarray(dy), length=x.size)


@pytest.mark.parametrize("weights", [(0.5, 2.0, np.inf, np.nan), (0.5,)])
def test_slopes_of_what_is_no_number(weights):
    x = np.repeat(np.float32([np.nan, np.inf, -np.inf, 0.0, 1.0, -1.0]), 4).reshape(6, 4)
    dy = np.tile(np.float32([1.0, np.inf, 0.0, -1.0]), 6).reshape(6, 4)
    y, gradients = native(prelu, x, np.float32(weights), dy=dy)
    expected, slopes = by_rule(prelu, x, np.float32(weights), dy=dy)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(gradients["x"], slopes["x"])
    np.testing.assert_array_equal(gradients["weight"], slopes["weight"])


def test_slopes_over_the_cotangent_and_alone():
    x, weight, dy = normal(40, 12), normal(12), normal(40, 12, seed=1)
    (rule,) = implementation(prelu).gradients
    for w in (weight, weight[:1]):
        everything = native(prelu, x, w, dy=dy)[1]
        for name in prelu.inputs:
            np.testing.assert_array_equal(native(prelu, x, w, dy=dy, wanted=[name])[1][name], everything[name])
        scratch = on_device(dy)
        dx, _ = rule.function(scratch, on_device(x), on_device(w), wanted=(True, True), scratch=scratch)
        assert dx is scratch
        np.testing.assert_array_equal(on_host(dx), everything["x"])
