"""Losses of x + bias as kernels against the rule in float64: value, dx and dbias in one launch; scaled, and where gradients live."""

from __future__ import annotations

import numpy as np
import pytest
from native import DTYPES, assert_close, double, on_device, on_host

import gpuprop as gp
from gpuprop.errors import BoundsError
from gpuprop.ops.biased import bias_loss
from gpuprop.tape import ONE

pytestmark = pytest.mark.cuda

REDUCTIONS = ["none", "sum", "mean"]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


@pytest.fixture(autouse=True)
def cuda():
    if not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])


def draw(*shape, dtype=np.float32, kind="normal"):
    rng = np.random.default_rng(sum(shape) + len(kind))
    values = {"normal": rng.standard_normal, "share": rng.random, "positive": lambda s: 0.2 + rng.random(s)}[kind]
    return np.asarray(values(shape), dtype)


def labels_for(rows, classes):
    return np.random.default_rng(rows).integers(0, classes, rows)


def native(*inputs, dy=None, wanted=(True, True), **options):
    """(y, dx, dbias) by the kernels; dy: the cotangent, ONE, or None for the loss alone."""
    made = bias_loss.cuda.implementation
    given = [on_device(v) if isinstance(v, np.ndarray) else v for v in inputs]
    results = made.forward(*given, keep=dy is not None, **options)
    assert results is not NotImplemented
    y, *residuals = results
    if dy is None:
        assert not residuals, "nobody will differentiate"
        return on_host(y), None, None
    cotangent = on_device(dy) if isinstance(dy, np.ndarray) else dy
    return on_host(y), *map(on_host, made.gradients[0].function(cotangent, *residuals, wanted=wanted))


def by_rule(*inputs, dy, **options):
    """The same by the rule on the host, in float64."""
    tensors = [gp.tensor(v) if isinstance(v, np.ndarray) else v for v in double(inputs)]
    x, bias = (t.requires_grad_() for t in tensors[:2])
    y = bias_loss(*tensors, **options)
    y.backward(gp.tensor(dy.astype(np.float64)))
    return y.detach().numpy(), x.grad.numpy(), bias.grad.numpy()


def assert_agrees(*inputs, loss, terms=0.0, **options):
    """For a cotangent, for one, and where nobody differentiates."""
    dtype, count, rows = inputs[0].dtype, inputs[0].size, max(1, inputs[0].size // inputs[1].size)
    given = {"loss": loss, "options": tuple(options.items())}
    shape = native(*inputs, **given)[0].shape
    dy = draw(*shape, dtype=dtype, kind="positive")
    reduced = options.get("reduction", "mean") != "none"
    for seed, cotangent in [(dy, dy), (ONE, np.ones_like(dy))] if reduced else [(dy, dy)]:
        y, dx, dbias = native(*inputs, dy=seed, **given)
        expected, slopes, sums = by_rule(*inputs, dy=cotangent, **given)
        assert_close(y, expected, dtype, count if reduced else inputs[1].size, terms)
        assert_close(dx, slopes, dtype, inputs[1].size, terms / max(1, count) if reduced else terms)
        assert_close(
            dbias, sums, dtype, rows * inputs[1].size, np.abs(slopes).sum(axis=tuple(range(slopes.ndim - 1))).max()
        )
    assert_close(native(*inputs, **given)[0], expected, dtype, count, terms)


# --- Cross-entropy --------------------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("classes", [2, 3, 10, 33, 96, 512, 1000, 1024, 1025, 4096, 5000, 9000])
def test_cross_entropy(dtype, classes):
    for rows, reduction in [(1, "mean"), (3, "none"), (33, "sum"), (70, "mean")]:
        if rows * classes <= 80_000:
            x, bias = draw(rows, classes, dtype=dtype) * np.array(3, dtype), draw(classes, dtype=dtype)
            assert_agrees(x, bias, labels_for(rows, classes), loss="cross_entropy", reduction=reduction)


@every_reduction
@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64])
def test_labels_weights_smoothing_and_rows_to_ignore(kind, reduction):
    for rows, classes in [(7, 6), (1000, 33), (50, 1200)]:
        labels = (labels_for(rows, classes) % 200).astype(kind)
        labels[::4] = 5
        for weight in (None, draw(classes, kind="positive")):
            for smoothing in (0.0, 0.2):
                inputs = draw(rows, classes), draw(classes), labels, weight
                options = {"ignore_index": 5, "reduction": reduction, "label_smoothing": smoothing}
                assert_agrees(*inputs, loss="cross_entropy", **options)


@every_dtype
@every_reduction
def test_probabilities(dtype, reduction):
    for rows, classes in [(1, 3), (33, 31), (40, 1000), (3, 9000)]:
        target = draw(rows, classes, dtype=dtype, kind="share")
        target /= target.sum(axis=1, keepdims=True)
        for weight, smoothing in [(None, 0.0), (draw(classes, dtype=dtype, kind="positive"), 0.3)]:
            inputs = draw(rows, classes, dtype=dtype), draw(classes, dtype=dtype), target, weight
            assert_agrees(*inputs, loss="cross_entropy", reduction=reduction, label_smoothing=smoothing)


def test_one_row_without_a_batch_and_no_rows():
    assert_agrees(draw(7), draw(7, kind="share"), np.array(3), loss="cross_entropy")
    for loss, target in [("cross_entropy", np.zeros(0, np.int64)), ("mse_loss", np.zeros((0, 3), np.float32))]:
        for reduction in ("sum", "none"):
            assert_agrees(draw(0, 3), draw(3), target, loss=loss, reduction=reduction)


