"""Activations: values from independent formulas, limits far from 0, and the subgradients that docstrings promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special

import gpuprop as gp
from gpuprop.tape import walk

INF = math.inf
E4 = 1e4

# op, its options, and the same function by another formula, in float64
FORMULAS = [
    ("relu", {}, lambda x: np.where(x > 0, x, 0)),
    ("relu6", {}, lambda x: np.minimum(np.maximum(x, 0), 6)),
    ("leaky_relu", {}, lambda x: np.where(x > 0, x, 0.01 * x)),
    ("leaky_relu", {"negative_slope": 0.3}, lambda x: np.where(x > 0, x, 0.3 * x)),
    ("elu", {}, lambda x: np.where(x > 0, x, np.exp(x) - 1)),
    ("elu", {"alpha": 2.0}, lambda x: np.where(x > 0, x, 2 * (np.exp(x) - 1))),
    ("selu", {}, lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * (np.exp(x) - 1))),
    ("celu", {"alpha": 0.5}, lambda x: np.where(x > 0, x, 0.5 * (np.exp(2 * x) - 1))),
    ("sigmoid", {}, special.expit),
    ("log_sigmoid", {}, special.log_expit),
    ("softplus", {}, lambda x: np.logaddexp(0, x)),
    ("softplus", {"beta": 3.0, "threshold": 2.0}, lambda x: np.where(3 * x > 2, x, np.logaddexp(0, 3 * x) / 3)),
    ("softsign", {}, lambda x: x / (1 + abs(x))),
    ("ndtr", {}, lambda x: 0.5 * special.erfc(-x / math.sqrt(2))),
    ("gelu", {}, lambda x: 0.5 * x * special.erfc(-x / math.sqrt(2))),
    (
        "gelu",
        {"approximate": "tanh"},
        lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
    ("silu", {}, lambda x: x / (1 + np.exp(-x))),
    ("mish", {}, lambda x: x * np.tanh(np.logaddexp(0, x))),
    ("hardtanh", {"min_val": -2.0, "max_val": 0.5}, lambda x: np.minimum(np.maximum(x, -2), 0.5)),
    ("hardsigmoid", {}, lambda x: np.where(x < -3, 0, np.where(x > 3, 1, x / 6 + 0.5))),
    ("hardswish", {}, lambda x: np.where(x < -3, 0, np.where(x > 3, x, x * (x + 3) / 6))),
    ("softmax", {"axis": 0}, lambda x: special.softmax(x, axis=0)),
    ("log_softmax", {}, lambda x: special.log_softmax(x, axis=-1)),
]


@pytest.mark.parametrize(("name", "options", "formula"), FORMULAS, ids=lambda v: v if isinstance(v, str) else "")
def test_values(name, options, formula):
    x = np.random.default_rng(1).uniform(-7, 7, (4, 25))
    np.testing.assert_allclose(getattr(gp.numpy, name)(x, **options), formula(x), rtol=1e-8, atol=1e-12)
    single = getattr(gp.numpy, name)(x.astype(np.float32), **options)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, formula(x), rtol=2e-5, atol=2e-6)


def test_the_lower_tails_keep_their_relative_precision():
    x = np.array([-30.0, -12.0, -6.0])
    np.testing.assert_allclose(gp.numpy.sigmoid(x), np.exp(x) / (1 + np.exp(x)), rtol=1e-14)
    np.testing.assert_allclose(gp.numpy.gelu(x), x * special.ndtr(x), rtol=1e-14)
    np.testing.assert_allclose(gp.numpy.silu(x), x * np.exp(special.log_expit(x)), rtol=1e-13)


def same(x):
    return x


# name, options, then y, y' and y'' at -inf (or -1e4) and at +inf (or 1e4): numbers, or functions of x
LIMITS = [
    ("relu", {}, (0, 0, 0), (same, 1, 0)),
    ("relu6", {}, (0, 0, 0), (6, 0, 0)),
    ("leaky_relu", {}, (lambda x: 0.01 * x, 0.01, 0), (same, 1, 0)),
    ("elu", {"alpha": 0.5}, (-0.5, 0, 0), (same, 1, 0)),
    ("selu", {}, (-1.7580993408473766, 0, 0), (lambda x: 1.0507009873554805 * x, 1.0507009873554805, 0)),
    ("celu", {"alpha": 0.5}, (-0.5, 0, 0), (same, 1, 0)),
    ("sigmoid", {}, (0, 0, 0), (1, 0, 0)),
    ("tanh", {}, (-1, 0, 0), (1, 0, 0)),
    ("log_sigmoid", {}, (same, 1, 0), (0, 0, 0)),
    ("softplus", {}, (0, 0, 0), (same, 1, 0)),
    ("softsign", {}, (-1, 0, 0), (1, 0, 0)),
    ("ndtr", {}, (0, 0, 0), (1, 0, 0)),
    ("gelu", {}, (0, 0, 0), (same, 1, 0)),
    ("gelu", {"approximate": "tanh"}, (0, 0, 0), (same, 1, 0)),
    ("silu", {}, (0, 0, 0), (same, 1, 0)),
    ("mish", {}, (0, 0, 0), (same, 1, 0)),
    ("hardtanh", {}, (-1, 0, 0), (1, 0, 0)),
    ("hardsigmoid", {}, (0, 0, 0), (1, 0, 0)),
    ("hardswish", {}, (0, 0, 0), (same, 1, 0)),
]


def derivatives(f, x):
    """f(x), its gradient and the gradient's gradient, for dy = 1, through rules alone and through implementations."""
    x = gp.tensor(x, requires_grad=True)
    y = f(x)
    ones = np.ones(y.shape, y.dtype)
    first = walk([(y, ones)], wanted=[x._node], retain_graph=True)[x._node]
    taped = walk([(y, gp.Tensor(ones))], wanted=[x._node], create_graph=True)[x._node]
    np.testing.assert_allclose(first, taped.numpy(), rtol=1e-3 if y.dtype == np.float16 else 1e-6)
    second = np.zeros(x.shape)
    if taped.requires_grad:
        second = walk([(taped, np.ones(x.shape, x.dtype))], wanted=[x._node]).get(x._node, second)
    return y.numpy(), first, second


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("name", "options", "left", "right"), LIMITS)
def test_limits(name, options, left, right, dtype):
    x = np.array([-INF, -E4, E4, INF], dtype)
    got = derivatives(lambda t: getattr(gp.numpy, name)(t, **options), x)
    for order, values in enumerate(got):
        for place, (value, at) in enumerate(zip(values, x, strict=True)):
            limit = (left if at < 0 else right)[order]
            expected = float(limit(float(at)) if callable(limit) else limit)
            slow = name == "softsign" and abs(at) == E4  # approaches its limit as 1 / x
            np.testing.assert_allclose(
                value,
                expected,
                rtol=2e-3 if dtype == np.float16 else 1e-6,
                atol=2e-4 if slow else 1e-30,
                err_msg=f"{order} {place}",
            )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_limits_along_an_axis(name, dtype):
    x = np.array([[E4, -E4, 0], [-INF, 1, 1], [INF, 5, -INF]], dtype)
    shares = np.array([[1, 0, 0], [0, 0.5, 0.5], [1, 0, 0]])
    with np.errstate(divide="ignore"):
        logarithms = np.array([[0, -2 * E4, -E4], [-INF, *np.log([0.5, 0.5])], [0, -INF, -INF]])
    y, first, second = derivatives(getattr(gp.numpy, name), x)
    if name == "softmax":
        np.testing.assert_allclose(y, shares, rtol=1e-6)
        np.testing.assert_allclose(first, 0, atol=1e-7)  # the sum of a softmax is 1
    else:
        at = np.abs(logarithms) < 1e30
        np.testing.assert_allclose(y[at], logarithms[at], rtol=1e-3 if dtype == np.float16 else 1e-6)
        assert (y[~at] < -60000).all()  # -inf, or what is left of it after +inf was taken for the largest number
        np.testing.assert_allclose(first, 1 - 3 * shares, atol=1e-6 if dtype != np.float16 else 2e-3)
    assert np.isfinite(second).all()


