"""Derivatives of functions, against formulas worked by hand."""

import numpy as np
import pytest

import gpuprop as gp
import gpuprop.numpy as gnp
from gpuprop.errors import ArgumentError, DtypeError, MutationError, ShapeError

rng = np.random.default_rng(7)


# --- grad -----------------------------------------------------------------------------------------------------------


def test_grad_of_plain_arrays_is_plain():
    x = rng.standard_normal(4)
    g = gp.grad(lambda v: gnp.sum(gnp.sin(v) * v))(x)
    assert type(g) is np.ndarray
    np.testing.assert_allclose(g, np.cos(x) * x + np.sin(x), rtol=1e-13)


def test_grad_of_tensors_is_tensors():
    x = gp.tensor(rng.standard_normal(4))
    g = gp.grad(lambda v: (v * v).sum())(x)
    assert isinstance(g, gp.Tensor) and not g.requires_grad and x.grad is None
    np.testing.assert_allclose(g.numpy(), 2 * x.numpy())


def test_argnums_containers_and_keywords():
    def f(params, x, *, scale):
        return gnp.sum(params["w"] * x[0] + params["b"]) * scale

    params = {"w": rng.standard_normal(3), "b": np.array(2.0)}
    x = (rng.standard_normal(3), rng.standard_normal(2))
    value, (dp, dx) = gp.value_and_grad(f, argnums=(0, 1))(params, x, scale=3.0)
    np.testing.assert_allclose(value, 3 * (np.sum(params["w"] * x[0]) + 6.0))
    assert list(dp) == ["w", "b"] and isinstance(dx, tuple)
    np.testing.assert_allclose(dp["w"], 3 * x[0])
    np.testing.assert_allclose(dp["b"], 9.0)
    np.testing.assert_allclose(dx[0], 3 * params["w"])
    np.testing.assert_array_equal(dx[1], np.zeros(2))


def test_has_aux():
    gradient, aux = gp.grad(lambda v: ((v * v).sum(), {"v": v}), has_aux=True)(np.array([1.0, 2.0]))
    np.testing.assert_array_equal(gradient, [2.0, 4.0])
    assert type(aux["v"]) is np.ndarray
    (value, aux), gradient = gp.value_and_grad(lambda v: ((v * v).sum(), "text"), has_aux=True)(np.array([1.0, 2.0]))
    assert float(value) == 5.0 and aux == "text"
    with pytest.raises(ArgumentError, match="has_aux"):
        gp.grad(lambda v: v.sum(), has_aux=True)(np.ones(2))


def test_grad_nests():
    f = lambda x: x**4
    for order, expected in enumerate([4 * 8.0, 12 * 4.0, 24 * 2.0, 24.0, 0.0], 1):
        derivative = f
        for _ in range(order):
            derivative = gp.grad(derivative)
        np.testing.assert_allclose(derivative(np.array(2.0)), expected)


def test_an_outer_variable_in_an_inner_closure_is_differentiated():
    outer = gp.grad(lambda x: gp.grad(lambda y: x * x * y * y)(np.array(3.0)))  # d/dx 2 x^2 y = 4 x y
    np.testing.assert_allclose(outer(np.array(2.0)), 24.0)


def test_gradients_of_leaves_can_be_differentiated_by_backward():
    x = gp.tensor([1.0, 2.0], dtype=gp.float64, requires_grad=True)
    g = gp.grad(lambda v: (v**3).sum())(x)
    g.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 6 * x.numpy())
    with gp.no_grad():
        assert not gp.grad(lambda v: (v**3).sum())(x).requires_grad


def test_gradients_reach_parameters_that_f_refers_to():
    w, x = (gp.tensor(rng.standard_normal(3), requires_grad=k) for k in (True, False))
    penalty = (gp.grad(lambda v: (w * v**3).sum())(x) ** 2).sum()  # sum of 9 w^2 x^4
    penalty.backward()
    np.testing.assert_allclose(w.grad.numpy(), 18 * w.numpy() * x.numpy() ** 4)
    y, pullback = gp.vjp(lambda v: w * v, x)
    assert y.requires_grad and pullback(gp.ones(3, dtype=gp.float64))[0].requires_grad
    with gp.no_grad():
        assert not gp.grad(lambda v: (w * v).sum())(x).requires_grad


def test_grad_leaves_no_trace_on_others():
    w = gp.tensor([1.0, 2.0], requires_grad=True)
    gp.grad(lambda v: (w * v).sum())(np.ones(2, np.float32))
    assert w.grad is None


