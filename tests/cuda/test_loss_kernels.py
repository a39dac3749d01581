"""Losses as kernels against their rules: the value, the gradient for dy = 1 that comes with it, and what scales it."""

from __future__ import annotations

import numpy as np
import pytest
from native import DTYPES, SIZES, assert_agrees, assert_close, by_rule, double, native

import gpuprop as gp
from gpuprop.errors import BoundsError, ShapeError
from gpuprop.ops import losses
from gpuprop.ops.losses import cross_entropy
from gpuprop.tape import ONE

pytestmark = pytest.mark.cuda

REDUCTIONS = ["none", "sum", "mean"]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


def draw(*shape, dtype, kind="normal"):
    rng = np.random.default_rng(sum(shape) + len(kind))
    values = {"normal": rng.standard_normal, "share": rng.random, "positive": lambda s: 0.2 + rng.random(s)}[kind](
        shape
    )
    return np.asarray(values, dtype)


def labels_for(rows, classes, dtype=np.int64):
    return np.random.default_rng(rows).integers(0, classes, rows).astype(dtype)


def cotangent(inputs, reduction, shape):
    return draw(*(shape if reduction == "none" else ()), dtype=inputs[0].dtype, kind="positive")


# --- Cross-entropy --------------------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("classes", [2, 4, 10, 96, 512, *SIZES[1:], 2048, 5000])
def test_cross_entropy(dtype, classes):
    for rows, reduction in [(1, "mean"), (3, "none"), (33, "mean"), (33, "sum")]:
        inputs = draw(rows, classes, dtype=dtype) * np.array(3, dtype), labels_for(rows, classes)
        assert_agrees(
            cross_entropy, *inputs, dy=cotangent(inputs, reduction, (rows,)), length=rows, reduction=reduction
        )


@pytest.mark.parametrize("classes", [20_000, 100_001, 200_000])
def test_rows_that_registers_cannot_hold(classes):
    logits, labels = draw(3, classes, dtype=np.float32), labels_for(3, classes)
    labels[1] = -100
    for options in ({}, {"label_smoothing": 0.1}, {"reduction": "none"}):
        inputs = logits, labels, draw(classes, dtype=np.float32, kind="positive")
        dy = cotangent(inputs, options.get("reduction"), (3,))
        assert_agrees(cross_entropy, *inputs, dy=dy, length=classes, **options)
        assert_agrees(cross_entropy, *inputs, length=classes, **options)  # the loss alone takes another way


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64])
@every_reduction
def test_labels_weights_smoothing_and_rows_to_ignore(kind, reduction):
    ignored = 5 if np.dtype(kind).kind == "u" else -7
    for rows, classes in [(7, 6), (1000, 33)]:
        labels = labels_for(rows, classes, kind)
        labels[::4] = ignored
        for weight in (None, draw(classes, dtype=np.float32, kind="positive")):
            for smoothing in (0.0, 0.2, 1.0):
                inputs = draw(rows, classes, dtype=np.float32), labels, weight
                options = {"ignore_index": ignored, "reduction": reduction, "label_smoothing": smoothing}
                assert_agrees(cross_entropy, *inputs, dy=cotangent(inputs, reduction, (rows,)), length=rows, **options)
                assert_agrees(cross_entropy, *inputs, length=rows, **options)


@every_dtype
@every_reduction
def test_probabilities(dtype, reduction):
    for rows, classes in [(1, 3), (33, 31), (3, 1000), (2, 9000)]:
        target = draw(rows, classes, dtype=dtype, kind="share")
        target[0, 1] = 0
        target /= target.sum(axis=1, keepdims=True)
        for weight, smoothing in [(None, 0.0), (draw(classes, dtype=dtype, kind="positive"), 0.3)]:
            inputs = draw(rows, classes, dtype=dtype), target, weight
            options = {"reduction": reduction, "label_smoothing": smoothing}
            assert_agrees(
                cross_entropy, *inputs, dy=cotangent(inputs, reduction, (rows,)), length=rows * classes, **options
            )


def test_one_row_without_a_batch_and_arrays_apart_in_memory():
    logits = draw(7, dtype=np.float32)
    assert_agrees(cross_entropy, logits, np.array(3), dy=np.array(2, np.float32), length=7)
    inputs = draw(33, 12, dtype=np.float32), labels_for(33, 12), draw(12, dtype=np.float32, kind="positive")
    for options in ({"reduction": "none"}, {}):
        dy = cotangent(inputs, options.get("reduction"), (33,))
        assert_agrees(cross_entropy, *inputs, dy=dy, length=33, apart=True, **options)


