"""Losses: values worked by hand or by other formulas, reductions, the labels' fine print, and PyTorch as a witness."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

import gpuprop as gp
import gpuprop.nn.functional as F
from gpuprop.errors import BoundsError, ShapeError
from gpuprop.ops.losses import REDUCTIONS, cross_entropy
from gpuprop.tape import walk

rng = np.random.default_rng(3)
X, T = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
P, Q = rng.dirichlet(np.ones(3), 4), rng.dirichlet(np.ones(3), 4)
V = rng.uniform(0.5, 2, (4, 3))
SIGNS = np.where(T > 0, 1.0, -1.0)
D = np.abs(X - T)

# loss, its arrays, options, the losses before reduction
ELEMENTWISE = [
    (F.mse_loss, (X, T), {}, D**2),
    (F.l1_loss, (X, T), {}, D),
    (F.smooth_l1_loss, (X, T), {"beta": 0.5}, np.where(D < 0.5, D**2, D - 0.25)),
    (F.smooth_l1_loss, (X, T), {"beta": 0}, D),
    (F.huber_loss, (X, T), {"delta": 0.5}, 0.5 * np.where(D < 0.5, D**2, D - 0.25)),
    (F.binary_cross_entropy, (P, Q), {}, special.rel_entr(Q, P) + special.entr(Q) + -(1 - Q) * np.log(1 - P)),
    (F.binary_cross_entropy, (P, Q, V), {}, -V * (Q * np.log(P) + (1 - Q) * np.log(1 - P))),
    (F.binary_cross_entropy_with_logits, (X, Q), {}, np.logaddexp(0, X) - Q * X),
    (F.binary_cross_entropy_with_logits, (X, Q, V), {}, V * (np.logaddexp(0, X) - Q * X)),
    (
        F.binary_cross_entropy_with_logits,
        (X, Q),
        {"pos_weight": V[0]},
        V[0] * Q * np.logaddexp(0, -X) + (1 - Q) * np.logaddexp(0, X),
    ),
    (F.kl_div, (np.log(P), Q), {}, special.rel_entr(Q, P)),
    (F.kl_div, (np.log(P), np.log(Q)), {"log_target": True}, special.rel_entr(Q, P)),
    (F.poisson_nll_loss, (X, V), {}, np.exp(X) - V * X),
    (F.poisson_nll_loss, (V, Q), {"log_input": False, "eps": 0.1}, V - Q * np.log(V + 0.1)),
    (F.gaussian_nll_loss, (X, T, V), {"full": True}, -stats.norm.logpdf(T, X, np.sqrt(V))),
    (F.gaussian_nll_loss, (X, T, V[:, :1]), {"full": True}, -stats.norm.logpdf(T, X, np.sqrt(V[:, :1]))),
    (F.gaussian_nll_loss, (X, T, V[:, 0]), {"full": True}, -stats.norm.logpdf(T, X, np.sqrt(V[:, :1]))),
    (F.hinge_embedding_loss, (V, SIGNS), {}, np.where(SIGNS == 1, V, np.maximum(0, 1 - V))),
]


@pytest.mark.parametrize(("loss", "arrays", "options", "expected"), ELEMENTWISE, ids=lambda v: getattr(v, "name", ""))
def test_elementwise_losses_and_their_reductions(loss, arrays, options, expected):
    np.testing.assert_allclose(loss(*arrays, reduction="none", **options), expected, rtol=1e-12)
    np.testing.assert_allclose(loss(*arrays, reduction="sum", **options), expected.sum(), rtol=1e-12)
    np.testing.assert_allclose(loss(*arrays, **options), expected.mean(), rtol=1e-12)


def test_kl_div_per_sample():
    np.testing.assert_allclose(F.kl_div(np.log(P), Q, "batchmean"), special.rel_entr(Q, P).sum() / 4, rtol=1e-12)


def test_poisson_with_stirlings_approximation():
    counts = np.array([0.0, 1.0, 2.0, 50.0])
    added = F.poisson_nll_loss(X[0, 0] + 0 * counts, counts, full=True, reduction="none") - F.poisson_nll_loss(
        X[0, 0] + 0 * counts, counts, reduction="none"
    )
    np.testing.assert_array_equal(added[:2], 0)
    np.testing.assert_allclose(added[2:], special.gammaln(counts[2:] + 1), rtol=0.07)


# --- Class labels ---------------------------------------------------------------------------------------------------


def test_cross_entropy_by_hand():
    """Softmax of (0, log 2, log 5) is (1, 2, 5) / 8."""
    logits = gp.tensor(np.log([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]]), requires_grad=True)
    loss = F.cross_entropy(logits, gp.tensor([2, 0]))
    np.testing.assert_allclose(loss.item(), (math.log(8 / 5) + math.log(8)) / 2, rtol=1e-14)
    loss.backward()
    np.testing.assert_allclose(
        logits.grad.numpy(), np.array([[1 / 8, 2 / 8, -3 / 8], [-7 / 8, 2 / 8, 5 / 8]]) / 2, rtol=1e-14
    )


LABELS = np.array([2, 0, -100, 1])
WEIGHT = np.array([0.5, 2.0, 3.0])
ROWS = -special.log_softmax(X, 1)[np.arange(4), LABELS % 3] * [1, 1, 0, 1]
FACTORS = WEIGHT[LABELS % 3] * [1, 1, 0, 1]


@pytest.mark.parametrize("function", ["cross_entropy", "nll_loss"])
def test_weighted_means_divide_by_the_weights_that_count(function):
    x = X if function == "cross_entropy" else special.log_softmax(X, 1)
    loss = getattr(F, function)
    np.testing.assert_allclose(loss(x, LABELS, reduction="none"), ROWS, rtol=1e-12)
    np.testing.assert_allclose(loss(x, LABELS), ROWS.sum() / 3, rtol=1e-12)
    np.testing.assert_allclose(loss(x, LABELS, WEIGHT, reduction="none"), FACTORS * ROWS, rtol=1e-12)
    np.testing.assert_allclose(loss(x, LABELS, WEIGHT, reduction="sum"), (FACTORS * ROWS).sum(), rtol=1e-12)
    np.testing.assert_allclose(loss(x, LABELS, WEIGHT), (FACTORS * ROWS).sum() / FACTORS.sum(), rtol=1e-12)
    np.testing.assert_allclose(loss(x, LABELS % 3, ignore_index=2), ROWS[[1, 3]].mean(), rtol=1e-12)


def test_smoothing_mixes_in_the_uniform_distribution():
    onehot = np.eye(3)[LABELS % 3]
    smooth = 0.7 * onehot + 0.1
    kept = np.array([0, 1, 3])
    rows = -(smooth * special.log_softmax(X, 1)).sum(1)
    np.testing.assert_allclose(F.cross_entropy(X, LABELS, label_smoothing=0.3), rows[kept].mean(), rtol=1e-12)
    np.testing.assert_allclose(F.cross_entropy(X, onehot, label_smoothing=0.3), rows.mean(), rtol=1e-12)
    np.testing.assert_allclose(F.cross_entropy(X, smooth), rows.mean(), rtol=1e-12)


def test_shapes_of_logits():
    many = rng.normal(size=(2, 5, 3, 4))
    labels = rng.integers(0, 5, (2, 3, 4))
    flat = np.moveaxis(many, 1, -1).reshape(-1, 5)
    np.testing.assert_allclose(F.cross_entropy(many, labels), F.cross_entropy(flat, labels.ravel()), rtol=1e-12)
    np.testing.assert_allclose(
        F.cross_entropy(flat[0], labels.ravel()[0]), F.cross_entropy(flat[:1], labels.ravel()[:1])
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_extreme_logits_stay_finite(dtype, reduction):
    """Masked classes (-inf) and logits of 1e4: the loss, its gradient, and the gradient's gradient."""
    x = gp.tensor(np.array([[1e4, -1e4, 0], [0, -math.inf, 1], [-1e4, -1e4, -1e4]], dtype), requires_grad=True)
    for options in ({}, {"weight": gp.tensor(np.array([1, 2, 1], dtype))}):  # by the implementation, by the rule
        loss = F.cross_entropy(x, gp.tensor([0, 2, 1]), reduction=reduction, **options)
        assert math.isfinite(loss.item())
        first = walk([(loss, gp.Tensor(np.ones((), dtype)))], wanted=[x._node], create_graph=True)[x._node]
        plain = walk([(loss, np.ones((), dtype))], wanted=[x._node], retain_graph=True)[x._node]
        np.testing.assert_allclose(first.numpy(), plain, rtol=1e-5, atol=1e-12)
        second = walk([(first, np.ones((3, 3), dtype))], wanted=[x._node])[x._node]
        assert np.isfinite(first.numpy()).all() and np.isfinite(second).all()
    wrong = F.cross_entropy(x, gp.tensor([1, 1, 1]), reduction=reduction)
    assert wrong.item() == math.inf  # label 1 of the second row has probability 0


