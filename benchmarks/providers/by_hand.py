"""Plain NumPy or CuPy as an expert writes it for one network: buffers made once, `out=` everywhere, all parameters in one flat array."""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt
from typing import Any

import numpy as np

from ..problem import Problem
from . import Contestant, cupy_contestant, in_turns
from .updates import updater

BLOCK = 32 * 1024  # parameters that are updated at a time on a CPU: they and their moments stay in its cache


def make(problem: Problem, mode: str) -> Contestant:
    xp = _namespace(problem)
    batches = [(xp.asarray(x), xp.asarray(labels)) for x, labels in problem.batches()]
    return _contestant(xp, in_turns(batches, training_step(xp, problem)))


def product(problem: Problem, n: int) -> Contestant:
    xp = _namespace(problem)
    a = xp.asarray(np.random.default_rng(0).standard_normal((n, n), np.float32))
    out = xp.empty_like(a)
    return _contestant(xp, lambda: xp.matmul(a, a, out=out))


def environment(problem: Problem) -> dict[str, str]:
    return {"CUPY_TF32": str(int(problem.precision == "high"))}


def _namespace(problem: Problem) -> Any:
    """NumPy, or CuPy on the problem's device."""
    kind, _, index = problem.device.partition(":")
    if kind == "cpu":
        return np
    import cupy

    cupy.cuda.Device(int(index or 0)).use()
    return cupy


def _contestant(xp: Any, step: Callable[[], Any]) -> Contestant:
    return Contestant(step) if xp is np else cupy_contestant(step)


def training_step(xp: Any, problem: Problem, dtype: Any = np.float32) -> Callable[[Any, Any], Any]:
    """A function of inputs and labels that makes a step and returns the loss before it."""
    initial, batch = problem.weights(), problem.batch
    shapes = [shape for w in initial for shape in (w.shape, w.shape[:1])]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes]).tolist()
    flat, gradient = xp.zeros(ends[-1], dtype), xp.zeros(ends[-1], dtype)

    def views(buffer: Any) -> list[Any]:
        begins = [0, *ends[:-1]]
        return [buffer[i:j].reshape(shape) for i, j, shape in zip(begins, ends, shapes, strict=True)]

    parameters, gradients = views(flat), views(gradient)
    weights, biases, dweights, dbiases = parameters[::2], parameters[1::2], gradients[::2], gradients[1::2]
    for w, value in zip(weights, initial, strict=True):
        w[...] = xp.asarray(value)
    block = BLOCK if xp is np else len(flat)
    blocks = [slice(i, i + block) for i in range(0, len(flat), block)]
    update = updater(xp, problem, [flat[part] for part in blocks])
    pieces = [gradient[part] for part in blocks]

    activations = [None, *(xp.empty((batch, n), dtype) for n in problem.sizes[1:])]
    deltas = [xp.empty_like(a) for a in activations[1:]]
    activate, differentiate = ACTIVATIONS[problem.activation](xp, activations[1:-1])
    ones, rows = xp.ones(batch, dtype), xp.arange(batch)

    def step(x: Any, labels: Any) -> Any:
        activations[0] = x
        for k, (w, b) in enumerate(zip(weights, biases, strict=True)):
            z = activations[k + 1]
            xp.matmul(activations[k], w.T, out=z)
            xp.add(z, b, out=z)
            if k < len(weights) - 1:
                activate(k, z)
        logits, d = activations[-1], deltas[-1]
        xp.subtract(logits, logits.max(1, keepdims=True), out=d)
        picked = d[rows, labels]
        xp.exp(d, out=d)
        sums = d.sum(1, keepdims=True)
        loss = (xp.log(sums[:, 0]) - picked).mean()
        xp.divide(d, sums, out=d)
        d[rows, labels] -= 1
        xp.multiply(d, 1 / batch, out=d)
        for k in range(len(weights) - 1, -1, -1):
            d = deltas[k]
            xp.matmul(d.T, activations[k], out=dweights[k])
            xp.matmul(ones, d, out=dbiases[k])
            if k:
                xp.matmul(d, weights[k], out=deltas[k - 1])
                differentiate(k - 1, activations[k], deltas[k - 1])
        update(pieces)
        return loss

    return step


