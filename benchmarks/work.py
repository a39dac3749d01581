"""What a step has to do at least, read off the arrays that pass when gpuprop makes one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from .problem import Problem


@dataclass(frozen=True)
class Work:
    """flops: of all matrix products. nbytes: every array that outlives the step (parameters, gradients, moments, the batch) is read once
    if it is read, and written once if it is written. What the step makes in between may stay in a cache, and does not count."""

    flops: int
    nbytes: int


def count(problem: Problem) -> Work:
    """Records the step on the CPU, and looks at the arrays of its calls."""
    import gpuprop as gp

    from .providers.gpuprop import training_step

    function, optimizer = training_step(replace(problem, device="cpu", precision="highest"))
    step = gp.capture(function)
    for x, labels in problem.batches()[:2]:  # the first call is listened to, the second recorded
        step(gp.tensor(x), gp.tensor(labels))
    program = step.recording.program
    flops = 0
    read, written = list[np.ndarray](), list[np.ndarray]()
    for node in program.nodes:
        if node.function in (np.dot, np.matmul):
            a, b = node.args[:2]
            flops += 2 * a.size * (b.size // b.shape[0])
        read += node.reads()
        written += [*node.results, *node.writes]
    moments = optimizer.arrays(optimizer._work)  # and parameters: all that the optimizer changes
    read += [*moments, *(p.grad.numpy() for p in optimizer.param_groups[0]["params"])]
    within = _addresses(program.arena)
    return Work(flops, _distinct(read, within) + _distinct([*written, *moments], within))


def _addresses(array: np.ndarray) -> tuple[int, int]:
    return np.lib.array_utils.byte_bounds(array)


def _distinct(arrays: Iterable[np.ndarray], besides: tuple[int, int]) -> int:
    """Bytes that some of the arrays cover, those within `besides` left out."""
    total = covered = 0
    for begin, end in sorted(_addresses(array) for array in arrays if array.size):
        if besides[0] <= begin < besides[1]:
            continue
        total += max(0, end - max(begin, covered))
        covered = max(covered, end)
    return total
