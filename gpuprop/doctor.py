"""What this machine has, and whether each of its devices computes right: gradients checked, a small network trained."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from . import __version__, optim
from ._tensor import Tensor, tensor
from .device import Device, backend_for, device_report, device_scope
from .nn import MLP
from .nn import functional as F
from .tape import no_grad

PACKAGES = ("numpy", "scipy", "safetensors", "matplotlib", "pyarrow")


def examine(say: Callable[[str], object]) -> bool:
    """Reports line by line; returns whether every device passed its test."""
    report = device_report()
    say(f"gpuprop      {__version__}, Python {platform.python_version()} on {platform.platform()}")
    versions = [f"{name} {_version(name)}" for name in PACKAGES]
    say(f"packages     {', '.join(versions)}, cupy {report['cupy'] or 'not installed'}")
    say(f"device       {report['default']}: {report['reason']}")
    devices = [Device("cpu")]
    for row in report["cuda"]:
        devices.append(Device("cuda", row["index"]))
        major, minor = row["capability"]
        say(f"cuda:{row['index']:<8}{row['name']}, compute capability {major}.{minor}, {row['memory'] / 2**30:.0f} GiB")
    if report["cuda"] and not backend_for(devices[-1]).uses_implementations:
        say("kernels      off, by GPUPROP_KERNELS: generic rules run through CuPy")
    if report["cublaslt"]:
        say(f"products     by cuBLASLt {report['cublaslt']}")
    elif report["cuda"]:
        say(f"products     by CuPy, which cannot capture them: {report['cublaslt_reason']}")
    if not report["cuda"]:
        say(f"cuda         none: {report['cuda_reason']}")
    passed = [_passes(device, say) for device in devices]  # each of them, also after one that failed
    return all(passed)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _passes(device: Device, say: Callable[[str], object]) -> bool:
    begin = time.perf_counter()
    try:
        worst = gradient_error(device)
        first, last = losses(device)
    except Exception as error:  # whatever it is, the other devices are to be tested too
        say(
            f"self-test    {device}: failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        )
        return False
    good = worst < 1e-6 and last < first / 2
    say(
        f"self-test    {device}: {'passed' if good else 'FAILED'} in {time.perf_counter() - begin:.1f} s "
        f"(gradients agree to {worst:.0e}; loss {first:.3f} -> {last:.3f} in 50 steps)"
    )
    return good


def gradient_error(device: Device) -> float:
    """The largest relative error of a small network's gradients in float64, against central differences."""
    rng = np.random.default_rng(0)
    x = tensor(rng.standard_normal((7, 3)), device=device)
    labels = tensor(rng.integers(0, 4, 7), device=device)
    weights = [rng.standard_normal(shape) for shape in ((5, 3), (5,), (4, 5), (4,))]

    def loss(arrays: list[np.ndarray]) -> tuple[Tensor, list[Tensor]]:
        leaves = [tensor(a, device=device, requires_grad=True) for a in arrays]
        w1, b1, w2, b2 = leaves
        return F.cross_entropy(F.linear(F.linear(x, w1, b1).tanh(), w2, b2), labels), leaves

    value, leaves = loss(weights)
    value.backward()
    worst, step = 0.0, 1e-6
    for i, leaf in enumerate(leaves):
        direction = rng.standard_normal(weights[i].shape)
        ends = []
        for sign in (1, -1):
            moved = list(weights)
            moved[i] = weights[i] + sign * step * direction
            with no_grad():
                ends.append(loss(moved)[0].item())
        numeric = (ends[0] - ends[1]) / (2 * step)
        exact = float(np.sum(leaf.grad.numpy() * direction))  # type: ignore[union-attr]
        worst = max(worst, abs(exact - numeric) / max(abs(numeric), 1e-3))
    return worst


def losses(device: Device) -> tuple[float, float]:
    """The loss of a small network on separable data before and after 50 steps of Adam."""
    rng = np.random.default_rng(1)
    points = rng.standard_normal((64, 8)).astype(np.float32)
    x, labels = tensor(points, device=device), tensor((points @ rng.standard_normal((8, 3))).argmax(1), device=device)
    with device_scope(device):
        model = MLP([8, 64, 3], seed=0, device=device)
        optimizer = optim.Adam(model.parameters(), lr=0.01)
        history = []
        for _ in range(51):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), labels)
            history.append(loss.detach())
            loss.backward()
            optimizer.step()
    return history[0].item(), history[-1].item()
