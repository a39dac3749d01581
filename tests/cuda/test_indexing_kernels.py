"""Adding at indices and gathering rows by kernels: the order of `numpy.add.at`, to the bit, and the rows of `numpy.take`."""

from __future__ import annotations

import numpy as np
import pytest

import gpuprop as gp
from gpuprop.device import HOST, backend_for, require
from gpuprop.errors import BoundsError
from gpuprop.ops.indexing import gather_rows

pytestmark = pytest.mark.cuda

SIZES = [0, 1, 3, 31, 33, 1000, 1025]
ALL = slice(None)


@pytest.fixture
def cuda():
    if not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])
    return backend_for(require("cuda"))


def on_device(cuda, array):
    return cuda.asarray(array, require("cuda"))


def added(cuda, shape, index, values):
    """What the device adds up, and what NumPy does."""
    there = tuple(on_device(cuda, i) if isinstance(i, np.ndarray) else i for i in index)
    actual = cuda.to_host(cuda.xp.index_add(shape, there, on_device(cuda, values)))
    expected = np.zeros(shape, values.dtype)
    np.add.at(expected, index, values)
    return actual, expected


def assert_same_bits(actual, expected):
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(actual.view(np.uint8), expected.view(np.uint8))


# --- Adding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width", [1, 3, 31, 33, 128, 300, 1025])
def test_rows_are_added_in_order(cuda, width, dtype):
    """Values of very different sizes: another order of summation would give other bits."""
    draw = np.random.default_rng(width)
    for count, height in [(0, 3), (1, 1), (33, 1), (1000, 7), (1025, 1000), (3, 2500), (2100, 10)]:
        rows = draw.integers(-height, height, count)
        values = (draw.normal(size=(count, width)) * 10.0 ** draw.integers(-4, 5, (count, 1))).astype(dtype)
        assert_same_bits(*added(cuda, (height, width), (rows,), values))


def test_another_order_would_be_seen(cuda):
    draw = np.random.default_rng(0)
    values = (draw.normal(size=(999, 1)) * 10.0 ** draw.integers(-4, 5, (999, 1))).astype(np.float32)
    forward, backward = (added(cuda, (1, 1), (np.zeros(999, int),), v)[0] for v in (values, values[::-1].copy()))
    assert forward != backward


INDICES = {
    "two arrays": ((4, 5), (np.array([[0], [3], [-1]]), np.array([1, -5, 1])), (3, 3)),
    "array behind a slice": ((3, 4, 5), (ALL, np.array([0, 0, 3])), (3, 3, 5)),
    "array and slice": ((4, 5), (np.array([1, 1]), slice(None, None, -2)), (2, 3)),
    "arrays apart": ((4, 2, 5), (np.array([1, 1, 0]), ALL, np.array([2, 2, -5])), (3, 2)),
    "array behind an ellipsis": ((2, 3, 4), (..., np.array([3, 0, 3, 3])), (2, 3, 4)),
    "array and integer": ((4, 5, 2), (np.array([2, 2, 0]), -1), (3, 2)),
    "new axis": ((4, 2), (None, np.array([[2, 2, 0]])), (1, 1, 3, 2)),
    "mask and array": ((3, 4), (np.array([True, False, True]), np.array([[1, 0], [1, 3], [1, 1]])), (3, 2)),
    "small integers": ((4, 3), (np.array([3, 1, 3], np.uint8),), (3, 3)),
    "one index": ((4, 3), (np.array(2),), (3,)),
    "values that are broadcast": ((4, 3), (np.array([0, 2, 0]),), (1, 3)),
    "no places": ((0, 3), (np.zeros(0, np.int64),), (0, 3)),
    "no columns": ((4, 0), (np.array([1, 1]),), (2, 0)),
    "mask": ((3, 4), (np.array([True, False, True]),), (2, 4)),
    "slices": ((3, 4), (1, slice(None, None, 2)), (2,)),
}


