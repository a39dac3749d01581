"""Products: values against NumPy over many shapes and subscripts, and `linear` on a CPU against its rule."""

import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import gpuprop as gp
from gpuprop._op import REGISTRY
from gpuprop.errors import ArgumentError, BoundsError, DtypeError, ShapeError
from gpuprop.tape import walk
from gpuprop.testing import check_gradients

linear = REGISTRY["linear"]


def test_names_and_options_of_numpy():
    a = np.arange(6.0).reshape(2, 3)
    assert gp.numpy.linalg.norm(a) == np.linalg.norm(a) and gp.numpy.size(a, 1) == np.size(a, 1)
    np.testing.assert_array_equal(gp.numpy.einsum("ij,kj->ik", a, a, optimize=True), a @ a.T)


def normal(*shape, dtype=np.float64):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


@settings(deadline=None)
@given(arrays.mutually_broadcastable_shapes(signature=np.matmul.signature, max_dims=2, max_side=3, min_side=0))
def test_matmul_of_all_ranks_like_numpy(shapes):
    a, b = (normal(*shape) for shape in shapes.input_shapes)
    y = gp.numpy.matmul(a, b)
    assert y.shape == shapes.result_shape
    np.testing.assert_allclose(y, np.matmul(a, b), rtol=1e-12, atol=1e-14)
    check_gradients(gp.numpy.matmul, a, b)


@settings(deadline=None)
@given(st.data())
def test_tensordot_over_any_pairs_of_axes(data):
    a_shape = data.draw(st.lists(st.integers(1, 3), max_size=3))
    count = data.draw(st.integers(0, len(a_shape)))
    a_axes = data.draw(st.permutations(range(len(a_shape))))[:count]
    b_sizes = [a_shape[i] for i in a_axes] + data.draw(st.lists(st.integers(1, 3), max_size=2))
    places = data.draw(st.permutations(range(len(b_sizes))))  # axis i of b has the size b_sizes[places[i]]
    b_axes = [places.index(i) for i in range(count)]
    a, b = normal(*a_shape), normal(*(b_sizes[i] for i in places))
    axes = (tuple(a_axes), tuple(b_axes))
    np.testing.assert_allclose(gp.numpy.tensordot(a, b, axes), np.tensordot(a, b, axes), rtol=1e-12, atol=1e-14)
    check_gradients(lambda s, t: gp.numpy.tensordot(s, t, axes), a, b)


def test_operators_and_methods(device):
    a, b = normal(2, 3), normal(3, 4)
    s, t = gp.tensor(a), gp.tensor(b)
    for y in (s @ t, s.matmul(t), s.mm(t), s.dot(t), gp.numpy.matmul(s, t), gp.numpy.einsum("ij,jk", s, t)):
        assert y.device == device
        np.testing.assert_allclose(y.numpy(), a @ b, rtol=1e-13)


def test_arrays_on_either_side():
    a, b = normal(2, 3), normal(3, 4)
    t = gp.tensor(b, requires_grad=True)
    y = a @ t
    assert isinstance(y, gp.Tensor)
    y.sum().backward()
    np.testing.assert_allclose(t.grad.numpy(), a.T @ np.ones((2, 4)), rtol=1e-13)
    assert isinstance(gp.tensor(a) @ b, gp.Tensor)


def test_a_product_over_a_batch_needs_no_gradient_per_row():
    a, b = gp.tensor(normal(50, 40, 3)), gp.tensor(normal(3, 5), requires_grad=True)
    rule = next(r.function for r in REGISTRY["matmul"].gradients if r.targets == ("b",))
    assert rule(np, normal(50, 40, 5), a.data, b.shape).shape == b.shape


# --- einsum ---------------------------------------------------------------------------------------------------------


@st.composite
def einsums(draw):
    """Subscripts of up to three operands over at most five letters, with repeats, and arrays that fit."""
    letters = string.ascii_lowercase[:5]
    sizes = {c: draw(st.integers(1, 3)) for c in letters}
    operands = draw(st.lists(st.text(letters, max_size=3), min_size=1, max_size=3))
    used = sorted(set("".join(operands)))
    shapes = [tuple(sizes[c] for c in o) for o in operands]
    subscripts = ",".join(operands)
    if draw(st.booleans()):
        subscripts += "->" + "".join(c for c in draw(st.permutations(used)) if draw(st.booleans()))
    return subscripts, [normal(*shape) for shape in shapes]


@settings(deadline=None)
@given(einsums())
def test_einsum_of_any_subscripts(case):
    subscripts, operands = case
    expected = np.einsum(subscripts, *operands)
    np.testing.assert_allclose(gp.numpy.einsum(subscripts, *operands), expected, rtol=1e-12, atol=1e-13)
    check_gradients(lambda *ts: gp.numpy.einsum(subscripts, *ts), *operands)


@pytest.mark.parametrize(
    "subscripts, shapes",
    [
        ("...ij,...j->...i", [(4, 2, 3), (3,)]),
        ("...ij,...j", [(5, 1, 2, 3), (4, 3)]),
        ("i...->...", [(2, 3, 4)]),
        ("...,...", [(2, 1), (3,)]),
        ("...ii->...i", [(4, 3, 3)]),
        ("ij,ij->ij", [(1, 3), (2, 1)]),
        ("ij,jk->k", [(2, 3), (1, 4)]),
        ("ij,kl->", [(2, 3), (4, 1)]),
        ("ij,jk,k->i", [(0, 3), (3, 2), (2,)]),
        ("ij,jk->ik", [(2, 0), (0, 3)]),
        ("ij,jk->ik", [(2, 0), (1, 3)]),
    ],
)
def test_einsum_that_broadcasts_or_is_empty(subscripts, shapes):
    operands = [normal(*shape) for shape in shapes]
    expected = np.einsum(subscripts, *operands)
    np.testing.assert_allclose(gp.numpy.einsum(subscripts, *operands), expected, rtol=1e-12, atol=1e-13)
    check_gradients(lambda *ts: gp.numpy.einsum(subscripts, *ts), *operands)


