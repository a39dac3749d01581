"""What a step does beside the update: clipping, scaling, skipping, and averaging the parameters."""

import numpy as np
import pytest

import gpuprop as gp
from gpuprop import optim
from gpuprop.nn import Parameter

KINDS = {
    "SGD": {"lr": 0.1, "momentum": 0.9},
    "Adam": {"lr": 0.02, "amsgrad": True},
    "AdamW": {"lr": 0.02},
    "RMSprop": {"centered": True, "momentum": 0.5},
    "Adagrad": {"lr": 0.1},
}
SHAPES = [(3, 4), (5,), (), (40, 70), (0, 3)]
STEPS = 5
EPS = np.finfo(np.float32).eps


@pytest.fixture(params=KINDS)
def make(request):
    return lambda parameters, **more: getattr(optim, request.param)(parameters, **KINDS[request.param], **more)


def parameters_on(device, seed=0):
    rng = np.random.default_rng(seed)
    return [Parameter(gp.tensor(rng.standard_normal(s), dtype=np.float32, device=device)) for s in SHAPES]


def gradients(parameters, step):
    """Gradients where backward leaves them; the last but one is put elsewhere."""
    rng = np.random.default_rng(100 + step)
    for p in parameters:
        p.grad = None
        p._leaf.accumulate(gp.tensor(rng.standard_normal(p.shape), dtype=p.dtype).data, owned=True)
    parameters[-2].grad = parameters[-2].grad.clone()


def scalar(value, device):
    return gp.tensor(value, dtype=np.float32, device=device)


def check(actual, expected, roundings=4 * STEPS):
    for a, b in zip(actual, expected, strict=True):
        a, b = a.numpy(), b.numpy()
        np.testing.assert_allclose(a, b, rtol=0, atol=roundings * EPS * np.abs(b).max(initial=1))


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_within_the_step_is_clipping_before_it(device, make, max_norm):
    ours, theirs = parameters_on(device), parameters_on(device)
    optimizer, other = make(ours, max_grad_norm=max_norm), make(theirs)
    for step in range(STEPS):
        gradients(ours, step), gradients(theirs, step)
        before = [p.grad.numpy().copy() for p in ours]
        optimizer.step()
        assert all((p.grad.numpy() == g).all() for p, g in zip(ours, before))
        optim.clip_grad_norm_(theirs, max_norm)
        other.step()
    check(ours, theirs)


def test_clipping_over_dtypes(device, make):
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(30), rng.standard_normal(20)]
    both = [[Parameter(gp.tensor(v, dtype=d)) for v, d in zip(values, ("float32", "float64"))] for _ in range(2)]
    optimizer, other = make(both[0], max_grad_norm=0.25), make(both[1])
    for p, q in zip(*both):
        p.grad = gp.tensor(rng.standard_normal(p.size), dtype=p.dtype)
        q.grad = p.grad.clone()
    optim.clip_grad_norm_(both[1], 0.25)
    optimizer.step(), other.step()
    check(*both)


def test_gradients_are_scaled_before_they_are_clipped(device, make):
    ours, theirs = parameters_on(device), parameters_on(device)
    optimizer, other = make(ours, max_grad_norm=0.5), make(theirs)
    for step in range(STEPS):
        gradients(ours, step), gradients(theirs, step)
        optimizer.step(grad_scale=scalar(2.0**-4, device))
        for p in theirs:
            p.grad = p.grad * 2.0**-4
        optim.clip_grad_norm_(theirs, 0.5)
        other.step()
    check(ours, theirs)


def test_scale_alone(device, make):
    ours, theirs = parameters_on(device), parameters_on(device)
    optimizer, other = make(ours), make(theirs)
    for step in range(STEPS):
        gradients(ours, step), gradients(theirs, step)
        optimizer.step(grad_scale=scalar(0.25, device))
        for p in theirs:
            p.grad = p.grad * 0.25
        other.step()
    check(ours, theirs, 0)


