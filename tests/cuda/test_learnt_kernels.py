"""Functors that learn, which is prelu's, against the rule: alone, with a bias before them, and with dropout after them."""

from __future__ import annotations

import numpy as np
import pytest
from native import DTYPES, EPSILON, SIZES, assert_agrees, assert_close, by_rule, double, native, on_device, on_host

import gpuprop as gp
from gpuprop.cuda import random
from gpuprop.cuda._elementwise import Dropout, Learnt
from gpuprop.ops.activations import prelu

pytestmark = pytest.mark.cuda

every_dtype = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture(autouse=True)
def cuda():
    if not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])


def normal(*shape, dtype="float32", seed=0):
    return np.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape), dtype)


# --- Alone ----------------------------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("columns", SIZES)
def test_one_per_column(dtype, columns):
    for rows in (0, 1, 3, 33, 1025) if columns < 100 else (1, 31):
        x, dy = normal(rows, columns, dtype=dtype), normal(rows, columns, dtype=dtype, seed=1)
        assert_agrees(prelu, x, normal(columns, dtype=dtype), dy=dy, length=rows)
    assert_agrees(prelu, x, normal(columns, dtype=dtype), dy=dy, length=rows, apart=True)


@every_dtype
def test_one_for_all(dtype):
    for shape in [(), (0,), *((size,) for size in SIZES), (2, 0, 3), (33, 31), (5, 3, 20), (300, 1025)]:
        x, dy = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype, seed=1)
        for weight in (normal(dtype=dtype), normal(1, dtype=dtype)):
            assert_agrees(prelu, x, weight, dy=dy, length=x.size)


@pytest.mark.parametrize("weights", [(0.5, 2.0, np.inf, np.nan), (0.5,)])
def test_what_is_no_number(weights):
    x = np.repeat(np.float32([np.nan, np.inf, -np.inf, 0.0, 1.0, -1.0]), 4).reshape(6, 4)
    dy = np.tile(np.float32([1.0, np.inf, 0.0, -1.0]), 6).reshape(6, 4)
    y, gradients = native(prelu, x, np.float32(weights), dy=dy)
    expected, slopes = by_rule(prelu, x, np.float32(weights), dy=dy)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(gradients["x"], slopes["x"])
    np.testing.assert_array_equal(gradients["weight"], slopes["weight"])


@pytest.mark.parametrize("count", [12, 1])
def test_over_the_cotangent_and_alone(count):
    x, weight, dy = normal(40, 12), normal(count), normal(40, 12, seed=1)
    (rule,) = prelu.cuda.implementation.gradients
    everything = native(prelu, x, weight, dy=dy)[1]
    for name in prelu.inputs:
        np.testing.assert_array_equal(native(prelu, x, weight, dy=dy, wanted=[name])[1][name], everything[name])
    scratch = on_device(dy)
    dx, _ = rule.function(scratch, on_device(x), on_device(weight), wanted=(True, True), scratch=scratch)
    assert dx is scratch
    np.testing.assert_array_equal(on_host(dx), everything["x"])


@pytest.mark.parametrize("count", [12, 1])
def test_gradients_are_written_where_they_live(count):
    x, weight, dy = normal(50, 12), normal(count), normal(50, 12, seed=1)
    expected = native(prelu, x, weight, dy=dy)[1].values()
    (rule,) = prelu.cuda.implementation.gradients
    for add in (False, True):
        places = tuple(on_device(np.ones(e.shape, np.float32)) for e in expected)
        rule.function(*map(on_device, (dy, x, weight)), wanted=(True, True), out=places, accumulate=(add, add))
        for place, gradient in zip(places, expected, strict=True):
            np.testing.assert_allclose(on_host(place), gradient + add, rtol=1e-6, atol=1e-6)


def test_channels_that_are_no_columns_are_left_to_the_rule():
    forward = prelu.cuda.implementation.forward
    assert forward(on_device(normal(4, 3, 5)), on_device(normal(3))) is NotImplemented
    assert forward(on_device(normal(4, 3)), on_device(normal(3, dtype="float64"))) is NotImplemented


# --- With a bias, and dropout ---------------------------------------------------------------------------------------