def test_out_of_range_labels_on_a_gpu_are_seen_at_the_next_read(device):
    x = gp.tensor(X, requires_grad=True)
    if device == "cpu":
        with pytest.raises(BoundsError, match="cross_entropy.*0 to 2"):
            F.cross_entropy(x, gp.tensor([0, 1, 2, 3]))
        return
    for loss in (F.cross_entropy, F.nll_loss):
        rows = loss(x, gp.tensor([0, 1, -7, 2]), reduction="none")
        total = rows.sum()
        with pytest.raises(BoundsError, match=f"{loss.name}.*0 to 2"):
            rows.numpy()
        assert np.isnan(rows.numpy()).tolist() == [False, False, True, False]  # told once, and never silently wrong
        assert math.isnan(total.item())


@np.errstate(invalid="ignore")  # a GPU divides 0 by 0 silently, and so says the device that stands in for one
def test_means_in_which_no_row_counts(device):
    x = gp.tensor(X, requires_grad=True)
    with pytest.raises(ShapeError, match="cross_entropy: expected at least one row"):
        F.cross_entropy(x, gp.tensor([-100] * 4)).item()
    with pytest.raises(ShapeError, match="at least one row"):
        F.cross_entropy(x, gp.tensor([0] * 4), gp.tensor([0.0, 1, 1], dtype=np.float64)).item()
    assert F.cross_entropy(x, gp.tensor([-100] * 4), reduction="sum").item() == 0


