"""Losses, with PyTorch's names, argument names and definitions; natural logarithms.

Reductions: "none" gives one loss per element or row, "sum" adds them, "mean" divides the sum by how many there are,
or, for class labels, by the sum of the class weights of the rows that count. A mean over nothing raises ShapeError.
What only the values can tell (a label out of range, a probability above 1, every row ignored) raises at once on a
CPU; on a GPU the result is NaN, and the host's next read raises.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from .._op import op
from .._trace import primitive
from ..cuda.losses import CrossEntropy, ElementLoss
from ..errors import BoundsError, DtypeError, OptionError, ShapeError
from ..tape import ONE
from ..testing import Draw, ErrorSample, Sample
from .activations import log_sigmoid, log_softmax, sigmoid, softmax
from .linalg import ones_of

REDUCTIONS = ("none", "mean", "sum")


# --- What they share ------------------------------------------------------------------------------------------------


def _check_reduction(name, reduction, count, allowed=REDUCTIONS):
    if reduction not in allowed:
        raise OptionError(f"{name}: expected reduction in {', '.join(map(repr, allowed))}, got {reduction!r}")
    if count == 0 and reduction in ("mean", "batchmean"):
        raise ShapeError(f"{name}: expected at least one sample for a mean, got none; use reduction='sum'")


def _check_same_shape(name, input, target):
    shape = getattr(target, "shape", ())
    if shape != input.shape:
        raise ShapeError(
            f"{name}: expected a target of the input's shape {input.shape}, got {shape}; "
            "reshape or broadcast it first, for (N, 1) beside (N,) would pair everything with everything"
        )


def _divisor(shape, reduction):
    return {"mean": math.prod(shape), "batchmean": shape[0] if shape else 1}.get(reduction, 1)


def _reduced(xp, losses, reduction):
    return losses if reduction == "none" else xp.sum(losses) / _divisor(losses.shape, reduction)


def _share(dy, shape, reduction):
    """The cotangent of one element's loss: a number, or as many as there are elements."""
    return dy if reduction == "none" else dy / _divisor(shape, reduction)


def _times(xp, share, value):
    """share * value where nothing of something infinite is nothing: 0 * inf = 0."""
    return share * xp.where(share == 0, 0, value)


def _pairs(draw: Draw):
    for shape in [(3,), (2, 5), (3, 1, 4)]:
        for reduction in REDUCTIONS:
            yield Sample(draw.apart(*shape), draw.apart(*shape) * 1.5 + 0.01, reduction=reduction)
    yield Sample(draw.apart(), draw.uniform(0.3, 0.4))
    yield Sample(draw.normal(0, 3), draw.normal(0, 3), reduction="sum")


def _bad_pairs(draw: Draw):
    yield ErrorSample(draw.normal(3, 1), draw.normal(3), error=ShapeError, match=r"\(3, 1\).*\(3,\).*reshape")
    yield ErrorSample(draw.normal(0, 3), draw.normal(0, 3), error=ShapeError, match="at least one sample")
    yield ErrorSample(draw.normal(3), draw.normal(3), reduction="avg", error=OptionError, match="'mean'.*'avg'")


# --- Distances ------------------------------------------------------------------------------------------------------


@op(samples=_pairs, errors=_bad_pairs)
def mse_loss(xp, input, target, *, reduction="mean"):
    """Squared error: loss = (input - target)^2. Shapes: input, target (...); mean over all elements."""
    _check_same_shape("mse_loss", input, target)
    _check_reduction("mse_loss", reduction, input.size)
    difference = input - target
    return _reduced(xp, difference * difference, reduction)


@mse_loss.grad("input", "target")
def _(xp, dy, input, target, *, reduction):
    slope = _share(2 * dy, input.shape, reduction) * (input - target)
    return slope, -slope


mse_loss.cuda = ElementLoss("Mse", negated=("target",))


@op(samples=_pairs, errors=_bad_pairs)
def l1_loss(xp, input, target, *, reduction="mean"):
    """Absolute error: loss = |input - target|, with gradient 0 where they are equal. Shapes: input, target (...)."""
    _check_same_shape("l1_loss", input, target)
    _check_reduction("l1_loss", reduction, input.size)
    return _reduced(xp, xp.absolute(input - target), reduction)


@l1_loss.grad("input", "target")
def _(xp, dy, input, target, *, reduction):
    slope = _share(dy, input.shape, reduction) * xp.sign(input - target)
    return slope, -slope


l1_loss.cuda = ElementLoss("L1", negated=("target",))


def _with_beta(draw: Draw):
    yield from _pairs(draw)
    yield Sample(draw.apart(2, 5), draw.apart(2, 5) + 0.01, beta=0.3)
    yield Sample(draw.apart(2, 5), draw.apart(2, 5) + 0.01, beta=0)


def _bad_beta(draw: Draw):
    yield from _bad_pairs(draw)
    yield ErrorSample(draw.normal(3), draw.normal(3), beta=-1.0, error=OptionError, match="beta.*-1.0")