def test_skipped_steps_were_never_made(device, make):
    ours, theirs = parameters_on(device), parameters_on(device)
    optimizer, other = make(ours, ema_decay=0.9), make(theirs, ema_decay=0.9)
    for step, skip in enumerate([0, 1, 0, 1, 1, 0]):
        gradients(ours, step), gradients(theirs, step)
        optimizer.step(skip=scalar(skip, device))
        if not skip:
            other.step()
    assert [optimizer.state[p]["step"] for p in ours] == [other.state[p]["step"] for p in theirs] == [3] * len(ours)
    gradients(ours, 9), gradients(theirs, 9)
    optimizer.step(), other.step()
    check(ours, theirs, 0)
    check(*([o.state[p]["ema"] for p in ps] for o, ps in ((optimizer, ours), (other, theirs))), 0)
    assert optimizer.state_dict()["state"][0]["step"] == 4


def test_average(device, make):
    parameters = parameters_on(device)
    optimizer = make(parameters, ema_decay=0.75)
    average = [p.numpy().astype(np.float64) for p in parameters]
    for step in range(STEPS):
        gradients(parameters, step)
        optimizer.step()
        average = [0.75 * a + 0.25 * p.numpy() for a, p in zip(average, parameters)]
    for p, a in zip(parameters, average):
        ema = optimizer.state[p]["ema"].numpy()
        np.testing.assert_allclose(ema, a, rtol=0, atol=2 * STEPS * EPS * np.abs(a).max(initial=1))


def test_the_average_goes_round(device, make):
    straight, halfway = parameters_on(device), parameters_on(device)
    optimizer, first = make(straight, ema_decay=0.9), make(halfway, ema_decay=0.9)
    for step in range(2):
        gradients(straight, step), gradients(halfway, step)
        optimizer.step(), first.step()
    resumed = [Parameter(p) for p in halfway]
    second = make(resumed, ema_decay=0.9)
    second.load_state_dict(first.state_dict())
    for step in range(2, 4):
        gradients(straight, step), gradients(resumed, step)
        optimizer.step(), second.step()
    check(straight, resumed, 0)
    check([optimizer.state[p]["ema"] for p in straight], [second.state[p]["ema"] for p in resumed], 0)


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_a_scale_of_another_dtype(device, dtype):
    p = Parameter(gp.ones(5, dtype=np.float32, device=device))
    p.grad = gp.full((5,), 2, dtype=np.float32, device=device)
    optim.SGD([p], lr=0.25).step(grad_scale=gp.tensor(np.array(2, dtype), device=device))
    assert p.numpy().tolist() == [0] * 5


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam, optim.RMSprop, optim.Adagrad])
def test_parameters_and_gradients_with_strides(make):
    """A column is updated as an array of its own is, and its neighbours stay."""
    table, alone = np.zeros((4, 3), np.float32), Parameter(np.zeros(4, np.float32))
    column = gp.asarray(table[:, 1]).requires_grad_()
    reversed_gradient = np.arange(1, 5, dtype=np.float32)[::-1]
    column.grad, alone.grad = gp.asarray(reversed_gradient), gp.tensor(reversed_gradient.copy())
    make([column], lr=0.5).step(), make([alone], lr=0.5).step()
    np.testing.assert_allclose(table[:, 1], alone.numpy(), rtol=1e-6)
    assert table[:, 1].all() and not table[:, [0, 2]].any()


def test_a_subclass_with_another_update_is_heard(device):
    class Signs(optim.SGD):
        def update(self, xp, group, step, blocks):
            for p, g, *_ in blocks:
                xp.subtract(p, group["lr"] * xp.sign(g), p)

    p = Parameter(gp.tensor([1.0, 2.0, 3.0], device=device))
    p.grad = gp.tensor([5.0, -7.0, 0.0], device=device)
    Signs([p], lr=0.5).step()
    assert p.numpy().tolist() == [0.5, 2.5, 3.0]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_grad_norm": 0}, "SGD: expected max_grad_norm > 0, got 0"),
        ({"ema_decay": 1.0}, "SGD: expected 0 <= ema_decay < 1, got 1.0"),
    ],
)
def test_options_are_checked(options, match):
    with pytest.raises(ValueError, match=match):
        optim.SGD([Parameter([1.0])], **options)


@pytest.mark.parametrize("given", [0.5, gp.tensor([1.0, 2.0])], ids=["number", "two"])
def test_scale_is_a_tensor_of_one_element(given):
    p = Parameter([1.0])
    p.grad = gp.tensor([1.0])
    with pytest.raises(TypeError, match="step: expected grad_scale as a tensor of one element, got"):
        optim.SGD([p]).step(grad_scale=given)
