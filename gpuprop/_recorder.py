"""Recorders: what listens to a function while it runs, so that the run can be repeated without its Python.

`tape.recorder` is asked to make every call on arrays, and told of everything else that a call of the function changes: gradients,
versions, random numbers, what an optimizer counts. A plain `Recorder` only notes the ops. `Recording` is what comes of it; devices
have their own recorders that say how the calls on arrays are repeated.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import weakref
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from ._layout import copied_alike, is_foreign, layout_of, memory_of, span
from ._op import REGISTRY
from ._program import Program
from ._tensor import Tensor, _copied, finish_sums, number
from ._trace import Log, Node, ValueNeeded, owner, plain
from ._tree import flatten, map_leaves
from .device import BACKENDS, device_of, is_array
from .errors import CaptureError
from .tape import Mode, describe, tape

# Where errors come from that are about a user's line; Cython's files are named from the package on.
LIBRARIES = (
    str(Path(__file__).parent) + os.sep,
    str(Path(np.__file__).parent) + os.sep,
    str(Path(np.__file__).parents[1] / "cupy") + os.sep,
    "cupy/",
)


def user_line(error: BaseException | None = None) -> str:
    """The user's line that led here, or to an error."""
    stack = traceback.extract_stack() if error is None else traceback.extract_tb(error.__traceback__)
    frames = [f for f in stack if f.line and not f.filename.startswith(LIBRARIES)]
    return f" at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""


def refusal(what: str, instead: str, error: BaseException | None = None) -> CaptureError:
    """What to raise where something cannot be repeated; `error` says it too."""
    return CaptureError(f"capture: expected calls that can be repeated, got {what}{user_line(error)}; {instead}")


class Recorder:
    """Notes the ops of one run, in order."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.kind: type | None = None  # of the arrays that ops were called with
        self.modules: list[Any] = []  # that were called, and those below them
        self.state: list[Any] = []  # which of them train, and which inputs of ops want gradients
        self.epilogues: Counter[str] = Counter()  # of matrix products
        self.plan: Any = None  # of the memory that a recording of such a run needs
        self.taken_in: list[Entry] = []

    def listens(self) -> contextlib.AbstractContextManager:
        """The run that is listened to is made in this context."""
        return contextlib.nullcontext()

    def notes(self) -> Recorder:
        """What was noted of the run, without what it worked on."""
        made = Recorder()
        made.heard, made.kind, made.modules, made.state = self.heard, self.kind, self.modules, self.state
        made.taken_in = self.taken_in
        return made

    def listening(self, op: Any, inputs: Sequence, arrays: Sequence, function: Callable, generic: Any) -> Any:
        """The implementation that an op is going to call, and its generic rule, each as they are to be called."""
        self.heard.append(f"{op.name}({', '.join(map(describe, arrays))})")
        self.state.append([isinstance(t, Tensor) and t._node is not None for t in inputs])
        self._see(arrays)
        return function, generic

    def hearing(self, name: str, function: Callable, kept: Sequence, again: bool) -> Callable:
        """A gradient rule or implementation as it is to be called, with what was kept for it; again: perhaps not for the last time."""
        self.heard.append(f"gradient of {name}")
        return self.logged(name, function)

    def logged(self, name: str, function: Callable) -> Callable:
        """A function on arrays as it is to be called."""
        return function

    def run(self, name: str, function: Callable, args: Sequence, options: dict[str, Any]) -> Any:
        """Makes a call on arrays."""
        self._see(args)
        return function(*args, **options)

    def beside(self, function: Callable, leaves: Sequence) -> Callable:
        """A function that writes gradients of leaves as it is to be called: nobody reads them before the walk `joins` it."""
        return function

    def joins(self) -> None:
        """What was called beside the rest is done before what follows."""

    def _see(self, values: Sequence) -> None:
        self.kind = self.kind or next((type(value) for value in values if is_array(value)), None)

    def aside(self) -> contextlib.AbstractContextManager:
        """What is done in this context is done now, and not again."""
        return contextlib.nullcontext()

    def keeps(self, value: Any) -> None:
        """Something that was made aside is used in every run."""

    def plainly(self, values: Any) -> Any:
        """Arrays, or a tuple of them, as the function is to see them that computes with them itself."""
        return values

    def takes_in(self, array: np.ndarray) -> None:
        """An array of NumPy's becomes a tensor, or an operand."""
        self.taken_in.append(Entry(weakref.ref(owner(array)), span(array), _digest(array)))

    def shares(self, array: Any) -> None:
        """A tensor was made that shares the memory of an array."""

    def touches(self, leaf: Any, adding: bool = False) -> None:
        """The gradient of a leaf is going to change, or (adding) to be added to, or read."""

    def shows_array(self) -> None:
        """The array of a tensor is asked for, by gpuprop or by the user."""

    def early(self, array: Any) -> Early | None:
        """A place for the gradient of an input of the op that is called, where it can be written before any walk."""
        return None

    def changes(self, tensor: Tensor) -> None:
        """A tensor was changed in place, and is going to be dated."""

    def writes(self, array: Any) -> None:
        """A gradient was written to memory that may have been there before the run."""

    def calls(self, module: Any) -> None:
        """A module is called."""
        for each in module.modules():
            if not any(each is known for known in self.modules):
                self.modules.append(each)
                self.state.append(each.training)

    def reserves(self, generator: Any, blocks: int) -> None:
        """Blocks of a random stream were taken."""

    def acts(self, name: str, function: Callable[[], Any], *arrays: Any) -> Any:
        """Does what is to be done on the host in every run, in its place. arrays: what it changes."""
        return function()

    def undoes(self, function: Callable[[], Any]) -> None:
        """What puts something back as it was before the run."""

    def updates(self, optimizer: Any, work: Any, step: Callable[[], None], skips: bool) -> None:
        """Makes an optimizer's step. skips: whether a value on the device says that none is to be made."""
        self.heard.append(f"step of {type(optimizer).__name__}")
        step()

    def refuse(self, what: str, instead: str) -> None:
        """Complains of what cannot be repeated."""


