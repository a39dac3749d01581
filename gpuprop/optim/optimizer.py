"""The base of the optimizers: parameter groups, state, and runs of neighbouring parameters that are updated as one array."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from .._axpby import axpby
from .._blocks import cut
from .._norm import clipping_factor
from .._tensor import Tensor, finish_sums, number
from ..device import BACKENDS, Backend, Device, copy_to, device_of, device_scope
from ..errors import ArgumentError, CheckpointError, OptionError
from ..nn.parameter import Parameter, flat_zeros, padded
from ..nn.utils import norm_of_all
from ..tape import aside, enable_grad, tape
from ._shared import fraction, smallest

if TYPE_CHECKING:
    from ..cuda.optim import Flat, FlatStep

LONG_BLOCK = 4 * 1024 * 1024  # elements of a block on other devices: bounds the scratch memory, keeps the device busy


class Place(NamedTuple):
    """Where one parameter's state of one name lies: from `start` in a flat array; `view` is that part in its shape."""

    flat: Any
    start: int
    view: Any


class Blocks(NamedTuple):
    """A run cut into blocks, with arrays to compute in."""

    arrays: list[tuple]  # for `update`: (parameter, gradient, *state, *scratch)
    averages: list[Any]  # of each block's parameters, if they are kept
    spare: list[Any]  # for each block one more array to compute in, where gradients are clipped or averages kept


class Run(NamedTuple):
    """Parameters that lie side by side, as do their gradients and their state, and that have made the same number of steps."""

    backend: Backend
    device: Device
    values: Any  # this and what follows: flat arrays of one size
    gradient: Any
    states: dict[str, Any]
    average: Any  # of the values over the steps, or None
    blocks: Blocks | None  # None where a kernel makes the step
    records: list[dict[str, Any]]  # `state[p]` of its parameters, if anything is kept
    versions: list[list[int]]


Runs = list[tuple[int, Run]]  # each with the number of its group


