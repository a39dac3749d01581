"""The base of the optimizers: parameter groups, state, and runs of neighbouring parameters that are updated as one array."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from .._tensor import Tensor, number
from ..device import BACKENDS, Backend, Device, copy_to, device_of, device_scope
from ..errors import ArgumentError, CheckpointError, OptionError
from ..nn.parameter import Parameter, flat_zeros, padded
from ..tape import enable_grad

# Elements per block of an update. On a CPU all arrays of a block stay in the second-level cache: an Adam step of 1.86 million
# float32 takes 5.0 ms unblocked, 2.9 ms in blocks of 32K, 3.2 ms in blocks of 16K, 4.6 ms in blocks of 4K. Elsewhere a block
# bounds the scratch memory and is long enough to keep the device busy.
BLOCK = {"cpu": 32 * 1024}
LONG_BLOCK = 4 * 1024 * 1024


class Place(NamedTuple):
    """Where one parameter's state of one name lies: from `start` in a flat array; `view` is that part in its shape."""

    flat: Any
    start: int
    view: Any


class Run(NamedTuple):
    """Parameters that lie side by side, as do their gradients and their state, and that have made the same number of steps."""

    backend: Backend
    device: Device
    blocks: list[tuple]  # (parameter, gradient, *state, *scratch), flat
    states: list[dict[str, Any]]
    versions: list[list[int]]


class Table(NamedTuple):
    """The runs of a group, and what they were made for."""

    names: tuple[str, ...]
    runs: list[Run]
    flat: list[
        tuple[Tensor, Any, Any, Any]
    ]  # parameters in the runs: (parameter, its leaf, its array, its gradient's array)
    loose: list[Tensor]  # parameters whose values or gradient the user put elsewhere
    absent: list[Tensor]  # parameters without a gradient

    def holds(self) -> bool:
        """Whether everything still lies where it lay."""
        for p, leaf, array, gradient in self.flat:
            grad = leaf.grad
            if grad is None or grad._data is not gradient or p._data is not array:
                return False
        return all(p.grad is None for p in self.absent) and all(
            p.grad is not None and not lies_flat(p) for p in self.loose
        )


