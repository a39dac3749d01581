"""Shapes: the spellings of methods, views and what shares memory, dtypes and devices; values and gradients."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpuprop as gp
from gpuprop.errors import ArgumentError, BoundsError, DtypeError, MutationError, OptionError, ShapeError
from gpuprop.testing import check_gradients

A = np.arange(24.0).reshape(2, 3, 4)

METHODS = {
    "reshape sizes": (lambda t: t.reshape(6, 4), A.reshape(6, 4)),
    "reshape tuple": (lambda t: t.reshape((6, 4)), A.reshape(6, 4)),
    "reshape list": (lambda t: t.reshape([6, -1]), A.reshape(6, 4)),
    "reshape -1": (lambda t: t.reshape(-1), A.reshape(-1)),
    "reshape by name": (lambda t: t.reshape(shape=(4, 6)), A.reshape(4, 6)),
    "reshape NumPy sizes": (lambda t: t.reshape(np.int64(4), np.int64(6)), A.reshape(4, 6)),
    "view": (lambda t: t.view(4, -1), A.reshape(4, 6)),
    "ravel": (lambda t: t.ravel(), A.ravel()),
    "flatten": (lambda t: t.flatten(), A.ravel()),
    "flatten from": (lambda t: t.flatten(1), A.reshape(2, 12)),
    "flatten up to": (lambda t: t.flatten(0, 1), A.reshape(6, 4)),
    "transpose": (lambda t: t.transpose(), A.T),
    "transpose sizes": (lambda t: t.transpose(1, 2, 0), A.transpose(1, 2, 0)),
    "transpose tuple": (lambda t: t.transpose((1, 2, 0)), A.transpose(1, 2, 0)),
    "transpose by name": (lambda t: t.transpose(axes=(1, 2, 0)), A.transpose(1, 2, 0)),
    "permute": (lambda t: t.permute(2, 0, 1), A.transpose(2, 0, 1)),
    "T": (lambda t: t.T, A.T),
    "mT": (lambda t: t.mT, A.swapaxes(-1, -2)),
    "swapaxes": (lambda t: t.swapaxes(0, -1), A.swapaxes(0, -1)),
    "moveaxis": (lambda t: t.moveaxis(0, -1), np.moveaxis(A, 0, -1)),
    "squeeze": (lambda t: t.reshape(1, 24, 1).squeeze(), A.ravel()),
    "squeeze axis": (lambda t: t.reshape(1, 24, 1).squeeze(axis=-1), A.reshape(1, 24)),
    "squeeze dim": (lambda t: t.reshape(1, 24, 1).squeeze(dim=0), A.reshape(24, 1)),
    "squeeze position": (lambda t: t.reshape(1, 24, 1).squeeze(0), A.reshape(24, 1)),
    "unsqueeze": (lambda t: t.unsqueeze(1), A[:, None]),
    "unsqueeze dim": (lambda t: t.unsqueeze(dim=-1), A[..., None]),
    "expand": (lambda t: t[:, :1].expand(5, -1, 3, 4), np.broadcast_to(A[:, :1], (5, 2, 3, 4))),
    "expand tuple": (lambda t: t[:, :1].expand((2, 3, 4)), np.broadcast_to(A[:, :1], (2, 3, 4))),
    "broadcast_to": (lambda t: t.broadcast_to((2, 2, 3, 4)), np.broadcast_to(A, (2, 2, 3, 4))),
    "repeat": (lambda t: t.repeat(2), np.repeat(A, 2)),
    "repeat axis": (lambda t: t.repeat(np.array([2, 0, 1]), axis=1), np.repeat(A, [2, 0, 1], axis=1)),
    "clone": (lambda t: t.clone(), A),
    "copy": (lambda t: t.copy(), A),
    "astype": (lambda t: t.astype("int32"), A.astype(np.int32)),
    "astype Python": (lambda t: t.astype(float), A),
    "flip": (lambda t: t.flip(dim=(0, 2)), np.flip(A, (0, 2))),
    "roll": (lambda t: t.roll((1, -1), (0, 2)), np.roll(A, (1, -1), (0, 2))),
    "diagonal": (lambda t: t.diagonal(1, 1, 2), np.diagonal(A, 1, 1, 2)),
    "tril": (lambda t: t.tril(-1), np.tril(A, -1)),
}


@pytest.mark.parametrize("method, expected", METHODS.values(), ids=METHODS.keys())
def test_methods_on_every_device(method, expected, device):
    y = method(gp.tensor(A))
    assert y.device == device and y.dtype == expected.dtype
    np.testing.assert_array_equal(y.numpy(), expected)


FUNCTIONS = {
    "reshape": (gp.numpy.reshape, np.reshape, (A, (6, 4)), {}),
    "concatenate": (gp.numpy.concatenate, np.concatenate, ([A, A[:1]],), {}),
    "concatenate axis": (gp.numpy.concatenate, np.concatenate, ((A, A[..., :2]), -1), {}),
    "concatenate rows": (gp.numpy.concatenate, np.concatenate, (A,), {"axis": 1}),
    "concatenate one": (gp.numpy.concatenate, np.concatenate, ([A],), {}),
    "stack": (gp.numpy.stack, np.stack, ([A, A],), {"axis": 1}),
    "stack rows": (gp.numpy.stack, np.stack, (A, -1), {}),
    "hstack rows": (gp.numpy.hstack, np.hstack, (A[0],), {}),
    "vstack": (gp.numpy.vstack, np.vstack, ([A[0, 0], A[0]],), {}),
    "hstack": (gp.numpy.hstack, np.hstack, ((A[0], A[1, :, :2]),), {}),
    "split": (gp.numpy.split, np.split, (A, 2, 2), {}),
    "split places": (gp.numpy.split, np.split, (A, [1, 3]), {"axis": 2}),
    "array_split": (gp.numpy.array_split, np.array_split, (A, 3, -1), {}),
    "pad": (gp.numpy.pad, np.pad, (A[0], ((1, 2), (0, 1)), "reflect"), {}),
    "pad constants": (gp.numpy.pad, np.pad, (A[0], 1), {"constant_values": (7, 8)}),
    "tile": (gp.numpy.tile, np.tile, (A, (2, 1, 1, 2)), {}),
    "rot90": (gp.numpy.rot90, np.rot90, (A, -1, (0, 2)), {}),
    "diag": (gp.numpy.diag, np.diag, (A[0, 0], -1), {}),
    "reshape order": (gp.numpy.reshape, np.reshape, (A, (6, 4)), {"order": "C"}),
    "expand_dims": (gp.numpy.expand_dims, np.expand_dims, (A, (0, -1)), {}),
    "atleast_2d": (gp.numpy.atleast_2d, np.atleast_2d, (A[0, 0],), {}),
}


@pytest.mark.parametrize("ours, theirs, args, options", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_functions_take_numpys_arguments(ours, theirs, args, options):
    found, expected = ours(*args, **options), theirs(*args, **options)
    several = isinstance(expected, (list, tuple))
    for f, e in zip(found if several else [found], expected if several else [expected], strict=True):
        assert type(f) is np.ndarray and f.dtype == e.dtype
        np.testing.assert_array_equal(f, e)


# --- Gradients of what copies elements ------------------------------------------------------------------------------

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


@settings(deadline=None)
@given(shapes, st.data())
def test_pad_like_numpy_with_every_border(shape, data):
    mode = data.draw(st.sampled_from(["constant", "edge", "reflect", "symmetric", "wrap"]))
    widths = [(data.draw(st.integers(0, 5)), data.draw(st.integers(0, 5))) for _ in shape]
    x = np.random.default_rng(0).standard_normal(shape)
    np.testing.assert_array_equal(gp.numpy.pad(x, widths, mode), np.pad(x, widths, mode))
    check_gradients(lambda t: gp.numpy.pad(t, widths, mode), x)


@settings(deadline=None)
@given(shapes, st.lists(st.integers(0, 3), min_size=1, max_size=4))
def test_tile_like_numpy(shape, reps):
    x = np.random.default_rng(0).standard_normal(shape)
    np.testing.assert_array_equal(gp.numpy.tile(x, reps), np.tile(x, reps))
    check_gradients(lambda t: gp.numpy.tile(t, reps), x)


@settings(deadline=None)
@given(shapes, st.data())
def test_repeat_like_numpy(shape, data):
    axis = data.draw(st.none() | st.integers(-len(shape), len(shape) - 1))
    n = int(np.prod(shape)) if axis is None else shape[axis]
    repeats = data.draw(st.integers(0, 3) | st.lists(st.integers(0, 3), min_size=n, max_size=n))
    x = np.random.default_rng(0).standard_normal(shape)
    np.testing.assert_array_equal(gp.numpy.repeat(x, repeats, axis), np.repeat(x, repeats, axis))
    check_gradients(lambda t: gp.numpy.repeat(t, repeats, axis), x)


@settings(deadline=None)
@given(st.permutations(range(4)))
def test_transpose_by_every_permutation(axes):
    x = np.random.default_rng(0).standard_normal((1, 2, 3, 4))
    np.testing.assert_array_equal(gp.numpy.transpose(x, axes), np.transpose(x, axes))
    check_gradients(lambda t: t.transpose(axes), x)


def test_each_element_of_a_broadcast_counts():
    x = gp.tensor([1.0, 2.0], requires_grad=True)
    x.broadcast_to((3, 2)).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [3.0, 3.0])


def test_a_part_of_a_split_that_nobody_uses_has_a_zero_gradient():
    x = gp.tensor(np.ones((2, 6)), requires_grad=True)
    first, _, last = x.split(3, axis=1)
    (first.sum() + 2 * last.sum()).backward()
    np.testing.assert_array_equal(x.grad.numpy(), [[1, 1, 0, 0, 2, 2]] * 2)


def test_the_same_array_joined_to_itself():
    x = gp.tensor([1.0, 2.0], requires_grad=True)
    (gp.numpy.concatenate([x, x]) * np.array([1.0, 2.0, 3.0, 4.0])).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [4.0, 6.0])


# --- Memory ---------------------------------------------------------------------------------------------------------

VIEWS = {
    "reshape": lambda t: t.reshape(6, 4),
    "ravel": lambda t: t.ravel(),
    "transpose": lambda t: t.T,
    "moveaxis": lambda t: t.moveaxis(0, 1),
    "swapaxes": lambda t: t.mT,
    "expand_dims": lambda t: t.unsqueeze(0),
    "squeeze": lambda t: t.squeeze(),
    "broadcast_to": lambda t: t.expand(5, 2, 3, 4),
    "flip": lambda t: t.flip(),
    "split": lambda t: t.split(3, axis=1)[1],
    "diagonal": lambda t: t.diagonal(),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_views_share_memory_and_the_date_of_its_last_change(view):
    x, w = gp.tensor(A), gp.tensor(1.0, dtype=gp.float64, requires_grad=True)
    part = view(x)
    assert np.shares_memory(part.numpy(), x.numpy())
    y = (w * part).sum()
    x += 1.0
    with pytest.raises(MutationError, match=r"multiply: .*changed in place"):
        y.backward()


def test_copies_do_not():
    x, w = gp.tensor(A), gp.tensor(1.0, dtype=gp.float64, requires_grad=True)
    y = sum((w * part).sum() for part in (x.clone(), x.repeat(1), x.roll(1), x.astype(np.float64)))
    x += 1.0
    y.backward()
    assert w.grad.item() == 4 * A.sum()


def test_clone_is_differentiable_and_contiguous():
    x = gp.tensor(A, requires_grad=True)
    y = x.T.clone()
    assert y.numpy().flags.c_contiguous and not np.shares_memory(y.numpy(), x.numpy())
    (y * y).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), 2 * A)


# --- Dtypes and devices ---------------------------------------------------------------------------------------------


def test_astype_casts_the_gradient_back():
    x = gp.tensor([1.0, 2.0], requires_grad=True)
    y = x.astype(np.float64)
    (y * np.array([0.5, 0.25])).sum().backward()
    assert x.grad.dtype == np.float32
    np.testing.assert_array_equal(x.grad.numpy(), np.float32([0.5, 0.25]))


def test_astype_copies_unless_told_otherwise():
    x = gp.tensor([1.0, 2.0])
    assert x.astype(np.float32, copy=False) is x
    assert not np.shares_memory(x.astype(np.float32).numpy(), x.numpy())
    assert not x.astype(np.int64).requires_grad


def test_gradients_come_home_from_another_device(device):
    x = gp.tensor([1.0, 2.0], device="cpu", requires_grad=True)
    y = x.to(device)
    assert y.device == device
    (y * y).sum().backward()
    assert x.grad.device == "cpu"
    np.testing.assert_array_equal(x.grad.numpy(), [2.0, 4.0])


def test_second_derivatives_cross_devices(device):
    x = gp.tensor([1.0, 2.0], device="cpu", requires_grad=True)
    y = x.to(device)
    (y * y * y).sum().backward(create_graph=True)
    gradient, x.grad = x.grad, None
    gradient.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [6.0, 12.0])


# --- Wrong uses -----------------------------------------------------------------------------------------------------

WRONG = {
    "too few elements": (lambda t: t.reshape(5, 5), ShapeError, r"reshape: .*\(2, 3, 4\)"),
    "no shape": (lambda t: t.reshape(), ArgumentError, "reshape: expected the option 'shape'"),
    "flatten backwards": (lambda t: t.flatten(2, 1), ArgumentError, "flatten: .*2 and 1"),
    "flatten beyond": (lambda t: t.flatten(3), BoundsError, "flatten: .*from -3 to 2, got 3"),
    "expand a longer axis": (lambda t: t.expand(2, 5, 4), ShapeError, "broadcast_to: "),
    "unknown dtype": (lambda t: t.astype("number"), DtypeError, "astype: expected a dtype .*, got 'number'"),
    "unknown option": (lambda t: t.squeeze(axes=1), ArgumentError, "squeeze: unknown argument 'axes'"),
    "unknown mode": (lambda t: gp.numpy.pad(t, 1, "mirror"), OptionError, "pad: .*'mirror'"),
    "nothing to join": (lambda t: gp.numpy.concatenate([]), ArgumentError, "concatenate: .*at least one"),
    "axis": (lambda t: t.split(1, axis=3), BoundsError, "split: .*from -3 to 2, got 3"),
}


@pytest.mark.parametrize("call, error, match", WRONG.values(), ids=WRONG.keys())
def test_wrong_uses_say_what_was_expected(call, error, match):
    with pytest.raises(error, match=match):
        call(gp.tensor(A))