def test_probabilities_out_of_range(device):
    p = gp.tensor([0.5, 1.25])
    with pytest.raises(BoundsError, match=r"binary_cross_entropy.*0 to 1"):
        F.binary_cross_entropy(p, gp.tensor([0.0, 1.0])).item()


# --- The implementation for NumPy -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("labels", [np.int32, np.int64])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (33, 10), (5, 301)])
def test_the_implementation_gives_what_the_rule_gives(shape, reduction, labels, dtype):
    x, t = rng.normal(size=shape).astype(dtype), rng.integers(0, shape[1], shape[0]).astype(labels)
    options = {"ignore_index": -100, "reduction": reduction, "label_smoothing": 0.0}
    loss, dlogits = cross_entropy.cpu.implementation.forward(x, t, keep=True, **options)
    (alone,) = cross_entropy.cpu.implementation.forward(x, t, keep=False, **options)
    rule, gradient = cross_entropy.rule, cross_entropy.gradients[0].function
    xp = gp.device.HOST.xp
    tolerance = {"rtol": 20 * np.finfo(dtype).eps, "atol": 4 * np.finfo(dtype).eps}
    np.testing.assert_allclose(loss, rule(xp, x, t, None, **options), **tolerance)
    np.testing.assert_allclose(dlogits, gradient(xp, np.ones((), dtype), x, t, None, **options), **tolerance)
    assert loss == alone and loss.dtype == dlogits.dtype == dtype


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [10, 100])  # along columns and along rows
def test_impossible_classes_get_no_subnormal_gradients(classes, dtype):
    """Processors compute forty times slower with these; on a CPU probabilities below 1e-26 (1e-260 in float64) are 0."""
    logits = np.zeros((4, classes), dtype)
    logits[:, 1:] = np.linspace(-1000, -20, classes - 1)
    logits[3, 1] = -np.inf
    input = gp.tensor(logits, requires_grad=True, device="cpu")
    F.cross_entropy(input, gp.tensor([0, 0, classes - 1, 0], device="cpu")).backward()
    gradient = input.grad.numpy()
    assert not np.any((gradient != 0) & (np.abs(gradient) < np.finfo(dtype).tiny))
    assert gradient[0, 1] == gradient[3, 1] == 0 and gradient[2, -1] == pytest.approx(-0.25)
    assert np.all(gradient[0, 1:][logits[0, 1:] > -50] > 0)