@pytest.mark.parametrize("shape, index, shape_of_values", INDICES.values(), ids=INDICES)
def test_every_kind_of_index(cuda, shape, index, shape_of_values):
    values = np.random.default_rng(3).normal(size=shape_of_values)
    values[..., :1] = -0.0
    assert_same_bits(*added(cuda, shape, index, values))


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_sums_of_16_bit_numbers_are_rounded_once(cuda, name):
    dtype = np.dtype(np.float16 if name == "float16" else pytest.importorskip("ml_dtypes").bfloat16)
    rows = np.random.default_rng(0).integers(0, 3, 5000)
    values = np.random.default_rng(1).normal(1, 1, (5000, 3)).astype(dtype)
    actual = added(cuda, (3, 3), (rows,), values)[0]
    expected = added(cuda, (3, 3), (rows,), values.astype(np.float32))[1]
    assert_same_bits(actual, expected.astype(dtype))


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64])
def test_integers_add_up_as_they_do_in_numpy(cuda, dtype):
    """Too large sums wrap; those of bools are True."""
    rows = np.random.default_rng(0).integers(0, 7, 66)
    assert_same_bits(*added(cuda, (8,), (rows,), (37 * np.arange(66)).astype(dtype)))
    assert_same_bits(*added(cuda, (3,), (np.array([True, False, True]),), np.array([1, 0]).astype(dtype)))


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_masks_go_by_the_kernel_that_adds_in_order(cuda, name, monkeypatch):
    def refuse(*_):
        raise AssertionError("atomics add in no fixed order")

    monkeypatch.setattr("gpuprop.cuda.generic.index_add", refuse)
    dtype = np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else name)
    mask = np.random.default_rng(0).integers(0, 2, (33, 31)).astype(bool)
    assert_same_bits(*added(cuda, mask.shape, (mask,), np.random.default_rng(1).normal(size=mask.sum()).astype(dtype)))
    rows = mask[:, 0]
    assert_same_bits(
        *added(cuda, (33, 5), (rows,), np.random.default_rng(2).normal(size=(rows.sum(), 5)).astype(dtype))
    )


def test_layouts(cuda):
    rows = np.random.default_rng(0).integers(0, 7, 66)
    values = on_device(cuda, np.random.default_rng(1).normal(size=(5, 66)))
    wide = on_device(cuda, np.repeat(rows, 2))
    actual = cuda.to_host(cuda.xp.index_add((7, 5), (wide[::2],), values.T))
    assert_same_bits(actual, added(cuda, (7, 5), (rows,), cuda.to_host(values).T.copy())[1])


def test_what_is_not_finite_is_added(cuda):
    values = np.array([[np.inf, np.nan], [1, 1], [-np.inf, 1]], np.float32)
    with np.errstate(invalid="ignore"):
        actual, expected = added(cuda, (2, 2), (np.array([0, 1, 0]),), values)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
    "shape, index",
    [
        ((5, 4), ([0, 5],)),
        ((5, 4), ([-6, 0],)),
        ((0, 4), ([0, 0],)),
        ((5, 0), ([0, 5],)),
        ((5, 4), ([0, 5], 0)),
        ((5, 4), (ALL, [-5, 0])),
    ],
)
def test_a_place_outside_raises_when_the_host_reads(cuda, shape, index):
    there = tuple(on_device(cuda, np.array(i)) if isinstance(i, list) else i for i in index)
    y = cuda.xp.index_add(shape, there, cuda.xp.zeros((), np.float32))
    with pytest.raises(BoundsError, match="index_add: expected indices from "):
        cuda.to_host(y)
    cuda.to_host(y)  # reported once


def test_gradients_of_repeated_rows(cuda):
    """An embedding: 2000 of 50 rows."""
    x, rows = np.random.default_rng(0).normal(size=(50, 33)), np.random.default_rng(1).integers(0, 50, 2000)
    dy = np.random.default_rng(2).normal(size=(2000, 33))
    gradients = []
    for device in ("cpu", "cuda"):
        t = gp.tensor(x, device=device, requires_grad=True)
        t[gp.tensor(rows, device=device)].backward(gp.tensor(dy, device=device))
        gradients.append(t.grad.numpy())
    assert_same_bits(*gradients)


# --- Gathering ------------------------------------------------------------------------------------------------------