class Entry(NamedTuple):
    """An array of NumPy's as it came into a run: what owns its memory, where that is, and a digest of what it held."""

    owner: weakref.ref
    span: tuple[int, int]
    digest: Any


def _digest(array: np.ndarray) -> Any:
    values = None if array.dtype.hasobject else np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return array.shape, array.dtype, None if values is None else zlib.crc32(values.data)


class Early:
    """A gradient that an op's forward implementation writes at once, where the gradient of a leaf lives; kept as a residual.

    A walk that then asks for it there need not copy it. Whoever else is going to write there has it `leave` first.
    """

    def __init__(self, array: Any):
        self.array, self.at_home = array, True

    def leave(self) -> None:
        """Goes to memory of its own."""
        if self.at_home:
            self.array, self.at_home = self.array.copy(), False

    def brought_to(self, place: Any) -> Any:
        """The gradient: in `place` if that is where it lives, else in memory of its own."""
        if place is not self.array:
            self.leave()
        return self.array


def check_apart(arrays: Sequence[Any], changed: Iterable[tuple[int, int]]) -> None:
    """Raises CaptureError for an argument that shows memory which the function changes (spans of addresses): it would see the change
    midway."""
    for array in arrays:
        if overlaps(array, changed):
            raise CaptureError(
                f"capture: expected arguments apart from what the function changes, got {describe(array)} in the memory of a "
                "parameter, a gradient or a buffer that it writes to; pass a copy (.clone())"
            )


def overlaps(array: Any, spans: Iterable[tuple[int, int]]) -> bool:
    """Whether an array's addresses are among these."""
    begin, end = span(array)
    return any(begin < last and first < end for first, last in spans)