def test_no_rows():
    logits, labels = np.zeros((0, 3), np.float32), np.zeros(0, np.int64)
    for reduction, dy in (("sum", np.ones((), np.float32)), ("none", np.ones(0, np.float32))):
        assert_agrees(cross_entropy, logits, labels, dy=dy, reduction=reduction)


def test_the_divisor_of_many_rows():
    """Sums of the labels' weights are made in chunks; two runs agree to the bit, and tickets are left as they were found."""
    rows, classes = 40_000, 3
    labels = labels_for(rows, classes)
    labels[1000:9000] = -100
    inputs = draw(rows, classes, dtype=np.float32), labels, draw(classes, dtype=np.float32, kind="positive")
    assert_agrees(cross_entropy, *inputs, dy=np.ones((), np.float32), length=rows)
    first, second = native(cross_entropy, *inputs, dy=ONE), native(cross_entropy, *inputs, dy=ONE)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1]["input"], second[1]["input"])


@pytest.mark.parametrize("classes", [5, 20_000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("label", [-1, 20_000, -(2**40)])
def test_a_label_that_is_no_class(classes, smoothing, label):
    """Its row is NaN, the others are as ever; the host's next read raises, once."""
    logits, labels = draw(3, classes, dtype=np.float32), np.array([1, label, 2])
    if not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])
    x = gp.tensor(logits, device="cuda", requires_grad=True)
    loss = cross_entropy(x, gp.tensor(labels, device="cuda"), reduction="none", label_smoothing=smoothing)
    with pytest.raises(
        BoundsError, match=rf"cross_entropy: expected labels from 0 to {classes - 1} or ignore_index=-100"
    ):
        loss.numpy()
    loss.sum().backward()
    with gp.no_grad():
        alone = cross_entropy(x.detach(), gp.tensor(labels, device="cuda"), reduction="none", label_smoothing=smoothing)
    with pytest.raises(BoundsError):
        alone.numpy()
    for value in (loss.detach().numpy(), alone.numpy(), x.grad.numpy().sum(axis=1)):
        np.testing.assert_array_equal(np.isnan(value), [False, True, False])


def test_a_mean_in_which_no_row_counts():
    if not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])
    x = gp.tensor(draw(3, 5, dtype=np.float32), device="cuda", requires_grad=True)
    loss = cross_entropy(x, gp.tensor(np.full(3, -100), device="cuda"))
    with pytest.raises(ShapeError, match="cross_entropy: expected at least one row that counts"):
        loss.numpy()
    assert np.isnan(loss.detach().numpy())


@pytest.mark.parametrize("classes", [6, 1000, 33000])
def test_infinities_and_nan_in_logits_are_those_of_the_rule(classes):
    logits, labels = draw(7, classes, dtype=np.float32), np.array([1, 2, 3, 0, 1, -100, 2])
    logits[0, 1], logits[1, 2], logits[2, :], logits[3, 0], logits[4, :2], logits[5, 0] = (
        np.nan,
        np.inf,
        -np.inf,
        -np.inf,
        np.inf,
        np.nan,
    )
    y, gradients = native(cross_entropy, logits, labels, dy=np.ones(7, np.float32), reduction="none")
    expected, slopes = by_rule(cross_entropy, logits, labels, dy=np.ones(7, np.float32), reduction="none")
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradients["input"], slopes["input"], rtol=1e-5, atol=1e-6)


# --- Losses of elements ---------------------------------------------------------------------------------------------

PAIRS = [
    ("mse_loss", {}),
    ("l1_loss", {}),
    ("smooth_l1_loss", {"beta": 0.7}),
    ("smooth_l1_loss", {"beta": 0.0}),
    ("huber_loss", {"delta": 0.7}),
    ("poisson_nll_loss", {}),
    ("poisson_nll_loss", {"full": True}),
    ("poisson_nll_loss", {"log_input": False, "full": True, "eps": 1e-3}),
    ("binary_cross_entropy_with_logits", {}),
    ("gaussian_nll_loss", {}),
    ("gaussian_nll_loss", {"full": True, "eps": 0.5}),
]
every_pair = pytest.mark.parametrize("name, options", PAIRS, ids=lambda v: v if isinstance(v, str) else "-".join(v))


def pair(name, *shape, dtype):
    x = draw(*shape, dtype=dtype, kind="positive" if name == "poisson_nll_loss" else "normal")
    more = (draw(*shape, dtype=dtype, kind="positive"),) if name == "gaussian_nll_loss" else ()
    return x, np.asarray(draw(*shape, dtype=dtype, kind="share") * 2, dtype), *more