@pytest.mark.parametrize("classes", [2, 100])
def test_a_single_row_may_be_ignored(classes):
    logits = gp.tensor(np.ones((1, classes)), requires_grad=True, device="cpu")
    loss = F.cross_entropy(logits, gp.tensor([-100], device="cpu"), reduction="sum")
    loss.backward()
    assert loss.item() == 0 and not logits.grad.numpy().any()


def test_a_row_to_ignore_does_not_look_at_other_rows():
    logits = gp.tensor([[-np.inf, 1.0, 2.0], [0.5, 0.1, 0.2]], device="cpu")
    assert F.cross_entropy(logits, gp.tensor([1, -100], device="cpu")).item() == pytest.approx(1.3132617)


def test_the_kept_gradient_survives_whatever_a_walk_does_with_it():
    """It is handed out as it is for dy = 1, and must not be changed while the graph is retained."""
    x = gp.tensor(X, requires_grad=True)
    doubled = x * 2.0
    loss = F.cross_entropy(doubled, gp.tensor([0, 1, 2, 0])) + F.cross_entropy(doubled, gp.tensor([1, 1, 1, 1]))
    loss.backward(retain_graph=True)
    once = x.grad.numpy().copy()
    x.grad = None
    loss.backward(retain_graph=True)
    np.testing.assert_array_equal(x.grad.numpy(), once)
    (loss * 3.0).backward()
    np.testing.assert_allclose(x.grad.numpy(), 4 * once, rtol=1e-12)


# --- Kinks and edges ------------------------------------------------------------------------------------------------


def gradient(loss, *arrays, wanted=0, **options):
    tensors = [gp.tensor(np.asarray(a, np.float64), requires_grad=i == wanted) for i, a in enumerate(arrays)]
    loss(*tensors, reduction="sum", **options).backward()
    return tensors[wanted].grad.numpy()


def test_gradients_where_derivatives_jump():
    at = [1.0, 2.0, 0.0]
    np.testing.assert_array_equal(gradient(F.l1_loss, at, [1.0, 1.0, 1.0]), [0, 1, -1])
    np.testing.assert_array_equal(gradient(F.smooth_l1_loss, at, [1.0, 1.0, 1.0]), [0, 1, -1])
    np.testing.assert_array_equal(gradient(F.hinge_embedding_loss, at, [-1.0, -1.0, 1.0]), [-1, 0, 1])


def test_certain_predictions():
    certain, target = [0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0]
    np.testing.assert_array_equal(
        F.binary_cross_entropy(np.array(certain), np.array(target), reduction="none"), [0, 0, 100, 100]
    )
    np.testing.assert_allclose(gradient(F.binary_cross_entropy, certain, target), [0, 0, -1e12, 1e12])
    np.testing.assert_allclose(gradient(F.binary_cross_entropy, certain, target, wanted=1), [100, -100, 100, -100])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_of_any_size(dtype):
    x = np.array([-math.inf, -1e4, 1e4, math.inf] * 2, dtype)
    t = np.array([0.0] * 4 + [1.0] * 4, dtype)
    rows = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    np.testing.assert_array_equal(rows, [0, 0, 1e4, math.inf, math.inf, 1e4, 0, 0])
    np.testing.assert_array_equal(gradient(F.binary_cross_entropy_with_logits, x, t), [0, 0, 1, 1, -1, -1, 0, 0])