class Optimizer:
    """Updates parameters from their gradients; `step()` reads the options from `param_groups` each time.

    params: parameters, or dicts with "params" and options of their own.
    A parameter without a gradient is skipped, and its step count does not advance. `state[p]` holds the step count and, under
    PyTorch's names, tensors that are parts of flat memory: change them in place or by `load_state_dict`.
    """

    def __init__(self, params: Iterable, defaults: dict[str, Any]):
        self.defaults = defaults
        self.param_groups: list[dict[str, Any]] = []
        self.state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        self._forget_places()
        if isinstance(params, (Tensor, str)) or not isinstance(params, Iterable):
            raise ArgumentError(
                f"{self._name}: expected a list of parameters, got {type(params).__name__}; use model.parameters()"
            )
        given = list(params)
        if not given:
            raise OptionError(f"{self._name}: expected at least one parameter, got an empty list")
        for group in given if isinstance(given[0], dict) else [{"params": given}]:
            self.add_param_group(group)

    @property
    def _name(self) -> str:
        return type(self).__name__

    # --- what an optimizer is -----------------------------------------------------------------------------------

    scratch = 2  # arrays that `update` needs to compute in

    def check(self, group: dict[str, Any]) -> None:
        """Raises OptionError where the options of a group make no sense."""

    def state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The names of the arrays that are kept per parameter, in the order in which `update` gets them."""
        return ()

    def first_value(self, group: dict[str, Any]) -> float:
        """What new state is filled with."""
        return 0.0

    def update(self, xp: Any, group: dict[str, Any], step: int, blocks: list[tuple]) -> None:
        """Makes one step in place. A block is (parameter, gradient, *state, *scratch), all flat; gradients are only read."""
        raise NotImplementedError

    # --- steps --------------------------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates each parameter that has a gradient. `closure`, if given, first computes the loss and gradients; returns its loss."""
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        now = next(number)
        for index, group in enumerate(self.param_groups):
            names, table = self.state_names(group), self._tables[index]
            if table is None or table.names != names or not table.holds():
                table = self._tables[index] = self._tabulate(group, names)
            for run in table.runs:
                self._advance(run, group, now)
            for p in table.loose:
                self._advance_loose(p, group, names, now)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients, which touches no memory; or, if not `set_to_none`, overwrites them with zeros."""
        for group in self.param_groups:
            for p in group["params"]:
                leaf = p._leaf
                if leaf is not None and leaf.grad is not None:
                    leaf.grad = None if set_to_none else leaf.grad.detach().zero_()

    def _advance(self, run: Run, group: dict[str, Any], now: int) -> None:
        step = 0
        for state in run.states:
            step = state["step"] = state["step"] + 1
        with run.backend.scope(run.device):
            self.update(run.backend.xp, group, step, run.blocks)
        for version in run.versions:
            version[0] = now

    def _advance_loose(self, p: Tensor, group: dict[str, Any], names: tuple[str, ...], now: int) -> None:
        array, gradient = p.data, p.grad.data  # type: ignore[union-attr]
        with device_scope(p.device):
            flat = array.reshape(-1)
            gradient = gradient.astype(array.dtype, copy=False).reshape(-1)
            states = [self.state[p][name].data.reshape(-1) for name in names]
            self._advance(self._run([p], names, flat, gradient, states), group, now)
            if not array.flags.c_contiguous:  # then `flat` is a copy
                array[...] = flat.reshape(array.shape)

    # --- runs ---------------------------------------------------------------------------------------------------

    def _tabulate(self, group: dict[str, Any], names: tuple[str, ...]) -> Table:
        """Sorts a group's parameters into maximal runs, in the order in which they lie in memory."""
        present = [p for p in group["params"] if p.grad is not None]
        flat = sorted((p for p in present if lies_flat(p)), key=lambda p: (id(p.segment.chunk), p.segment.start))
        loose = [p for p in present if not lies_flat(p)]
        for name in names:
            for strip in strips(p for p in flat if not self._is_placed(p, name)):
                first = strip[0].segment.start
                self._place(
                    strip, name, [p.segment.start - first for p in strip], strip[-1].segment.stop - first, group
                )
            for p in loose:
                if not self._is_placed(p, name):
                    self._place([p], name, [0], p.size, group)
        return Table(
            names,
            [self._flat_run(members, names) for members in strips(flat, self._state_continues(names))],
            [(p, p._leaf, p.data, p.grad.data) for p in flat],
            loose,
            [p for p in group["params"] if p.grad is None],
        )

    def _state_continues(self, names: tuple[str, ...]) -> Callable[[Parameter, Parameter], bool]:
        def continues(p: Parameter, q: Parameter) -> bool:
            length = q.segment.start - p.segment.start
            places = [(self._places[p, name], self._places[q, name]) for name in names]
            return all(b.flat is a.flat and b.start - a.start == length for a, b in places) and (
                not names or self.state[p]["step"] == self.state[q]["step"]
            )

        return continues

    def _flat_run(self, members: list[Parameter], names: tuple[str, ...]) -> Run:
        chunk, start, stop = members[0].segment.chunk, members[0].segment.start, members[-1].segment.stop
        places = [self._places[members[0], name] for name in names]
        states = [place.flat[place.start : place.start + stop - start] for place in places]
        return self._run(members, names, chunk.data[start:stop], chunk.gradient[start:stop], states)

    def _run(self, members: list, names: tuple[str, ...], values: Any, gradient: Any, states: list) -> Run:
        """A run over flat arrays, cut into blocks."""
        backend, device = BACKENDS[type(values)], device_of(values)
        length = min(BLOCK.get(backend.name, LONG_BLOCK), values.size)
        scratch = self._scratch_for(values, length)
        blocks = []
        for start in range(0, values.size, length or 1):
            stop = min(start + length, values.size)
            parts = [array[start:stop] for array in (values, gradient, *states)]
            blocks.append((*parts, *(array[: stop - start] for array in scratch)))
        kept = [self.state[p] for p in members] if names else []
        return Run(backend, device, blocks, kept, [p.version() for p in members])

    def _scratch_for(self, values: Any, length: int) -> list[Any]:
        key = device_of(values), values.dtype
        if key not in self._scratch or self._scratch[key][0].size < length:
            self._scratch[key] = [flat_zeros(length, values.dtype, key[0]) for _ in range(self.scratch)]
        return self._scratch[key]

    # --- state --------------------------------------------------------------------------------------------------

    def _forget_places(self) -> None:
        self._places: dict[tuple[Tensor, str], Place] = {}
        self._tables: list[Table | None] = [None] * len(self.param_groups)
        self._scratch: dict[Any, list[Any]] = {}

    def _is_placed(self, p: Tensor, name: str) -> bool:
        """Whether this state of the parameter lies in flat memory, on its device and in its dtype."""
        place, state = self._places.get((p, name)), self.state[p].get(name)
        if place is None or state is None or place.view is not state.data:
            return False
        return place.flat.dtype == p.dtype and device_of(place.flat) == p.device

    def _place(self, strip: list, name: str, starts: list[int], length: int, group: dict[str, Any]) -> None:
        """Gives neighbours flat memory for one kind of state, laid out as they are, and takes over what there was."""
        device = strip[0].device
        flat = flat_zeros(padded(length, strip[0].dtype), strip[0].dtype, device)
        if self.first_value(group):
            flat.fill(self.first_value(group))
        for p, start in zip(strip, starts):
            view = flat[start : start + p.size].reshape(p.shape)
            state = self.state[p]
            if state.get(name) is not None:
                with device_scope(device):
                    view[...] = copy_to(state[name].data, device)
            state.setdefault("step", 0)
            state[name] = Tensor(view)
            self._places[p, name] = Place(flat, start, view)

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Adds parameters with options of their own: `{"params": [...], "lr": 1e-4}`; what it leaves out is the optimizer's default.

        Raises: ArgumentError for what is no tensor, OptionError for a parameter that is here already or is no leaf.
        """
        if not isinstance(group, dict) or "params" not in group:
            raise ArgumentError(f"{self._name}: expected a dict with 'params', got {type(group).__name__}")
        params = group["params"]
        if isinstance(params, (set, frozenset)):
            raise ArgumentError(f"{self._name}: expected parameters in an order, got a set; use a list")
        params = [params] if isinstance(params, Tensor) else list(params)
        known = {id(p) for other in self.param_groups for p in other["params"]}
        for p in params:
            if not isinstance(p, Tensor):
                raise ArgumentError(
                    f"{self._name}: expected parameters, got {type(p).__name__}; use model.parameters()"
                )
            if not p.is_leaf:
                raise OptionError(
                    f"{self._name}: expected leaves, got a result of {p.grad_fn.name}; pass what it was computed from"
                )
            if id(p) in known:
                raise OptionError(f"{self._name}: expected each parameter once, got one of shape {p.shape} twice")
            known.add(id(p))
        complete = {**self.defaults, **group, "params": params}
        self.check(complete)
        self.param_groups.append(complete)
        self._tables.append(None)

    def state_dict(self) -> dict[str, Any]:
        """The state by the parameters' positions, and the groups: `{"state": {0: {...}}, "param_groups": [...]}`. Shares memory."""
        params = [p for group in self.param_groups for p in group["params"]]
        position = {id(p): i for i, p in enumerate(params)}
        groups = [{**group, "params": [position[id(p)] for p in group["params"]]} for group in self.param_groups]
        return {
            "state": {i: dict(self.state[p]) for i, p in enumerate(params) if self.state.get(p)},
            "param_groups": groups,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a copy of another optimizer's state and options, for parameters of the same shapes in the same order.

        Raises: CheckpointError where groups, counts or shapes differ; then nothing has changed.
        """
        groups = state_dict["param_groups"]
        ours = [len(group["params"]) for group in self.param_groups]
        theirs = [len(group["params"]) for group in groups]
        if ours != theirs:
            raise CheckpointError(f"load_state_dict: expected groups of {ours} parameters, got {theirs}")
        pairs = zip((p for g in self.param_groups for p in g["params"]), (i for g in groups for i in g["params"]))
        loaded: dict[Tensor, dict[str, Any]] = {}
        for p, index in pairs:
            if index not in state_dict["state"]:
                continue
            state = loaded[p] = {"step": 1}  # PyTorch's SGD keeps none, and has made one
            for name, value in state_dict["state"][index].items():
                if name == "step":
                    state["step"] = int(value)
                elif value is not None:
                    array = np.asarray(value) if not isinstance(value, Tensor) else value.data
                    if array.shape != p.shape:
                        raise CheckpointError(
                            f"load_state_dict: expected {name!r} of shape {p.shape}, got {array.shape}"
                        )
                    with device_scope(p.device):
                        state[name] = Tensor(copy_to(array, p.device).astype(p.dtype, copy=True))
        for group, other in zip(self.param_groups, groups):
            group.update({key: value for key, value in other.items() if key != "params"})
        self.state = defaultdict(dict, loaded)
        self._forget_places()

    def __getstate__(self) -> dict[str, Any]:
        private = (
            "_places",
            "_tables",
            "_scratch",
        )  # follow from the rest, and refer to memory that a copy does not share
        return {name: value for name, value in self.__dict__.items() if name not in private}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_places()

    def __repr__(self) -> str:
        lines = [f"{self._name} ("]
        for index, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {index}")
            lines += [f"    {key}: {group[key]}" for key in sorted(group) if key != "params"]
        return "\n".join([*lines, ")"])


def lies_flat(p: Tensor) -> bool:
    """Whether a parameter with a gradient, and that gradient, lie in their segment."""
    return isinstance(p, Parameter) and p.at_home and p.segment.holds(p.grad.data)  # type: ignore[union-attr]


def strips(params: Iterable, also: Callable[[Any, Any], bool] = lambda p, q: True) -> list[list]:
    """Parameters, sorted as they lie, cut where two are not neighbours or `also` says so."""
    cut: list[list] = []
    for p in params:
        before = cut[-1][-1] if cut else None
        if before is not None and p.segment.follows(before.segment) and also(before, p):
            cut[-1].append(p)
        else:
            cut.append([p])
    return cut