def test_einsum_computes_wanted_gradients_only():
    a, b = gp.tensor(normal(2, 3)), gp.tensor(normal(3, 4), requires_grad=True)
    (rule,) = REGISTRY["einsum"].gradients
    gradients = rule.function(np, normal(2, 4), a.data, b.data, subscripts="ij,jk->ik", wanted=(False, True))
    assert gradients[0] is None and gradients[1].shape == b.shape
    gp.numpy.einsum("ij,jk->ik", a, b).sum().backward()
    np.testing.assert_allclose(b.grad.numpy(), a.data.T @ np.ones((2, 4)), rtol=1e-13)


def test_one_tensor_twice_in_einsum():
    x = normal(3, 2)
    check_gradients(lambda t: gp.numpy.einsum("ij,kj,il->kl", t, t, t), x)


# --- linear ---------------------------------------------------------------------------------------------------------

SHAPES = [(3,), (4, 3), (2, 5, 3), (0, 3)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("biased", [False, True])
def test_linear_on_a_cpu_is_its_rule(shape, biased, dtype):
    arrays = [normal(*shape, dtype=dtype), normal(6, 3, dtype=dtype), normal(6, dtype=dtype)][: 2 + biased]
    tensors = [gp.tensor(a, requires_grad=True) for a in arrays]
    y = linear(*tensors)
    assert y.dtype == dtype
    tolerance = 8 * np.finfo(dtype).eps
    np.testing.assert_allclose(y.numpy(), linear(np, *arrays), rtol=tolerance, atol=tolerance)
    u = normal(*y.shape, dtype=dtype)
    found, expected = (
        walk([(y, seed)], wanted=[t._node for t in tensors], retain_graph=True, create_graph=taped)
        for seed, taped in [(u, False), (gp.tensor(u), True)]
    )
    for t in tensors:
        rule, twin = expected[t._node].data, found[t._node]
        assert twin.dtype == dtype and twin.shape == t.shape
        np.testing.assert_allclose(twin, rule, rtol=tolerance, atol=4 * tolerance)


def test_linear_writes_parameter_gradients_where_they_live():
    x, w, b = normal(4, 3), gp.tensor(normal(6, 3), requires_grad=True), gp.tensor(normal(6), requires_grad=True)
    u = normal(4, 6)
    linear(x, w, b).backward(u)
    homes = w.grad.data, b.grad.data
    linear(x, w, b).backward(2 * u)
    assert w.grad.data is homes[0] and b.grad.data is homes[1]
    np.testing.assert_allclose(w.grad.numpy(), 3 * u.T @ x, rtol=1e-13)
    np.testing.assert_allclose(b.grad.numpy(), 3 * u.sum(0), rtol=1e-13)


def test_linear_of_mixed_dtypes_promotes():
    x, w, b = normal(4, 3, dtype=np.float32), normal(6, 3), normal(6, dtype=np.float32)
    parameters = [gp.tensor(a, requires_grad=True) for a in (x, w, b)]
    y = linear(*parameters)
    assert y.dtype == np.float64
    y.sum().backward()
    assert [p.grad.dtype for p in parameters] == [np.float32, np.float64, np.float32]


# --- Wrong uses -----------------------------------------------------------------------------------------------------

S, T = gp.tensor(normal(2, 3)), gp.tensor(normal(4, 5))
WRONG = {
    "shapes": (lambda: S @ T, ShapeError, r"matmul: .*\(2, 3\).*\(4, 5\)"),
    "0-d": (lambda: S @ 2.0, ShapeError, "matmul: "),
    "vectors": (lambda: S.dot(T), ShapeError, r"dot: .*\(2, 3\).*\(4, 5\)"),
    "no subscripts": (lambda: gp.numpy.einsum(S, T), ArgumentError, "einsum: expected subscripts first.*Tensor"),
    "nothing": (lambda: gp.numpy.einsum(), ArgumentError, "einsum: expected subscripts first.*nothing"),
    "letters": (lambda: gp.numpy.einsum("ij,jk", S, T), ShapeError, r"einsum: .*\(2, 3\).*\(4, 5\)"),
    "too few operands": (lambda: gp.numpy.einsum("ij,jk", S), ShapeError, "einsum: "),
    "axes": (lambda: gp.numpy.tensordot(S, T, axes=((2,), (0,))), BoundsError, "tensordot: .*from -2 to 1, got 2"),
    "unpaired axes": (lambda: gp.numpy.tensordot(S, T, axes=((0, 1), (0,))), ShapeError, "tensordot: .*as many axes"),
    "weight": (lambda: linear(S, T), ShapeError, r"linear: expected x \(..., in\), .*\(2, 3\), \(4, 5\)"),
    "bias": (lambda: linear(T, gp.tensor(normal(2, 5)), gp.tensor(normal(1))), ShapeError, r"linear: .*\(1,\)"),
    "text": (lambda: S @ "text", DtypeError, "matmul: "),
}


@pytest.mark.parametrize("call, error, match", WRONG.values(), ids=WRONG.keys())
def test_wrong_products_say_what_was_expected(call, error, match):
    with pytest.raises(error, match=match):
        call()
