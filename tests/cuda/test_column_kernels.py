"""Kernels of whole columns against their rules: batch normalisation, normalisation by given statistics."""

from __future__ import annotations

import numpy as np
import pytest
from native import DTYPES, EPSILON, SIZES, assert_agrees, by_rule, native, on_device, on_host

import gpuprop as gp
from gpuprop.device import backend_for, require
from gpuprop.ops.normalisation import batch_norm, standardize

pytestmark = pytest.mark.cuda

every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def normal(*shape, dtype="float32", seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def batch(rows, columns, dtype="float32"):
    """x, weight and bias, and cotangents of y, mean and variance."""
    one = np.dtype(dtype).type(1)
    inputs = (
        normal(rows, columns, dtype=dtype) * (one + one) + one,
        normal(columns, dtype=dtype),
        normal(columns, dtype=dtype),
    )
    return inputs, tuple(normal(*shape, dtype=dtype, seed=1) for shape in [(rows, columns), (columns,), (columns,)])


def implementation(op):
    native(standardize, normal(2, 3), *(np.ones(3, np.float32),) * 2, eps=0.1)  # skips without a device
    return op.cuda.implementation


# --- Batch normalisation --------------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("columns", SIZES)
def test_batches(dtype, columns):
    for rows in (3, 33, 1025) if columns < 100 else (2, 31):
        inputs, dy = batch(rows, columns, dtype)
        scale = (inputs[0].astype(np.float64).var(0).min() + 1e-3) ** -0.5
        terms = float(max(abs(a).max() for a in dy) * abs(inputs[1]).max()) * scale  # whose difference dx is
        assert_agrees(batch_norm, *inputs, dy=dy, length=rows, terms=terms, eps=1e-3)


def test_batches_of_any_layout_with_and_without_parameters():
    (x, weight, bias), dy = batch(37, 12)
    for given in [(), (weight,), (None, bias), (weight, bias)]:
        assert_agrees(batch_norm, x, *given, dy=dy, length=37)
    assert_agrees(batch_norm, x, weight, bias, dy=dy, length=37, apart=True)
    reshaped = (dy[0].reshape(37, 12, 1, 1), *dy[1:])
    assert_agrees(batch_norm, x.reshape(37, 12, 1, 1), weight, bias, dy=reshaped, length=37)


@pytest.mark.parametrize("first, share", [(1e4, 1e-6), (-1e6, 1e-4)])
def test_a_mean_far_from_zero_costs_no_digits_of_the_variance(first, share):
    """Nor does a first row that lies far out, relative to which the others are taken; the mean keeps digits enough beside the deviation."""
    x = (1e4 + normal(5000, 5)).astype(np.float32)
    x[0] = first
    (_, mean, variance), _ = native(batch_norm, x)
    _, expected_mean, expected = by_rule(batch_norm, x.astype(np.float64))[0]
    np.testing.assert_array_less(np.abs(mean - expected_mean), 1e-7 * np.abs(expected_mean) + share * np.sqrt(expected))
    np.testing.assert_allclose(variance, expected, rtol=2e-5)


def test_statistics_of_16_bit_numbers_are_computed_in_float32():
    """The mean that the gradient uses is not the rounded one."""
    (x, weight, bias), dy = batch(600, 8, "float16")
    x += np.float16(40)
    dx = native(batch_norm, x, weight, bias, dy=dy)[1]["x"].astype(np.float64)
    expected = by_rule(batch_norm, *(a.astype(np.float64) for a in (x, weight, bias)), dy=tuple(map(np.float64, dy)))[1]
    np.testing.assert_allclose(dx, expected["x"], atol=2 * EPSILON["float16"], rtol=2 * EPSILON["float16"])


def test_the_same_bits_twice():
    inputs, dy = batch(9000, 36)
    (first, gradients), (second, again) = native(batch_norm, *inputs, dy=dy), native(batch_norm, *inputs, dy=dy)
    for a, b in [*zip(first, second, strict=True), *((gradients[n], again[n]) for n in gradients)]:
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("rows", [7, 300])
def test_infinities_and_nan_are_those_of_the_rule(rows):
    (x, weight, bias), dy = batch(rows, 6)
    x[2, 0], x[0, 1], x[1, 2], x[0:2, 3], dy[0][1, 4] = np.nan, np.inf, -np.inf, (np.inf, -np.inf), np.inf
    y, gradients = native(batch_norm, x, weight, bias, dy=dy)
    expected, slopes = by_rule(batch_norm, x, weight, bias, dy=dy)
    for actual, right in [*zip(y, expected, strict=True), *((gradients[n], slopes[n]) for n in slopes)]:
        np.testing.assert_allclose(actual, right, rtol=1e-3, atol=1e-3)


def test_gradients_that_nobody_wants_are_not_computed():
    inputs, dy = batch(50, 12)
    everything = native(batch_norm, *inputs, dy=dy)[1]
    for name in batch_norm.inputs:
        alone = native(batch_norm, *inputs, dy=dy, wanted=[name])[1]
        np.testing.assert_array_equal(alone.pop(name), everything[name])
        assert all(g is None for g in alone.values())


def test_gradients_are_written_where_they_live():
    (x, *given), dy = batch(50, 12)
    made = implementation(batch_norm)
    expected = native(batch_norm, x, *given, dy=dy)[1]
    kept = [on_device(x), on_device(given[0])]
    kept += made.forward(*kept, on_device(given[1]), keep=True, **batch_norm.defaults)[1:]
    for add in (False, True):
        places = tuple(on_device(np.ones(e.shape, np.float32)) for e in expected.values())
        every = (True,) * len(places)
        made.gradients[0].function(on_device(dy), *kept, wanted=every, out=places, accumulate=(add,) * len(places))
        for place, gradient in zip(places, expected.values(), strict=True):
            np.testing.assert_allclose(on_host(place), gradient + add, rtol=1e-6, atol=1e-6)


def test_what_no_kernel_takes_is_left_to_the_rules():
    forward = implementation(batch_norm).forward  # skips without a device
    x, c = on_device(normal(4, 3)), on_device(normal(3))
    assert forward(on_device(normal(4, 3, 5)), keep=False, eps=0.1) is NotImplemented
    assert forward(on_device(normal(1, 3)), keep=False, eps=0.1) is NotImplemented
    assert forward(x, on_device(normal(4)), keep=False, eps=0.1) is NotImplemented
    assert forward(x, on_device(normal(3, dtype="float64")), keep=False, eps=0.1) is NotImplemented
    assert implementation(standardize).forward(x, c, on_device(normal(1)), eps=0.1) is NotImplemented


def test_launches_of_a_layer(count):
    layer = gp.nn.BatchNorm1d(12, device="cuda")
    x = gp.tensor(normal(40, 12), device="cuda", requires_grad=True)
    dy, results = gp.tensor(normal(40, 12, seed=1), device="cuda"), []

    def forward():
        results.append(layer(x))

    def backward():
        results.pop().backward(dy)
        x.grad = None

    forward(), backward()  # compiles the kernels
    assert count(forward)["kernel_launches"] == 5  # statistics, y, two running averages, the count of batches
    assert count(backward)["kernel_launches"] == 2
    forward(), layer.zero_grad()
    assert count(backward)["kernel_launches"] == 2
    layer.eval()
    assert count(forward)["kernel_launches"] == 1


@every_dtype
def test_running_averages(dtype):
    implementation(batch_norm)
    for size in [0, *SIZES]:
        x, y = normal(size, dtype=dtype), normal(size, dtype=dtype, seed=1)
        for place in (on_device(x), on_device(np.repeat(x, 2))[::2]):
            backend_for(require("cuda")).xp.blend(place, 0.75, on_device(y), 0.5)
            expected = 0.75 * x.astype(np.float64) + 0.5 * y.astype(np.float64)
            np.testing.assert_allclose(on_host(place).astype(np.float64), expected, atol=4 * EPSILON[dtype])


# --- By given statistics --------------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("columns", SIZES)
def test_given_statistics(dtype, columns):
    mean, variance, weight, bias = (normal(columns, dtype=dtype, seed=k) for k in range(4))
    for rows in (0, 1, 3, 33):
        x = normal(rows, columns, dtype=dtype)
        assert_agrees(standardize, x, mean, np.abs(variance), weight, bias, length=4, eps=0.1)
    assert_agrees(standardize, x, mean, np.abs(variance), length=4, eps=0.1, apart=True)
