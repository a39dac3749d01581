"""`flat`: binds a rule of `optim.cu` to an optimizer, so that a step is one launch however many parameters and groups there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .segments import HERE, SEGMENT, SEGMENTS, Mirror, SegmentTable, address, arithmetic, types
from .source import FORMATS, THREADS, Kernel, every_kernel, kernel

if TYPE_CHECKING:
    from ..optim.optimizer import Run

_rules: set[str] = set()


class Flat:
    """A rule of `optim.cu`, and the names of the states that it keeps, in its order; a state that a group lacks is left out."""

    def __init__(self, rule: str, *slots: str):
        self.rule, self.slots = rule, slots
        _rules.add(rule)

    def takes(self, dtype: Any) -> bool:
        """Whether there is a kernel for parameters of a dtype."""
        return np.dtype(dtype).name in FORMATS

    def stepper(self, dtype: Any) -> FlatStep:
        """What makes the steps of one optimizer for parameters of one device and dtype."""
        return FlatStep(self, np.dtype(dtype))


class FlatStep:
    """The device's side of an optimizer: where everything lies, the options of each group, and how many steps were made.

    All of it is compared with the host's view at each step and sent where it differs: in a steady step nothing is. The counts are
    advanced on the device and, in parallel, in their mirror.
    """

    def __init__(self, flat: Flat, dtype: np.dtype):
        self.flat, self.dtype = flat, dtype
        self.table, self.options, self.counts = SegmentTable(dtype), Mirror(), Mirror()
        self.rows: list[tuple[float, ...]] = []
        self._norm: Any = None

    def load(self, runs: Sequence[tuple[int, Run]]) -> None:
        """Takes the runs that the next steps update, each with the number of its group."""
        rows = np.zeros(len(runs), SEGMENT)
        for row, (group, run) in zip(rows, runs):
            row["parameter"], row["gradient"] = address(run.values), address(run.gradient)
            row["state"] = [address(run.states.get(slot)) for slot in self.flat.slots] + [0] * (
                3 - len(self.flat.slots)
            )
            row["average"], row["size"], row["options"] = address(run.average), run.values.size, group
        self.table.load(rows)

    def norm(self) -> Any:
        """The norm of the gradients that were loaded, as a 0-d array that the next call overwrites."""
        import cupy

        if self._norm is None:
            self._norm = cupy.empty((), arithmetic(self.dtype))
        return self.table.norm(out=self._norm)

    def refresh(self, runs: Sequence[tuple[int, Run]], rows: list[tuple[float, ...]]) -> None:
        """Sends the options of the groups and the step counts where they have changed; before a recorded step is replayed, too."""
        if rows != self.rows:
            self.options.update(np.array(rows, arithmetic(self.dtype)))
            self.rows = rows
        known = self.counts.words[1:].tolist()
        if len(known) != len(runs):
            known = [-1] * len(runs)
        made = [run.records[0]["step"] if run.records else max(known[i], 0) for i, (_, run) in enumerate(runs)]
        if made != known:
            self.counts.update(np.array([0, *made], np.uint32))

    def count(self, skips: bool) -> None:
        """Counts a step, as the kernel does; where it may skip, only the device knows."""
        if not skips:
            self.counts.words[1:] += 1

    def step(
        self, runs: Sequence[tuple[int, Run]], rows: list[tuple[float, ...]], norm: Any, scale: Any, skip: Any
    ) -> None:
        """Makes a step of the runs that were loaded. rows: the options by group. norm, scale, skip: 0-d arrays or None."""
        from .launch import multiprocessors

        if not self.table.chunks:
            return
        self.refresh(runs, rows)
        blocks = min(self.table.chunks, 16 * multiprocessors())
        state = (self.options.memory, self.counts.memory, *(self._scalar(x) for x in (norm, scale, skip)))
        _step(self.flat.rule, self.dtype.name)((blocks,), (THREADS,), (*self.table.arguments(), *state))
        self.count(skip is not None)

    def steps(self) -> list[int]:
        """The step counts of the runs that were loaded; waits for the device."""
        import cupy

        self.counts.words = cupy.asnumpy(self.counts.memory[: self.table.count + 1])
        return self.counts.words[1:].tolist()

    def _scalar(self, value: Any) -> Any:
        return None if value is None else value.astype(arithmetic(self.dtype), copy=False)


def _step(rule: str, dtype: str) -> Kernel:
    parameters = (
        f"{SEGMENTS}, const Row<R, A>* rows, unsigned int* counts, const A* norm, const A* scale, const A* skip"
    )
    body = f"optimizer_step<R, T, A>({HERE}, rows, counts, norm, scale, skip);"
    typedefs = f"{types(dtype)}\ntypedef {rule}<A> R;"
    return kernel("optim.cu", f"{rule}_step_{dtype}".lower(), parameters, body, (dtype,), THREADS, typedefs)


@every_kernel
def _() -> Iterator[Kernel]:
    for rule in sorted(_rules):
        for dtype in FORMATS:
            yield _step(rule, dtype)


def flat(rule: str, *slots: str) -> Flat:
    """Binds a rule to an optimizer: `class Adagrad(Optimizer, cuda=flat("Adagrad", "sum"))`. CuPy is not imported before the first step."""
    return Flat(rule, *slots)