@op(samples=_with_beta, errors=_bad_beta)
def smooth_l1_loss(xp, input, target, *, reduction="mean", beta=1.0):
    """Smooth absolute error: loss = d^2 / (2 beta) where d = |input - target| < beta, else d - beta / 2.

    Shapes: input, target (...). beta = 0 is the absolute error.
    Raises: OptionError for a beta below 0.
    Source: Girshick 2015, arXiv:1504.08083, eq. 3.
    """
    _check_same_shape("smooth_l1_loss", input, target)
    _check_reduction("smooth_l1_loss", reduction, input.size)
    if not beta >= 0:
        raise OptionError(f"smooth_l1_loss: expected beta >= 0, got {beta}")
    distance = xp.absolute(input - target)
    if beta == 0:
        return _reduced(xp, distance, reduction)
    near = xp.minimum(distance, beta)
    return _reduced(xp, near * near * (0.5 / beta) + (distance - near), reduction)


@smooth_l1_loss.grad("input", "target")
def _(xp, dy, input, target, *, reduction, beta):
    difference = input - target
    slope = xp.clip(difference / beta, -1, 1) if beta > 0 else xp.sign(difference)
    slope = _share(dy, input.shape, reduction) * slope
    return slope, -slope


smooth_l1_loss.cuda = ElementLoss("SmoothL1", negated=("target",), allowed=lambda beta: beta >= 0)


def _with_delta(draw: Draw):
    yield from _pairs(draw)
    yield Sample(draw.apart(2, 5), draw.apart(2, 5) + 0.01, delta=0.3)


def _bad_delta(draw: Draw):
    yield from _bad_pairs(draw)
    yield ErrorSample(draw.normal(3), draw.normal(3), delta=0.0, error=OptionError, match="delta.*0.0")


@op(samples=_with_delta, errors=_bad_delta)
def huber_loss(xp, input, target, *, reduction="mean", delta=1.0):
    """Huber's loss: d^2 / 2 where d = |input - target| < delta, else delta (d - delta / 2).

    Shapes: input, target (...).
    Raises: OptionError for a delta that is not above 0.
    Source: Huber 1964, Annals of Mathematical Statistics 35, eq. 1.8 and example (iii).
    """
    _check_same_shape("huber_loss", input, target)
    _check_reduction("huber_loss", reduction, input.size)
    if not delta > 0:
        raise OptionError(f"huber_loss: expected delta > 0, got {delta}")
    distance = xp.absolute(input - target)
    near = xp.minimum(distance, delta)
    return _reduced(xp, near * near * 0.5 + delta * (distance - near), reduction)


@huber_loss.grad("input", "target")
def _(xp, dy, input, target, *, reduction, delta):
    slope = _share(dy, input.shape, reduction) * xp.clip(input - target, -delta, delta)
    return slope, -slope


huber_loss.cuda = ElementLoss("Huber", negated=("target",), allowed=lambda delta: delta > 0)


# --- Class labels ---------------------------------------------------------------------------------------------------


def _class_axis(shape):
    return 0 if len(shape) == 1 else 1


def _along_classes(xp, values, shape):
    """One value per class, in a shape that broadcasts along the class axis."""
    return xp.reshape(values, (-1,) + (1,) * (len(shape) - 1 - _class_axis(shape)))


def _check_classes(name, xp, input, target, weight, ignore_index, reduction, label_smoothing=None):
    """Raises what shapes and dtypes tell, and reports labels that are no class. No smoothing: labels are required."""
    axis = _class_axis(input.shape)
    if not input.ndim or not input.shape[axis]:
        raise ShapeError(f"{name}: expected an input (C,), (N, C) or (N, C, ...) with C > 0, got {input.shape}")
    classes = input.shape[axis]
    rows = input.shape[:axis] + input.shape[axis + 1 :]
    kind = target.dtype.kind
    if kind == "b" or (kind not in "iu" and label_smoothing is None):
        raise DtypeError(f"{name}: expected integer labels, got {target.dtype}")
    expected = rows if kind in "iu" else input.shape
    if target.shape != expected:
        raise ShapeError(
            f"{name}: expected {'labels' if kind in 'iu' else 'probabilities'} of shape {expected} for an input "
            f"{input.shape}, got {target.dtype} {target.shape}"
        )
    if weight is not None and weight.shape != (classes,):
        raise ShapeError(f"{name}: expected a weight for each of {classes} classes, got shape {weight.shape}")
    if label_smoothing is not None and not 0 <= label_smoothing <= 1:
        raise OptionError(f"{name}: expected label_smoothing from 0 to 1, got {label_smoothing}")
    _check_reduction(name, reduction, math.prod(rows))
    if kind in "iu":
        outside = xp.logical_and(xp.logical_or(target < 0, target >= classes), target != ignore_index)
        xp.report_if(outside, *_label_outside(name, classes, ignore_index))


def _label_outside(name, classes, ignore_index):
    return (
        f"{name}: expected labels from 0 to {classes - 1} or ignore_index={ignore_index}, got one outside",
        BoundsError,
    )


def _no_row_counts(name):
    return f"{name}: expected at least one row that counts for a mean, got none with a weight above 0", ShapeError


