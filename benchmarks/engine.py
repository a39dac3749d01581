"""What the engine itself costs on a CPU: `python -m benchmarks.engine`.

A chain of small ops, whole Adam steps of a small and of a middle-sized MLP, and the peak memory of a step; beside NumPy by hand and, where
it is installed, PyTorch in eager mode.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Annotated

import typer


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


def steps(sizes: list[int], batch: int) -> dict[str, Callable[[], object]]:
    """Contestants for one network, after a look that they compute the same losses."""
    import numpy as np

    from .mlp_steps import Problem, by_hand, gpuprop_eager, losses, torch_eager

    makers = {"gpuprop": gpuprop_eager, "numpy": by_hand, "torch": torch_eager}
    contestants = {}
    reference: list[float] = []
    for name, make in makers.items():
        try:
            run = make(Problem(sizes, batch))
        except ImportError:
            continue
        first = losses(run, 5)
        reference = reference or first
        np.testing.assert_allclose(first, reference, rtol=1e-3, err_msg=f"{name} computes something else")
        contestants[name] = run
    return contestants


def peak_memory(sizes: list[int], batch: int) -> tuple[float, float]:
    """Peak bytes of a step, and what parameters, gradients, moments and the activations that backward needs add up to."""
    import gc

    from .mlp_steps import Problem, gpuprop_eager

    gc.collect()
    tracemalloc.start()
    problem = Problem(sizes, batch)
    given = tracemalloc.get_traced_memory()[0]
    run = gpuprop_eager(problem)
    for _ in range(3):
        run()
    tracemalloc.reset_peak()
    run()
    peak = tracemalloc.get_traced_memory()[1] - given
    tracemalloc.stop()
    parameters = sum(w.size + w.shape[0] for w in problem.weights)
    activations = batch * sum(sizes)  # the input of each layer; the logits, whose gradient takes their place
    return peak, 4.0 * (4 * parameters + activations)


def main(
    smoke: Annotated[bool, typer.Option(help="A few seconds, to see that it runs; the figures mean little.")] = False,
    threads: Annotated[int, typer.Option(help="Threads for every contestant's matrix products.")] = 2,
) -> None:
    """Times gpuprop's eager mode beside NumPy by hand and PyTorch, in turns, and prints medians and ratios."""
    from .harness import interleave, rows, same_threads

    same_threads(threads)

    from rich.console import Console
    from rich.table import Table

    times, seconds = (3, 0.01) if smoke else (15, 0.2)
    small, middle = ([64, 64, 64, 10], 32), ([784, 1024, 1024, 10], 512)
    length = 100
    measured = [
        (f"chain of {length} ops on 16 elements, per op", chain(length), 1e6 / length, "us"),
        (f"Adam step, {'-'.join(map(str, small[0]))}, batch {small[1]}", steps(*small), 1e6, "us"),
        (f"Adam step, {'-'.join(map(str, middle[0]))}, batch {middle[1]}", steps(*middle), 1e3, "ms"),
    ]
    table = Table("what", "who", "median", "10 % to 90 %", "gpuprop takes")
    for what, contestants, scale, unit in measured:
        timings = interleave(contestants, rounds=times, seconds=seconds)
        for row in rows(what, timings, "gpuprop", scale, unit):
            table.add_row(*row)
    peak, sum_of_parts = peak_memory(*middle)
    table.add_row(
        f"peak memory, {'-'.join(map(str, middle[0]))}",
        "gpuprop",
        f"{peak / 1e6:.1f} MB",
        "",
        f"{peak / sum_of_parts:.3f}x its parts",
    )
    Console(width=None if Console().is_terminal else 110).print(table)


if __name__ == "__main__":
    typer.run(main)