# --- Activations ----------------------------------------------------------------------------------------------------
#
# Of the arrays of all hidden layers, two functions: `activate(k, z)` changes layer k's pre-activations to its outputs, `differentiate(k,
# y, dy)` the cotangent of outputs to one of pre-activations.

Pair = tuple[Callable[[int, Any], None], Callable[[int, Any, Any], None]]


def _relu(xp: Any, layers: list[Any]) -> Pair:
    zeros = [xp.zeros(y.shape[1], y.dtype) for y in layers]  # an array: NumPy is three times slower with a scalar
    masks = [xp.empty(y.shape, bool) for y in layers]

    def activate(k: int, z: Any) -> None:
        xp.maximum(z, zeros[k], out=z)

    def differentiate(k: int, y: Any, dy: Any) -> None:
        xp.greater(y, zeros[k], out=masks[k])
        xp.multiply(dy, masks[k], out=dy)

    return activate, differentiate


def _tanh(xp: Any, layers: list[Any]) -> Pair:
    slopes = [xp.empty_like(y) for y in layers]

    def differentiate(k: int, y: Any, dy: Any) -> None:
        s = slopes[k]
        xp.multiply(y, y, out=s)
        xp.subtract(1, s, out=s)
        xp.multiply(dy, s, out=dy)

    return lambda k, z: xp.tanh(z, out=z), differentiate


def _logistic(xp: Any, x: Any, out: Any) -> None:
    xp.negative(x, out=out)
    xp.exp(out, out=out)
    xp.add(out, 1, out=out)
    xp.divide(1, out, out=out)


def _sigmoid(xp: Any, layers: list[Any]) -> Pair:
    slopes = [xp.empty_like(y) for y in layers]

    def differentiate(k: int, y: Any, dy: Any) -> None:
        s = slopes[k]
        xp.subtract(1, y, out=s)
        xp.multiply(s, y, out=s)
        xp.multiply(dy, s, out=dy)

    return lambda k, z: _logistic(xp, z, z), differentiate


def _silu(xp: Any, layers: list[Any]) -> Pair:
    slopes, shares = ([xp.empty_like(y) for y in layers] for _ in range(2))

    def activate(k: int, z: Any) -> None:  # y = z p, y' = p + y (1 - p)
        s, p = slopes[k], shares[k]
        _logistic(xp, z, p)
        xp.multiply(z, p, out=z)
        xp.subtract(1, p, out=s)
        xp.multiply(s, z, out=s)
        xp.add(s, p, out=s)

    return activate, lambda k, y, dy: xp.multiply(dy, slopes[k], out=dy)


def _gelu(xp: Any, layers: list[Any]) -> Pair:
    if xp is np:
        from scipy.special import erf
    else:
        from cupyx.scipy.special import erf
    slopes, shares = ([xp.empty_like(y) for y in layers] for _ in range(2))

    def activate(k: int, z: Any) -> None:  # y = z P(z), y' = P(z) + z p(z), with P and p of the normal distribution
        s, p = slopes[k], shares[k]
        xp.multiply(z, 1 / sqrt(2), out=s)
        erf(s, out=p)
        xp.add(p, 1, out=p)
        xp.multiply(p, 0.5, out=p)
        xp.multiply(s, s, out=s)
        xp.negative(s, out=s)
        xp.exp(s, out=s)
        xp.multiply(s, 1 / sqrt(2 * pi), out=s)
        xp.multiply(s, z, out=s)
        xp.add(s, p, out=s)
        xp.multiply(z, p, out=z)

    return activate, lambda k, y, dy: xp.multiply(dy, slopes[k], out=dy)


ACTIVATIONS: dict[str, Callable[[Any, list[Any]], Pair]] = {
    "relu": _relu,
    "gelu": _gelu,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "silu": _silu,
}
