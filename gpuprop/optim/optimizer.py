"""The base of the optimizers: parameter groups, state, and runs of neighbouring parameters that are updated as one array."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from .._tensor import Tensor, number
from ..device import BACKENDS, CPU, Device, device_of, device_scope
from ..errors import ArgumentError, CheckpointError, OptionError
from ..nn.parameter import Parameter, Segment, flat_zeros, padded
from ..tape import enable_grad, is_floating

# Elements per block of an update on a CPU. All arrays of a block stay in the second-level cache: an Adam step of 1.86 million
# float32 takes 5.0 ms unblocked, 2.9 ms in blocks of 32K, 3.2 ms in blocks of 16K, 4.6 ms in blocks of 4K.
BLOCK = 32 * 1024


class Place(NamedTuple):
    """Where one parameter's state of one name lies in a flat array."""

    flat: Any
    start: int


class Run:
    """Parameters that lie side by side, with their gradients and their state, and have made the same number of steps."""

    __slots__ = ("blocks", "cells", "loose", "members", "states", "xp")

    def __init__(self, members: list[Tensor], states: list[dict[str, Any]]):
        self.members = members
        self.states = states
        self.cells = [p.version() for p in members]
        self.loose: Callable[[], None] | None = None  # writes back what could not be updated where it lies
        self.xp: Any = BACKENDS[type(members[0].data)].xp
        self.blocks: list[tuple] = []


class Table(NamedTuple):
    """The runs of a group, and what they were made for."""

    watched: list[tuple[Any, Any, Any]]  # leaf, array, gradient at home (None: there was no gradient)
    names: tuple[str, ...]
    runs: list[Run]


class Optimizer:
    """Updates parameters from their gradients. `step()` reads the options from `param_groups` each time.

    params: parameters, or dicts with "params" and options of their own.
    A parameter without a gradient is skipped, and its step count does not advance. `state[p]` holds the step count and, under
    PyTorch's names, tensors that are views of flat memory: change them in place or with `load_state_dict`.
    """

    scratch = 2  # arrays that `update` needs beside those that it updates

    def __init__(self, params: Iterable, defaults: dict[str, Any]):
        self.defaults = defaults
        self.param_groups: list[dict[str, Any]] = []
        self.state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        self._places: dict[tuple[Tensor, str], Place] = {}
        self._tables: dict[int, Table] = {}
        if isinstance(params, (Tensor, str)) or not isinstance(params, Iterable):
            raise ArgumentError(
                f"{self.name}: expected parameters in a list or iterator, got {type(params).__name__}; use model.parameters()"
            )
        given = list(params)
        if not given:
            raise OptionError(f"{self.name}: expected at least one parameter, got an empty list")
        for group in given if isinstance(given[0], dict) else [{"params": given}]:
            self.add_param_group(group)

    @property
    def name(self) -> str:
        return type(self).__name__

    # --- what a subclass says -----------------------------------------------------------------------------------

    def check(self, group: dict[str, Any]) -> None:
        """Raises OptionError for options of a group that make no sense."""

    def state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The names of the arrays that `update` keeps per parameter, in its order."""
        return ()

    def first_value(self, group: dict[str, Any]) -> float:
        """What new state is filled with."""
        return 0.0

    def update(self, xp: Any, group: dict[str, Any], step: int, blocks: list[tuple]) -> None:
        """Makes one step on flat arrays: each block is (parameter, gradient, *state, *scratch); the gradient is only read."""
        raise NotImplementedError

    # --- steps --------------------------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient. `closure` computes the loss and its gradients first; its loss is returned."""
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        now = next(number)
        for index, group in enumerate(self.param_groups):
            names = self.state_names(group)
            table = self._tables.get(index)
            if table is None or table.names != names or not _still_holds(table.watched):
                table = self._tables[index] = self._tabulate(group, names)
            for run in table.runs:
                step = 0
                for state in run.states:
                    step = state["step"] = state["step"] + 1
                self.update(run.xp, group, step, run.blocks)
                for cell in run.cells:
                    cell[0] = now
                if run.loose is not None:
                    run.loose()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients, which touches no memory; or overwrites them with zeros."""
        for group in self.param_groups:
            for p in group["params"]:
                leaf = p._leaf
                if leaf is None or leaf.grad is None:
                    continue
                if set_to_none:
                    leaf.grad = None
                else:
                    leaf.grad = leaf.grad.detach().zero_()

    # --- runs ---------------------------------------------------------------------------------------------------

    def _tabulate(self, group: dict[str, Any], names: tuple[str, ...]) -> Table:
        """Sorts a group's parameters with gradients into maximal runs, in the order in which they lie in memory."""
        watched, flat, loose = [], [], []
        for p in group["params"]:
            watched.append((p._leaf, p.data, p.grad.data if p.grad is not None and _lies_flat(p) else None))
            if p.grad is not None:
                (flat if _lies_flat(p) else loose).append(p)
        flat.sort(key=lambda p: (id(p.segment.chunk), p.segment.start))
        self._find_places([*flat, *loose], group, names)
        runs: list[list[Tensor]] = []
        for p in flat:
            if runs and self._continues(runs[-1][-1], p, names):
                runs[-1].append(p)
            else:
                runs.append([p])
        made = [self._flat_run(members, names) for members in runs]
        made += [self._loose_run(p, names) for p in loose]
        # A gradient that is not at home may be another array in each step: such a table serves once.
        return Table([] if not loose else [(None, None, None)], names, made) if False else Table(watched, names, made)

    def _continues(self, before: Any, p: Any, names: tuple[str, ...]) -> bool:
        ours, theirs = p.segment, before.segment
        if ours.chunk is not theirs.chunk or ours.start != theirs.stop:
            return False
        if self.state[p].get("step", 0) != self.state[before].get("step", 0):
            return False
        length = theirs.stop - theirs.start
        for name in names:
            last, next_ = self._places[before, name], self._places[p, name]
            if next_.flat is not last.flat or next_.start != last.start + length:
                return False
        return True
