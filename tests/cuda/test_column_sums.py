"""Column sums as kernels: any shape, added to what is there, scaled, and the same bits in every run."""

from __future__ import annotations

import numpy as np
import pytest
from native import DTYPES, SIZES, assert_agrees, assert_close, native, on_device, on_host

import gpuprop as gp
from gpuprop.ops.reductions import sum as sum_

pytestmark = pytest.mark.cuda

SHAPES = [(1, 1), (3, 10), (1000, 1), (700, 3), (5000, 10), (40, 33), (1025, 1000), (64, 1024), (4100, 136), (5, 5000)]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture
def sums():
    if not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])
    from gpuprop.cuda import column_sums

    return column_sums


def draw(*shape, dtype):
    return np.asarray(np.random.default_rng(sum(shape)).standard_normal(shape), dtype)


@every_dtype
@every_shape
def test_sums_of_rows(shape, dtype):
    x = draw(*shape, dtype=dtype)
    assert_agrees(sum_, x, length=shape[0], terms=1, axis=0)
    np.testing.assert_array_equal(native(sum_, x, axis=0)[0], native(sum_, x, axis=0)[0])


@pytest.mark.parametrize("size", SIZES)
def test_several_leading_axes(size):
    x = draw(2, 3, size, 4, dtype=np.float32)
    for axis in ((0, 1), (1, 0), (0, 1, 2), (-4, 1)):
        for keepdims in (False, True):
            assert_agrees(sum_, x, length=6 * size, terms=1, axis=axis, keepdims=keepdims)


def test_other_sums_are_left_to_the_rule():
    if not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])
    for x, options in [
        (draw(3, 4, dtype=np.float32).T, {"axis": 0}),
        (draw(3, 4, dtype=np.float32), {"axis": 1}),
        (draw(3, 4, dtype=np.float32), {"axis": None}),
        (draw(3, 4, dtype=np.float32), {"axis": 0, "dtype": np.dtype(np.float64)}),
        (np.arange(6).reshape(2, 3), {"axis": 0}),
    ]:
        settings = {**sum_.defaults, **options}
        assert sum_.cuda.implementation.forward(on_device(x), **settings) is NotImplemented


@every_shape
def test_added_to_what_is_there(sums, shape):
    x, before = draw(*shape, dtype=np.float32), draw(shape[1], dtype=np.float32)
    apart = on_device(np.zeros(2 * shape[1], np.float32))[::2]
    for place in (on_device(before), apart):
        place[...] = on_device(before)
        assert sums.column_sums(on_device(x), out=place, accumulate=True) is place
        assert_close(on_host(place), x.sum(axis=0, dtype=np.float64) + before, "float32", shape[0], terms=1)
        assert sums.column_sums(on_device(x), out=place) is place
        assert_close(on_host(place), x.sum(axis=0, dtype=np.float64), "float32", shape[0], terms=1)


def test_no_rows(sums):
    nothing, place = np.zeros((0, 3), np.float32), on_device(np.ones(3, np.float32))
    assert on_host(sums.column_sums(on_device(nothing))).tolist() == [0, 0, 0]
    assert on_host(sums.column_sums(on_device(nothing), out=place, accumulate=True)).tolist() == [1, 1, 1]
    assert on_host(sums.column_sums(on_device(nothing), out=place)).tolist() == [0, 0, 0]
    assert on_host(sums.column_sums(on_device(np.zeros((3, 0), np.float32)))).shape == (0,)


@every_dtype
@every_shape
def test_scaled(sums, shape, dtype):
    x = draw(*shape, dtype=dtype)
    for factors in ((), (shape[0], 1), shape):
        dy = draw(*factors, dtype=dtype)
        total, scaled = sums.scaled_column_sums(on_device(x), on_device(dy))
        expected = x.astype(np.float64) * dy.astype(np.float64)
        assert_close(on_host(scaled), expected, dtype, 1)
        assert_close(on_host(total), expected.sum(axis=0), dtype, shape[0], terms=1)
