"""Kernels of whole rows against their rules: softmax and its kin, layer and root-mean-square normalisation."""

from __future__ import annotations

import numpy as np
import pytest
from native import DTYPES, SIZES, assert_agrees, by_rule, native, on_device, on_host

from gpuprop.cuda.rowwise import NORM_ROWS, NORM_THREADS, ONE_ROW, layout_for
from gpuprop.cuda.rowwise import SIZES as BYTES
from gpuprop.ops.activations import log_softmax, softmax
from gpuprop.ops.normalisation import layer_norm, rms_norm
from gpuprop.ops.reductions import logsumexp

pytestmark = pytest.mark.cuda

ROWS = [(logsumexp, {"axis": -1}), (softmax, {}), (log_softmax, {"axis": 1})]
NORMS = [layer_norm, rms_norm]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_row = pytest.mark.parametrize("op, options", ROWS, ids=lambda v: getattr(v, "name", ""))
every_norm = pytest.mark.parametrize("op", NORMS, ids=lambda op: op.name)
LONG = [4, 96, 512, 2048, 5000, 17000]  # in packs: part of a warp, a warp, several warps, too long for registers


def normal(*shape, dtype, scale=1.0, seed=0):
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * scale).astype(dtype)


def cotangent(*shape, dtype):
    return normal(*shape, dtype=dtype, seed=1)


def terms(op, x, dy):
    """The largest of the terms whose difference the gradient is."""
    return np.abs(dy).max() * (by_rule(softmax, x.astype(np.float64))[0].max() if op is softmax else 1)


def like(op, x):
    return cotangent(*(x.shape[:-1] if op is logsumexp else x.shape), dtype=x.dtype)


# --- Softmax and its kin --------------------------------------------------------------------------------------------


@every_row
@every_dtype
@pytest.mark.parametrize("columns", SIZES + LONG)
def test_rows(op, options, dtype, columns):
    for rows in (1, 3, 33) if columns < 2000 else (3,):
        x = normal(rows, columns, dtype=dtype, scale=3)
        dy = like(op, x)
        assert_agrees(op, x, dy=dy, length=columns, terms=terms(op, x, dy), **options)


@every_row
def test_rows_apart_in_memory_or_in_a_row(op, options):
    for x, apart in [(normal(5, 33, dtype="float32"), True), (normal(70000, 3, dtype="float32"), False)]:
        dy = like(op, x)
        assert_agrees(op, x, dy=dy, length=x.shape[1], terms=terms(op, x, dy), apart=apart, **options)


def test_results_may_lie_over_the_cotangent():
    dy, y = cotangent(3, 1000, dtype="float32"), normal(3, 1000, dtype="float32")
    for op in (softmax, log_softmax):
        (rule,) = op.cuda.implementation.gradients
        native(op, dy)  # skips without a device
        place = on_device(dy)
        assert rule.function(place, on_device(y), out=place, axis=-1) is place
        np.testing.assert_array_equal(on_host(place), on_host(rule.function(on_device(dy), on_device(y), axis=-1)))


def test_nothing_in_nothing_out():
    for shape in [(0, 3), (2, 0), (0, 0)]:
        for op in (softmax, log_softmax):
            x = np.zeros(shape, np.float32)
            y, gradients = native(op, x, dy=x)
            assert y.shape == gradients["x"].shape == shape


@every_row
@pytest.mark.parametrize(
    "dtype, columns", [("float16", 4), ("float16", 1000), ("float32", 4), ("float32", 33000), ("float64", 1000)]
)
def test_infinities_and_nan_are_those_of_the_rule(op, options, dtype, columns):
    x = normal(7, columns, dtype=dtype)
    x[0, 1], x[1, 2], x[2, :], x[3, 0], x[4, :2] = np.nan, np.inf, -np.inf, -np.inf, np.inf
    x[5, 3] = np.finfo(dtype).max
    y, gradients = native(op, x, dy=like(op, x), **options)
    expected, slopes = by_rule(op, x, dy=like(op, x), **options)
    tolerance = 8 * np.finfo(dtype).eps * columns**0.5
    np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance)
    # The cotangent of the rule is summed in the dtype; where the sum of rows is infinite or NaN, both are.
    np.testing.assert_allclose(gradients["x"], slopes["x"], rtol=tolerance, atol=tolerance * 8)


def test_other_axes_are_left_to_the_rules():
    x = np.zeros((2, 3), np.float32)
    native(softmax, x)  # skips without a device
    for op, options in [
        (softmax, {"axis": 0}),
        (log_softmax, {"axis": 0}),
        (logsumexp, {"axis": 0}),
        (logsumexp, {"axis": None}),
    ]:
        assert op.cuda.implementation.forward(on_device(x), **{**op.defaults, **options}) is NotImplemented
    for axis in (1, -1, (1,), (-1,)):
        assert op.cuda.implementation.forward(on_device(x), axis=axis, keepdims=False) is not NotImplemented