def test_logits_that_only_the_bias_makes_large():
    """The sum is not rounded to 16 bits before the exponentials are taken."""
    x, bias = draw(33, 8, dtype=np.float16), np.arange(8).astype(np.float16) * np.float16(60)
    assert_agrees(x, bias, labels_for(33, 8), loss="cross_entropy", reduction="none")


@pytest.mark.parametrize("classes", [5, 20_000])
def test_a_label_that_is_no_class(classes):
    inputs = draw(3, classes), draw(classes), np.array([1, classes, 2])
    x, bias, labels = (gp.tensor(v, device="cuda") for v in inputs)
    loss = bias_loss(
        x.requires_grad_(), bias.requires_grad_(), labels, loss="cross_entropy", options=(("reduction", "none"),)
    )
    with pytest.raises(BoundsError, match=rf"expected labels from 0 to {classes - 1}"):
        loss.numpy()
    np.testing.assert_array_equal(np.isnan(loss.detach().numpy()), [False, True, False])


# --- Losses of elements ---------------------------------------------------------------------------------------------

ELEMENTS = [
    ("mse_loss", {}),
    ("l1_loss", {}),
    ("smooth_l1_loss", {"beta": 0.7}),
    ("huber_loss", {"delta": 0.7}),
    ("poisson_nll_loss", {"full": True}),
    ("binary_cross_entropy_with_logits", {}),
]
SHAPES = [(1, 1), (3, 10), (1000, 1), (33, 31), (700, 12), (20, 1024), (2, 3, 1025)]


@pytest.mark.parametrize("loss, options", ELEMENTS, ids=lambda v: v if isinstance(v, str) else "-".join(v))
@every_dtype
@every_reduction
def test_losses_of_elements(loss, options, dtype, reduction):
    for shape in SHAPES:
        # Away from kinks, on whose other side rounding may put a difference.
        target = np.asarray(
            draw(*shape, dtype=dtype, kind="share") + np.asarray(2 if "l1" in loss else 0, dtype), dtype
        )
        x, bias = draw(*shape, dtype=dtype, kind="share"), draw(shape[-1], dtype=dtype, kind="share")
        terms = 10 * (x.size**0.5 if reduction == "sum" else 1) if loss == "poisson_nll_loss" else 0
        assert_agrees(x, bias, target, loss=loss, terms=terms, reduction=reduction, **options)


@pytest.mark.parametrize("shapes", [((), ()), ((5,), (1,)), ((3, 1), (5,)), ((3, 5), (3, 1))])
def test_weights_of_binary_cross_entropy(shapes):
    inputs = draw(3, 5), draw(5), draw(3, 5, kind="share"), *[draw(*s, kind="positive") for s in shapes]
    for given in (inputs, inputs[:4], (*inputs[:3], None, inputs[4])):
        assert_agrees(*given, loss="binary_cross_entropy_with_logits")


def test_weights_of_some_axes():
    inputs = draw(2, 3, 8), draw(8), draw(2, 3, 8, kind="share")
    for shape in [(3, 8), (1, 8), (1, 3, 8), (2, 1, 8), (1, 1, 1)]:
        assert_agrees(*inputs, draw(*shape, kind="positive"), loss="binary_cross_entropy_with_logits")


# --- In a walk ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss, target", [("cross_entropy", labels_for(33, 12)), ("mse_loss", draw(33, 12, kind="share"))]
)
def test_gradients_of_batches_add_up_and_runs_agree_to_the_bit(loss, target):
    def walked(parts):
        x, bias = (gp.tensor(v, device="cuda", requires_grad=True) for v in (draw(33, 12), draw(12, kind="share")))
        for part in parts:
            y = bias_loss(
                x[part], bias, gp.tensor(target[part], device="cuda"), loss=loss, options=(("reduction", "sum"),)
            )
            y.backward()
        return x.grad.numpy(), bias.grad.numpy()

    whole, again = walked([slice(None)]), walked([slice(None)])
    for a, b, c in zip(whole, again, walked([slice(0, 10), slice(10, 20), slice(20, 33)])):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-5)


def test_for_a_cotangent_of_one_the_gradients_are_at_hand():
    gradient = bias_loss.cuda.implementation.gradients[0]
    dx, dbias, place = (on_device(draw(n)) for n in (12, 4, 4))
    before = on_host(place)
    assert gradient.takes_unit_seed and gradient.accumulates
    found = gradient.function(ONE, dx, dbias, wanted=(True, True))
    assert found[0] is dx and found[1] is dbias
    gradient.function(ONE, dx, dbias, wanted=(True, True), out=(None, place), accumulate=(False, True))
    np.testing.assert_array_equal(on_host(place), before + on_host(dbias))
    gradient.function(ONE, dx, dbias, wanted=(True, True), out=(None, place), accumulate=(False, False))
    np.testing.assert_array_equal(on_host(place), on_host(dbias))


def test_what_only_the_values_need_is_not_made():
    inputs = draw(9, 4), draw(4), labels_for(9, 4)
    for wanted in ((True, False), (False, True)):
        _, dx, dbias = native(*inputs, dy=np.array(2, np.float32), wanted=wanted, loss="cross_entropy", options=())
        expected = by_rule(*inputs, dy=np.array(2.0), loss="cross_entropy", options=())
        for want, actual, slope in zip(wanted, (dx, dbias), expected[1:]):
            if want:
                assert_close(actual, slope, "float32", 36)


def test_other_losses_are_left_to_the_rule():
    x, bias = on_device(draw(3, 4)), on_device(draw(4))
    forward, target = bias_loss.cuda.implementation.forward, on_device(draw(3, 4, kind="positive"))
    for loss, others in [
        ("gaussian_nll_loss", (target, target)),
        ("kl_div", (target,)),
        ("mse_loss", (target.astype("d"),)),
    ]:
        assert forward(x, bias, *others, loss=loss, options=(), keep=True) is NotImplemented