class Work(NamedTuple):
    """What a step updates: run by run, and by kernels that take all of one device and dtype at once."""

    plain: Runs
    fused: dict[tuple[Device, Any], Runs]
    versions: list[list[Any]]  # of all parameters in them
    gradients: dict[Device, list[Any]]  # in the order of the parameters


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
    max_grad_norm: gradients are multiplied by min(1, max_grad_norm / (norm + 1e-6)) within the step, norm being that of all of them as
    one vector; `.grad` stays as it is. ema_decay: `state[p]["ema"]` is ema_decay * ema + (1 - ema_decay) * p after each step, and begins
    as p before the first.
    A parameter without a gradient is skipped, and its step count does not advance. `state[p]` holds the step count and, under
    PyTorch's names, tensors that are parts of flat memory: change them in place or by `load_state_dict`.
    """

    fused: ClassVar[Mapping[str, Flat]] = {}
    _tables: list[Table | None]
    _work: Work
    _steppers: dict[tuple[Device, Any], FlatStep]
    _lent: bool

    def __init_subclass__(cls, **fused: Flat) -> None:
        """`class Adam(Optimizer, cuda=flat(...))`: kernels that make the step, by backend. A subclass may compute something else, so
        it has none until it says so."""
        super().__init_subclass__()
        cls.fused = fused

    def __init__(
        self,
        params: Iterable,
        defaults: dict[str, Any],
        *,
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
    ):
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise OptionError(f"{self._name}: expected max_grad_norm > 0, got {max_grad_norm}")
        if ema_decay is not None:
            fraction(self._name, "ema_decay", ema_decay)
        self.defaults = defaults
        self.max_grad_norm, self.ema_decay = max_grad_norm, ema_decay
        self.param_groups: list[dict[str, Any]] = []
        self._state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
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

    def scalars(self, group: dict[str, Any], least: float) -> tuple[float, ...]:
        """The options of a group as the kernel's rule has them, in its order. least: the smallest normal number of the dtype."""
        raise NotImplementedError

    def decays(self, group: dict[str, Any]) -> tuple[float, float]:
        """What, times the parameter, is added to its gradient; and what the parameter itself is multiplied by."""
        return group["weight_decay"], 1.0

    # --- steps --------------------------------------------------------------------------------------------------

    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        grad_scale: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> Any:
        """Updates each parameter that has a gradient. `closure`, if given, first computes the loss and gradients; returns its loss.

        grad_scale: what gradients are multiplied by first. skip: no step is made where it is not 0. Both tensors of one element, on a
        GPU read there: nobody waits for them.
        """
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        work, copies = self._prepare()
        scale, skipping = _scalar("grad_scale", grad_scale), _scalar("skip", skip)
        if tape.recorder is None:
            self._step(work, copies, scale, skipping)
        else:
            step = functools.partial(self._step, work, copies, scale, skipping)
            tape.recorder.updates(self, work, step, skipping is not None)
        return loss

    def _step(self, work: Work, copies: list[tuple[Any, Any]], scale: Any, skipping: Any) -> None:
        """Makes the step that was prepared."""
        now = next(number)
        for version in work.versions:
            if len(version) > 1:
                finish_sums(version)
            version[0] = now
        norm = None if self.max_grad_norm is None else self._norm(work)
        if work.fused:
            for place, members in work.fused.items():
                with device_scope(place[0]):
                    given = [None if x is None else copy_to(x, place[0]) for x in (norm, scale, skipping)]
                    self._steppers[place].step(members, self._rows(place[1]), *given)
            self._count(work, skipping is not None)
        if work.plain and not (skipping is not None and bool(Tensor(skipping))):
            self._step_plainly(work.plain, norm, scale)
        for array, flat in copies:
            array[...] = flat.reshape(array.shape)

    def _count(self, work: Work, skips: bool) -> None:
        """Counts a step that kernels made."""
        if skips:
            self._unsettled = True
            return
        for members in work.fused.values():
            for _, run in members:
                for record in run.records:
                    record["step"] += 1

    @property
    def state(self) -> defaultdict[Tensor, dict[str, Any]]:
        """What is kept by parameter. After steps with `skip` on a GPU this waits: only the device knows how many were made."""
        if self._unsettled:
            self._unsettled = False
            for place, runs in self._work.fused.items():
                for (_, run), made in zip(runs, self._steppers[place].steps()):
                    for record in run.records:
                        record["step"] = made
        return self._state

    @state.setter
    def state(self, state: Mapping[Tensor, dict[str, Any]]) -> None:
        self._unsettled = False
        self._state = defaultdict(dict, state)

    def arrays(self, work: Work) -> list[Any]:
        """The arrays that a step changes."""
        runs = [*work.plain, *(each for members in work.fused.values() for each in members)]
        changed = [a for _, run in runs for a in (run.values, *run.states.values(), run.average) if a is not None]
        return [*changed, *(p.data for table in self._tables if table for p in table.loose)]

    def remember(self) -> Callable[[], None]:
        """A function that makes the options and step counts, and who knows them, again what they are now."""
        groups = [dict(group) for group in self.param_groups]
        counts = [(record, record["step"]) for record in self._state.values() if "step" in record]
        prepared = list(self._tables), self._work, self._steppers, self._unsettled, self._lent

        def restore() -> None:
            for group, before in zip(self.param_groups, groups):
                group.update(before)
            for record, count in counts:
                record["step"] = count
            self._tables, self._work, self._steppers, self._unsettled, self._lent = prepared

        return restore

    def stays(self) -> Callable[[], bool]:
        """A function that says whether a step would still call what it would call now, on the same state."""

        places, unclipped = self._places, self.max_grad_norm is None
        groups = [(len(group["params"]), self._names(group)) for group in self.param_groups]

        def stays() -> bool:  # compared piece by piece: to make a list of it all takes 3 us more within a step
            if self._places is not places or (self.max_grad_norm is None) is not unclipped:
                return False
            if len(self.param_groups) != len(groups):
                return False
            for group, (count, names) in zip(self.param_groups, groups):
                if len(group["params"]) != count or self._names(group) != names:
                    return False
            return True

        return stays

    def counts_agree(self, work: Work) -> bool:
        """Whether the parameters of each run that kernels update have made the same number of steps, as when it was one."""
        for members in work.fused.values():
            for _, run in members:
                if len({record["step"] for record in run.records}) > 1:
                    return False
        return True

    def repeatable(self, work: Work, skips: bool) -> Callable[[], None]:
        """Has the next step made by steppers that nobody else uses, and returns what the host has to do before a device repeats it."""
        self.state  # noqa: B018  (settled)
        self._steppers = {place: self._stepper(place, members) for place, members in work.fused.items()}
        self._lent = True
        tables, steppers = list(self._tables), self._steppers

        def refresh() -> None:
            for place, members in work.fused.items():
                with device_scope(place[0]):
                    steppers[place].refresh(members, self._rows(place[1]))

        def before_repetition() -> None:
            if self._steppers is not steppers:  # what comes after it goes on from here
                self.state  # noqa: B018
                self._tables, self._work, self._steppers = list(tables), work, steppers
                self._lent = True
            refresh()
            for stepper in steppers.values():
                stepper.count(skips)
            if work.fused:
                self._count(work, skips)

        refresh()
        return before_repetition

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients, which touches no memory; or, if not `set_to_none`, overwrites them with zeros."""
        recorder = tape.recorder
        for group in self.param_groups:
            for p in group["params"]:
                leaf = p._leaf
                if recorder is not None and leaf is not None:
                    recorder.touches(leaf)
                if leaf is not None and leaf.grad is not None:
                    leaf.grad = None if set_to_none else leaf.grad.detach().zero_()

    def _prepare(self) -> tuple[Work, list[tuple[Any, Any]]]:
        """What there is to do, and what to copy afterwards: (array of a parameter, its new values)."""
        fresh = False
        for index, group in enumerate(self.param_groups):
            names, table = self._names(group), self._tables[index]
            if table is None or table.names != names or not table.holds():
                with aside():
                    self._tables[index] = self._tabulate(group, names)
                fresh = True
        tables: list[Table] = self._tables  # type: ignore[assignment]
        if not fresh and not any(table.loose for table in tables):
            return self._work, []
        runs, copies = [(index, run) for index, table in enumerate(tables) for run in table.runs], []
        for index, table in enumerate(tables):
            for p in table.loose:
                run = self._loose_run(p, table.names)
                runs.append((index, run))
                if not p.data.flags.c_contiguous:
                    copies.append((p.data, run.values))
        if self._lent:  # a recording repeats its steppers' kernels on the runs that they have loaded
            self.state  # noqa: B018  (settled)
            self._steppers, self._lent = {}, False
        work = self._work = Work([], {}, [version for _, run in runs for version in run.versions], {})
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            work.gradients.setdefault(p.device, []).append(p.grad.data)
        for index, run in runs:
            if run.blocks is not None or not run.values.size:
                work.plain.append((index, run))
            else:
                work.fused.setdefault((run.device, run.values.dtype), []).append((index, run))
        for place, members in work.fused.items():
            self._steppers[place] = self._stepper(place, members, self._steppers.get(place))
        return work, copies

    def _stepper(self, place: tuple[Device, Any], members: Runs, stepper: FlatStep | None = None) -> FlatStep:
        """A stepper, or this one, for these runs."""
        stepper = stepper or self.fused[members[0][1].backend.name].stepper(place[1])
        with device_scope(place[0]), aside():
            stepper.load(members)
        return stepper

    def _norm(self, work: Work) -> Any:
        """The norm of all gradients, as a 0-d array."""
        if len(work.fused) == 1 and not any(run.values.size for _, run in work.plain):
            (place,) = work.fused
            with device_scope(place[0]):
                return self._steppers[place].norm()
        return norm_of_all(work.gradients) if work.gradients else None

    def _rows(self, dtype: Any) -> list[tuple[float, ...]]:
        """The options of all groups, as kernels get them."""
        keep = self.ema_decay or 0.0
        others = keep, 1 - keep, self.max_grad_norm or 0.0
        return [
            (*self.scalars(group, smallest(dtype)), -1.0 if group["maximize"] else 1.0, *self.decays(group), *others)
            for group in self.param_groups
        ]

    def _step_plainly(self, runs: Runs, norm: Any, scale: Any) -> None:
        """Steps by `update`, run by run."""
        for index, run in runs:
            step = 0
            for record in run.records:
                step = record["step"] = record["step"] + 1
            group, xp = self.param_groups[index], run.backend.xp
            with run.backend.scope(run.device):
                factor = None
                if norm is not None or scale is not None:
                    factor = self._factor(xp, *(None if x is None else copy_to(x, run.device) for x in (norm, scale)))
                if run.blocks is not None:
                    self._update_blocks(xp, group, step, factor, run.blocks)

    def _update_blocks(self, xp: Any, group: dict[str, Any], step: int, factor: Any, blocks: Blocks) -> None:
        if factor is None and not blocks.averages:
            self.update(xp, group, step, blocks.arrays)
            return
        keep = self.ema_decay or 0.0
        for i, (p, g, *others) in enumerate(blocks.arrays):
            if factor is not None:
                g = xp.multiply(g, factor, out=blocks.spare[i] if blocks.spare else None, casting="same_kind")
            self.update(xp, group, step, [(p, g, *others)])
            if blocks.averages:
                axpby(xp, 1 - keep, p, keep, blocks.averages[i], blocks.spare[i])

    def _factor(self, xp: Any, norm: Any, scale: Any) -> Any:
        """What gradients are multiplied by, as a 0-d array, or None."""
        if norm is None:
            return scale
        if scale is None:
            return clipping_factor(xp, norm, self.max_grad_norm)  # type: ignore[arg-type]
        return clipping_factor(xp, norm * xp.abs(scale), self.max_grad_norm) * scale  # type: ignore[arg-type]

    # --- runs ---------------------------------------------------------------------------------------------------

    def _tabulate(self, group: dict[str, Any], names: tuple[str, ...]) -> Table:
        """Sorts a group's parameters into maximal runs, in the order in which they lie in memory."""
        present = [p for p in group["params"] if p.grad is not None]
        at_home = [p for p in present if lies_flat(p)]
        chunks: dict[int, int] = {}  # in the order of the parameters: addresses would make norms depend on chance
        for p in at_home:
            chunks.setdefault(id(p.segment.chunk), len(chunks))
        flat = sorted(at_home, key=lambda p: (chunks[id(p.segment.chunk)], p.segment.start))
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

    def _loose_run(self, p: Tensor, names: tuple[str, ...]) -> Run:
        """A run of one parameter whose values or gradient the user put elsewhere; of copies where they are not in C order."""
        with device_scope(p.device):
            given = p.grad.data  # type: ignore[union-attr]
            packed = given.dtype == p.dtype and given.flags.c_contiguous and p.data.flags.c_contiguous
            if tape.recorder is not None and not packed:  # the step would work on copies
                tape.recorder.refuse(
                    f"a parameter or gradient that is not in C order, or of unlike dtypes, in {self._name}.step",
                    "make them contiguous, and gradients like their parameters",
                )
            gradient = given.astype(p.dtype, copy=False).reshape(-1)
            states = [self._state[p][name].data.reshape(-1) for name in names]
            return self._run([p], names, p.data.reshape(-1), gradient, states)

    def _run(self, members: list, names: tuple[str, ...], values: Any, gradient: Any, states: list) -> Run:
        """A run over flat arrays, cut into blocks unless a kernel takes it whole."""
        backend, device = BACKENDS[type(values)], device_of(values)
        kept = dict(zip(names, states))
        average = kept.pop("ema", None)
        kernel = self.fused.get(backend.name) if backend.uses_implementations else None
        plain = kernel is None or not kernel.takes(values.dtype)
        blocks = (
            self._blocks(backend, values, gradient, list(kept.values()), average) if plain and values.size else None
        )
        records = [self._state[p] for p in members] if names else []
        return Run(backend, device, values, gradient, kept, average, blocks, records, [p.version() for p in members])

    def _blocks(self, backend: Backend, values: Any, gradient: Any, states: list[Any], average: Any) -> Blocks:
        made = Blocks([], [], [])
        parts = cut(values.size) if backend.name == "cpu" else cut(values.size, LONG_BLOCK)
        scratch = self._scratch_for(values, parts[0].stop)
        for part in parts:
            own = [array[: part.stop - part.start] for array in scratch]
            made.arrays.append((*(array[part] for array in (values, gradient, *states)), *own[: self.scratch]))
            made.spare.extend(own[self.scratch :])
            if average is not None:
                made.averages.append(average[part])
        return made

    def _scratch_for(self, values: Any, length: int) -> list[Any]:
        key = device_of(values), values.dtype
        known: Sequence[Any] = self._scratch.get(key, ())
        if len(known) < self._scratch_count or known[0].size < length:
            self._scratch[key] = [flat_zeros(length, values.dtype, key[0]) for _ in range(self._scratch_count)]
        return self._scratch[key]

    @property
    def _scratch_count(self) -> int:
        """How many arrays `update` computes in, and one more where gradients are clipped or averages kept."""
        return self.scratch + (self.max_grad_norm is not None or self.ema_decay is not None)

    def _forget_places(self) -> None:
        self._places: dict[tuple[Tensor, str], Place] = {}
        self._tables = [None] * len(self.param_groups)
        self._scratch: dict[Any, list[Any]] = {}
        self._work = Work([], {}, [], {})
        self._steppers = {}
        self._lent = False  # whether a recording uses the steppers
        self._unsettled = False  # whether only the device knows how many steps were made

    def _names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The names of all that is kept per parameter."""
        return (*self.state_names(group), "ema") if self.ema_decay is not None else self.state_names(group)

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
        if name != "ema" and self.first_value(group):
            flat.fill(self.first_value(group))
        for p, start in zip(strip, starts):
            view = flat[start : start + p.size].reshape(p.shape)
            state = self.state[p]
            if state.get(name) is not None:
                with device_scope(device):
                    view[...] = copy_to(state[name].data, device)
            elif name == "ema":
                with device_scope(device):
                    view[...] = p.data
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
        for name, value in complete.items():
            if isinstance(value, np.generic):  # np.float32 would have rates computed in its own precision
                complete[name] = value.item()
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
        self.state = loaded  # type: ignore[assignment]
        self._forget_places()

    def __getstate__(self) -> dict[str, Any]:
        self.state  # noqa: B018  (settled)
        # What follows from the rest, and refers to memory that a copy does not share.
        private = ("_places", "_tables", "_scratch", "_work", "_steppers", "_lent", "_unsettled")
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


def _scalar(name: str, given: Tensor | None) -> Any:
    """The only element of a tensor, as a 0-d array."""
    if given is None:
        return None
    if not isinstance(given, Tensor) or given.size != 1:
        got = f"shape {given.shape}" if isinstance(given, Tensor) else type(given).__name__
        raise ArgumentError(f"step: expected {name} as a tensor of one element, got {got}; use gp.tensor")
    return given.data.reshape(())
