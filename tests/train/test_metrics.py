"""Metrics over batches of unequal size equal the formulas over all samples at once."""

import numpy as np
import pytest

import gpuprop as gp
from gpuprop.errors import ShapeError
from gpuprop.train.metrics import Accuracy, RegressionFit, Totals, measure


def batches(device, *arrays):
    for rows in (slice(0, 5), slice(5, 6), slice(6, 11)):
        yield tuple(gp.tensor(a[rows], device=device) for a in arrays)


def test_accuracy_and_loss(device):
    rng = np.random.default_rng(0)
    logits, labels, losses = rng.standard_normal((11, 3)), rng.integers(0, 3, 11), rng.standard_normal(11)
    metrics = (Accuracy(),)
    totals = Totals(metrics)
    for outputs, targets, loss in batches(device, logits, labels, losses):
        totals.add(measure(metrics, loss.mean(), outputs, targets), len(targets))
    assert totals.read() == {
        "loss": pytest.approx(losses.mean()),
        "accuracy": pytest.approx((logits.argmax(1) == labels).mean()),
    }


def test_regression(device):
    rng = np.random.default_rng(0)
    targets = rng.standard_normal((11, 1)) + 2
    outputs = targets + 0.1 * rng.standard_normal((11, 1))
    metrics = (RegressionFit(scale=50.0),)
    totals = Totals(metrics)
    for y, t in batches(device, outputs, targets):
        totals.add(measure(metrics, ((y - t) ** 2).mean(), y, t), len(t))
    errors = outputs - targets
    assert totals.read() == {
        "loss": pytest.approx((errors**2).mean()),
        "r2": pytest.approx(1 - (errors**2).sum() / ((targets - targets.mean()) ** 2).sum()),
        "rmse": pytest.approx(50 * np.sqrt((errors**2).mean())),
    }


def test_r2_of_equal_targets_is_not_a_number():
    assert np.isnan(RegressionFit().result([1.0, 4.0, 8.0], 2)["r2"])


def test_no_batches():
    with pytest.raises(ShapeError, match="at least one batch"):
        Totals(()).read()
