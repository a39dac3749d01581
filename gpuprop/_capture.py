"""`gp.capture`: a function that runs once under a recorder, and is then repeated without its Python."""

from __future__ import annotations

import dis
import functools
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from types import CodeType, FunctionType
from typing import Any

import numpy as np

from . import _matmul
from ._calls import CpuRecorder
from ._layout import copied_alike, layout_of, span
from ._op import REGISTRY
from ._recorder import Recorder, StateRecorder, digest_of
from ._recording import Recording, check_apart
from ._tensor import Tensor, arange, get_default_dtype
from ._tree import flatten, map_leaves
from .data.loader import DataLoader
from .device import BACKENDS, backend_for, default_device, is_array
from .errors import ArgumentError, CaptureError, OptionError
from .nn.module import Module
from .optim.optimizer import Optimizer
from .tape import Mode, call, describe, no_grad, tape

LOOKED_UP = (Tensor, Module, Optimizer)


def capture(function: Callable | None = None, *, warmup: int = 1, recordings: int = 8, batches: Any = None) -> Any:
    """Makes a function of tensors that is recorded once and then repeated without running its Python.

    The first `warmup` calls run as usual and are listened to; the next one is recorded, and the calls after it repeat what was recorded
    on new arguments: on a CPU as a flat list of NumPy calls on fixed buffers, on a GPU as one CUDA graph. What is repeated gives the bits
    of the function itself.

    The function takes and returns tensors, in containers if need be; it may be a whole training step, with `backward`, an optimizer, a
    schedule, clipping, dropout and batch normalisation. What is not on a tensor is as it was when recorded: numbers, branches, prints,
    lists that the function appends to. A call records anew where shapes, dtypes or strides of arguments, the mode or a number of a module
    (p of `nn.Dropout`), which gradients are wanted or there, or the memory of parameters differ from those recorded, or where the
    function's own names mean another module, optimizer or tensor; learning rates and other numbers of an optimizer, and random numbers,
    go on by themselves.

    Results are off the tape, and overwritten by the next call, as are gradients of leaves that are no parameters: touching an older one
    raises; `.clone()` what is to be kept. (`.numpy()` copies them; `.data` is the buffer itself.) Where the function returns arrays, they
    are copies.

    recordings: how many are kept; the one that was not used for longest goes first.
    batches: a `gp.data.DataLoader`; the result `run` is then a `Loop`: `run(n)` makes n steps on its next batches, which are chosen and
    gathered within the recording, so that nothing comes from the host.
    Raises: gp.errors.CaptureError, where the function reads a value on the host (`loss.item()`, `if t > 0`, `print(t)`), where a shape
    depends on values, where a second run is not like the first or reads what the first has made, for what it cannot return, for an array
    that is made within the function, unseen, and that may be another in each run, and for an argument in the memory of a parameter or
    another tensor that the function changes. Most of it shows in the second call: the first has run as usual. Parameters are then as
    before the call, and `captured.eager(...)` is the function itself.
    """
    if function is None:
        return functools.partial(capture, warmup=warmup, recordings=recordings, batches=batches)
    if not callable(function):
        raise ArgumentError(f"capture: expected a function, got {type(function).__name__}")
    if warmup < 0 or recordings < 1:
        raise OptionError(f"capture: expected warmup >= 0 and recordings >= 1, got {warmup} and {recordings}")
    if batches is not None:
        return Loop(function, batches, warmup, recordings)
    return Captured(function, warmup, recordings)