def gathered(cuda, x, rows, out=None, **options):
    """What the kernel gathers, and what the rule does."""
    options = {"scale": 1.0, "shift": 0.0, "dtype": None, **options}
    y = gather_rows.cuda.implementation.forward(on_device(cuda, x), on_device(cuda, rows), out=out, **options)
    assert y is not NotImplemented
    return cuda.to_host(y), gather_rows.rule(HOST.xp, x, rows, **options)


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_, np.float16, np.int32, np.float32, np.int64, np.float64])
@pytest.mark.parametrize("columns", [1, 3, 31, 32, 33, 784, 1025])
def test_rows_as_they_are(cuda, columns, dtype):
    draw = np.random.default_rng(columns)
    x = (draw.normal(size=(19, columns)) * 100).astype(dtype)
    for count in SIZES[1:]:
        assert_same_bits(*gathered(cuda, x, draw.integers(-19, 19, count)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("columns", [1, 3, 33, 784, 1025])
def test_pixels_become_numbers(cuda, columns, dtype):
    draw = np.random.default_rng(columns)
    x = draw.integers(0, 256, (19, columns)).astype(np.uint8)
    for count in SIZES[1:]:
        rows = draw.integers(-19, 19, count)
        actual, expected = gathered(cuda, x, rows, scale=1 / 255, shift=-0.5, dtype=np.dtype(dtype))
        assert actual.dtype == dtype  # the sum is rounded once more in the rule, in float16 the product and 1 / 255 too
        np.testing.assert_allclose(actual, expected, rtol=0, atol=np.finfo(dtype).eps)
        assert_same_bits(*gathered(cuda, x, rows, dtype=np.dtype(dtype)))


def test_pixels_in_bfloat16(cuda):
    bfloat16 = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    x, rows = np.arange(256, dtype=np.uint8).reshape(16, 16), np.array([3, -1, 0])
    actual = gathered(cuda, x, rows, scale=0.125, dtype=bfloat16)[0]
    assert_same_bits(actual, (x[rows] * np.float32(0.125)).astype(bfloat16))


def test_rows_of_any_shape_go_where_one_asks(cuda):
    x, rows = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32), np.array([[4, 0], [0, -5], [2, 2]])
    for out in (cuda.xp.zeros((3, 2, 2, 3), np.float32), cuda.xp.zeros((3, 2, 2, 6), np.float32)[..., ::2]):
        actual, expected = gathered(cuda, x, rows, out=out)
        np.testing.assert_array_equal(actual, expected)
        np.testing.assert_array_equal(cuda.to_host(out), expected)


@pytest.mark.parametrize("start", [1, 2])
def test_a_data_set_that_starts_anywhere(cuda, start):
    x = on_device(cuda, np.arange(4 * 9, dtype=np.float32))[start : start + 32].reshape(8, 4)
    rows = on_device(cuda, np.array([7, 0, 3]))
    np.testing.assert_array_equal(cuda.to_host(gp.numpy.gather_rows(x, rows)), cuda.to_host(x)[[7, 0, 3]])


@pytest.mark.parametrize("row", [5, -6])
def test_a_row_outside_raises_when_the_host_reads(cuda, row):
    x = on_device(cuda, np.zeros((5, 4), np.float32))
    y = gp.numpy.gather_rows(x, on_device(cuda, np.array([0, row])))
    with pytest.raises(BoundsError, match="gather_rows: expected indices from -5 to 4"):
        cuda.to_host(y)
    cuda.to_host(x)  # reported once


def test_a_recorded_step_gathers_and_adds_anew(cuda):
    x, rows = on_device(cuda, np.arange(12.0).reshape(4, 3)), on_device(cuda, np.array([1, 3, 1]))

    def step():
        gathered = gp.numpy.gather_rows(x, rows)
        return cuda.xp.index_add((4, 3), (rows,), gathered), gathered  # both live as long as the graph writes to them

    step()  # compiles the kernels
    stream = cuda.xp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        try:
            y, _gathered = step()
        finally:
            graph = stream.end_capture()
        rows[...] = cuda.xp.asarray([2, 2, 0])
        graph.launch(stream)
    stream.synchronize()
    np.testing.assert_array_equal(cuda.to_host(y), [[0, 1, 2], [0, 0, 0], [12, 14, 16], [0, 0, 0]])
