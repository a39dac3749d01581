"""Recorders: what listens to a function while it runs, so that the run can be repeated without its Python.

`tape.recorder` is asked to make every call on arrays, and told of everything else that a call of the function changes: gradients,
versions, random numbers, what an optimizer counts. A plain `Recorder` only notes the ops. A `StateRecorder` makes a `Recording`; devices
have their own (`_calls.py`, `cuda/graph.py`) that say how the calls on arrays are repeated.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import sys
import traceback
import weakref
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from ._layout import memory_of, span
from ._recording import Recording
from ._tensor import Tensor, _copied, number
from ._trace import Traced, owner, plain
from ._tree import flatten
from .device import BACKENDS, device_of, is_array
from .errors import CaptureError
from .tape import describe, tape

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


def own_settings(module: Any) -> dict[str, Any]:
    """The numbers and the like of one of gpuprop's own modules, with which it calls ops; a user's module counts what it likes."""
    plain = (bool, int, float, str, tuple, type(None))
    kind: Any = type(module)
    found = {name: module.__dict__.get(name, module) for name in _option_names(kind)}
    return {name: value for name, value in found.items() if isinstance(value, plain)}


@functools.cache
def _option_names(kind: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(kind).parameters) if kind.__module__.startswith("gpuprop.") else ()


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
        self.arguments: Any = None  # digests of those that are arrays
        self.made: dict[int, weakref.ref] = {}  # what owns results of ops, by its id

    def listens(self) -> contextlib.AbstractContextManager:
        """The run that is listened to is made in this context."""
        return contextlib.nullcontext()

    def notes(self) -> Recorder:
        """What was noted of the run, without what it worked on."""
        made = Recorder()
        made.heard, made.kind, made.modules, made.state = self.heard, self.kind, self.modules, self.state
        made.taken_in, made.arguments, made.made = self.taken_in, self.arguments, self.made
        return made

    def listening(self, op: Any, inputs: Sequence, arrays: Sequence, function: Callable, generic: Any) -> Any:
        """The implementation that an op is going to call, and its generic rule, each as they are to be called."""
        self.hears(op, inputs, arrays)
        return self._noting(function), None if generic is None else (self._noting(generic[0]), *generic[1:])

    def hears(self, op: Any, inputs: Sequence, arrays: Sequence) -> None:
        """An op is called."""
        self.heard.append(f"{op.name}({', '.join(map(describe, arrays))})")
        self.state.append([isinstance(t, Tensor) and t._node is not None for t in inputs])
        self._see(arrays)

    def _noting(self, function: Callable) -> Callable:
        """A function whose results are known later on."""

        def noted(*args: Any, **options: Any) -> Any:
            result = function(*args, **options)
            if isinstance(result, np.generic):
                result = np.asarray(result)
            given = [_root(each) for each in args if is_array(each)]
            for array in result if isinstance(result, tuple) else (result,):
                if is_array(array):
                    root = _root(array)
                    if not any(root is each for each in given):  # else a view
                        self.made[id(root)] = weakref.ref(root)
            return result

        return noted

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

    def takes_in(self, array: np.ndarray, of_python: bool = False) -> None:
        """An array of NumPy's becomes a tensor, or an operand. of_python: it was made of numbers, just now."""
        self.taken_in.append(
            Entry(weakref.ref(array), weakref.ref(owner(array)), (*span(array), array.strides), digest_of(array))
        )

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
                self.state.append([each.training, *(repr(v) for v in own_settings(each).values())])

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

    array: weakref.ref
    owner: weakref.ref
    place: tuple
    digest: Any


def _root(array: Any) -> Any:
    return owner(array) if isinstance(array, np.ndarray) else array


def digest_of(array: np.ndarray) -> Any:
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
        self.begin = next(number)
        self.complaints: list[CaptureError] = []  # to be made if the run was called as the one before
        self.by_value = False  # whether an array that may be made of arguments counts as a constant for its values
        self.settings: list[tuple[dict[str, Any], str, Any]] = []  # of modules that are called: where, name, value
        self.attributes: list[tuple[dict[str, Any], str, Any]] = []  # all that they had when they were called first
        self.are_tensors: list[bool] = []  # for each output
        self.changed: list[Any] = []  # arrays in memory that was there before the run, and that it writes to
        self.generators: dict[Any, tuple[int, int]] = {}  # generator -> (offset before, blocks taken)
        self.guards: list[Callable[[], bool]] = []
        self.undone: list[Callable[[], Any]] = []
        self.outputs: list[Any] = []
        self.build: Callable = iter

    def follows(self, listener: Recorder | None, given_arrays: bool) -> None:
        """Says what has heard an earlier run, and whether arguments of this one are arrays, which NumPy may work on unseen."""
        entries = listener.taken_in if listener is not None else []
        self.earlier = iter(entries) if listener is not None else None
        # What is in memory that both runs take in may have been changed between them, but not within this one.
        arrays = [(entry.place, entry.array()) for entry in entries]
        self.before = {place: digest_of(array) for place, array in arrays if array is not None}
        self.made_earlier = listener.made if listener is not None else {}
        self.given_arrays = given_arrays

    def takes_in(self, array: np.ndarray, of_python: bool = False) -> None:
        super().takes_in(array)
        if self.earlier is None or type(array) is Traced:
            return
        if self.array_type is np.ndarray and not self.is_lasting(array):
            return
        now = self.taken_in[-1]
        for before in self.earlier:  # in their order; the earlier run may have made more, which the function has kept
            if before.owner() is owner(array) and before.place == now.place:
                if now.digest in (before.digest, self.before.get(now.place)):
                    return
            elif before.digest == now.digest:
                self.by_value = self.by_value or (self.given_arrays and not of_python)
                return
        made = f"an array of {array.dtype} {array.shape} that was made within the function"
        if of_python:
            what, instead = f"{made} of other numbers than before", "make it with gpuprop, or take it as an argument"
        else:
            what = f"{made} by NumPy, unseen, and that may be another in each run"
            instead = (
                "make it before the call if it stays, else with gpuprop; of arguments that are arrays, NumPy shows what its ufuncs and "
                "their methods do, not np.array and np.asarray"
            )
        self.complaints.append(refusal(what, instead))

    def recording(self) -> contextlib.AbstractContextManager:
        """The run is made in this context."""
        return contextlib.nullcontext()

    def returns(self, result: Any) -> None:
        """What the function returned; still in the run."""
        leaves, self.build = flatten(result)
        self.outputs = [self.output(leaf) for leaf in leaves]
        self.are_tensors = [isinstance(leaf, Tensor) for leaf in leaves]

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
                root = _root(t._data)
                known = self.made_earlier.get(id(root))
                if known is not None and known() is root:
                    what = f"{describe(t)} that an earlier run made, where names that the function assigns to are not assigned again"
                    instead = "change such state in place (t.copy_(new), total += loss.detach()), or take it as an argument and return it"
                    self.complaints.append(refusal(what, instead))
        if not (op.capturable(arrays) if callable(op.capturable) else op.capturable):
            self.refuse(f"{op.name}, where a shape depends on values", "compute that outside of the function")
        self.hears(op, inputs, arrays)
        if generic is not None:
            generic = (self._noting(self.logged(op.name, generic[0])), *generic[1:])
        return self._noting(self.logged(op.name, function)), generic

    def calls(self, module: Any) -> None:
        known = len(self.modules)
        super().calls(module)
        for each in self.modules[known:]:
            self.settings += [(each.__dict__, name, value) for name, value in own_settings(each).items()]
            self.attributes += [(each.__dict__, name, value) for name, value in each.__dict__.items()]

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
