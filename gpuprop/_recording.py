"""Recordings: a run of a function that can be repeated while what it depends on is as it was. Devices have their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import is_
from typing import TYPE_CHECKING, Any

import numpy as np

from ._layout import copied_alike, is_foreign, layout_of, memory_of, span
from ._tensor import Tensor, finish_sums, number
from .errors import CaptureError
from .tape import describe, tape

if TYPE_CHECKING:
    from ._recorder import StateRecorder


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
    unproven: Any = None  # digests of arguments, if an array that may be made of them was taken for a constant

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
        parts = [part for part in recorder.attributes if isinstance(part[2], Tensor) or id(part[2]) in known]
        # What the run itself has changed, a module's last activations for one, is not what it depended on.
        parts = [(d, n, v) for d, n, v in [*parts, *recorder.settings] if d.get(n, self) is v]
        self.parts = [part[0] for part in parts], [part[1] for part in parts], [part[2] for part in parts]
        self.leaves = []
        self.left: list[tuple[Any, Any]] = []  # leaves, and the gradients that the run leaves there
        self.added: list[Any] = []  # leaves to whose gradient the run adds, whatever tensor that is
        self.fresh: list[
            tuple[Any, Any]
        ] = []  # leaves whose gradients are buffers of the recording, as its results are
        for leaf, (before, added_to) in recorder.leaves.items():
            if leaf.number > recorder.begin:  # made within the run
                continue
            after = leaf.grad
            stayed = after is not None and after._data is before  # then the run read it, or wrote over it
            self.leaves.append((leaf, before, added_to or stayed, leaf.hooks))
            if not stayed:
                self.left.append((leaf, after))
            elif added_to:
                self.added.append(leaf)
            if after is not None and not stayed and after._node is None and not recorder.is_lasting(after._data):
                self.fresh.append((leaf, after._data))
        self.versions = recorder.versions
        self.generators = [(g, g.seed, offset, blocks) for g, (offset, blocks) in recorder.generators.items()]
        self.guards = recorder.guards
        self.mode = recorder.mode
        self.outputs, self.build = recorder.outputs, recorder.build
        self.copies = [i for i, tensor in enumerate(recorder.are_tensors) if not tensor]  # of outputs that are arrays
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
        for leaf, before, added_to, hooks in self.leaves:
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
        attributes, names, values = self.parts
        if not all(map(is_, map(dict.get, attributes, names), values)) and not self._are_equal():
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

    def _are_equal(self) -> bool:
        """Whether attributes of modules that are other objects than recorded are equal numbers."""
        attributes, names, values = self.parts
        for i, value in enumerate(map(dict.get, attributes, names)):
            if value is not values[i]:
                if isinstance(value, Tensor) or type(value) is not type(values[i]) or repr(value) != repr(values[i]):
                    return False
                values[i] = value
        return True

    def play(self, arrays: Sequence[Any]) -> Any:
        """Repeats the run on other arguments."""
        if self.meets_others(arrays):
            arrays = self._apart(arrays)
        for version in self.versions:
            if len(version) > 1:
                finish_sums(version)
        for leaf in self.added:
            version = leaf.grad._version  # None: nothing has been computed from it
            if version is not None and len(version) > 1:
                finish_sums(version)
        self.repeat(arrays)
        now = next(number)
        for version in self.versions:
            version[0] = now
        for leaf in self.added:
            version = leaf.grad._version
            if version is not None:
                version[0] = now
        for leaf, after in self.left:
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
        results = [out if isinstance(out, Tensor) else Played(out, self) for out in self.outputs]
        for i in self.copies:
            results[i] = self.outputs[i].copy()
        return self.build(results)


class Played(Tensor):
    """A result of a captured function: a fixed buffer, which the next call overwrites."""

    def __init__(self, array: Any, recording: Recording):
        # One by one: `__dict__.update` takes three times as long.
        self._array, self._recording, self._generation = array, recording, recording.generation

    def _peek(self) -> np.ndarray:
        """The values, where the next call does not overwrite them."""
        return super()._peek().copy() if type(self._data) is np.ndarray else super()._peek()

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