class Recording:
    """A run that can be repeated while what it depends on has not changed."""

    structure: Any  # of the arguments

    def __init__(self, recorder: StateRecorder):
        self.input_arrays = recorder.input_arrays
        self.specs = [(type(a), a.shape, a.dtype, a.strides, layout_of(a)) for a in self.input_arrays]
        self.changed = {span(array) for array in recorder.changed}
        # By id of what owns it, memory that arguments are not to be in: what the run changes (-1), and the buffers of the others.
        avoided = [(memory_of(array), i) for i, array in enumerate(self.input_arrays)]
        avoided += [(memory_of(array), -1) for array in recorder.changed]
        self.avoided = {id(memory): i for memory, i in avoided}
        self.foreign = any(is_foreign(memory) for memory, _ in avoided)  # then addresses have to be compared
        self.owners = avoided  # which their ids refer to
        self.tensors = list(recorder.tensors.values())
        self.modules = [(module, module.training) for module in recorder.modules]
        known = {id(module) for module in recorder.modules}
        self.parts = [
            (module.__dict__, name, value)
            for module in recorder.modules
            for name, value in module.__dict__.items()
            if isinstance(value, Tensor) or id(value) in known
        ]
        self.leaves = []
        self.fresh: list[
            tuple[Any, Any]
        ] = []  # leaves whose gradients are buffers of the recording, as its results are
        for leaf, (before, added_to) in recorder.leaves.items():
            after = leaf.grad
            stayed = after is not None and after._data is before  # then the run read it, or wrote over it
            self.leaves.append((leaf, before, added_to or stayed, after, leaf.hooks))
            if after is not None and not stayed and after._node is None and not recorder.is_lasting(after._data):
                self.fresh.append((leaf, after._data))
        self.versions = recorder.versions
        self.generators = [(g, g.seed, offset, blocks) for g, (offset, blocks) in recorder.generators.items()]
        self.guards = recorder.guards
        self.mode = recorder.mode
        self.outputs, self.build = recorder.outputs, recorder.build
        self.generation = 0

    def takes(self, arrays: Sequence[Any]) -> bool:
        """Whether arguments have the recorded shapes, dtypes and layouts, and are on the recorded device."""
        for a, (kind, shape, dtype, strides, layout) in zip(arrays, self.specs):
            if a.shape != shape or (a.dtype is not dtype and a.dtype != dtype) or type(a) is not kind:
                return False
            if a.strides != strides and layout_of(a) != layout:
                return False
        return True

    def fits(self) -> bool:
        """Whether everything that the run depended on is as it was."""
        if tape.mode != self.mode:
            return False
        for tensor, data, constant in self.tensors:
            if tensor._data is not data or (tensor._node is None) is not constant:
                return False
        for leaf, before, added_to, _, hooks in self.leaves:
            grad = leaf.grad
            if before is None:
                if grad is not None:
                    return False
            elif grad is None or (added_to and grad._data is not before):
                return False
            if leaf.hooks is not hooks:  # a new list whenever one comes or goes
                return False
        for module, training in self.modules:
            if module.training is not training:
                return False
        for attributes, name, value in self.parts:
            if attributes.get(name) is not value:
                return False
        for generator, seed, offset, _ in self.generators:
            if generator.seed != seed:
                return False
            if generator.offset != offset:
                generator.rebase(offset)
        for guard in self.guards:  # noqa: SIM110  (`all` of a generator takes 0.3 us more)
            if not guard():
                return False
        return True

    def play(self, arrays: Sequence[Any]) -> Any:
        """Repeats the run on other arguments."""
        if self.meets_others(arrays):
            arrays = self._apart(arrays)
        for version in self.versions:
            if len(version) > 1:
                finish_sums(version)
        self.repeat(arrays)
        now = next(number)
        for version in self.versions:
            version[0] = now
        for leaf, _, _, after, _ in self.leaves:
            leaf.grad = after
        for generator, _, _, blocks in self.generators:
            self.advance(generator, blocks)
        return self.results()

    def meets_others(self, arrays: Sequence[Any]) -> bool:
        """Whether an argument is in memory that is to be avoided."""
        avoided = self.avoided
        for i, array in enumerate(arrays):
            memory = memory_of(array)
            if avoided.get(id(memory), i) != i or ((self.foreign or is_foreign(memory)) and self._overlaps(i, array)):
                return True
        return False

    def _overlaps(self, i: int, array: Any) -> bool:
        others = [span(own) for j, own in enumerate(self.input_arrays) if j != i]
        return overlaps(array, [*others, *self.changed])

    def _apart(self, arrays: Sequence[Any]) -> list[Any]:
        """The arguments in memory that filling the buffers of others does not change."""
        check_apart(arrays, self.changed)
        return [a if a is own else copied_alike(a) for a, own in zip(arrays, self.input_arrays)]

    def repeat(self, arrays: Sequence[Any]) -> None:
        """The calls on arrays, and the actions of the host between them."""
        raise NotImplementedError

    def advance(self, generator: Any, blocks: int) -> None:
        """Moves the base of a generator on, behind the numbers that a run has drawn."""
        raise NotImplementedError

    def report(self) -> dict[str, Any]:
        """What a repetition consists of."""
        raise NotImplementedError

    def dot(self) -> str:
        """It in Graphviz' language."""
        raise NotImplementedError

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The buffers of the arguments."""
        return tuple(Tensor(array) for array in self.input_arrays)

    def results(self) -> Any:
        """What the function returned, as tensors that are good until the next run."""
        self.generation += 1
        for leaf, array in self.fresh:
            leaf.grad = Played(array, self)
        return self.build([out if isinstance(out, Tensor) else Played(out, self) for out in self.outputs])


class Played(Tensor):
    """A result of a captured function: a fixed buffer, which the next call overwrites."""

    def __init__(self, array: Any, recording: Recording):
        # One by one: `__dict__.update` takes three times as long.
        self._array, self._recording, self._generation = array, recording, recording.generation

    @property
    def _data(self) -> Any:  # type: ignore[misc]
        if self._generation != self._recording.generation:
            raise CaptureError(
                "captured function: expected a result of its last call, got one that a later call has overwritten; "
                ".clone() a result that is to be kept, or take its .item() before the next call"
            )
        return self._array

    @_data.setter
    def _data(self, array: Any) -> None:  # a copy, or a tensor that was given an array of its own, is an ordinary one
        self.__class__ = Tensor  # type: ignore[assignment]
        self.__dict__.clear()
        self._data = array

    def _aliases(self, other: Tensor) -> None:  # type: ignore[override]
        array = other.__dict__.pop("_data")
        other.__class__ = Played
        other.__dict__.update(_array=array, _recording=self._recording, _generation=self._generation)


class StateRecorder(Recorder):
    """A recorder of a run that will be repeated: notes the state that the run meets and leaves behind, and how to undo it."""

    array_type: type  # of the device

    def __init__(self, inputs: Sequence[Tensor]):
        super().__init__()
        self.mode = tape.mode
        self.input_arrays = [t._data for t in inputs]
        self.inputs = {id(t) for t in inputs}
        self.given_versions = [t.version() for t in inputs]
        self.tensors: dict[int, tuple[Tensor, Any, bool]] = {}
        self.leaves: dict[
            Any, tuple[Any, bool]
        ] = {}  # leaf -> (array of its gradient before, whether that was added to)
        self.versions: list[list[int]] = []
        self.changed: list[Any] = []  # arrays in memory that was there before the run, and that it writes to
        self.generators: dict[Any, tuple[int, int]] = {}  # generator -> (offset before, blocks taken)
        self.guards: list[Callable[[], bool]] = []
        self.undone: list[Callable[[], Any]] = []
        self.outputs: list[Any] = []
        self.build: Callable = iter

    def follows(self, listener: Recorder | None, given_arrays: bool) -> None:
        """Says what has heard an earlier run, and whether arguments of this one are arrays, which NumPy may work on unseen."""
        self.earlier = listener.taken_in if listener is not None else None
        self.given_arrays = given_arrays

    def takes_in(self, array: np.ndarray) -> None:
        super().takes_in(array)
        if self.earlier is None or type(array) is not np.ndarray:
            return
        if self.array_type is np.ndarray and not self.is_lasting(array):
            return
        now = self.taken_in[-1]
        for before in self.earlier:
            if before.owner() is owner(array) and before.span == now.span:
                return
            if before.digest == now.digest and not self.given_arrays:
                return
        self.refuse(
            f"an array of {array.dtype} {array.shape} that NumPy made within the function, unseen, and that may be another in each run",
            "make it before the call if it stays, else with gpuprop; of arguments that are arrays, NumPy shows what its ufuncs and "
            "their methods do, not np.array and np.asarray",
        )

    def recording(self) -> contextlib.AbstractContextManager:
        """The run is made in this context."""
        return contextlib.nullcontext()

    def returns(self, result: Any) -> None:
        """What the function returned; still in the run."""
        leaves, self.build = flatten(result)
        self.outputs = [self.output(leaf) for leaf in leaves]

    def output(self, result: Any) -> Any:
        """A result of the function as the array that will hold it, or as the tensor that it always is."""
        array = result._data if isinstance(result, Tensor) else result
        given = is_array(array) and self.is_given(array)
        if isinstance(result, Tensor) and result.is_leaf and not given and self.is_lasting(array):
            return result  # a parameter, say
        array = plain(array)
        if not is_array(array):
            raise CaptureError(
                f"capture: expected a function that returns tensors, got {type(array).__name__}; "
                "what is computed in Python is not computed again"
            )
        if given:
            array = self.run("copy of an argument", _copied, (array,), {})
        return array

    def listening(self, op: Any, inputs: Sequence, arrays: Sequence, function: Callable, generic: Any) -> Any:
        for array in arrays:
            if type(array) is not self.array_type and is_array(array):
                device, other = device_of(array), BACKENDS[self.array_type].name
                self.refuse(f"{op.name} on {device} among calls on {other}", "move arguments there before the call")
        for t in inputs:
            if isinstance(t, Tensor) and id(t) not in self.inputs and self.is_lasting(t._data):
                self.tensors.setdefault(id(t), (t, t._data, t._node is None))
        if not (op.capturable(arrays) if callable(op.capturable) else op.capturable):
            self.refuse(f"{op.name}, where a shape depends on values", "compute that outside of the function")
        function, generic = super().listening(op, inputs, arrays, function, generic)
        if generic is not None:
            generic = (self.logged(op.name, generic[0]), *generic[1:])
        return self.logged(op.name, function), generic

    def is_lasting(self, array: Any) -> bool:
        """Whether an array was there before the run."""
        raise NotImplementedError

    def is_given(self, array: Any) -> bool:
        """Whether an array is part of an argument's buffer."""
        return any(memory_of(array) is memory_of(each) for each in self.input_arrays)

    def touches(self, leaf: Any, adding: bool = False) -> None:
        if leaf not in self.leaves:
            before = leaf.grad
            self.undone.append(lambda: setattr(leaf, "grad", before))
            self.leaves[leaf] = (None if before is None else before._data, False)
        before_array, _ = self.leaves[leaf]
        if adding and leaf.grad is not None and leaf.grad._data is before_array:
            self.leaves[leaf] = (before_array, True)

    def shows_array(self) -> None:
        caller = sys._getframe(2)  # of the property `data`
        if not caller.f_code.co_filename.startswith(LIBRARIES[0]):
            self.refuse("the array of a tensor (.data), whose use would not be seen", "compute with the tensor")

    def changes(self, tensor: Tensor) -> None:
        version = tensor.version()
        if any(version is given for given in self.given_versions):
            self.refuse("a change of an argument in place", "compute a new tensor, or change a copy (.clone())")
        if not any(version is known for known in self.versions):
            self.versions.append(version)
            self.remembers(version)

    def remembers(self, version: list[Any]) -> None:
        """Puts the date of a change back if the run fails."""
        date = version[0]
        self.undone.append(lambda: version.__setitem__(0, date))

    def meets(self, optimizer: Any) -> None:
        """An optimizer is going to make a step."""
        self.undoes(optimizer.remember())
        self.guards.append(optimizer.stays())
        for group in optimizer.param_groups:
            for p in group["params"]:
                self.tensors.setdefault(id(p), (p, p._data, p._node is None))
                self.remembers(p.version())
                if p._leaf is not None:
                    self.touches(p._leaf, adding=True)

    def reserves(self, generator: Any, blocks: int) -> None:
        if generator not in self.generators:
            state = generator.get_state()
            state["position"] -= blocks
            self.undone.append(lambda: generator.set_state(state))
        offset, before = self.generators.get(generator, (generator.offset - blocks, 0))
        self.generators[generator] = offset, before + blocks

    def undoes(self, function: Callable[[], Any]) -> None:
        self.undone.append(function)

    def refuse(self, what: str, instead: str) -> NoReturn:
        raise refusal(what, instead)

    def finish(self) -> Recording:
        """What can be repeated, after the run."""
        raise NotImplementedError

    def settle(self) -> None:
        """After a run: random numbers go on from the base, so that the next run draws others with the same offsets."""
        for generator, (offset, _) in self.generators.items():
            generator.rebase(offset)
        self.undone.clear()  # which holds copies of all that the run has changed

    def undo(self) -> None:
        """Puts everything back as it was before the run."""
        for step in reversed(self.undone):
            step()