def _class_shares(xp, input, target, weight, ignore_index, label_smoothing=0.0):
    """How much each class of a row counts: its loss is -sum_c shares_c * log p_c; and what a mean divides by.

    Labels: (1 - s) weight_c on the label and s weight_c / C on every class, 0 in ignored rows, NaN in rows whose
    label is no class; the divisor is the sum of the labels' weights. Probabilities q: weight_c ((1 - s) q_c + s / C);
    the number of rows.
    """
    shape, axis = input.shape, _class_axis(input.shape)
    classes = shape[axis]
    weights = 1 if weight is None else _along_classes(xp, weight, shape)
    if target.dtype.kind not in "iu":
        return weights * (target * (1 - label_smoothing) + label_smoothing / classes), math.prod(shape) // classes
    label = xp.expand_dims(xp.asarray(target, dtype=xp.int64), axis)
    counts = label != ignore_index
    on_label = xp.logical_and(label == _along_classes(xp, xp.arange(classes), shape), counts)
    shares = xp.asarray(on_label, dtype=input.dtype) * weights
    divisor = xp.sum(shares)
    if label_smoothing:
        floor = weights * (label_smoothing / classes)
        shares = shares * (1 - label_smoothing) + xp.asarray(counts, dtype=input.dtype) * floor
    outside = xp.logical_and(counts, xp.logical_or(label < 0, label >= classes))
    return xp.where(outside, math.nan, shares), divisor


def _reduced_by_class(name, xp, losses, divisor, reduction):
    if reduction == "none":
        return losses
    total = xp.sum(losses)
    if reduction == "sum":
        return total
    if not isinstance(divisor, int):
        xp.report_if(divisor == 0, *_no_row_counts(name))
    return total / divisor


def _share_of_rows(xp, dy, axis, divisor, reduction):
    return xp.expand_dims(dy, axis) if reduction == "none" else dy / divisor if reduction == "mean" else dy


def _labelled(draw: Draw):
    """Inputs with labels, in all the shapes and with all the options that cross_entropy and nll_loss share."""
    for shape, rows in [((4,), ()), ((3, 5), (3,)), ((2, 5, 3, 4), (2, 3, 4))]:
        for reduction in REDUCTIONS:
            yield Sample(
                draw.normal(*shape), draw.integers(0, shape[-1] if rows == () else 5, *rows), reduction=reduction
            )
    yield Sample(draw.normal(0, 3), draw.integers(0, 3, 0), reduction="sum")
    for reduction in REDUCTIONS:
        labels = np.array([3, 1, -100, 0, 4])
        yield Sample(draw.normal(5, 6), labels, draw.positive(6), reduction=reduction)
        yield Sample(draw.normal(5, 6), np.abs(labels) % 6, ignore_index=4, reduction=reduction)
    yield Sample(draw.normal(2, 3, 4), np.array([[0, -1, 2, 2], [1, 1, -1, 0]]), draw.positive(3), ignore_index=-1)
    yield Sample(draw.normal(3, 300), np.array([7, 255, 0], np.uint8))


def _classified(draw: Draw):
    yield from _labelled(draw)
    for reduction in REDUCTIONS:
        yield Sample(
            draw.normal(3, 5), np.array([4, -100, 2]), draw.positive(5), reduction=reduction, label_smoothing=0.2
        )
        yield Sample(draw.normal(3, 5), draw.probabilities(3, 5), draw.positive(5), reduction=reduction)
    yield Sample(draw.normal(3, 5), np.array([4, -100, 2]), label_smoothing=0.1)
    yield Sample(draw.normal(5), draw.probabilities(5), label_smoothing=0.1)
    yield Sample(draw.normal(2, 3, 4), draw.probabilities(2, 3, 4), label_smoothing=0.1)


def _bad_labels(draw: Draw):
    x = draw.normal(2, 3)
    yield ErrorSample(x, np.array([0, 3]), error=BoundsError, match="0 to 2")
    yield ErrorSample(x, np.array([0, -1]), error=BoundsError, match="0 to 2.*-100")
    yield ErrorSample(x, np.array([0]), error=ShapeError, match=r"\(2,\).*\(2, 3\).*\(1,\)")
    yield ErrorSample(x, np.array([True, False]), error=DtypeError, match="bool")
    yield ErrorSample(x, np.array([0, 1]), draw.positive(2), error=ShapeError, match=r"3 classes.*\(2,\)")
    yield ErrorSample(x, np.array([0, 1]), reduction="total", error=OptionError, match="'total'")
    yield ErrorSample(draw.normal(0, 3), np.zeros(0, int), error=ShapeError, match="at least one sample")
    yield ErrorSample(x, np.array([-100, -100]), error=ShapeError, match="at least one row")
    yield ErrorSample(x, np.array([0, 0]), np.array([0.0, 1, 1]), error=ShapeError, match="at least one row")
    yield ErrorSample(draw.normal(), np.array(0), error=ShapeError, match=r"\(N, C\).*\(\)")


def _not_classified(draw: Draw):
    yield from _bad_labels(draw)
    yield ErrorSample(draw.normal(2, 3), draw.normal(2), error=ShapeError, match=r"probabilities.*\(2, 3\)")
    yield ErrorSample(draw.normal(2, 3), np.array([0, 1]), label_smoothing=1.5, error=OptionError, match="1.5")


