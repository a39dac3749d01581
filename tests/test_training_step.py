"""What a training step may cost: no copies and no waiting on a GPU, no more memory than its parts on a CPU."""

import gc
import threading
import tracemalloc

import numpy as np
import pytest

import gpuprop as gp
import gpuprop.nn.functional as F
from gpuprop import nn
from gpuprop._op import REGISTRY
from gpuprop.cuda.source import Kernel
from gpuprop.ops.fused import fusible


def make_step(sizes, batch, device, activation="relu"):
    rng = np.random.default_rng(0)
    model = gp.nn.MLP(sizes, activation=activation, seed=1).to(device)
    optimizer = gp.optim.Adam(model.parameters(), lr=1e-3)
    x = gp.tensor(rng.standard_normal((batch, sizes[0]), dtype=np.float32), device=device)
    labels = gp.tensor(rng.integers(0, sizes[-1], batch), device=device)

    def step():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss

    return model, step


def test_a_step_learns_and_agrees_on_all_devices(device):
    model, step = make_step([6, 9, 4], 20, device)
    reference, reference_step = make_step([6, 9, 4], 20, "cpu")
    losses = [step().item() for _ in range(30)]
    expected = [reference_step().item() for _ in range(30)]
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    for p, q in zip(model.parameters(), reference.parameters()):
        np.testing.assert_allclose(p.numpy(), q.numpy(), rtol=1e-3, atol=1e-5)


# --- On a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
def test_a_step_neither_copies_nor_waits(count, activation):
    _, step = make_step([20, 16, 16, 5], 12, "cuda", activation)
    for _ in range(2):  # compiles, allocates
        step()
    counted = count(step)
    assert counted["host_to_device"] == counted["device_to_host"] == counted["synchronizations"] == 0
    assert (
        counted["kernel_launches"] > 0 and counted["gemm_calls"] == 3 + 3 + 2
    )  # the first layer's input gradient does not exist
    assert counted["mallocs"] == 0  # the pool has what a step needs


ACTIVATIONS = sorted(name for name in REGISTRY if fusible(name) is not None)
assert "prelu" in ACTIVATIONS


@pytest.mark.cuda
@pytest.mark.parametrize("activation", [*ACTIVATIONS, pytest.param(lambda: nn.PReLU(1024), id="prelu of each column")])
def test_a_step_is_5_launches_per_layer_less_one(count, monkeypatch, reference_path, activation):
    """Of L layers: 3 L - 1 products, L - 1 times bias and activation, L - 1 times their gradients, the loss, and the optimizer."""
    layers, launched = 3, []
    launch = Kernel.__call__
    _, step = make_step([784, 1024, 1024, 10], 512, "cuda", activation)
    for _ in range(2):
        step()
    monkeypatch.setattr(
        Kernel, "__call__", lambda self, *args, **more: (launched.append(self.name), launch(self, *args, **more))
    )
    counted = count(step)
    functor = activation.replace("_", "").lower() if isinstance(activation, str) else "prelu"
    assert counted["gemm_calls"] == 3 * layers - 1
    assert counted["kernel_launches"] == len(launched) == 2 * layers  # so no launch is CuPy's
    assert [name.split("_float32")[0] for name in launched] == [
        *[f"{functor}_bias_forward"] * (layers - 1),
        "cross_entropy_int64_biased",
        *[f"{functor}_bias_backward"] * (layers - 1),
        "adam_step",
    ]
    assert counted["memsets"] == 0


@pytest.mark.parametrize("activations", [lambda: (nn.GELU(), nn.ReLU()), lambda: (nn.PReLU(9), nn.PReLU())])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_micro_batches_add_up_to_those_of_the_batch(device, bias, activations):
    rng = np.random.default_rng(0)
    x = gp.tensor(rng.standard_normal((12, 6)), device=device)
    labels = gp.tensor(rng.integers(0, 4, 12), device=device)

    def gradients(parts):
        sizes = [6, 9, 7, 4]
        layers = [
            nn.Linear(n, m, bias=bias, dtype=np.float64, generator=gp.Generator("cpu", n))
            for n, m in zip(sizes, sizes[1:])
        ]
        first, second = activations()
        model = nn.Sequential(layers[0], first, layers[1], second, layers[2]).to(device).double()
        for part in parts:
            F.cross_entropy(model(x[part]), labels[part], reduction="sum").backward()
        return [p.grad.numpy() for p in model.parameters()]

    thirds = gradients([slice(0, 4), slice(4, 8), slice(8, 12)])
    for a, b in zip(thirds, gradients([slice(0, 12)]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.cuda
def test_reading_the_loss_is_what_copies(count):
    _, step = make_step([20, 16, 5], 12, "cuda")
    loss = step()
    assert count(lambda: loss.item())["device_to_host"] >= 1


# --- On a CPU -------------------------------------------------------------------------------------------------------


def test_peak_memory_of_a_step():
    sizes, batch = [784, 1024, 1024, 10], 512
    gc.collect()
    tracemalloc.start()
    try:
        model, step = make_step(sizes, batch, "cpu")
        inputs = 4 * batch * sizes[0] + 8 * batch
        step(), step()
        tracemalloc.reset_peak()
        step()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    parameters = sum(p.size for p in model.parameters())
    parts = 4 * (4 * parameters + batch * sum(sizes[1:])) + inputs
    assert peak <= 1.1 * parts


def test_two_threads_train_as_if_alone():
    def train(seed, losses):
        _, step = make_step([6, 8, 3], 10 + seed, "cpu")
        losses[seed] = [step().item() for _ in range(40)]

    alone: dict = {}
    together: dict = {}
    for seed in (0, 1):
        train(seed, alone)
    threads = [threading.Thread(target=train, args=(seed, together)) for seed in (0, 1)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert together == alone
