"""Indexing: every kind of index against NumPy, repeated indices, views, bounds; taking, sorting, one-hot."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import gpuprop as gp
from gpuprop._op import REGISTRY
from gpuprop.errors import ArgumentError, BoundsError, DtypeError, GraphError, MutationError
from gpuprop.testing import check_gradients

A = np.arange(24.0).reshape(2, 3, 4)
MASK = A[0] % 3 == 0

INDICES = {
    "integer": 1,
    "negative": -1,
    "NumPy integer": np.int64(1),
    "integers": (1, 2, 3),
    "slice": slice(1, None),
    "reversed": (slice(None), slice(None, None, -2)),
    "bounds beyond": slice(-9, 9),
    "None": (None, 1, None),
    "Ellipsis": (..., 1),
    "Ellipsis between": (0, ..., None, 1),
    "nothing": (),
    "list": [1, 0, 1],
    "empty list": [],
    "nested list": (slice(None), [[0, 2], [1, 1]]),
    "array": (0, np.array([2, 0]), slice(1, 3)),
    "0-d array": np.array(1),
    "broadcast arrays": (np.array([[0], [1]]), [0, 2, 2]),
    "separated arrays": ([0, 1, 0], slice(None), [3, 3, 0]),
    "array and None": (None, [0, 1], ..., None),
    "unsigned": (slice(None), np.array([2, 1], np.uint8)),
    "range": (0, range(2)),
    "mask": np.array([False, True]),
    "mask of two axes": (slice(None), MASK),
    "mask of all axes": A % 5 == 0,
    "mask and array": (np.array([True, True]), [0, 2], ...),
    "mask of nothing": np.zeros(A.shape, bool),
    "True": True,
    "False": (0, False),
}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES.keys())
def test_any_index_on_every_device(index, device):
    x = gp.tensor(A, requires_grad=True)
    y = x[index]
    assert y.device == device
    assert y.shape == A[index].shape
    np.testing.assert_array_equal(y.numpy(), A[index])
    weights = np.random.default_rng(0).standard_normal(y.shape)
    (y * gp.tensor(weights)).sum().backward()
    expected = np.zeros_like(A)
    np.add.at(expected, index, weights)
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-15)


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES.keys())
def test_derivatives_through_any_index(index):
    check_gradients(lambda t: t[index] * t[index], A / 10)


@settings(deadline=None)
@given(arrays.array_shapes(max_dims=3, max_side=4), st.data())
def test_basic_indices_like_numpy(shape, data):
    x = np.random.default_rng(0).standard_normal(shape)
    index = data.draw(arrays.basic_indices(shape, allow_newaxis=True))
    np.testing.assert_array_equal(gp.tensor(x)[index].numpy(), x[index])
    check_gradients(lambda t: t[index], x)


@settings(deadline=None)
@given(arrays.array_shapes(max_dims=3, max_side=4), st.data())
def test_integer_indices_like_numpy(shape, data):
    x = np.random.default_rng(0).standard_normal(shape)
    index = data.draw(arrays.integer_array_indices(shape))
    np.testing.assert_array_equal(gp.tensor(x)[index].numpy(), x[index])
    check_gradients(lambda t: t[index], x)


def test_tensors_as_indices(device):
    x = gp.tensor(A, requires_grad=True)
    rows, mask = gp.tensor([1, 1, 0]), gp.tensor(MASK)
    np.testing.assert_array_equal(x[rows].numpy(), A[[1, 1, 0]])
    np.testing.assert_array_equal(x[rows[0]].numpy(), A[1])
    np.testing.assert_array_equal(x[:, mask].numpy(), A[:, MASK])
    np.testing.assert_array_equal(x[x > 20].numpy(), A[A > 20])
    x[rows, 0].sum().backward()
    np.testing.assert_array_equal(x.grad.numpy()[:, 0, 0], [1.0, 2.0])


def test_iteration_and_unpacking():
    x = gp.tensor(A, requires_grad=True)
    first, second = x
    (first.sum() + 2 * second.sum()).backward()
    np.testing.assert_array_equal(x.grad.numpy(), np.broadcast_to(np.array([1.0, 2.0])[:, None, None], A.shape))


def test_options_of_equal_indices_are_equal_and_hashable():
    getitem = REGISTRY["getitem"]

    def option(index):
        arrays, options = getitem.spelling(A, index)
        return len(arrays), options["index"]

    assert option(np.s_[1:, None, ..., [0, 1]]) == option(np.s_[np.int8(1) :, None, ..., np.array([2, 2])])
    assert option(np.s_[1:]) != option(np.s_[1:2])
    assert len({option(i) for i in (np.s_[0], np.s_[0, ...], np.s_[0:1])}) == 2


# --- Views ----------------------------------------------------------------------------------------------------------


def test_a_view_that_was_kept_must_not_change():
    x, w = gp.tensor(A), gp.tensor(2.0, dtype=gp.float64, requires_grad=True)
    row = x[0]
    y = (w * x).sum()
    with gp.no_grad():
        row += 1.0
    with pytest.raises(MutationError, match=r"multiply: .*changed in place"):
        y.backward()


def test_an_element_is_a_view_too():
    x = gp.tensor(A)
    element = x[1, 2, 3]
    assert element.shape == () and type(element.data) is np.ndarray
    x += 1.0
    assert element.item() == 24.0


def test_an_index_that_changed_after_it_was_used_is_noticed():
    x, index = gp.tensor(A, requires_grad=True), gp.tensor([0, 1])
    y = x[index].sum()
    index[0] = 1
    with pytest.raises(MutationError, match=r"getitem: .*changed in place"):
        y.backward()


# --- Bounds and kinds -----------------------------------------------------------------------------------------------

OUTSIDE = {
    "integer": lambda x: x[2],
    "negative": lambda x: x[..., -5],
    "array": lambda x: x[gp.tensor([0, 2])],
    "array in another axis": lambda x: x[:, None, ..., gp.tensor([[4]])],
    "behind a mask": lambda x: x[:, gp.tensor(MASK)][:, gp.tensor([4])],
    "take": lambda x: gp.numpy.take(x, gp.tensor([3]), axis=1),
    "take of all": lambda x: x.take([24]),
    "take_along_axis": lambda x: x.take_along_axis(gp.tensor([[[4]]]), axis=2),
    "index_add": lambda x: gp.numpy.index_add((3,), (gp.tensor([3]),), x[0, 0, :1]),
    "one_hot": lambda x: gp.numpy.one_hot(gp.tensor([1, 3]), 3),
}


@pytest.mark.parametrize("call", OUTSIDE.values(), ids=OUTSIDE.keys())
def test_indices_out_of_range_raise_at_the_latest_when_the_host_reads(call, device):
    with pytest.raises(BoundsError, match=r"(getitem|take|take_along_axis|index_add|one_hot): "):
        call(gp.tensor(A)).numpy()


WRONG = {
    "too many": (lambda x: x[0, 0, 0, 0], BoundsError, "getitem: too many indices"),
    "float": (lambda x: x[0.5], DtypeError, "getitem: expected integers or booleans as indices, got float64"),
    "floats": (lambda x: x[[0.0, 1.0]], DtypeError, "getitem: expected integers or booleans"),
    "mask of another shape": (lambda x: x[np.array([True] * 3)], BoundsError, r"getitem: .*\(2, 3, 4\)"),
    "two ellipses": (lambda x: x[..., 0, ...], BoundsError, "getitem: "),
    "take a mask": (lambda x: x.take([True, False], 0), DtypeError, "take: expected integers as indices, got bool"),
    "0-d": (lambda x: x.sum()[0], BoundsError, "getitem: "),
    "labels": (lambda x: gp.numpy.one_hot(x, 3), DtypeError, "one_hot: expected integers, got float64"),
    "classes": (
        lambda x: gp.numpy.one_hot(gp.tensor([0])),
        ArgumentError,
        "one_hot: expected the option 'num_classes'",
    ),
}


@pytest.mark.parametrize("call, error, match", WRONG.values(), ids=WRONG.keys())
def test_wrong_indices_say_what_was_expected(call, error, match):
    with pytest.raises(error, match=match):
        call(gp.tensor(A))


# --- take, sort, one_hot --------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(arrays.array_shapes(max_dims=3, max_side=4), st.data())
def test_take_like_numpy(shape, data):
    axis = data.draw(st.none() | st.integers(-len(shape), len(shape) - 1))
    n = int(np.prod(shape)) if axis is None else shape[axis]
    index = data.draw(
        arrays.arrays(np.int64, arrays.array_shapes(max_dims=2, max_side=3), elements=st.integers(-n, n - 1))
    )
    x = np.random.default_rng(0).standard_normal(shape)
    np.testing.assert_array_equal(gp.numpy.take(x, index, axis), np.take(x, index, axis))
    check_gradients(lambda t: t.take(index, axis), x)


@settings(deadline=None)
@given(arrays.array_shapes(max_dims=3, max_side=4), st.data())
def test_sort_takes_gradients_along(shape, data):
    axis = data.draw(st.none() | st.integers(-len(shape), len(shape) - 1))
    x = np.random.default_rng(0).permutation(int(np.prod(shape))).reshape(shape).astype(float)
    order = gp.numpy.argsort(x, axis)
    np.testing.assert_array_equal(order, np.argsort(x, axis, kind="stable"))
    np.testing.assert_array_equal(gp.numpy.sort(x, axis), gp.numpy.take_along_axis(x, order, axis=axis))
    check_gradients(lambda t: t.sort(axis) * t.sort(axis), x)


def test_numpys_ways_to_ask_for_a_stable_order():
    x = np.array([2.0, 1.0, 2.0, 1.0])
    for asked in ({"kind": "stable"}, {"stable": True}, {"kind": None, "axis": 0}):
        np.testing.assert_array_equal(gp.numpy.argsort(x, **asked), [1, 3, 0, 2])
        np.testing.assert_array_equal(gp.tensor(x).sort(**asked).numpy(), [1, 1, 2, 2])


def test_equal_elements_keep_their_order_and_their_gradients(device):
    x = gp.tensor([2.0, 1.0, 2.0, 1.0, 2.0], requires_grad=True)
    assert x.argsort().tolist() == [1, 3, 0, 2, 4]
    (x.sort() * gp.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).sum().backward()
    assert x.grad.tolist() == [3.0, 1.0, 4.0, 2.0, 5.0]


def test_nan_sorts_last(device):
    x = gp.tensor([np.nan, 1.0, -np.inf, np.inf])
    assert x.argsort().tolist() == [2, 1, 3, 0]


def test_one_hot(device):
    labels = gp.tensor([[2, 0], [1, 1]])
    y = gp.numpy.one_hot(labels, 4)
    assert y.dtype == gp.get_default_dtype() and y.device == device
    np.testing.assert_array_equal(y.numpy(), np.eye(4)[labels.numpy()])
    assert gp.numpy.one_hot(np.array([1]), 2, dtype=np.int64).tolist() == [[0, 1]]
    assert gp.numpy.one_hot(np.array([1], np.int8), 200).shape == (1, 200)


def test_nothing_flows_through_an_order():
    x = gp.tensor([2.0, 1.0], requires_grad=True)
    with pytest.raises(GraphError, match="backward: "):
        x.argsort().sum().backward()
