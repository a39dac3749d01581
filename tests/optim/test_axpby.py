"""y = a x + b y by BLAS, and by NumPy where there is none."""

import gc
import weakref

import numpy as np
import pytest

from gpuprop import _axpby
from gpuprop._axpby import axpby

DTYPES = [np.float16, np.float32, np.float64]


@pytest.fixture(params=["blas", "numpy"])
def library(request, monkeypatch):
    _axpby._places.clear()
    if request.param == "numpy":
        monkeypatch.setattr(_axpby, "_functions", dict)
    elif not _axpby._functions():
        pytest.skip("NumPy's BLAS is not OpenBLAS here")
    yield request.param
    _axpby._places.clear()


def arrays(count, dtype):
    rng = np.random.default_rng(count)
    return [rng.standard_normal(count).astype(dtype) for _ in range(2)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [0, 1, 7, 130, 40_000])
@pytest.mark.parametrize(("a", "b"), [(0.1, 0.9), (-2.5, 1), (1, 0.3), (0, 0.5), (0.5, 0)])
def test_the_formula(library, dtype, count, a, b):
    x, y = arrays(count, dtype)
    expected = a * x.astype(np.float64) + b * y.astype(np.float64)
    axpby(np, a, x, b, y, np.empty_like(x))
    scale = abs(a) + abs(b)
    np.testing.assert_allclose(y, expected, rtol=0, atol=8 * scale * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_spare_array_may_be_x(library, dtype):
    x, y = arrays(100, dtype)
    other = y.copy()
    axpby(np, 0.25, x, 0.5, y, np.empty_like(x))
    axpby(np, 0.25, x, 0.5, other, x)
    assert np.array_equal(y, other)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_element_is_the_same_wherever_it_lies(library, dtype):
    """Parameters may come to lie elsewhere, with others beside them, and train on as before."""
    x, before = arrays(40_000, dtype)
    whole = before.copy()
    axpby(np, 0.1234567, x, 0.8765432, whole, np.empty_like(x))
    for start in (0, 1, 3, 39_861):
        for count in range(1, 140):
            part = before[start : start + count].copy()
            axpby(np, 0.1234567, x[start : start + count], 0.8765432, part, np.empty_like(part))
            assert np.array_equal(part, whole[start : start + count]), (start, count)


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (0, 0.5), (0.5, 0)])
def test_what_is_no_number_stays_none(library, a, b):
    x, y = np.array([1, np.nan], np.float32), np.array([np.nan, 1], np.float32)
    axpby(np, a, x, b, y, np.empty_like(x))
    assert np.isnan(y).all()


def test_arrays_that_are_only_read(library):
    x, y = arrays(5, np.float32)
    x.flags.writeable = False
    expected = 2 * x + y
    axpby(np, 2, x, 1, y, np.empty_like(x))
    np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_another_byte_order(library):
    x, y = (array.astype(">f4") for array in arrays(5, np.float32))
    expected = 2 * x + y
    axpby(np, 2, x, 1, y, np.empty_like(x))
    np.testing.assert_allclose(y, expected, rtol=1e-6)


@pytest.mark.parametrize("step", [2, -1])
def test_arrays_that_are_not_contiguous(library, step):
    whole = np.arange(10, dtype=np.float32)
    x, y = whole[::step], np.zeros(2 * len(whole[::step]), np.float32)
    axpby(np, 2, x, 1, y[: len(x)], np.empty_like(x))
    axpby(np, 2, x.copy(), 1, y[::-1][: len(x)], np.empty_like(x))
    assert y[: len(x)].tolist() == (2 * x).tolist() and y[::-1][: len(x)].tolist() == (2 * x).tolist()


def test_factors_of_another_dtype(library):
    y = np.ones(3, np.float32)
    axpby(np, 2, np.full(3, 0.5), 1, y, np.empty_like(y))
    assert y.tolist() == [2, 2, 2]


def test_arrays_are_not_kept_and_places_not_taken_for_those_of_others(library):
    spare = np.empty(3, np.float32)
    x, y = (np.ones(3, np.float32) for _ in range(2))
    axpby(np, 1, x, 1, y, spare)
    known = weakref.ref(x)
    del x
    gc.collect()
    assert known() is None
    for _ in range(2 * _axpby.MOST_PLACES):  # most of them with the id of an earlier one
        x = np.full(3, 2, np.float32)
        y[:] = 1
        axpby(np, 1, x, 1, y, spare)
        assert y.tolist() == [3, 3, 3]
    assert len(_axpby._places) <= _axpby.MOST_PLACES