# The gradients at kinks, as the docstrings say: name, options, {x: gradient}
KINKS = [
    ("relu", {}, {0.0: 0}),
    ("relu6", {}, {0.0: 0, 6.0: 0}),
    ("leaky_relu", {}, {0.0: 0.01}),
    ("elu", {"alpha": 0.5}, {0.0: 0.5}),
    ("selu", {}, {0.0: 1.7580993408473766}),
    ("celu", {"alpha": 0.5}, {0.0: 1}),
    ("hardtanh", {}, {-1.0: 0, 1.0: 0}),
    ("hardsigmoid", {}, {-3.0: 0, 3.0: 0}),
    ("hardswish", {}, {-3.0: 0, 3.0: 1}),
    ("softsign", {}, {0.0: 1}),
    ("softplus", {"threshold": 0.0}, {0.0: 0.5}),
]


@pytest.mark.parametrize(("name", "options", "slopes"), KINKS)
def test_gradients_at_kinks(name, options, slopes):
    _, first, _ = derivatives(lambda t: getattr(gp.numpy, name)(t, **options), np.array(list(slopes)))
    np.testing.assert_allclose(first, list(slopes.values()), rtol=1e-12)


def test_prelu_at_0():
    x = gp.tensor(np.array([[0.0, -2.0], [3.0, 0.0]]), requires_grad=True)
    weight = gp.tensor(np.array([0.25, 0.5]), requires_grad=True)
    gp.numpy.prelu(x, weight).backward(np.array([[1.0, 10.0], [100.0, 1000.0]]))
    np.testing.assert_array_equal(x.grad.numpy(), [[0.25, 5.0], [100.0, 500.0]])
    np.testing.assert_array_equal(weight.grad.numpy(), [0.0, -20.0])


