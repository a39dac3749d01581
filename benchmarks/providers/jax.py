"""JAX: the whole step under `jit`, with parameters and moments donated."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ..problem import BETA1, BETA2, EPSILON, MOMENTUM, WEIGHT_DECAY, Problem
from . import Contestant, Unsupported, in_turns


def make(problem: Problem, mode: str) -> Contestant:
    jax = _prepare(problem)
    import jax.numpy as jnp

    activation = {
        "relu": jax.nn.relu,
        "gelu": functools.partial(jax.nn.gelu, approximate=False),
        "tanh": jnp.tanh,
        "sigmoid": jax.nn.sigmoid,
        "silu": jax.nn.silu,
    }[problem.activation]
    parameters = [(jnp.asarray(w), jnp.zeros(w.shape[0])) for w in problem.weights()]
    zeros = lambda: jax.tree.map(jnp.zeros_like, parameters)
    rate = problem.rate

    def loss_of(parameters: Any, x: Any, labels: Any) -> Any:
        for w, b in parameters[:-1]:
            x = activation(x @ w.T + b)
        w, b = parameters[-1]
        logits = jax.nn.log_softmax(x @ w.T + b)
        return -jnp.mean(jnp.take_along_axis(logits, labels[:, None], 1))

    def sgd(p: Any, g: Any, state: tuple, t: Any) -> Any:
        return jax.tree.map(lambda p, g: p - rate * g, p, g), state

    def momentum(p: Any, g: Any, state: tuple, t: Any) -> Any:
        b = jax.tree.map(lambda b, g: MOMENTUM * b + g, state[0], g)
        return jax.tree.map(lambda p, b: p - rate * b, p, b), (b,)

    def adam(p: Any, g: Any, state: tuple, t: Any) -> Any:
        m = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, state[0], g)
        v = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, state[1], g)
        scale, root = rate / (1 - BETA1**t), 1 / jnp.sqrt(1 - BETA2**t)
        decay = 1 - rate * WEIGHT_DECAY if problem.optimizer == "adamw" else 1
        move = lambda p, m, v: p * decay - scale * m / (jnp.sqrt(v) * root + EPSILON)
        return jax.tree.map(move, p, m, v), (m, v)

    update, states = {"sgd": (sgd, 0), "momentum": (momentum, 1), "adam": (adam, 2), "adamw": (adam, 2)}[
        problem.optimizer
    ]

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(p: Any, state: Any, t: Any, x: Any, labels: Any) -> Any:
        loss, g = jax.value_and_grad(loss_of)(p, x, labels)
        p, state = update(p, g, state, t + 1)
        return p, state, t + 1, loss

    held = [parameters, tuple(zeros() for _ in range(states)), jnp.zeros((), jnp.int32), None]

    def run(x: Any, labels: Any) -> Any:
        held[:] = step(*held[:3], x, labels)
        return held[3]

    batches = [(jnp.asarray(x), jnp.asarray(labels)) for x, labels in problem.batches()]
    jax.block_until_ready(batches)
    peak = None
    if problem.device.startswith("cuda"):
        peak = lambda: jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]
    return Contestant(in_turns(batches, run), lambda: jax.block_until_ready(held), peak_bytes=peak)


def product(problem: Problem, n: int) -> Contestant:
    jax = _prepare(problem)
    import jax.numpy as jnp

    a = jnp.asarray(np.random.default_rng(0).standard_normal((n, n), np.float32))
    multiply, results = jax.jit(jnp.matmul), [a]

    def step() -> Any:
        results[0] = multiply(a, a)
        return results[0]

    return Contestant(step, lambda: results[0].block_until_ready())


def environment(problem: Problem) -> dict[str, str]:
    kind = problem.device.partition(":")[0]
    # Without preallocation: other providers have their networks on the same GPU.
    return {"JAX_PLATFORMS": kind, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def _prepare(problem: Problem) -> Any:
    import jax

    kind, _, index = problem.device.partition(":")
    if kind == "cuda":
        try:
            jax.local_devices()
        except Exception as error:  # of several kinds, AssertionError among them
            raise Unsupported("JAX finds no GPU, or was installed without CUDA") from error
        jax.config.update("jax_default_device", jax.local_devices()[int(index or 0)])
        precision = {"highest": "float32", "high": "tensorfloat32"}[problem.precision]
        jax.config.update("jax_default_matmul_precision", precision)
    return jax