def test_what_grad_refuses():
    with pytest.raises(ShapeError, match=r"one scalar, got \(3,\)"):
        gp.grad(lambda v: v * 2)(np.ones(3))
    with pytest.raises(DtypeError, match="int64"):
        gp.grad(lambda v: v.sum())(np.arange(3))
    with pytest.raises(ArgumentError, match="argnums"):
        gp.grad(lambda v: v.sum(), argnums=1)(np.ones(3))
    with pytest.raises(ArgumentError, match=r"argnums among 0 to 0, got 0\.0"):
        gp.grad(lambda v: v.sum(), argnums=0.0)(np.ones(3))
    with pytest.raises(ArgumentError, match="grad: expected positional arguments"):
        gp.grad(lambda v: v.sum())(v=np.ones(3))
    endless = []
    endless.append(endless)
    with pytest.raises(ArgumentError, match="one in itself"):
        gp.grad(lambda v: 1.0)(endless)


def test_a_function_that_ignores_its_argument_has_gradient_zero():
    np.testing.assert_array_equal(gp.grad(lambda v: gp.tensor(1.0))(np.ones(3)), np.zeros(3))


def test_two_arguments_that_receive_the_same_cotangent_get_arrays_of_their_own():
    a, b = gp.grad(lambda u, v: gnp.sum(u + v), argnums=(0, 1))(np.ones(3), np.ones(3))
    a += 5
    np.testing.assert_array_equal(b, np.ones(3))


# --- vjp and jvp ----------------------------------------------------------------------------------------------------

A = rng.standard_normal((3, 4))


def affine(x, y):
    """Two inputs, two results."""
    return gnp.matmul(A, x) * y, {"sum": gnp.sum(x) + y[0]}


def test_vjp_returns_a_tuple_and_can_be_called_again():
    x, y = rng.standard_normal(4), rng.standard_normal(3)
    out, pullback = gp.vjp(affine, x, y)
    np.testing.assert_allclose(out[0], A @ x * y)
    for _ in range(2):
        u, s = rng.standard_normal(3), 2.0
        dx, dy = pullback((u, {"sum": np.array(s)}))
        np.testing.assert_allclose(dx, A.T @ (u * y) + s, rtol=1e-12)
        np.testing.assert_allclose(dy, A @ x * u + np.array([s, 0, 0]), rtol=1e-12)
    with pytest.raises(ShapeError, match="2 arrays"):
        pullback(u)
    (single,) = gp.vjp(lambda v: v * 2, np.ones(2))[1](np.ones(2))
    np.testing.assert_array_equal(single, [2, 2])


def test_jvp_is_the_transpose():
    x, y = rng.standard_normal(4), rng.standard_normal(3)
    vx, vy = rng.standard_normal(4), rng.standard_normal(3)
    out, tangent = gp.jvp(affine, (x, y), (vx, vy))
    np.testing.assert_allclose(out[0], A @ x * y)
    np.testing.assert_allclose(tangent[0], A @ vx * y + A @ x * vy, rtol=1e-12)
    np.testing.assert_allclose(tangent[1]["sum"], vx.sum() + vy[0], rtol=1e-12)
    with pytest.raises(ShapeError):
        gp.jvp(affine, (x, y), (vx, vx))


def test_jvp_of_scalars_and_constants_gives_arrays():
    for x, kind in ((2.0, np.ndarray), (gp.tensor(2.0), gp.Tensor)):
        y, dy = gp.jvp(lambda v: v**3, (x,), (x,))
        assert type(y) is type(dy) is kind and dy.shape == () and float(dy) == 24
    assert gp.jvp(lambda v: gp.tensor(1.0), (2.0,), (1.0,))[1] == 0


def test_jvp_and_grad_nest():
    second = gp.grad(lambda x: gp.jvp(lambda v: v**3, (x,), (np.array(1.0),))[1])
    np.testing.assert_allclose(second(np.array(2.0)), 12.0)
    y, dy = gp.jvp(gp.grad(lambda v: v**3), (np.array(2.0),), (np.array(1.0),))
    np.testing.assert_allclose([y, dy], [12.0, 12.0])


# --- matrices -------------------------------------------------------------------------------------------------------