# --- On a CPU -------------------------------------------------------------------------------------------------------


class CpuRecorder(StateRecorder):
    """Writes down the NumPy calls of a run."""

    array_type = np.ndarray

    def __init__(self, inputs: Sequence[Tensor]):
        super().__init__(inputs)
        self.log = Log(self.save)
        self.foreign: set[int] = set()  # ids of owners of NumPy arrays that the function made tensors of
        self.kept: list[np.ndarray] = []  # those owners
        self.pinned: set[int] = set()
        self.saved: set[int] = set()
        for t in inputs:
            self.log.given.add(id(owner(t._data)))
            self.log.made[id(owner(t._data))] = owner(t._data)
            self.pinned.add(id(owner(t._data)))

    def logged(self, name: str, function: Callable) -> Callable:
        op = REGISTRY.get(name)
        known = op is None or op.__module__.startswith("gpuprop.")
        return lambda *args, **options: self.run(name, function, args, options, known)

    def run(self, name: str, function: Callable, args: Sequence, options: dict[str, Any], known: bool = True) -> Any:
        begin = len(self.log.nodes)
        try:
            return self.log.run(name, function, tuple(args), options, known)
        except ValueNeeded as needed:
            del self.log.nodes[begin:]
            self.refuse(f"{name}, which reads values on the host ({needed})", "compute that outside of the function")

    def save(self, array: np.ndarray) -> None:
        """Keeps the values of memory that was there before the run, to put them back if the run fails."""
        root = owner(array)
        if id(root) in self.log.given:
            self.refuse("a change of an argument in place", "compute a new tensor, or change a copy (.clone())")
        if id(root) in self.foreign:
            self.refuse("a change of an array that gp.asarray shares", "say gp.tensor, which copies")
        if id(root) in self.log.lasting:
            self.changed.append(array)
            if id(root) not in self.saved:
                self.saved.add(id(root))
                values = root.copy()
                self.undone.append(lambda: np.copyto(root, values))

    def plainly(self, values: Any) -> Any:
        return map_leaves(self.log.traced, values)

    def shares(self, array: Any) -> None:
        if self.is_lasting(array) and id(owner(array)) not in self.log.lasting:
            self.foreign.add(id(owner(array)))
            self.kept.append(owner(array))

    def is_lasting(self, array: Any) -> bool:
        return id(owner(array)) not in self.log.made

    def touches(self, leaf: Any, adding: bool = False) -> None:
        super().touches(leaf, adding)
        if leaf.grad is not None:
            self.pinned.add(id(owner(leaf.grad._data)))

    def acts(self, name: str, function: Callable[[], Any], *arrays: Any) -> Any:
        for array in arrays:
            if self.is_lasting(array):
                self.log.lasting[id(owner(array))] = owner(array)
            self.save(array)
        with Mode(recorder=None):
            result = function()
        self.log.nodes.append(Node(name, function, (), {}, acts=True))
        return result

    def updates(self, optimizer: Any, work: Any, step: Callable[[], None], skips: bool) -> None:
        self.heard.append(f"step of {type(optimizer).__name__}")
        self.meets(optimizer)
        self.guards.append(lambda: optimizer._work is work)  # nobody has loaded other moments, or changed the groups
        self.acts(type(optimizer).__name__, step, *optimizer.arrays(work))

    def output(self, result: Any) -> Any:
        array = super().output(result)
        if not isinstance(array, Tensor):
            self.pinned.add(id(owner(array)))
        return array

    def finish(self) -> CpuRecording:
        for leaf in self.leaves:
            if leaf.grad is not None:
                self.pinned.add(id(owner(leaf.grad._data)))
        recording = CpuRecording(self)
        self.log.forget()
        return recording