class Captured:
    """A captured function. `eager` is the function itself; `recording` is what the last call made or repeated, or None."""

    def __init__(self, function: Callable, warmup: int, recordings: int):
        functools.update_wrapper(self, function)
        self.eager = function
        self.warmup, self.most = warmup, recordings
        self.recording: Recording | None = None
        self._recordings: OrderedDict[int, Recording] = OrderedDict()  # the last used last
        self._listened: dict[Any, tuple[int, Recorder]] = {}  # by signature: how often, and who listened last
        self._modules: list[Any] = []  # that the function calls
        self._lock = threading.RLock()  # one call at a time: there is one set of buffers

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if tape.recorder is not None:  # part of what another capture records
            return self.eager(*args, **kwargs)
        arrays, structure = _arguments(args, kwargs)
        with self._lock:
            recording = self.recording
            if (
                recording is not None
                and recording.unproven is None
                and recording.structure == structure
                and recording.takes(arrays)
                and recording.fits()
            ):
                return recording.play(arrays)
            return self._call_otherwise(arrays, structure, args, kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """As a method: bound to its object."""
        return self if instance is None else functools.partial(self, instance)

    def _call_otherwise(self, arrays: list[Any], structure: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """By another recording, by making one, or as usual."""
        for key, recording in reversed(self._recordings.items()):
            if recording.unproven is not None and recording.unproven != _digests(arrays):
                continue
            if recording.structure == structure and recording.takes(arrays) and recording.fits():
                self._recordings.move_to_end(key)
                self.recording = recording
                return recording.play(arrays)
        arrays_like = ((a.shape, a.dtype.str, type(a), layout_of(a)) for a in arrays)
        signature = (structure, *arrays_like, *(module.training for module in self._modules))
        times, listener = self._listened.get(signature, (0, None))
        if times < self.warmup:
            recorder = listener_for(arrays)
            recorder.arguments = _digests(arrays) if _has_arrays(args, kwargs) else None
            with Mode(recorder=recorder), recorder.listens():
                result = map_leaves(_detached, self.eager(*args, **kwargs))
            if not self._modules:  # from now on signatures say which of them train
                self._modules = recorder.modules
                signature = (*signature, *(module.training for module in self._modules))
            self._listen(signature, times + 1, recorder)
            return result
        self._listened.pop(signature, None)  # the next recording is of another state: it listens first, too
        return self._record(signature, structure, args, kwargs, listener)

    def _listen(self, signature: Any, times: int, recorder: Recorder) -> None:
        """Remembers what was heard in a run."""
        self._listened[signature] = times, recorder
        while len(self._listened) > 4 * self.most:
            self._listened.pop(next(iter(self._listened)))

    def _record(
        self, signature: Any, structure: Any, args: tuple, kwargs: dict[str, Any], listener: Recorder | None
    ) -> Any:
        given, build = flatten((args, kwargs))
        arrays = [leaf._data if isinstance(leaf, Tensor) else leaf for leaf in given]
        copies = {id(array): Tensor(copied_alike(array)) for array in arrays if is_array(array)}
        held = [copies.get(id(array), array) for array in arrays]
        inputs = [t for t in held if isinstance(t, Tensor)]
        arrays_given = [array for array in arrays if is_array(array)]
        recorder = recorder_for(inputs, listener)
        recorder.follows(listener, any(map(is_array, given)))
        recorder.arguments = _digests(arrays_given) if recorder.given_arrays else None
        plain = [
            recorder.plainly(t._data) if isinstance(t, Tensor) and not isinstance(leaf, Tensor) else t
            for t, leaf in zip(held, given)
        ]
        held_args, held_kwargs = build(plain)
        try:
            with Mode(recorder=recorder), recorder.recording():
                recorder.returns(self.eager(*held_args, **held_kwargs))
                differs = listener is not None and listener.heard != recorder.heard
                if differs and listener.state == recorder.state:  # type: ignore[union-attr]
                    raise _difference(listener.heard, recorder.heard)  # type: ignore[union-attr]
                if recorder.complaints and not differs:
                    raise recorder.complaints[0]
                guard = unchanged_names(self.eager)
                if guard is not None:
                    recorder.guards.append(guard)
                check_apart(arrays_given, [span(array) for array in recorder.changed])
            recording = recorder.finish()
        except BaseException:
            recorder.undo()
            raise
        recorder.settle()
        if differs:  # in another mode than what was listened to: the next call of this one is recorded
            self._listen(signature, self.warmup, recorder.notes())
            return recording.results()
        recording.structure = structure
        if recorder.by_value and recorder.arguments == listener.arguments:  # type: ignore[union-attr]
            # Good for these arguments; with others, the function is heard again.
            recording.unproven = recorder.arguments
        self.recording = recording
        self._recordings[id(recording)] = recording
        while len(self._recordings) > self.most:
            self._recordings.popitem(last=False)
        return recording.results()

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The fixed buffers of the last recording's arguments: fill these and pass them, and nothing is copied."""
        if self.recording is None:
            raise CaptureError("inputs: expected a recording, got none yet; call the captured function first")
        return self.recording.inputs

    def __repr__(self) -> str:
        return f"<captured {getattr(self, '__qualname__', self.eager)}: {len(self._recordings)} recordings>"


class Loop:
    """A captured step and the batches that it runs on: `run(n)` makes n more steps.

    Epochs follow one another in the orders that `for batch in loader` would have, drawn from the loader's generator. `epoch` counts those
    that are done, `batch` the steps of the one that is running.
    """

    def __init__(self, step: Callable, loader: DataLoader, warmup: int, recordings: int):
        if not isinstance(loader, DataLoader):
            raise ArgumentError(f"capture: expected a gp.data.DataLoader as batches, got {type(loader).__name__}")
        self.loader, self.step = loader, step
        if not len(loader):
            raise OptionError(
                f"capture: expected batches, got none of {len(loader.dataset)} samples; lower batch_size, or keep the last"
            )
        self.epoch = self.batch = 0
        self._has_order = False  # of the epoch's samples
        count, device = len(loader.dataset), loader.dataset.tensors[0].device
        self._order = arange(count, device=device)  # of the epoch's samples
        self._start = arange(1, device=device)  # of the next batch in it
        self._begin = Captured(self._new_order, warmup, recordings)
        self._next = Captured(self._step, warmup, recordings)

    def __call__(self, n: int | None = None) -> Any:
        """Makes n steps (None: as many as are left of the epoch), and returns the last one's result. Raises: OptionError for n < 1."""
        if n is not None and (not isinstance(n, int) or n < 1):
            raise OptionError(f"run: expected a number of steps, at least one, got {n!r}")
        result = None
        for _ in range(len(self.loader) - self.batch if n is None else n):
            if not self._has_order:
                self._begin()
                self._has_order = True
            left = len(self.loader.dataset) - self.batch * self.loader.batch_size
            try:
                result = self._next(min(self.loader.batch_size, left))
            except BaseException:  # the next call makes this step again
                with no_grad():
                    self._start.fill_(self.batch * self.loader.batch_size)
                raise
            self.batch += 1
            if self.batch == len(self.loader):
                self.epoch, self.batch, self._has_order = self.epoch + 1, 0, False
        return result

    def _new_order(self) -> None:
        with no_grad():
            if self.loader.shuffle:
                self._order.copy_(self.loader.shuffled())
            self._start.zero_()

    def _step(self, size: int) -> Any:
        with no_grad():
            places = self._start + arange(size, device=self._start.device)
            batch = self.loader.gather(call(REGISTRY["take"], (self._order, places), {"axis": 0}))
            self._start += size
        return self.step(*batch)


def listener_for(arrays: Sequence[Any]) -> Recorder:
    """What listens to a run on the device of the arguments, or the default device."""
    backend = BACKENDS[type(arrays[0])] if arrays else backend_for(default_device())
    if backend.name != "cuda":
        return Recorder()
    from .cuda.graph import GraphListener

    return GraphListener()


def recorder_for(inputs: Sequence[Tensor], listener: Recorder | None) -> StateRecorder:
    """A recorder for the device of the arguments, or of the arrays that ops were called with, or the default device."""
    kind = type(inputs[0]._data) if inputs else listener.kind if listener is not None else None
    backend = backend_for(default_device()) if kind is None else BACKENDS[kind]
    if backend.name == "cpu":
        return CpuRecorder(inputs)
    if backend.name != "cuda":
        raise CaptureError(f"capture: expected arrays on a CPU or a GPU, got {backend.name}; call `.eager(...)`")
    from .cuda.graph import GraphRecorder

    return GraphRecorder(inputs, listener.plan if listener is not None else None)


def _arguments(args: tuple, kwargs: dict[str, Any]) -> tuple[list[Any], Any]:
    """The arrays among the arguments, and everything else about them."""
    if not kwargs:
        arrays = [a._data for a in args if isinstance(a, Tensor) and a._node is None]
        if len(arrays) == len(args):
            return arrays, (_same_ones(arrays), _matmul.settings, get_default_dtype())
    arrays = []
    try:
        structure = _structure((args, kwargs), arrays)
    except RecursionError:
        raise ArgumentError("capture: expected arguments nested some hundred levels deep at most, got more") from None
    return arrays, (structure, _same_ones(arrays), _matmul.settings, get_default_dtype())


def _has_arrays(args: tuple, kwargs: dict[str, Any]) -> bool:
    return any(map(is_array, flatten((args, kwargs))[0]))


def _digests(arrays: list[Any]) -> list[Any]:
    return [digest_of(array) for array in arrays if isinstance(array, np.ndarray)]


def _same_ones(arrays: list[Any]) -> Any:
    """How many arrays there are, or which of them is first at each place: NumPy makes products of an array with itself otherwise."""
    places = [*map(id, arrays)]
    return len(places) if len(set(places)) == len(places) else tuple(map(places.index, places))


def _structure(value: Any, arrays: list[Any]) -> Any:
    if isinstance(value, Tensor):
        if value._node is not None:
            raise CaptureError(
                f"capture: expected arguments that do not require gradients, got {describe(value)} that does; "
                "differentiate within the function (gp.grad), or pass .detach()"
            )
        arrays.append(value._data)
        return Tensor
    if isinstance(value, dict):
        return (
            dict,
            tuple(value),
            tuple((key, _structure(item, arrays)) for key, item in sorted(value.items(), key=lambda i: repr(i[0]))),
        )
    if isinstance(value, (list, tuple)):
        return type(value), tuple(_structure(item, arrays) for item in value)
    if isinstance(value, np.ndarray) or (
        not isinstance(value, (int, float, str, bool, type(None))) and is_array(value)
    ):
        arrays.append(value)
        return np.ndarray
    try:
        hash(value)
    except TypeError:
        raise CaptureError(
            f"capture: expected tensors, arrays, and other arguments that can be compared, got {type(value).__name__}"
        ) from None
    # 1, 1.0 and True are equal, as are 0.0 and -0.0.
    return type(value), repr(value) if isinstance(value, (float, np.floating)) else value


def _detached(leaf: Any) -> Any:
    """A result as repeated runs return it: off the tape."""
    return leaf.detach() if isinstance(leaf, Tensor) and not leaf.is_leaf else leaf


def unchanged_names(function: Any) -> Callable[[], bool] | None:
    """A function that says whether the names by which a function finds modules, optimizers and tensors still mean the same objects.

    Those are globals, what it closes over, and for a method the attributes of its object that it names; not what functions that it calls
    look up. None where there are none.
    """
    owner = getattr(function, "__self__", None)
    function = getattr(function, "__func__", function)
    if not isinstance(function, FunctionType):
        return None
    loaded, stored = _names_in(function.__code__)
    known, own = function.__globals__, getattr(owner, "__dict__", {})
    names = [(known, n, known[n]) for n in loaded["GLOBAL"] - stored["GLOBAL"] if isinstance(known.get(n), LOOKED_UP)]
    # An attribute's name may be that of another object's: so no tensors, which have methods of many names.
    names += [(own, n, own[n]) for n in loaded["ATTR"] - stored["ATTR"] if isinstance(own.get(n), LOOKED_UP[1:])]
    closure = zip(function.__code__.co_freevars, function.__closure__ or ())
    cells = [(c, c.cell_contents) for n, c in closure if n not in stored["DEREF"] and _is_looked_up(c)]
    if not names and not cells:
        return None

    def unchanged() -> bool:
        for attributes, name, value in names:
            if attributes.get(name) is not value:
                return False
        try:
            for cell, value in cells:
                if cell.cell_contents is not value:
                    return False
        except ValueError:  # nothing in it any more
            return False
        return True

    return unchanged


def _names_in(code: CodeType) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """By kind (GLOBAL, ATTR, DEREF) the names that code loads, and those that it stores."""
    loaded: dict[str, set[str]] = defaultdict(set)
    stored: dict[str, set[str]] = defaultdict(set)
    for instruction in dis.get_instructions(code):
        action, _, kind = instruction.opname.partition("_")
        kind = {"METHOD": "ATTR", "NAME": "GLOBAL"}.get(kind, kind)
        if action in ("LOAD", "STORE"):
            (loaded if action == "LOAD" else stored)[kind].add(str(instruction.argval))
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            for mine, theirs in zip((loaded, stored), _names_in(inner)):
                for kind, names in theirs.items():
                    mine[kind] |= names
    return loaded, stored


def _is_looked_up(cell: Any) -> bool:
    try:
        return isinstance(cell.cell_contents, LOOKED_UP)
    except ValueError:  # nothing in it yet
        return False


def _difference(first: list[str], second: list[str]) -> CaptureError:
    """What to raise where two runs in the same state did not call the same ops."""
    pairs = enumerate(zip([*first, "no more"], [*second, "no more"]), 1)
    index, (a, b) = next((index, pair) for index, pair in pairs if pair[0] != pair[1])
    return CaptureError(
        f"capture: expected two runs that call the same ops, got {a} as call {index} of the first and {b} of the second; "
        "take out what changes from call to call, or let more runs warm up"
    )