@op(samples=_classified, errors=_not_classified)
def cross_entropy(xp, input, target, weight=None, *, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Softmax and its cross-entropy: loss = -sum_c q_c log softmax(input)_c.

    q is 1 on the label and 0 elsewhere, or the probabilities given; smoothed to (1 - s) q + s / C.
    Shapes: input (C,), (N, C) or (N, C, ...); target: integer labels of the same shape without C, or probabilities of
    the input's shape; weight (C,), a factor per class. Rows labelled ignore_index have no loss.
    Reduction: a mean divides by the sum of the labels' weights over the rows that count; for probabilities by the rows.
    Raises: BoundsError for a label that is no class, ShapeError for a mean in which no row counts.
    """
    _check_classes("cross_entropy", xp, input, target, weight, ignore_index, reduction, label_smoothing)
    axis = _class_axis(input.shape)
    shares, divisor = _class_shares(xp, input, target, weight, ignore_index, label_smoothing)
    losses = -xp.sum(_times(xp, shares, log_softmax(xp, input, axis=axis)), axis=axis)
    return _reduced_by_class("cross_entropy", xp, losses, divisor, reduction)


@cross_entropy.grad("input")
def _(xp, dy, input, target, weight, *, ignore_index, reduction, label_smoothing):
    axis = _class_axis(input.shape)
    shares, divisor = _class_shares(xp, input, target, weight, ignore_index, label_smoothing)
    slope = softmax(xp, input, axis=axis) * xp.sum(shares, axis=axis, keepdims=True) - shares
    return _share_of_rows(xp, dy, axis, divisor, reduction) * slope


@cross_entropy.grad("target")
def _(xp, dy, input, weight, *, reduction, label_smoothing):
    shape, axis = input.shape, _class_axis(input.shape)
    slope = log_softmax(xp, input, axis=axis) * (label_smoothing - 1)
    if weight is not None:
        slope = slope * _along_classes(xp, weight, shape)
    return _share_of_rows(xp, dy, axis, math.prod(shape) // shape[axis], reduction) * slope


_UNSIGNED = {np.dtype(np.int64): np.uint64, np.dtype(np.int32): np.uint32}
# Up to so many classes the logits are transposed first: reductions along rows of 10 take NumPy 39 us for 512 of them, along columns
# 2 us. The gradient stays transposed, which matrix products take as it is.
FEW_CLASSES = 64


@primitive(writes=("logits", "places", "shares"))
def _find_labels(target, classes, step, stride, ignore_index, reduction, logits, places, shares):
    """Where the logits of the labels lie, row * step + label * stride; and what each row's loss is multiplied by.

    Rows to ignore get logits 0: what they hold, NaN for all we know, is not looked at.
    """
    rows = len(target)
    # Negative labels are large ones here.
    if 0 <= ignore_index < classes or np.maximum.reduce(target.view(_UNSIGNED[target.dtype])) >= classes:
        counts = target != ignore_index
        if np.any(counts & ((target < 0) | (target >= classes))):
            message, error = _label_outside("cross_entropy", classes, ignore_index)
            raise error(message)
        count = int(np.count_nonzero(counts))
        target = target * counts  # rows to ignore look at their own first logit
        logits[(slice(None), ~counts) if step == 1 else (~counts, slice(None))] = 0
        if not count and reduction == "mean":
            message, error = _no_row_counts("cross_entropy")
            raise error(message)
        share = 1 / count if reduction == "mean" else 1
        np.multiply(counts, share, shares)
    else:
        shares.fill(1 / rows if reduction == "mean" else 1)
    np.multiply(target, stride, places)
    np.add(places, _row_starts(rows, step), places)


@functools.lru_cache(maxsize=64)
def _row_starts(rows: int, step: int) -> np.ndarray:
    return np.arange(0, rows * step, step)


@functools.lru_cache(maxsize=64)
def _vanishing(dtype: np.dtype, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits below the largest one by so much count as minus infinity: a row of the limit, and its exponential.

    Probabilities below 1e-26 would make subnormal gradients, with which processors compute forty times slower: where a network has
    learnt its batch by heart, a step of 256-512-512-512-512-16 took 17.2 ms with them and takes 9.6 without.
    """
    # A row, because `np.maximum` with a number takes five times as long.
    least = np.full(length, -60 if dtype == np.float32 else -600, dtype)
    return least, np.exp(least[:1]).reshape(())


@cross_entropy.cpu(residuals=["dlogits"])
def _(input, target, weight=None, *, keep, ignore_index, reduction, label_smoothing):
    """Logits (N, C) and labels without weights or smoothing: loss and gradient for dy = 1 in one go."""
    if (
        target.dtype not in _UNSIGNED
        or weight is not None
        or label_smoothing
        or reduction not in ("mean", "sum")
        or input.ndim != 2
        or input.dtype.char not in "fd"
        or target.shape != input.shape[:1]
        or not input.size
    ):
        return NotImplemented
    rows, classes = input.shape
    axis, step, stride = (0, 1, rows) if classes <= FEW_CLASSES else (1, classes, 1)
    places = np.empty(rows, np.intp, like=input)
    shares = np.empty(rows, input.dtype, like=input)
    logits = np.empty((classes, rows) if axis == 0 else (rows, classes), input.dtype, like=input)
    np.copyto(logits, input.T if axis == 0 else input)
    _find_labels(target, classes, step, stride, ignore_index, reduction, logits, places, shares)
    np.subtract(logits, np.maximum.reduce(logits, axis=axis, keepdims=True), out=logits)
    of_labels = logits.take(places, None, np.empty(rows, input.dtype, like=input), "wrap")
    least, of_least = _vanishing(input.dtype, logits.shape[1])
    exponentials = np.exp(np.maximum(logits, least, out=logits), out=logits)
    np.subtract(exponentials, of_least, exponentials)
    ones = ones_of(classes, input.dtype)
    sums = np.dot(ones, exponentials) if axis == 0 else np.dot(exponentials, ones)
    loss = np.dot(np.log(sums) - of_labels, shares)
    if not keep:
        return (loss,)
    scales = np.divide(shares, sums, out=sums)
    dlogits = np.multiply(exponentials, scales if axis == 0 else scales[:, None], out=exponentials)
    np.subtract.at(dlogits.reshape(-1), places, shares)  # at most once per row
    return loss, dlogits.T if axis == 0 else dlogits


@cross_entropy.cpu.grad("input", unit_seed=True)
def _(dy, dlogits):
    return dlogits if dy is ONE else dlogits * dy


cross_entropy.cuda = CrossEntropy(
    outside=functools.partial(_label_outside, "cross_entropy"), nothing=_no_row_counts("cross_entropy")
)


def _only_labels(draw: Draw):
    yield from _bad_labels(draw)
    yield ErrorSample(draw.normal(2, 3), draw.probabilities(2, 3), error=DtypeError, match="integer labels.*float64")


@op(samples=_labelled, errors=_only_labels)
def nll_loss(xp, input, target, weight=None, *, ignore_index=-100, reduction="mean"):
    """Negative log-likelihood: loss = -weight[target] * input[target], the input being logarithms of probabilities.

    Shapes: input (C,), (N, C) or (N, C, ...); target: integer labels of the same shape without C; weight (C,).
    Reduction and errors: as cross_entropy, which is this of log_softmax.
    """
    _check_classes("nll_loss", xp, input, target, weight, ignore_index, reduction)
    shares, divisor = _class_shares(xp, input, target, weight, ignore_index)
    losses = -xp.sum(_times(xp, shares, input), axis=_class_axis(input.shape))
    return _reduced_by_class("nll_loss", xp, losses, divisor, reduction)


@nll_loss.grad("input")
def _(xp, dy, input, target, weight, *, ignore_index, reduction):
    shares, divisor = _class_shares(xp, input, target, weight, ignore_index)
    return _share_of_rows(xp, dy, _class_axis(input.shape), divisor, reduction) * -shares


# --- Probabilities of one class -------------------------------------------------------------------------------------


def _weighted(losses, weight):
    return losses if weight is None else losses * weight


def _probable(draw: Draw):
    for shape in [(3,), (2, 5)]:
        for reduction in REDUCTIONS:
            yield Sample(draw.uniform(0.1, 0.9, *shape), draw.uniform(0, 1, *shape), reduction=reduction)
    yield Sample(draw.uniform(0.1, 0.9), draw.uniform(0, 1))
    yield Sample(draw.uniform(0.1, 0.9, 2, 5), draw.uniform(0, 1, 2, 5), draw.positive(5))
    yield Sample(draw.uniform(0.1, 0.9, 0, 3), draw.uniform(0, 1, 0, 3), reduction="sum")


def _improbable(draw: Draw):
    yield from _bad_pairs(draw)
    yield ErrorSample(np.array([0.5, 1.5]), draw.uniform(0, 1, 2), error=BoundsError, match="0 to 1")
    yield ErrorSample(np.array([-0.5, 0.5]), draw.uniform(0, 1, 2), error=BoundsError, match="0 to 1")


def _limited_log(xp, p):
    """log(p), at least -100, without the warning of log(0)."""
    return xp.where(p > 0, xp.maximum(xp.log(xp.where(p > 0, p, 1)), -100), -100)


@op(samples=_probable, errors=_improbable)
def binary_cross_entropy(xp, input, target, weight=None, *, reduction="mean"):
    """Cross-entropy of a probability: loss = -weight (target log(input) + (1 - target) log(1 - input)).

    Logarithms are at least -100. Where input is 0 or 1, its gradient is (input - target) / 1e-12.
    Shapes: input, target (...); weight broadcasts to them.
    Raises: BoundsError for an input below 0 or above 1.
    """
    _check_same_shape("binary_cross_entropy", input, target)
    _check_reduction("binary_cross_entropy", reduction, input.size)
    xp.report_if(
        xp.logical_or(input < 0, input > 1),
        "binary_cross_entropy: expected an input from 0 to 1, got one outside; use sigmoid",
    )
    losses = -(target * _limited_log(xp, input) + (1 - target) * _limited_log(xp, 1 - input))
    return _reduced(xp, _weighted(losses, weight), reduction)


@binary_cross_entropy.grad("input")
def _(xp, dy, input, target, weight, *, reduction):
    slope = (input - target) / xp.maximum(input * (1 - input), 1e-12)
    return _share(dy, input.shape, reduction) * _weighted(slope, weight)


@binary_cross_entropy.grad("target")
def _(xp, dy, input, weight, *, reduction):
    slope = _limited_log(xp, 1 - input) - _limited_log(xp, input)
    return _share(dy, input.shape, reduction) * _weighted(slope, weight)


def _logits(draw: Draw):
    for shape in [(3,), (2, 5)]:
        for reduction in REDUCTIONS:
            yield Sample(draw.normal(*shape), draw.uniform(0, 1, *shape), reduction=reduction)
    yield Sample(draw.normal(), draw.uniform(0, 1))
    yield Sample(draw.normal(2, 5), draw.booleans(2, 5).astype(float), draw.positive(2, 1), draw.positive(5))
    yield Sample(draw.normal(2, 5), draw.uniform(0, 1, 2, 5), None, draw.positive(5), reduction="none")
    yield Sample(draw.normal(0, 3), draw.uniform(0, 1, 0, 3), reduction="sum")


@op(samples=_logits, errors=_bad_pairs)
def binary_cross_entropy_with_logits(xp, input, target, weight=None, pos_weight=None, *, reduction="mean"):
    """Cross-entropy of p = sigmoid(input): loss = -weight (pos_weight target log(p) + (1 - target) log(1 - p)).

    Shapes: input, target (...); weight and pos_weight broadcast to them.
    """
    _check_same_shape("binary_cross_entropy_with_logits", input, target)
    _check_reduction("binary_cross_entropy_with_logits", reduction, input.size)
    losses = -_times(xp, _weighted(target, pos_weight), log_sigmoid(xp, input))
    losses = losses - _times(xp, 1 - target, log_sigmoid(xp, -input))
    return _reduced(xp, _weighted(losses, weight), reduction)


@binary_cross_entropy_with_logits.grad("input")
def _(xp, dy, input, target, weight, pos_weight, *, reduction):
    slope = (1 - target) * sigmoid(xp, input) - _weighted(target, pos_weight) * sigmoid(xp, -input)
    return _share(dy, input.shape, reduction) * _weighted(slope, weight)


@binary_cross_entropy_with_logits.grad("target")
def _(xp, dy, input, weight, pos_weight, *, reduction):
    slope = log_sigmoid(xp, -input) - _weighted(log_sigmoid(xp, input), pos_weight)
    return _share(dy, input.shape, reduction) * _weighted(slope, weight)


binary_cross_entropy_with_logits.cuda = ElementLoss(
    "BinaryCrossEntropy", inputs=("input", "target", "weight", "pos_weight")
)


# --- Distributions --------------------------------------------------------------------------------------------------


def _divergences(draw: Draw):
    for reduction in (*REDUCTIONS, "batchmean"):
        yield Sample(np.log(draw.probabilities(2, 5)), draw.probabilities(2, 5), reduction=reduction)
        yield Sample(
            np.log(draw.probabilities(3, 4)), np.log(draw.probabilities(3, 4)), reduction=reduction, log_target=True
        )
    yield Sample(draw.normal(), draw.positive())
    yield Sample(draw.normal(0, 3), draw.positive(0, 3), reduction="sum")


def _no_divergence(draw: Draw):
    yield from _bad_pairs(draw)
    yield ErrorSample(
        draw.normal(0, 3), draw.normal(0, 3), reduction="batchmean", error=ShapeError, match="at least one"
    )


def _log_or_0(xp, p):
    return xp.log(xp.where(p > 0, p, 1))


@op(samples=_divergences, errors=_no_divergence)
def kl_div(xp, input, target, *, reduction="mean", log_target=False):
    """Kullback-Leibler divergence: loss = target (log(target) - input), the input being logarithms of probabilities.

    log_target: the target holds logarithms too, loss = exp(target) (target - input). Where the target is 0 the loss
    is 0, and its gradient counts log(0) as 0.
    Shapes: input, target (...). Reduction: "batchmean" divides the sum by the first axis, which gives the divergence
    per sample.
    Source: Kullback and Leibler 1951, Annals of Mathematical Statistics 22, eq. 2.4.
    """
    _check_same_shape("kl_div", input, target)
    _check_reduction("kl_div", reduction, input.size, (*REDUCTIONS, "batchmean"))
    if log_target:
        return _reduced(xp, xp.exp(target) * (target - input), reduction)
    return _reduced(xp, _times(xp, target, _log_or_0(xp, target) - input), reduction)


@kl_div.grad("input")
def _(xp, dy, target, *, reduction, log_target):
    return _share(dy, target.shape, reduction) * -(xp.exp(target) if log_target else target)


@kl_div.grad("target")
def _(xp, dy, input, target, *, reduction, log_target):
    slope = xp.exp(target) * (target - input + 1) if log_target else _log_or_0(xp, target) + 1 - input
    return _share(dy, input.shape, reduction) * slope


def _counts(draw: Draw):
    for reduction in REDUCTIONS:
        yield Sample(draw.normal(2, 5), draw.uniform(0, 4, 2, 5), reduction=reduction)
    yield Sample(draw.normal(2, 5), draw.uniform(0, 4, 2, 5), full=True)
    yield Sample(draw.positive(2, 5), draw.uniform(0, 4, 2, 5), log_input=False, full=True, eps=1e-3)
    yield Sample(draw.normal(), draw.uniform(0, 4))
    yield Sample(draw.normal(0, 3), draw.normal(0, 3), reduction="sum")


@op(samples=_counts, errors=_bad_pairs)
def poisson_nll_loss(xp, input, target, *, log_input=True, full=False, eps=1e-8, reduction="mean"):
    """Negative log-likelihood of a count: loss = exp(input) - target input.

    The input is the logarithm of the expected count. log_input=False: the input is the expected count, loss = input -
    target log(input + eps). full: adds Stirling's approximation of log(target!), target log(target) - target + log(2
    pi target) / 2, where target > 1.
    Shapes: input, target (...).
    """
    _check_same_shape("poisson_nll_loss", input, target)
    _check_reduction("poisson_nll_loss", reduction, input.size)
    losses = xp.exp(input) - target * input if log_input else input - target * xp.log(input + eps)
    if full:
        many = xp.maximum(target, 1)
        losses = losses + (target > 1) * (many * xp.log(many) - many + 0.5 * xp.log(many * (2 * math.pi)))
    return _reduced(xp, losses, reduction)


@poisson_nll_loss.grad("input")
def _(xp, dy, input, target, *, log_input, eps, reduction):
    slope = xp.exp(input) - target if log_input else 1 - target / (input + eps)
    return _share(dy, input.shape, reduction) * slope


@poisson_nll_loss.grad("target")
def _(xp, dy, input, target, *, log_input, full, eps, reduction):
    slope = -input if log_input else -xp.log(input + eps)
    if full:
        many = xp.maximum(target, 1)
        slope = slope + (target > 1) * (xp.log(many) + 0.5 / many)
    return _share(dy, input.shape, reduction) * slope


poisson_nll_loss.cuda = ElementLoss("PoissonNll")


def _variances(draw: Draw):
    for reduction in REDUCTIONS:
        yield Sample(draw.normal(2, 5), draw.normal(2, 5), draw.positive(2, 5), reduction=reduction)
    yield Sample(draw.normal(2, 5), draw.normal(2, 5), draw.positive(2, 1), full=True)
    yield Sample(draw.normal(2, 5), draw.normal(2, 5), draw.positive(2), reduction="none")
    yield Sample(draw.normal(2, 5), draw.normal(2, 5), draw.positive(), reduction="sum")
    yield Sample(draw.normal(), draw.normal(), draw.positive())
    yield Sample(draw.normal(0, 3), draw.normal(0, 3), draw.positive(0, 3), reduction="sum")


def _bad_variances(draw: Draw):
    x, t = draw.normal(2, 3), draw.normal(2, 3)
    yield ErrorSample(x, draw.normal(2), draw.positive(2, 3), error=ShapeError, match=r"\(2, 3\).*\(2,\)")
    yield ErrorSample(x, t, draw.positive(3), error=ShapeError, match=r"\(2, 3\).*\(2, 1\).*\(3,\)")
    yield ErrorSample(x, t, -draw.positive(2, 3), error=BoundsError, match="at least 0")
    yield ErrorSample(draw.normal(0, 3), draw.normal(0, 3), draw.positive(0, 3), error=ShapeError, match="at least one")
    yield ErrorSample(x, t, draw.positive(2, 3), reduction="avg", error=OptionError, match="'avg'")


_NEGATIVE_VARIANCE = "gaussian_nll_loss: expected variances of at least 0, got one below"


def _check_variances(shape, var):
    one_per_row = (*shape[:-1], 1)
    if var.shape not in (shape, one_per_row, shape[:-1], ()):
        raise ShapeError(
            f"gaussian_nll_loss: expected variances of the input's shape {shape}, {one_per_row} or {shape[:-1]}, "
            f"got {var.shape}"
        )


def _one_per_row(shape, var):
    return len(var.shape) == len(shape) - 1 and len(var.shape) > 0


def _precision(xp, input_shape, var, eps):
    """1 / max(var, eps), in a shape that broadcasts."""
    if _one_per_row(input_shape, var):
        var = xp.expand_dims(var, -1)
    return 1 / xp.maximum(var, eps)


@op(samples=_variances, errors=_bad_variances)
def gaussian_nll_loss(xp, input, target, var, *, full=False, eps=1e-6, reduction="mean"):
    """Negative log-likelihood of a normal distribution: loss = (log(v) + (input - target)^2 / v) / 2.

    v = max(var, eps).
    full: adds log(2 pi) / 2. The gradient of var is that of v, also where var < eps.
    Shapes: input, target (...); var the same, or with a last axis of 1 or none, or ().
    Raises: BoundsError for a variance below 0.
    Source: Nix and Weigend 1994, IEEE ICNN, eq. 4.
    """
    _check_same_shape("gaussian_nll_loss", input, target)
    _check_reduction("gaussian_nll_loss", reduction, input.size)
    _check_variances(input.shape, var)
    xp.report_if(var < 0, _NEGATIVE_VARIANCE)
    precision = _precision(xp, input.shape, var, eps)
    difference = input - target
    losses = 0.5 * (difference * difference * precision - xp.log(precision))
    return _reduced(xp, losses + 0.5 * math.log(2 * math.pi) if full else losses, reduction)


@gaussian_nll_loss.grad("input", "target")
def _(xp, dy, input, target, var, *, eps, reduction):
    slope = _share(dy, input.shape, reduction) * ((input - target) * _precision(xp, input.shape, var, eps))
    return slope, -slope


@gaussian_nll_loss.grad("var")
def _(xp, dy, input, target, var, *, eps, reduction):
    precision = _precision(xp, input.shape, var, eps)
    difference = (input - target) * precision
    slope = _share(dy, input.shape, reduction) * (0.5 * (precision - difference * difference))
    return xp.sum(slope, axis=-1) if _one_per_row(input.shape, var) else slope


def _aligned_variances(shape, var):
    _check_variances(shape, var)
    return var.reshape(*var.shape, 1) if _one_per_row(shape, var) else var


gaussian_nll_loss.cuda = ElementLoss(
    "GaussianNll",
    inputs=("input", "var", "target"),
    slopes=("input", "var"),
    negated=("target",),
    aligned=_aligned_variances,
    reports=(_NEGATIVE_VARIANCE, BoundsError),
)


# --- Similarity -----------------------------------------------------------------------------------------------------


def _signs(draw: Draw):
    for reduction in REDUCTIONS:
        yield Sample(draw.apart(2, 5, gap=0.3), np.sign(draw.apart(2, 5)), reduction=reduction)
    yield Sample(draw.apart(3, gap=0.3), np.array([1, -1, 1]), margin=0.5)
    yield Sample(draw.apart(), np.array(-1.0))
    yield Sample(draw.normal(0, 3), draw.normal(0, 3), reduction="sum")


@op(samples=_signs, errors=_bad_pairs)
def hinge_embedding_loss(xp, input, target, *, margin=1.0, reduction="mean"):
    """Hinge on a distance: loss = input where target = 1, max(margin - input, 0) where target = -1.

    At input = margin the gradient of the hinge is -1. Shapes: input, target (...).
    """
    _check_same_shape("hinge_embedding_loss", input, target)
    _check_reduction("hinge_embedding_loss", reduction, input.size)
    losses = (target != -1) * input + (target != 1) * xp.maximum(margin - input, 0)
    return _reduced(xp, losses, reduction)


@hinge_embedding_loss.grad("input")
def _(xp, dy, input, target, *, margin, reduction):
    share = _share(dy, input.shape, reduction)
    return share * (target != -1) - share * xp.logical_and(target != 1, input <= margin)


def _vectors(draw: Draw):
    yield Sample(draw.normal(3, 5), draw.normal(3, 5))
    yield Sample(draw.normal(3, 5), draw.normal(5), axis=-1)
    yield Sample(draw.normal(4), draw.normal(4), axis=0, eps=1e-3)
    yield Sample(draw.normal(2, 3, 4), draw.normal(2, 1, 4))
    yield Sample(draw.normal(0, 3), draw.normal(0, 3))


def _bad_vectors(draw: Draw):
    yield ErrorSample(draw.normal(3, 4), draw.normal(3, 5), error=ShapeError, match=r"\(3, 4\).*\(3, 5\)")
    yield ErrorSample(draw.normal(3), draw.normal(3), error=BoundsError, match="axis 1")


def _squared_length(xp, x, axis, eps):
    return xp.maximum(xp.sum(x * x, axis=axis, keepdims=True), eps * eps)


def _cosine(xp, x1, x2, axis, eps):
    """The cosine, with the axis kept; the vectors, broadcast; and their squared lengths."""
    shape = np.broadcast_shapes(x1.shape, x2.shape)
    x1, x2 = xp.broadcast_to(x1, shape), xp.broadcast_to(x2, shape)
    a, b = _squared_length(xp, x1, axis, eps), _squared_length(xp, x2, axis, eps)
    return xp.sum(x1 * x2, axis=axis, keepdims=True) / (xp.sqrt(a) * xp.sqrt(b)), x1, x2, a, b


@op(samples=_vectors, errors=_bad_vectors)
def cosine_similarity(xp, x1, x2, *, axis=1, eps=1e-8):
    """Cosine of the angle between vectors: y = sum(x1 x2) / (max(|x1|, eps) max(|x2|, eps)), along an axis.

    Shapes: x1, x2 broadcast to (..., D, ...); y without the axis.
    """
    return xp.squeeze(_cosine(xp, x1, x2, axis, eps)[0], axis)


@cosine_similarity.grad("x1", "x2")
def _(xp, dy, x1, x2, *, axis, eps):
    cosine, x1, x2, a, b = _cosine(xp, x1, x2, axis, eps)
    dy = xp.expand_dims(dy, axis)
    by_lengths = dy / (xp.sqrt(a) * xp.sqrt(b))
    # A length below eps counts as the constant eps.
    along_x1 = dy * cosine * (a > eps * eps) / a
    along_x2 = dy * cosine * (b > eps * eps) / b
    return by_lengths * x2 - along_x1 * x1, by_lengths * x1 - along_x2 * x2
