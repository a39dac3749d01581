"""One Adam step of an MLP (ReLU, softmax cross-entropy), as each contestant's users would write it, from the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

LEARNING_RATE, BETA1, BETA2, EPSILON = 1e-3, 0.9, 0.999, 1e-8


class Problem:
    """Sizes, a batch and initial weights (out, in), the same for all contestants."""

    def __init__(self, sizes: list[int], batch: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.sizes, self.batch = sizes, batch
        self.x = rng.standard_normal((batch, sizes[0]), dtype=np.float32)
        self.labels = rng.integers(0, sizes[-1], batch)
        self.weights = [
            (rng.uniform(-1, 1, (n, m)) / np.sqrt(m)).astype(np.float32) for m, n in zip(sizes, sizes[1:], strict=False)
        ]

    def __str__(self) -> str:
        return f"{'-'.join(map(str, self.sizes))}, batch {self.batch}"


def by_hand(problem: Problem) -> Callable[[], float]:
    """Plain NumPy as an expert writes it: buffers made once, `out=` everywhere, one flat buffer for all parameters."""
    shapes = [s for w in problem.weights for s in (w.shape, w.shape[:1])]
    ends = np.cumsum([int(np.prod(s)) for s in shapes])
    total = int(ends[-1])
    flat, gradient, m, v, scratch = (np.zeros(total, np.float32) for _ in range(5))

    def views(buffer: np.ndarray) -> list[np.ndarray]:
        return [part.reshape(s) for part, s in zip(np.split(buffer, ends[:-1]), shapes, strict=True)]

    parameters, gradients = views(flat), views(gradient)
    weights, biases = parameters[::2], parameters[1::2]
    dweights, dbiases = gradients[::2], gradients[1::2]
    for w, initial in zip(weights, problem.weights, strict=True):
        w[...] = initial
    activations = [problem.x] + [np.empty((problem.batch, n), np.float32) for n in problem.sizes[1:]]
    deltas = [np.empty_like(a) for a in activations[1:]]
    masks = [np.empty(a.shape, bool) for a in activations[1:-1]]
    ones, rows, labels = np.ones(problem.batch, np.float32), np.arange(problem.batch), problem.labels
    zero = np.float32(0)
    step = 0

    def run() -> float:
        nonlocal step
        for k, (w, b) in enumerate(zip(weights, biases, strict=True)):
            z = activations[k + 1]
            np.matmul(activations[k], w.T, out=z)
            z += b
            if k < len(weights) - 1:
                np.maximum(z, zero, out=z)
        logits, d = activations[-1], deltas[-1]
        np.subtract(logits, logits.max(1, keepdims=True), out=d)
        picked = d[rows, labels]
        np.exp(d, out=d)
        sums = d.sum(1, keepdims=True)
        loss = float((np.log(sums[:, 0]) - picked).mean())
        d /= sums
        d[rows, labels] -= 1
        d *= np.float32(1 / problem.batch)
        for k in range(len(weights) - 1, -1, -1):
            d = deltas[k]
            np.matmul(d.T, activations[k], out=dweights[k])
            np.matmul(ones, d, out=dbiases[k])
            if k:
                np.matmul(d, weights[k], out=deltas[k - 1])
                np.greater(activations[k], zero, out=masks[k - 1])
                deltas[k - 1] *= masks[k - 1]
        step += 1
        np.multiply(gradient, np.float32(1 - BETA1), out=scratch)
        np.multiply(m, np.float32(BETA1), out=m)
        np.add(m, scratch, out=m)
        np.multiply(gradient, gradient, out=scratch)
        np.multiply(scratch, np.float32(1 - BETA2), out=scratch)
        np.multiply(v, np.float32(BETA2), out=v)
        np.add(v, scratch, out=v)
        np.sqrt(v, out=scratch)
        np.multiply(scratch, np.float32(1 / np.sqrt(1 - BETA2**step)), out=scratch)
        np.add(scratch, np.float32(EPSILON), out=scratch)
        np.divide(m, scratch, out=scratch)
        np.multiply(scratch, np.float32(LEARNING_RATE / (1 - BETA1**step)), out=scratch)
        np.subtract(flat, scratch, out=flat)
        return loss

    return run


def gpuprop_eager(problem: Problem) -> Callable[[], object]:
    import gpuprop as gp
    import gpuprop.nn.functional as F

    model = gp.nn.MLP(problem.sizes, activation="relu")
    linears = [layer for layer in model.modules() if isinstance(layer, gp.nn.Linear)]
    with gp.no_grad():
        for linear, w in zip(linears, problem.weights, strict=True):
            linear.weight.copy_(w)
            linear.bias.zero_()
    optimizer = gp.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    x, labels = gp.tensor(problem.x), gp.tensor(problem.labels)

    def run() -> object:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss

    return run


def torch_eager(problem: Problem) -> Callable[[], object]:
    import torch

    layers: list[torch.nn.Module] = []
    for w in problem.weights:
        linear = torch.nn.Linear(w.shape[1], w.shape[0])
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(w))
            linear.bias.zero_()
        layers += [linear, torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    x, labels = torch.from_numpy(problem.x), torch.from_numpy(problem.labels)

    def run() -> object:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss

    return run


def losses(run: Callable[[], object], steps: int) -> list[float]:
    """The losses of the first steps, to see that all contestants compute the same."""
    results: list[Any] = [run() for _ in range(steps)]
    return [r if isinstance(r, float) else r.item() for r in results]