def test_jacobian_and_hessian():
    x = rng.standard_normal(4)
    np.testing.assert_allclose(gp.jacobian(lambda v: gnp.matmul(A, gnp.sin(v)))(x), A * np.cos(x), rtol=1e-12)
    full = gp.jacobian(lambda v: gnp.outer(v, v))(x)
    assert full.shape == (4, 4, 4)
    np.testing.assert_allclose(full[1, 2], [0, x[2], x[1], 0], atol=1e-15)
    h = gp.hessian(lambda v: gnp.prod(v) + gnp.sum(v**3))(x)
    expected = np.prod(x) / np.outer(x, x)
    np.fill_diagonal(expected, 6 * x)
    np.testing.assert_allclose(h, expected, rtol=1e-10)


def test_jacobian_of_containers_and_several_arguments():
    j = gp.jacobian(affine, argnums=(0, 1))(rng.standard_normal(4), np.ones(3))
    np.testing.assert_allclose(j[0][0], A, rtol=1e-12)
    np.testing.assert_allclose(j[1]["sum"][0], np.ones(4))
    np.testing.assert_allclose(j[1]["sum"][1], [1, 0, 0])


def test_hvp_is_hessian_times_vector():
    x, v = rng.standard_normal(4), rng.standard_normal(4)
    f = lambda u: gnp.sum(gnp.exp(u) * u) + gnp.prod(u)
    product = gp.hvp(f, x, v)
    assert type(product) is np.ndarray
    np.testing.assert_allclose(product, gp.hessian(f)(x) @ v, rtol=1e-10)
    assert isinstance(gp.hvp(f, gp.tensor(x), v), gp.Tensor)


# --- checkpoint -----------------------------------------------------------------------------------------------------


def test_checkpoint_computes_the_same_gradients_and_keeps_only_arguments():
    w = gp.tensor(rng.standard_normal((4, 4)), requires_grad=True)
    calls = []

    def block(x):
        calls.append(1)
        return gnp.tanh(gnp.matmul(x, w))

    def loss(x, wrap):
        for _ in range(3):
            x = gp.checkpoint(block, x) if wrap else block(x)
        return (x * x).sum()

    x = rng.standard_normal((2, 4))
    results = []
    for wrap in (False, True):
        t, w.grad = gp.tensor(x, requires_grad=True), None
        calls.clear()
        loss(t, wrap).backward()
        results.append((t.grad.numpy(), w.grad.numpy().copy(), len(calls)))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-12)
    assert [r[2] for r in results] == [3, 6]


def test_checkpoint_reaches_parameters_when_no_argument_needs_a_gradient():
    w = gp.tensor([2.0, 3.0], dtype=gp.float64, requires_grad=True)
    gp.checkpoint(lambda x: (w * x).sum(), np.array([5.0, 7.0])).backward()
    np.testing.assert_array_equal(w.grad.numpy(), [5.0, 7.0])


def test_checkpoint_under_transforms_and_twice_differentiated():
    f = lambda x: gp.checkpoint(lambda v: gnp.sum(v**4), x)
    x = rng.standard_normal(3)
    np.testing.assert_allclose(gp.grad(f)(x), 4 * x**3, rtol=1e-12)
    np.testing.assert_allclose(gp.hessian(f)(x), np.diag(12 * x**2), rtol=1e-12)


def test_checkpoint_of_several_results_recomputes_once():
    calls = []

    def pair(v):
        calls.append(1)
        return v * 2, (v * v, "label")

    x = gp.tensor([1.0, 3.0], requires_grad=True)
    a, (b, label) = gp.checkpoint(pair, x)
    (a + b).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), 2 + 2 * x.numpy())
    assert label == "label" and len(calls) == 2


def test_checkpoint_draws_the_same_random_numbers_again():
    import gpuprop.nn.functional as F

    x = gp.tensor(rng.standard_normal(1000), requires_grad=True)
    gp.manual_seed(5)
    y = gp.checkpoint(lambda v: F.dropout(v * 1.0, 0.5), x)
    after = gp.rand(3).numpy()
    y.backward(gp.ones_like(y))
    np.testing.assert_array_equal(x.grad.numpy() != 0, y.numpy() != 0)
    gp.manual_seed(5)
    F.dropout(x, 0.5)
    np.testing.assert_array_equal(gp.rand(3).numpy(), after)  # the stream goes on as if nothing had been recomputed


def test_checkpoint_notices_changed_arguments():
    x = gp.tensor([1.0, 2.0], requires_grad=True)
    k = gp.tensor([3.0, 4.0])
    y = gp.checkpoint(lambda a, b: (a * b).sum(), x, k)
    k.zero_()
    with pytest.raises(MutationError, match="checkpoint"):
        y.backward()
