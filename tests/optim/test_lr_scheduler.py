"""Schedules against their formulas written out, and against PyTorch's over a run."""

from math import cos, pi

import numpy as np
import pytest

import gpuprop as gp
from gpuprop import optim
from gpuprop.nn import Parameter
from gpuprop.optim import lr_scheduler as schedules


def optimizer_of(*rates, kind=optim.SGD, **options):
    return kind([{"params": [Parameter([1.0])], "lr": lr} for lr in rates], **options)


def rates_over(scheduler, steps):
    """The rates in use at steps 0, 1, ..., of each group."""
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in scheduler.optimizer.param_groups])
        assert scheduler.get_last_lr() == found[-1]
        scheduler.step()
    return np.array(found)


FORMULAS = [
    (lambda o: schedules.StepLR(o, 3, gamma=0.5), lambda t: 0.5 ** (t // 3)),
    (lambda o: schedules.MultiStepLR(o, [7, 2, 2], gamma=0.5), lambda t: 0.5 ** (2 * (t >= 2) + (t >= 7))),
    (lambda o: schedules.ExponentialLR(o, 0.9), lambda t: 0.9**t),
    (lambda o: schedules.LinearLR(o, 0.25, 0.75, total_iters=4), lambda t: 0.25 + 0.5 * min(t, 4) / 4),
    (lambda o: schedules.CosineAnnealingLR(o, 5), lambda t: 0.5 + 0.5 * cos(pi * t / 5)),
    (lambda o: schedules.LambdaLR(o, lambda t: 1 / (1 + t)), lambda t: 1 / (1 + t)),
    (
        lambda o: schedules.SequentialLR(
            o, [schedules.LinearLR(o, 0.5, total_iters=3), schedules.CosineAnnealingLR(o, 6)], [3]
        ),
        lambda t: 0.5 + t / 6 if t < 3 else 0.5 + 0.5 * cos(pi * (t - 3) / 6),
    ),
]


@pytest.mark.parametrize(("make", "factor"), FORMULAS)
def test_formula(make, factor):
    found = rates_over(make(optimizer_of(0.5, 0.02)), 14)
    expected = np.array([factor(t) for t in range(14)])
    np.testing.assert_allclose(found, expected[:, None] * [0.5, 0.02], rtol=1e-14, atol=1e-17)


def test_cosine_ends_at_eta_min():
    found = rates_over(schedules.CosineAnnealingLR(optimizer_of(0.5), 8, eta_min=0.1), 9)[:, 0]
    np.testing.assert_allclose(found[[0, 4, 8]], [0.5, 0.3, 0.1], rtol=1e-14)


def test_one_cycle_goes_up_and_down():
    optimizer = optimizer_of(1.0, kind=optim.Adam)
    options = {"pct_start": 0.5, "div_factor": 5, "final_div_factor": 10, "anneal_strategy": "linear"}
    scheduler = schedules.OneCycleLR(optimizer, 0.5, total_steps=11, **options)
    momenta, rates = [], []
    for _ in range(11):
        momenta.append(optimizer.param_groups[0]["betas"][0])
        rates.append(optimizer.param_groups[0]["lr"])
        if len(rates) < 11:
            scheduler.step()
    peak = 0.5 * 11 - 1  # 4.5: up from 0.1 to 0.5, then down to 0.01 at 10
    up, down = [t / peak for t in range(5)], [(t - peak) / (10 - peak) for t in range(5, 11)]
    np.testing.assert_allclose(rates, [0.1 + 0.4 * u for u in up] + [0.5 - 0.49 * d for d in down], rtol=1e-12)
    np.testing.assert_allclose(momenta, [0.95 - 0.1 * u for u in up] + [0.85 + 0.1 * d for d in down], rtol=1e-12)
    assert optimizer.param_groups[0]["betas"][1] == 0.999
    scheduler.step()
    with pytest.raises(ValueError, match="at most 11 steps"):
        scheduler.step()


def test_plateau():
    optimizer = optimizer_of(1.0, 0.02)
    scheduler = schedules.ReduceLROnPlateau(optimizer, factor=0.1, patience=1, cooldown=1, min_lr=0.01, threshold=0.1)
    found = []
    for loss in [1.0, 0.95, 0.95, 0.95, 0.95, 0.95, 0.8, gp.tensor(0.8), 0.8, 0.8, 0.8]:
        scheduler.step(loss)
        found.append(scheduler.get_last_lr())
    # Two bad ones (0.95 is less than 10 % better than 1) reduce; the next does not count; two more reduce; 0.8 is better.
    assert [round(lr, 6) for lr, _ in found] == [1.0, 1.0, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01]
    assert found[-1][1] == 0.01


PYTORCH = [
    ("StepLR", {"step_size": 3, "gamma": 0.5}),
    ("MultiStepLR", {"milestones": [2, 7]}),
    ("ExponentialLR", {"gamma": 0.9}),
    ("CosineAnnealingLR", {"T_max": 5, "eta_min": 0.01}),
    ("CosineAnnealingLR", {"T_max": 30}),
    ("LinearLR", {}),
    ("LinearLR", {"start_factor": 0.01, "end_factor": 0.5, "total_iters": 12}),
    ("LambdaLR", {"lr_lambda": lambda t: 0.5**t}),
    ("OneCycleLR", {"max_lr": 0.3, "total_steps": 20}),
    (
        "OneCycleLR",
        {"max_lr": 0.3, "epochs": 4, "steps_per_epoch": 5, "three_phase": True, "anneal_strategy": "linear"},
    ),
    ("OneCycleLR", {"max_lr": [0.3], "total_steps": 20, "pct_start": 0.1, "final_div_factor": 10}),
]


@pytest.mark.parametrize(("name", "options"), PYTORCH)
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_as_pytorch(name, options, kind):
    torch = pytest.importorskip("torch")
    extra = {"momentum": 0.9} if kind == "SGD" else {}
    ours = getattr(optim, kind)([Parameter([1.0])], lr=0.2, **extra)
    theirs = getattr(torch.optim, kind)([torch.nn.Parameter(torch.ones(1))], lr=0.2, **extra)
    scheduler, other = (
        getattr(schedules, name)(ours, **options),
        getattr(torch.optim.lr_scheduler, name)(theirs, **options),
    )
    for _ in range(19):
        a, b = ours.param_groups[0], theirs.param_groups[0]
        np.testing.assert_allclose(a["lr"], b["lr"], rtol=1e-9, atol=1e-12)
        assert a["initial_lr"] == b["initial_lr"]
        np.testing.assert_allclose(a.get("betas", a.get("momentum")), b.get("betas", b.get("momentum")), rtol=1e-12)
        ours.step(), theirs.step()
        scheduler.step(), other.step()


def test_plateau_as_pytorch():
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).uniform(0.5, 1.5, 60)
    for mode in ("min", "max"):
        for threshold_mode in ("rel", "abs"):
            options = {
                "mode": mode,
                "threshold_mode": threshold_mode,
                "patience": 2,
                "factor": 0.5,
                "cooldown": 2,
                "threshold": 0.05,
            }
            theirs = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5)
            scheduler = schedules.ReduceLROnPlateau(optimizer_of(0.5), **options)
            other = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, **options)
            for value in values:
                scheduler.step(value), other.step(value)
                assert scheduler.get_last_lr() == [theirs.param_groups[0]["lr"]]