SHAPES = [(1, 1), (3, 7), (33, 12), (1000, 1), (31, 1000), (9, 1025), (700, 136)]
KEY = {"threshold": 2**31, "scale": 2.0, "seed": 5, "offset": 2**33}


def launched(dy, x, bias, weight, dropout=None, places=(True, True), accumulate=False):
    """(y, dx, db, dweight), arrays of the device, by the two launches of a layer; where `places` is false nobody wants that."""
    import cupy

    binder = prelu.cuda.implementation.binder
    y, dx = cupy.empty_like(x), cupy.empty_like(x)
    filled = cupy.ones if accumulate else cupy.empty
    db = filled(x.shape[1], x.dtype) if places[0] else None
    dweight = filled(weight.shape, x.dtype) if places[1] else None
    binder.bias_forward(x, bias, y, dropout, Learnt(weight))
    binder.bias_backward(dy, x, bias, dx, db, dropout, Learnt(weight, dweight, accumulate), accumulate=accumulate)
    return y, dx, db, dweight


@every_dtype
@pytest.mark.parametrize("one", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_with_a_bias(dtype, one, shape):
    dy, x, bias = normal(*shape, dtype=dtype, seed=1), normal(*shape, dtype=dtype), normal(shape[1], dtype=dtype)
    weight = normal(1 if one else shape[1], dtype=dtype, seed=2)
    given = list(map(on_device, (dy, x, bias, weight)))
    y, dx, db, dweight = map(on_host, launched(*given))
    wide_dy, wide_x, wide_bias, wide_weight = double((dy, x, bias, weight))
    expected, slopes = by_rule(prelu, wide_x + wide_bias, wide_weight, dy=wide_dy)
    assert_close(y, expected, dtype, 1)
    assert_close(dx, slopes["x"], dtype, 1)
    assert_close(db, slopes["x"].sum(axis=0), dtype, shape[0], terms=1)
    assert_close(dweight, slopes["weight"], dtype, x.size if one else shape[0], terms=1)

    for actual, again in zip((y, dx, db, dweight), launched(*given), strict=True):
        np.testing.assert_array_equal(actual, on_host(again))
    for actual, added in zip((db, dweight), launched(*given, accumulate=True)[2:], strict=True):
        largest = max(1, np.abs(actual.astype(np.float64)).max())
        np.testing.assert_allclose(
            on_host(added).astype("d"), actual.astype("d") + 1, atol=2 * EPSILON[dtype] * largest
        )
    for places in [(True, False), (False, True), (False, False)]:
        for actual, alone in zip((dx, db, dweight), launched(*given, places=places)[1:], strict=True):
            if alone is not None:
                np.testing.assert_array_equal(actual, on_host(alone))


@every_dtype
@pytest.mark.parametrize("one", [False, True])
def test_dropout_in_the_pass_of_a_bias(dtype, one):
    """What dropout makes of y and of dy in a pass of its own: the same bits."""
    key = {"base": on_device(np.array([3], np.uint64)), **KEY}
    for shape in [(3, 7), (33, 12), (700, 136)]:
        dy, x = (on_device(normal(*shape, dtype=dtype, seed=seed)) for seed in (1, 0))
        bias, weight = on_device(normal(shape[1], dtype=dtype)), on_device(normal(1 if one else shape[1], dtype=dtype))
        fused, y = launched(dy, x, bias, weight, Dropout(**key)), launched(dy, x, bias, weight)[0]
        apart = launched(random.dropout(dy, **key), x, bias, weight)
        for a, b in zip(fused, (random.dropout(y, **key), *apart[1:]), strict=True):
            np.testing.assert_array_equal(on_host(a), on_host(b))


def test_without_a_bias_and_rows():
    dy, x, weight = (on_device(normal(*shape)) for shape in [(33, 12), (33, 12), (12,)])
    zeros = on_device(np.zeros(12, np.float32))
    for a, b in zip(launched(dy, x, None, weight), launched(dy, x, zeros, weight), strict=True):
        np.testing.assert_array_equal(on_host(a), on_host(b))
    for count in (1, 12):
        nothing = on_device(np.zeros((0, 12), np.float32))
        for accumulate in (False, True):
            results = launched(nothing, nothing, zeros, on_device(normal(count)), accumulate=accumulate)
            assert all((on_host(r) == accumulate).all() for r in results)
