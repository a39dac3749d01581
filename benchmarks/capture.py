"""A captured training step on a CPU: `python -m benchmarks.capture`, beside gpuprop's eager step, NumPy by hand, PyTorch and JAX.

The floor is measured in the same run: the step's matrix products by NumPy, and one pass of Adam over its parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

NETWORKS = {
    "small": ([64, 64, 64, 10], 32, "relu"),
    "middle": ([784, 256, 128, 10], 128, "relu"),
    "wide": ([784, 1024, 1024, 10], 512, "relu"),
    "huge": ([784, 2048, 2048, 2048, 10], 1024, "relu"),
    "gelu": ([256, 512, 512, 512, 512, 16], 256, "gelu"),
}


def products(n: int = 1024) -> dict[str, Callable[[], object]]:
    """One matrix product (n, n) x (n, n) by the libraries of the contestants: where they differ, so do whole steps."""
    import numpy as np

    a = np.ones((n, n), np.float32)
    out = np.empty_like(a)
    contestants: dict[str, Callable[[], object]] = {"NumPy": lambda: np.dot(a, a, out)}
    try:
        import torch
    except ImportError:
        return contestants
    b = torch.ones(n, n)
    return contestants | {"PyTorch": lambda: torch.mm(b, b)}


def main(
    networks: Annotated[str, typer.Option(help=f"Which, by commas: {', '.join(NETWORKS)}.")] = ",".join(NETWORKS),
    smoke: Annotated[bool, typer.Option(help="A few seconds, to see that it runs; the figures mean little.")] = False,
    threads: Annotated[int, typer.Option(help="Threads for every contestant.")] = 2,
) -> None:
    """Times a captured Adam step beside others, in turns, and prints medians and ratios."""
    from .harness import interleave, rows, same_threads

    same_threads(threads)

    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from . import mlp_steps as steps

    makers = {
        "gpuprop captured": steps.gpuprop_captured,
        "gpuprop eager": steps.gpuprop_eager,
        "numpy by hand": steps.by_hand,
        "torch": steps.torch_eager,
        "torch, fused Adam": steps.torch_fused,
        "jax jit": steps.jax_jit,
    }
    table = Table("network", "who", "median", "10 % to 90 %", "captured takes")
    for network in ["small"] if smoke else networks.split(","):
        sizes, batch, activation = NETWORKS[network]
        contestants, reference = {}, None
        for name, make in makers.items():
            try:
                run = make(steps.Problem(sizes, batch, activation))
            except (ImportError, NotImplementedError):
                continue
            first = steps.losses(run, 5)
            reference = reference or first
            np.testing.assert_allclose(first, reference, rtol=1e-3, err_msg=f"{name} computes something else")
            contestants[name] = run
        contestants["floor: products, Adam"] = steps.floor(steps.Problem(sizes, batch, activation))
        timings = interleave(contestants, rounds=3 if smoke else 15, seconds=0.01 if smoke else 0.2)
        unit = (1e6, "us") if timings["gpuprop captured"].median < 1e-3 else (1e3, "ms")
        for row in rows(str(steps.Problem(sizes, batch, activation)), timings, "gpuprop captured", *unit):
            table.add_row(*row)
    console = Console(width=None if Console().is_terminal else 120)
    console.print(table)
    rates = interleave(products(), rounds=3 if smoke else 15, seconds=0.01 if smoke else 0.1)
    said = ", ".join(f"{name} {2 * 1024**3 / timing.median / 1e9:.0f} GFLOP/s" for name, timing in rates.items())
    console.print(f"products of 1024 x 1024 float32 matrices: {said}")


if __name__ == "__main__":
    typer.run(main)