# Bits of NumPy's flags: C order or Fortran's, and those two or aligned.
CONTIGUOUS, LAYOUT_FLAGS = 0x3, 0x103


class CpuRecording(Recording):
    """A run as a flat list of NumPy calls."""

    def __init__(self, recorder: CpuRecorder):
        super().__init__(recorder)
        self.program = Program(recorder.log, recorder.pinned)
        self.uses = [self.program.uses(array) for array in self.input_arrays]
        self.known = {*recorder.log.made, *recorder.log.lasting, id(owner(self.program.arena))}
        self.bound = list(self.input_arrays)  # what the calls work on
        self.copied = [array.nbytes <= SMALL for array in self.input_arrays]
        self.flags = [array.flags.num & LAYOUT_FLAGS for array in self.input_arrays]

    def takes(self, arrays: Sequence[Any]) -> bool:
        # As above, but flags say more than strides where an array is contiguous: a step of 64-64-64-10 takes 2 us less.
        for a, (kind, shape, dtype, _, layout), flags in zip(arrays, self.specs, self.flags):
            if a.shape != shape or (a.dtype is not dtype and a.dtype != dtype) or type(a) is not kind:
                return False
            if a.flags.num & LAYOUT_FLAGS != flags or (not flags & CONTIGUOUS and layout_of(a) != layout):
                return False
        return True

    def meets_others(self, arrays: Sequence[Any]) -> bool:
        avoided = self.avoided
        for i, array in enumerate(arrays):  # without a call for most arrays: 2 us less within a step
            memory = array if array.base is None else owner(array)
            if avoided.get(id(memory), i) != i:
                return True
            if (self.foreign or memory.base is not None) and self._overlaps(i, array):
                return True
        return False

    def report(self) -> dict[str, Any]:
        """What a repetition consists of: `nodes`, and how many of each in `calls`; those in `allocating` make new arrays and copy them;
        and bytes: `arena_bytes`, of which arrays need `peak_bytes` at once, and `input_bytes`."""
        return {**self.program.report(), "input_bytes": sum(array.nbytes for array in self.input_arrays)}

    def dot(self) -> str:
        """The calls in Graphviz' language."""
        return self.program.dot()

    def repeat(self, arrays: Sequence[Any]) -> None:
        for i, array in enumerate(arrays):
            if array is not self.bound[i]:
                if self.copied[i]:
                    np.copyto(self.bound[i], array)
                else:
                    self._bind(i, array)
        for function, args in self.program.calls:
            function(*args)

    def advance(self, generator: Any, blocks: int) -> None:
        generator.advance(blocks)

    def _bind(self, i: int, array: np.ndarray) -> None:
        """Has the calls work on an argument where it lies, or on a copy of one that lies otherwise than recorded."""
        own = self.input_arrays[i]
        usable = array.flags.c_contiguous and array.flags.aligned
        # What the calls write to, such as an earlier result, cannot be what they read their arguments from.
        root = owner(array)  # memory of something else than an array may be anybody's, a result's too
        value = array if usable and root.base is None and id(root) not in self.known else own
        if value is own and array is not own:
            np.copyto(own, array)
        if value is not self.bound[i]:
            self.program.bind(own, self.uses[i], value)
            self.bound[i] = value


# Bytes up to which an argument is copied, because binding calls to another array takes 7 to 12 us. A step on four batches in turn, copied
# and bound: 72 and 79 us for 16 KiB of 64-64-64-10, batch 64; 105 and 106 for 64 KiB of 256-64-10; 228 and 217 for 196 KiB of 784-64-10;
# 1.09 and 1.08 ms for 392 KiB of 784-256-128-10, batch 128.
SMALL = 64 * 1024