@every_pair
@every_dtype
@every_reduction
def test_losses_of_elements(name, options, dtype, reduction):
    for size in SIZES:
        inputs = pair(name, size, dtype=dtype)
        options = {**options, "reduction": reduction}
        dy = cotangent(inputs, reduction, (size,))
        # Where logarithms come with both signs, a loss may be small beside its terms.
        terms = {"poisson_nll_loss": 10, "gaussian_nll_loss": 3}.get(name, 0) * (size**0.5 if reduction == "sum" else 1)
        assert_agrees(getattr(losses, name), *inputs, dy=dy, length=size, terms=terms, **options)


@every_pair
def test_elements_apart_in_memory_one_and_none(name, options):
    op = getattr(losses, name)
    for reduction in REDUCTIONS:
        inputs = pair(name, 5, 7, dtype=np.float32)
        assert_agrees(
            op, *inputs, dy=cotangent(inputs, reduction, (5, 7)), length=35, apart=True, reduction=reduction, **options
        )
        one = pair(name, dtype=np.float32)
        assert_agrees(op, *one, dy=np.ones((), np.float32), terms=3, reduction=reduction, **options)
    for reduction, dy in (("sum", np.ones((), np.float32)), ("none", np.ones((0, 3), np.float32))):
        assert_agrees(op, *pair(name, 0, 3, dtype=np.float32), dy=dy, reduction=reduction, **options)


@pytest.mark.parametrize("shapes", [((), ()), ((5,), (1,)), ((3, 1), (5,)), ((3, 5), (3, 1)), ((1, 5), (3, 5))])
def test_weights_of_binary_cross_entropy(shapes):
    inputs = (
        *pair("binary_cross_entropy_with_logits", 3, 5, dtype=np.float32),
        *[draw(*s, dtype=np.float32, kind="positive") for s in shapes],
    )
    for given in (inputs, inputs[:3], (*inputs[:2], None, inputs[3])):
        assert_agrees(losses.binary_cross_entropy_with_logits, *given, dy=np.array(1.5, np.float32), length=15)


@pytest.mark.parametrize("shape", [(4, 5), (4, 1), (4,), ()])
def test_variances_of_rows(shape):
    x, target = draw(4, 5, dtype=np.float32), draw(4, 5, dtype=np.float32, kind="share")
    variances = draw(*shape, dtype=np.float32, kind="positive")
    y, gradients = native(losses.gaussian_nll_loss, x, target, variances, dy=ONE)
    expected, slopes = by_rule(losses.gaussian_nll_loss, *double((x, target, variances)), dy=np.ones(()))
    assert_close(y, expected, "float32", 20)
    got = (
        gradients["var"]
        if gradients["var"].shape == shape
        else gradients["var"].sum(axis=-1 if shape else None, keepdims=bool(shape))
    )
    assert_close(got, slopes["var"], "float32", 20)


def test_a_negative_variance():
    if not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])
    x, variances = gp.tensor([1.0, 2.0], device="cuda"), gp.tensor([1.0, -1.0], device="cuda")
    with pytest.raises(BoundsError, match="gaussian_nll_loss: expected variances of at least 0"):
        losses.gaussian_nll_loss(x, x, variances).numpy()


@every_pair
def test_infinities_and_nan_in_elements_are_those_of_the_rule(name, options):
    extremes = np.array([np.nan, np.inf, -np.inf, 0, 1, 1e30, -1e30, 1e-30], np.float32)
    x, target = (a.ravel().copy() for a in np.meshgrid(extremes, extremes))
    more = (np.ones_like(x),) if name == "gaussian_nll_loss" else ()
    y, gradients = native(getattr(losses, name), x, target, *more, dy=np.ones_like(x), reduction="none", **options)
    expected, slopes = by_rule(getattr(losses, name), x, target, *more, dy=np.ones_like(x), reduction="none", **options)
    np.testing.assert_allclose(y, expected, rtol=1e-5)
    for key, gradient in gradients.items():
        np.testing.assert_allclose(gradient, slopes[key], rtol=1e-5)


# --- Upstream gradients ---------------------------------------------------------------------------------------------


def test_for_a_cotangent_of_one_the_gradient_is_at_hand():
    if not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])
    for op, inputs in [
        (losses.mse_loss, (draw(5, 3, dtype=np.float32), draw(3, 5, dtype=np.float32).T)),
        (cross_entropy, (draw(5, 3, dtype=np.float32), labels_for(5, 3))),
    ]:
        by_one, by_ones = native(op, *inputs, dy=ONE), native(op, *inputs, dy=np.ones((), np.float32))
        for name, gradient in by_one[1].items():
            np.testing.assert_array_equal(gradient, by_ones[1][name])
    rule = cross_entropy.cuda.implementation.gradients[0]
    residual = object()
    assert rule.takes_unit_seed and rule.function(ONE, residual) is residual
