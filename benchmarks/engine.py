"""What the engine itself costs on a CPU: `python -m benchmarks.engine`.

A chain of small ops, beside PyTorch in eager mode where it is installed, and the peak memory of an eager step. `gpuprop bench` times steps.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Annotated

import typer

from .problem import NETWORKS, Problem


def chain(length: int) -> dict[str, Callable[[], object]]:
    """Multiplications and additions on 16 elements, forward and backward."""
    import numpy as np

    import gpuprop as gp

    x, w, b = gp.ones(16, requires_grad=True), gp.full(16, 0.99), gp.full(16, 0.01)

    def ours() -> None:
        y = x
        for _ in range(length // 2):
            y = y * w
            y = y + b
        x.grad = None
        y.sum().backward()

    contestants: dict[str, Callable[[], object]] = {"gpuprop": ours}
    try:
        import torch
    except ImportError:
        return contestants
    tx, tw, tb = torch.ones(16, requires_grad=True), torch.full((16,), 0.99), torch.full((16,), 0.01)

    def theirs() -> None:
        y = tx
        for _ in range(length // 2):
            y = y * tw
            y = y + tb
        tx.grad = None
        y.sum().backward()

    contestants["torch"] = theirs
    ours(), theirs()
    np.testing.assert_allclose(x.grad.numpy(), tx.grad.numpy(), rtol=1e-5)
    return contestants


def peak_memory(problem: Problem) -> tuple[float, float]:
    """Peak bytes of a step, and what parameters, gradients, two moments and the activations that backward needs add up to."""
    import gc

    from .providers.gpuprop import make

    gc.collect()
    tracemalloc.start()
    batches = problem.batches()
    given = tracemalloc.get_traced_memory()[0] / len(batches) * (len(batches) - 1)  # one of them is part of the step
    contestant = make(problem, "eager")
    del batches
    for _ in range(3):
        contestant.step()
    tracemalloc.reset_peak()
    contestant.step()
    peak = tracemalloc.get_traced_memory()[1] - given
    tracemalloc.stop()
    activations = problem.batch * sum(
        problem.sizes
    )  # the input of each layer; the logits, whose gradient takes their place
    return peak, 4.0 * (4 * problem.parameters + activations)


def main(
    smoke: Annotated[bool, typer.Option(help="A few seconds, to see that it runs; the figures mean little.")] = False,
    threads: Annotated[int, typer.Option(help="Threads for every contestant's matrix products.")] = 2,
) -> None:
    """Times a chain of small ops beside PyTorch, in turns, and says what an eager step takes of memory."""
    from .harness import interleave, rows, same_threads

    same_threads(threads)

    from rich.console import Console
    from rich.table import Table

    length = 100
    timings = interleave(chain(length), rounds=3 if smoke else 15, seconds=0.01 if smoke else 0.2)
    table = Table("what", "who", "median", "10 % to 90 %", "gpuprop takes")
    for row in rows(f"chain of {length} ops on 16 elements, per op", timings, "gpuprop", 1e6 / length, "us"):
        table.add_row(*row)
    problem = NETWORKS["small" if smoke else "wide"]
    peak, parts = peak_memory(problem)
    table.add_row(f"peak memory, {problem}", "gpuprop", f"{peak / 1e6:.1f} MB", "", f"{peak / parts:.3f}x its parts")
    Console(width=None if Console().is_terminal else 110).print(table)


if __name__ == "__main__":
    typer.run(main)
