"""The update formulas, against loops written by hand, parameter by parameter, in float64."""

from math import sqrt

import numpy as np
import pytest

import gpuprop as gp
from gpuprop import optim
from gpuprop.nn import Parameter

SHAPES = [(3, 4), (5,), (), (40, 70), (0, 3)]
STEPS = 12


def sgd(p, gradients, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
    b = None
    for g in gradients:
        g = g + weight_decay * p
        if momentum:
            b = g if b is None else momentum * b + (1 - dampening) * g
            g = g + momentum * b if nesterov else b
        p = p - lr * g
    return p, {"momentum_buffer": b} if momentum else {}


def adam(p, gradients, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False, decoupled=False):
    m = v = largest = np.zeros_like(p)
    for t, g in enumerate(gradients, 1):
        if decoupled:
            p = p * (1 - lr * weight_decay)
        else:
            g = g + weight_decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        largest = np.maximum(largest, v)
        m_hat = m / (1 - betas[0] ** t)
        v_hat = (largest if amsgrad else v) / (1 - betas[1] ** t)
        p = p - lr * m_hat / (np.sqrt(v_hat) + eps)
    return p, {"exp_avg": m, "exp_avg_sq": v, **({"max_exp_avg_sq": largest} if amsgrad else {})}


def adamw(p, gradients, weight_decay=1e-2, **options):
    return adam(p, gradients, weight_decay=weight_decay, decoupled=True, **options)


def rmsprop(p, gradients, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0, centered=False):
    v = a = b = np.zeros_like(p)
    for g in gradients:
        g = g + weight_decay * p
        v = alpha * v + (1 - alpha) * g**2
        a = alpha * a + (1 - alpha) * g
        scaled = g / (np.sqrt(v - a**2 if centered else v) + eps)
        b = momentum * b + scaled
        p = p - lr * b
    state = {"square_avg": v, **({"grad_avg": a} if centered else {})}
    return p, {**state, **({"momentum_buffer": b} if momentum else {})}


def adagrad(p, gradients, lr=1e-2, lr_decay=0.0, weight_decay=0.0, initial_accumulator_value=0.0, eps=1e-10):
    a = np.full_like(p, initial_accumulator_value)
    for t, g in enumerate(gradients):
        g = g + weight_decay * p
        a = a + g**2
        p = p - lr / (1 + t * lr_decay) * g / (np.sqrt(a) + eps)
    return p, {"sum": a}


CASES = [
    ("SGD", sgd, {}),
    ("SGD", sgd, {"lr": 0.1, "weight_decay": 0.1}),
    ("SGD", sgd, {"lr": 0.1, "momentum": 0.9}),
    ("SGD", sgd, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("SGD", sgd, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("Adam", adam, {}),
    ("Adam", adam, {"lr": 0.02, "betas": (0.0, 0.9), "eps": 1e-3, "weight_decay": 0.1}),
    ("Adam", adam, {"lr": 0.02, "amsgrad": True, "betas": (0.8, 0.5)}),
    ("AdamW", adamw, {}),
    ("AdamW", adamw, {"lr": 0.02, "weight_decay": 0.3, "amsgrad": True}),
    ("RMSprop", rmsprop, {}),
    ("RMSprop", rmsprop, {"alpha": 0.9, "weight_decay": 0.1, "momentum": 0.5}),
    ("RMSprop", rmsprop, {"centered": True, "momentum": 0.9}),
    ("Adagrad", adagrad, {}),
    ("Adagrad", adagrad, {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.3, "weight_decay": 0.1}),
]


def give(p, gradient, device="cpu"):
    """What a backward walk leaves: the gradient, in the parameter's own memory."""
    p.grad = None
    array = gp.tensor(gradient, dtype=p.dtype, device=device).data
    p._leaf.accumulate(array, owned=True)


def check(value, expected, dtype):
    """Two roundings of the largest element per step are forgiven."""
    size = np.abs(expected).max(initial=1.0)
    np.testing.assert_allclose(value, expected, rtol=0, atol=2 * STEPS * np.finfo(dtype).eps * size)


def drawn(seed=0):
    rng = np.random.default_rng(seed)
    values = [np.asarray(rng.standard_normal(shape)) for shape in SHAPES]
    return values, [[np.asarray(rng.standard_normal(shape)) for shape in SHAPES] for _ in range(STEPS)]


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(("name", "reference", "options"), CASES, ids=lambda v: v if isinstance(v, str) else None)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_update(device, name, reference, options, maximize, dtype):
    values, gradients = drawn()
    parameters = [Parameter(gp.tensor(v, dtype=dtype, device=device)) for v in values]
    optimizer = getattr(optim, name)(parameters, maximize=maximize, **options)
    for step in gradients:
        for p, g in zip(parameters, step):
            give(p, g, device)
        optimizer.step()
    for i, p in enumerate(parameters):
        expected, state = reference(values[i], [-g[i] if maximize else g[i] for g in gradients], **options)
        assert p.dtype == dtype
        check(p.numpy(), expected, dtype)
        assert {k for k, v in optimizer.state[p].items() if k != "step"} == set(state)
        for key, value in state.items():
            check(optimizer.state[p][key].numpy(), value, dtype)


@pytest.mark.parametrize(("name", "reference", "options"), CASES, ids=lambda v: v if isinstance(v, str) else None)
def test_as_pytorch(name, reference, options):
    torch = pytest.importorskip("torch")
    values, gradients = drawn()
    ours = [Parameter(v) for v in values]
    theirs = [torch.nn.Parameter(torch.tensor(v.copy())) for v in values]
    optimizer, other = getattr(optim, name)(ours, **options), getattr(torch.optim, name)(theirs, **options)
    for number, step in enumerate(gradients):
        for i, (p, q, g) in enumerate(zip(ours, theirs, step)):
            if i == 1 and number % 3 == 0:  # without a gradient: neither values nor step count change
                p.grad = q.grad = None
            else:
                give(p, g)
                q.grad = torch.tensor(g)
        optimizer.step()
        other.step()
    for p, q in zip(ours, theirs):
        np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"])
def test_pytorch_has_the_same_defaults(name):
    torch = pytest.importorskip("torch")
    ours = getattr(optim, name)([Parameter([1.0])]).defaults
    theirs = getattr(torch.optim, name)([torch.nn.Parameter(torch.ones(1))]).defaults
    assert ours == {key: theirs[key] for key in ours}


def test_small_corrections_are_exact():
    """After one step of Adam v' = g^2, whatever beta2: 1 - beta2 computed in float32 would miss by 1e-5."""
    p = Parameter(np.zeros(3, np.float64))
    optimizer = optim.Adam([p], lr=1.0, betas=(0.9, 1 - 1e-12), eps=0.0)
    give(p, np.array([1.0, -2.0, 3.0]))
    optimizer.step()
    np.testing.assert_allclose(p.numpy(), [-1, 1, -1], rtol=1e-4)  # beta2 itself is rounded, by 1e-16 / 1e-12
    assert optim.adam.correction(0.999, 1) == pytest.approx(0.001, rel=1e-13)
    assert sqrt(optim.adam.correction(0.0, 5)) == 1.0


def test_float16_steps():
    p = Parameter(np.ones((2, 3), np.float16))
    for kind in (optim.SGD, optim.Adagrad, optim.RMSprop, optim.Adam):
        optimizer = kind([p], lr=0.125)
        give(p, np.ones((2, 3)))
        optimizer.step()
        assert p.dtype == np.float16 and np.isfinite(p.numpy()).all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"lr": -1}),
        ("SGD", {"momentum": -0.1}),
        ("SGD", {"nesterov": True}),
        ("SGD", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}),
        ("Adam", {"lr": -1e-3}),
        ("Adam", {"betas": (1.0, 0.9)}),
        ("Adam", {"betas": (0.9, -0.1)}),
        ("AdamW", {"eps": -1}),
        ("RMSprop", {"weight_decay": -1}),
        ("Adagrad", {"lr_decay": -1}),
        ("Adagrad", {"lr": float("nan")}),
    ],
)
def test_options_are_checked(name, options):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        getattr(optim, name)([Parameter([1.0])], **options)