def test_nothing_of_a_class_that_is_impossible():
    p, q = np.array([0.0, 0.25, 0.75]), np.array([0.0, 0.5, 0.5])
    with np.errstate(divide="ignore"):
        log_p = np.log(p)
    expected = [0, 0.5 * math.log(2), 0.5 * math.log(2 / 3)]
    np.testing.assert_allclose(F.kl_div(log_p, q, "none"), expected, rtol=1e-12)
    np.testing.assert_allclose(F.cross_entropy(log_p, q), -0.5 * math.log(0.25) - 0.5 * math.log(0.75), rtol=1e-12)


def test_variances_below_eps_are_pulled_up():
    np.testing.assert_allclose(gradient(F.gaussian_nll_loss, [1.0], [1.0], [0.0], wanted=2, eps=1e-2), [50.0])


# --- Similarity -----------------------------------------------------------------------------------------------------


def test_cosine_similarity():
    a, b = np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]]), np.array([[4.0, 3.0, 0.0], [1.0, 2.0, 3.0]])
    np.testing.assert_allclose(F.cosine_similarity(a, b), [0.96, 0.0], rtol=1e-14)
    np.testing.assert_allclose(F.cosine_similarity(a.T, b.T, dim=0), [0.96, 0.0], rtol=1e-14)
    zero = gp.tensor(a[1:], requires_grad=True)
    F.cosine_similarity(zero, gp.tensor(b[1:]), eps=0.5).sum().backward()
    np.testing.assert_allclose(zero.grad.numpy(), b[1:] / (0.5 * math.sqrt(14)), rtol=1e-14)


def test_normalize():
    x = np.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(F.normalize(x), [[0.6, 0.8], [0, 0]], rtol=1e-14)
    np.testing.assert_allclose(F.normalize(x, p=1.0, dim=0), [[1, 1], [0, 0]], rtol=1e-14)


# --- PyTorch --------------------------------------------------------------------------------------------------------

TORCH_CASES = [
    (name, arrays, {**options, "reduction": reduction})
    for reduction in REDUCTIONS
    for name, arrays, options in [
        *((loss.name, arrays, options) for loss, arrays, options, _ in ELEMENTWISE if "pos_weight" not in options),
        ("cross_entropy", (X, LABELS), {}),
        ("cross_entropy", (X, LABELS, WEIGHT), {"label_smoothing": 0.3}),
        ("cross_entropy", (X, Q, WEIGHT), {"label_smoothing": 0.3}),
        ("cross_entropy", (X[None].transpose(0, 2, 1), LABELS[None], WEIGHT), {"ignore_index": 1}),
        ("nll_loss", (X, LABELS, WEIGHT), {}),
        ("hinge_embedding_loss", (X, SIGNS), {"margin": 0.4}),
    ]
]


@pytest.mark.filterwarnings("ignore:reduction")  # PyTorch advises against kl_div's mean
@pytest.mark.parametrize(("name", "arrays", "options"), TORCH_CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_agrees_with_pytorch(name, arrays, options):
    torch = pytest.importorskip("torch")
    if options.get("ignore_index") == 1:
        arrays = (arrays[0], np.where(arrays[1] < 0, 1, arrays[1]), *arrays[2:])
    theirs = [torch.tensor(a, requires_grad=i == 0) for i, a in enumerate(arrays)]
    ours = [gp.tensor(a, requires_grad=i == 0) for i, a in enumerate(arrays)]
    expected = getattr(torch.nn.functional, name)(*theirs, **options)
    got = getattr(F, name)(*ours, **options)
    np.testing.assert_allclose(got.numpy(), expected.detach().numpy(), rtol=1e-10, atol=1e-12)
    dy = rng.normal(size=got.shape)
    expected.backward(torch.tensor(dy))
    got.backward(dy)
    np.testing.assert_allclose(ours[0].grad.numpy(), theirs[0].grad.numpy(), rtol=1e-10, atol=1e-12)