# --- Normalisation --------------------------------------------------------------------------------------------------


def parameters(op, columns, dtype):
    weight, bias = normal(columns, dtype=dtype) + np.array(1, dtype), normal(columns, dtype=dtype, seed=2)
    return (weight, bias) if op is layer_norm else (weight,)


@every_norm
@every_dtype
@pytest.mark.parametrize("columns", SIZES + LONG)
def test_norms(op, dtype, columns):
    for rows in (1, 3, 33) if columns < 2000 else (3,):
        x = normal(rows, columns, dtype=dtype) * np.array(2, dtype) + np.array(1, dtype)
        dy = cotangent(rows, columns, dtype=dtype) if columns > 1 else None  # of one column, dx is what rounding leaves
        assert_agrees(op, x, *parameters(op, columns, dtype), dy=dy, length=columns * rows, eps=1e-3)


@every_norm
def test_norms_of_many_rows(op):
    """More rows than blocks, and sums over all of them; the same bits twice."""
    x, dy = normal(9000, 36, dtype="float32"), cotangent(9000, 36, dtype="float32")
    inputs = (x, *parameters(op, 36, "float32"))
    assert_agrees(op, *inputs, dy=dy, length=9000)
    first, second = native(op, *inputs, dy=dy)[1], native(op, *inputs, dy=dy)[1]
    for name in op.inputs:
        np.testing.assert_array_equal(first[name], second[name])


@every_norm
def test_norms_with_and_without_parameters(op):
    x, dy = normal(5, 3, 4, dtype="float32"), cotangent(5, 3, 4, dtype="float32")
    for given in [(), (normal(4, dtype="float32"),), (None, normal(4, dtype="float32"))][: len(op.inputs)]:
        assert_agrees(op, x, *given, dy=dy, length=15)
        assert_agrees(op, x, *given, dy=dy, length=15, apart=True)
    assert_agrees(op, x, normal(3, 4, dtype="float32"), dy=dy, length=12, normalized_shape=(3, 4))
    y, gradients = native(op, np.zeros((0, 3), np.float32), np.ones(3, np.float32), dy=np.zeros((0, 3), np.float32))
    assert y.shape == (0, 3) and gradients["x"].shape == (0, 3)
    np.testing.assert_array_equal(gradients["weight"], np.zeros(3))


@every_norm
def test_gradients_that_nobody_wants_are_not_computed(op):
    inputs = (normal(5, 12, dtype="float32"), *parameters(op, 12, "float32"))
    dy = cotangent(5, 12, dtype="float32")
    everything = native(op, *inputs, dy=dy)[1]
    for name in op.inputs:
        alone = native(op, *inputs, dy=dy, wanted=[name])[1]
        np.testing.assert_array_equal(alone.pop(name), everything[name])
        assert all(g is None for g in alone.values())


@every_norm
def test_gradients_are_written_where_they_live(op):
    x, dy, *given = normal(5, 12, dtype="float32"), cotangent(5, 12, dtype="float32"), *parameters(op, 12, "float32")
    expected = native(op, x, *given, dy=dy)[1]
    made, settings = op.cuda.implementation, op.defaults
    kept = [on_device(x), on_device(given[0])]
    _, *residuals = made.forward(kept[0], kept[1], *[on_device(b) for b in given[1:]], keep=True, **settings)
    for add in (False, True):
        places = [on_device(np.ones(e.shape, np.float32)) for e in expected.values()]
        wanted, accumulate = (True,) * len(places), (add,) * len(places)
        options = {"normalized_shape": None, "wanted": wanted, "out": tuple(places), "accumulate": accumulate}
        made.gradients[0].function(on_device(dy), *kept, *residuals, **options)
        for place, gradient in zip(places, expected.values(), strict=True):
            np.testing.assert_allclose(on_host(place), gradient + add, rtol=1e-6, atol=1e-6)
    scratch = on_device(dy)
    dx = made.gradients[0].function(scratch, *kept, *residuals, normalized_shape=None, wanted=wanted, scratch=scratch)[
        0
    ]
    assert dx is scratch
    np.testing.assert_array_equal(on_host(dx), expected["x"])


# --- How threads share rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize("registers, threads", [(ONE_ROW, 256), (NORM_ROWS, NORM_THREADS)])
def test_layouts_hold_rows(dtype, registers, threads):
    for columns in [*range(1, 1030, 3), 4096, 200_000]:
        layout = layout_for(columns, dtype, registers, threads)
        assert columns % layout.width == 0 and layout.width * BYTES[dtype] <= 16 and layout.threads % layout.group == 0
        assert not layout.packs or columns <= layout.group * layout.packs * layout.width
        longest = 512 if dtype == "float64" and columns % 2 else 1024
        assert layout.packs or columns > longest, "such rows are read once"