def test_two_schedules_on_one_optimizer_multiply():
    optimizer = optimizer_of(1.0)
    schedulers = [schedules.ExponentialLR(optimizer, 0.9), schedules.MultiStepLR(optimizer, [2, 5], gamma=0.5)]
    for t in range(8):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.9**t * 0.5 ** ((t >= 2) + (t >= 5)), rel=1e-12)
        for scheduler in schedulers:
            scheduler.step()


def test_a_rate_set_by_hand_stays():
    optimizer = optimizer_of(1.0)
    scheduler = schedules.StepLR(optimizer, 2, gamma=0.5)
    scheduler.step()
    optimizer.param_groups[0]["lr"] = 8.0
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 4.0
    scheduler.step(), scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 2.0


@pytest.mark.parametrize(("make", "factor"), FORMULAS)
def test_state_goes_round(make, factor):
    first = make(optimizer_of(0.5, 0.02))
    rates_over(first, 4)
    optimizer = optimizer_of(0.1, 0.1)
    second = make(optimizer)
    optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    expected = np.array([factor(t) for t in range(4, 14)])
    np.testing.assert_allclose(rates_over(second, 10), expected[:, None] * [0.5, 0.02], rtol=1e-14, atol=1e-17)


def test_going_on_from_an_epoch():
    optimizer = optimizer_of(0.5)
    with pytest.raises(ValueError, match="'initial_lr' in every group"):
        schedules.StepLR(optimizer, 3, last_epoch=4)
    rates_over(schedules.StepLR(optimizer, 3, gamma=0.5), 5)
    assert schedules.StepLR(optimizer, 3, gamma=0.5, last_epoch=5).get_last_lr() == [0.125]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda o: schedules.OneCycleLR(o, 0.1), "total_steps, or epochs"),
        (lambda o: schedules.OneCycleLR(o, 0.1, 10), "with momentum"),
        (lambda o: schedules.OneCycleLR(o, 0.1, 10, anneal_strategy="sin"), "'cos' or 'linear'"),
        (lambda o: schedules.OneCycleLR(o, [0.1, 0.2], 10), "1 values of max_lr"),
        (lambda o: schedules.LinearLR(o, 0.0), "start_factor"),
        (lambda o: schedules.LambdaLR(o, [abs, abs]), "1 functions"),
        (lambda o: schedules.SequentialLR(o, [schedules.StepLR(o, 1)], [1]), "one milestone less"),
        (lambda o: schedules.SequentialLR(o, [schedules.ReduceLROnPlateau(o)], []), "of the same optimizer"),
        (lambda o: schedules.ReduceLROnPlateau(o, factor=1.0), "factor < 1"),
        (lambda o: schedules.ReduceLROnPlateau(o, mode="best"), "mode 'min' or 'max'"),
    ],
)
def test_options_are_checked(make, match):
    with pytest.raises(ValueError, match=match):
        make(optimizer_of(0.1))


def test_what_is_no_optimizer():
    with pytest.raises(TypeError, match="StepLR: expected an Optimizer, got list"):
        schedules.StepLR([], 3)
