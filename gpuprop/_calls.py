"""`gp.capture` on a CPU: a run of a function as a flat list of NumPy calls on fixed buffers. (On a GPU: `cuda/graph.py`.)"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ._layout import layout_of
from ._op import REGISTRY
from ._program import Program
from ._recorder import StateRecorder
from ._recording import Recording
from ._tensor import Tensor
from ._trace import Log, Node, ValueNeeded, owner
from ._tree import map_leaves
from .tape import Mode

# Bytes up to which an argument is copied, because binding calls to another array takes 7 to 12 us. A step on four batches in turn, copied
# and bound: 72 and 79 us for 16 KiB of 64-64-64-10, batch 64; 105 and 106 for 64 KiB of 256-64-10; 228 and 217 for 196 KiB of 784-64-10;
# 1.09 and 1.08 ms for 392 KiB of 784-256-128-10, batch 128.
SMALL = 64 * 1024
# Bits of NumPy's flags: C order or Fortran's, and those two or aligned.
CONTIGUOUS, LAYOUT_FLAGS = 0x3, 0x103


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
        # As the base does, but flags say more than strides where an array is contiguous: a step of 64-64-64-10 takes 2 us less.
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
