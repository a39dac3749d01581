"""One Adam step of an MLP (softmax cross-entropy), as each contestant's users would write it, from the same weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

# The rate is so low that no network learns its one batch by heart: gradients and moments that vanish are subnormal numbers, which
# processors compute with ten times slower.
LEARNING_RATE, BETA1, BETA2, EPSILON = 1e-6, 0.9, 0.999, 1e-8


class Problem:
    """Sizes, a batch and initial weights (out, in), the same for all contestants."""

    def __init__(self, sizes: list[int], batch: int, activation: str = "relu", seed: int = 0):
        rng = np.random.default_rng(seed)
        self.sizes, self.batch, self.activation = sizes, batch, activation
        self.x = rng.standard_normal((batch, sizes[0]), dtype=np.float32)
        self.labels = rng.integers(0, sizes[-1], batch)
        self.weights = [
            (rng.uniform(-1, 1, (n, m)) / np.sqrt(m)).astype(np.float32) for m, n in zip(sizes, sizes[1:], strict=False)
        ]

    def __str__(self) -> str:
        activation = "" if self.activation == "relu" else f", {self.activation}"
        return f"{'-'.join(map(str, self.sizes))}, batch {self.batch}{activation}"


def by_hand(problem: Problem) -> Callable[[], float]:
    """Plain NumPy as an expert writes it: buffers made once, `out=` everywhere, one flat buffer for all parameters."""
    if problem.activation != "relu":
        raise NotImplementedError("written for ReLU")
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
    return _gpuprop(problem, captured=False)


def gpuprop_captured(problem: Problem) -> Callable[[], object]:
    return _gpuprop(problem, captured=True)


def _gpuprop(problem: Problem, captured: bool) -> Callable[[], object]:
    import gpuprop as gp
    import gpuprop.nn.functional as F

    model = gp.nn.MLP(problem.sizes, activation=problem.activation)
    linears = [layer for layer in model.modules() if isinstance(layer, gp.nn.Linear)]
    with gp.no_grad():
        for linear, w in zip(linears, problem.weights, strict=True):
            linear.weight.copy_(w)
            linear.bias.zero_()
    optimizer = gp.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    x, labels = gp.tensor(problem.x), gp.tensor(problem.labels)

    def step(x: object, labels: object) -> object:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss

    run = gp.capture(step) if captured else step
    return lambda: run(x, labels)


def torch_eager(problem: Problem) -> Callable[[], object]:
    return _torch(problem, fused=False)


def torch_fused(problem: Problem) -> Callable[[], object]:
    return _torch(problem, fused=True)


def _torch(problem: Problem, fused: bool) -> Callable[[], object]:
    import torch

    layers: list[torch.nn.Module] = []
    for w in problem.weights:
        linear = torch.nn.Linear(w.shape[1], w.shape[0])
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(w))
            linear.bias.zero_()
        layers += [linear, {"relu": torch.nn.ReLU, "gelu": torch.nn.GELU}[problem.activation]()]
    model = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=fused)
    x, labels = torch.from_numpy(problem.x), torch.from_numpy(problem.labels)

    def run() -> object:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss

    return run


def jax_jit(problem: Problem) -> Callable[[], object]:
    import jax
    import jax.numpy as jnp

    activation = {"relu": jax.nn.relu, "gelu": lambda x: jax.nn.gelu(x, approximate=False)}[problem.activation]
    parameters = [(jnp.asarray(w), jnp.zeros(w.shape[0])) for w in problem.weights]
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    state = [parameters, zeros, jax.tree.map(jnp.zeros_like, parameters), jnp.zeros((), jnp.int32)]
    x, labels = jnp.asarray(problem.x), jnp.asarray(problem.labels)

    def loss_of(parameters: Any) -> Any:
        y = x
        for w, b in parameters[:-1]:
            y = activation(y @ w.T + b)
        w, b = parameters[-1]
        logits = jax.nn.log_softmax(y @ w.T + b)
        return -jnp.mean(jnp.take_along_axis(logits, labels[:, None], 1))

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(p: Any, m: Any, v: Any, t: Any) -> Any:
        loss, g = jax.value_and_grad(loss_of)(p)
        t = t + 1
        m = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, m, g)
        v = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, v, g)
        rate, root = LEARNING_RATE / (1 - BETA1**t), 1 / jnp.sqrt(1 - BETA2**t)
        p = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) * root + EPSILON), p, m, v)
        return p, m, v, t, loss

    def run() -> object:
        *state[:], loss = step(*state)
        return loss.block_until_ready()

    return run


def floor(problem: Problem) -> Callable[[], object]:
    """What no step on NumPy can do without: its matrix products, and one pass of Adam over the parameters in blocks that stay in cache."""
    batch, block = problem.batch, 32 * 1024
    activations = [problem.x] + [np.ones((batch, n), np.float32) for n in problem.sizes[1:]]
    products = []
    for k, w in enumerate(problem.weights):
        products.append((activations[k], w.T, np.empty((batch, len(w)), np.float32)))
        products.append((activations[k + 1].T, activations[k], np.empty_like(w)))
        if k:
            products.append((activations[k + 1], w, np.empty_like(activations[k])))
    total = sum(w.size + len(w) for w in problem.weights)
    p, g, m, v = (np.ones(total, np.float32) for _ in range(4))
    s = np.empty(block, np.float32)
    parts = [
        (p[i : i + block], g[i : i + block], m[i : i + block], v[i : i + block], s[: min(block, total - i)])
        for i in range(0, total, block)
    ]

    def run() -> float:
        for a, b, out in products:
            np.dot(a, b, out)
        for p, g, m, v, s in parts:
            np.multiply(m, BETA1, m)
            np.multiply(g, 1 - BETA1, s)
            np.add(m, s, m)
            np.multiply(v, BETA2, v)
            np.multiply(g, g, s)
            np.multiply(s, 1 - BETA2, s)
            np.add(v, s, v)
            np.sqrt(v, s)
            np.add(s, EPSILON, s)
            np.divide(m, s, s)
            np.multiply(s, LEARNING_RATE, s)
            np.subtract(p, s, p)
        return 0.0

    return run


def losses(run: Callable[[], object], steps: int) -> list[float]:
    """The losses of the first steps, to see that all contestants compute the same."""
    results = (run() for _ in range(steps))
    return [r if isinstance(r, float) else r.item() for r in results]