@pytest.mark.parametrize("name", ["relu", "sigmoid", "tanh", "softmax", "elu"])
def test_what_the_tape_keeps_is_the_output(name):
    """In a stack of layers the next layer keeps y anyway; x would double the memory."""
    x = gp.tensor(np.linspace(-1, 1, 6).reshape(2, 3), requires_grad=True)
    y = getattr(gp.numpy, name)(x)
    kept = [k.data for k in y.grad_fn.kept if isinstance(k, gp.Tensor)]
    assert [k is y.data for k in kept] == [True]


def test_relu_leaves_its_inputs_as_they_were():
    x, dy = np.array([[-1.0, 2.0, 0.0]]), np.array([[3.0, 4.0, 5.0]])
    t = gp.tensor(x, requires_grad=True)
    gp.numpy.relu(t).backward(dy)
    np.testing.assert_array_equal(t.data, x)
    np.testing.assert_array_equal(dy, [[3.0, 4.0, 5.0]])
    np.testing.assert_array_equal(t.grad.data, [[0.0, 4.0, 0.0]])


def test_softmax_of_integers_is_one_of_real_numbers():
    y = gp.numpy.softmax(np.array([0, 0, 0, 0]))
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y, 0.25)


@pytest.mark.parametrize("name", ["gelu", "silu"])
def test_float32_on_a_cpu_keeps_its_digits_far_below_zero(name):
    """Where 1 + erf(x / sqrt(2)) has lost them all."""
    x = np.linspace(-5, 12, 4001).astype(np.float32)
    exact = gp.tensor(x.astype(np.float64), requires_grad=True)
    single = gp.tensor(x, requires_grad=True)
    wide, y = getattr(gp.numpy, name)(exact), getattr(gp.numpy, name)(single)
    wide.sum().backward()
    y.sum().backward()
    np.testing.assert_allclose(y.numpy(), wide.numpy(), rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(single.grad.numpy(), exact.grad.numpy(), rtol=1e-5, atol=2e-7)


def test_nothing_that_gelu_keeps_is_subnormal():
    """Processors compute forty times slower with such numbers; far from 0 everything is exactly 0 or 1."""
    x = gp.tensor(np.linspace(-1000, 1000, 200_001, dtype=np.float32), requires_grad=True)
    y = gp.numpy.gelu(x)
    y.sum().backward()
    for values in (y.numpy(), x.grad.numpy()):
        assert not np.any((values != 0) & (np.abs(values) < np.finfo(np.float32).tiny))
        assert not values[x.numpy() < -12].any()
    assert np.all(x.grad.numpy()[x.numpy() > 12] == 1)


TORCH_NAMES = [(name, options) for name, options, _ in FORMULAS if name not in ("ndtr", "softmax", "log_softmax")]


@pytest.mark.parametrize(("name", "options"), TORCH_NAMES)
def test_agrees_with_pytorch_everywhere(name, options):
    torch = pytest.importorskip("torch")
    x = np.array([-1e4, -20.0, -6.0, -3.0, -1.0, -0.3, 0.0, 0.3, 1.0, 3.0, 6.0, 20.0, 1e4])
    dy = np.linspace(0.5, 2.0, x.size)
    theirs = torch.tensor(x, requires_grad=True)
    {"log_sigmoid": torch.nn.functional.logsigmoid}.get(name, getattr(torch.nn.functional, name, None))(
        theirs, **options
    ).backward(torch.tensor(dy))
    ours = gp.tensor(x, requires_grad=True)
    getattr(gp.numpy, name)(ours, **options).backward(dy)
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-7, atol=1e-8)
