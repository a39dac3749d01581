"""`gp.capture` on a GPU: a run of a function as one CUDA graph.

The function runs once while its stream is captured: kernels, products and copies become nodes, and nothing is executed. What the graph
works on is its own: new arrays come from an arena, as do the counters and workspaces of its kernels. What must not be repeated (memory that
lasts, tables, constants from the host) is made aside, on the caller's stream, and kept. What the host does in every run (schedules, step
counts, options that have changed) is done in its order before each launch.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cupy

from .._layout import fill
from .._recorder import Early, Recorder, StateRecorder, refusal
from .._recording import Recording
from .._tensor import Leaf, Tensor
from ..errors import CaptureError, Error
from ..tape import Mode
from . import gemm
from .arena import Arena, Plan, Survey
from .launch import Tickets, tickets_in


class Beside:
    """One piece of work at a time that may run beside what follows it.

    Until it is joined, memory that is freed is not handed out again: the work may still read it.
    """

    def __init__(self, memory: Arena | Survey):
        self.memory = memory
        self.open = False  # that work is not joined
        self.leaves: Sequence[Leaf] = ()  # whose gradients it writes

    def run(self, leaves: Sequence[Leaf], function: Callable, *args: Any, **options: Any) -> Any:
        """Makes a call that may run beside what follows."""
        self.join()
        self.memory.hold(True)
        result = self.call(function, args, options)
        self.open, self.leaves = True, leaves
        return result

    def call(self, function: Callable, args: tuple, options: dict[str, Any]) -> Any:
        return function(*args, **options)

    def join(self) -> None:
        """What follows comes after the work."""
        if self.open:
            self.wait()
            self.memory.hold(False)
            self.open, self.leaves = False, ()

    def wait(self) -> None:
        """Has what follows wait for the work."""


class Branch(Beside):
    """A second stream of a capture."""

    def __init__(self, trunk: Any, arena: Arena):
        super().__init__(arena)
        self.trunk, self.stream = trunk, cupy.cuda.Stream(non_blocking=True)
        self.done: Any = None  # an event behind the last work

    def call(self, function: Callable, args: tuple, options: dict[str, Any]) -> Any:
        self.stream.wait_event(self.trunk.record(_event()))
        with self.stream:
            result = function(*args, **options)
        self.done = self.stream.record(_event())
        return result

    def wait(self) -> None:
        self.trunk.wait_event(self.done)

    def end(self) -> None:
        """The end of the capture, for which all work has to be joined; also if the function went on after an error in a walk."""
        self.join()
        if (
            self.done is not None
        ):  # said again, which adds nothing: the simulated GPU forgets joins that work has followed
            self.wait()


def _event() -> Any:
    return cupy.cuda.Event(disable_timing=True)


class GraphListener(Recorder):
    """Listens to a run, and surveys what memory a recording of it will need."""

    def __init__(self) -> None:
        super().__init__()
        self.survey = Survey(cupy.cuda.get_allocator())
        self.branch = Beside(self.survey)

    @contextlib.contextmanager
    def listens(self) -> Iterator[None]:
        with cupy.cuda.using_allocator(self.survey.allocate):
            yield
        self.plan = self.survey.plan()

    def beside(self, function: Callable, leaves: Sequence) -> Callable:
        return functools.partial(self.branch.run, leaves, function)

    def joins(self) -> None:
        self.branch.join()

    def touches(self, leaf: Any, adding: bool = False) -> None:
        if leaf in self.branch.leaves:
            self.branch.join()


class GraphRecorder(StateRecorder):
    """Captures a run, on a stream of its own."""

    array_type = cupy.ndarray

    def __init__(self, inputs: Sequence[Tensor], plan: Plan | None = None):
        super().__init__(inputs)
        places = sorted({str(t.device) for t in inputs})
        if len(places) > 1:
            raise CaptureError(
                f"capture: expected arguments on one device, got {' and '.join(places)}; move them with .to(device)"
            )
        self.caller, self.allocator = cupy.cuda.get_current_stream(), cupy.cuda.get_allocator()
        self.arena = Arena(self._lasting, plan)
        self.workspaces, self.tickets = gemm.Workspaces(), Tickets()
        self.kept: list[Any] = []
        self.actions: list[Callable[[], Any]] = []
        self.graph: Any = None
        self.branch: Any = None  # while the run is made
        self.called: Sequence = ()  # inputs of the op that is called
        self.waiting: dict[Leaf, Early] = {}  # gradients that are at home before a walk has brought them there
        self.expected: Early | None = None  # that of the record through which the walk goes

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        stream = cupy.cuda.Stream(non_blocking=True)
        owned = (
            gemm.workspaces(self.workspaces),
            tickets_in(self.tickets),
            cupy.cuda.using_allocator(self.arena.allocate),
        )
        with contextlib.ExitStack() as stack:
            for context in (*owned, stream):
                stack.enter_context(context)
            stream.begin_capture()
            self.branch = Branch(stream, self.arena)
            try:
                yield
                for generator, (_, blocks) in self.generators.items():
                    generator.add_to_base(blocks)
                self.branch.end()
                self.graph = stream.end_capture()
            except BaseException as error:
                if self.graph is None:
                    with contextlib.suppress(cupy.cuda.runtime.CUDARuntimeError):  # says what `error` says
                        stream.end_capture()
                if _is_refusal(error):
                    raise _refused("a call", error, error) from error
                raise

    def _lasting(self, size: int) -> Any:
        """Memory for the arena: of the caller's stream, as CuPy's pool hands out again to a stream what was freed on it."""
        with self.aside():
            return cupy.cuda.alloc(size)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        with cupy.cuda.using_allocator(self.allocator), self.caller:
            yield

    def keeps(self, value: Any) -> None:
        self.kept.append(value)

    def is_lasting(self, array: Any) -> bool:
        return not self.arena.holds(array) and not self.is_given(array)

    def changes(self, tensor: Tensor) -> None:
        super().changes(tensor)
        self.writes(tensor._data)

    def writes(self, array: Any) -> None:
        if self.is_lasting(array):
            self.changed.append(array)

    # --- what is called -----------------------------------------------------------------------------------------

    def listening(self, op: Any, inputs: Sequence, arrays: Sequence, function: Callable, generic: Any) -> Any:
        self.called = inputs
        return super().listening(op, inputs, arrays, function, generic)

    def early(self, array: Any) -> Early | None:
        leaf = next((t._node for t in self.called if isinstance(t, Tensor) and t._data is array), None)
        if type(leaf) is not Leaf or leaf in self.waiting or leaf.grad is not None or leaf.home is None or leaf.hooks:
            return None
        self.touches(leaf)  # a replay writes there: while there is no gradient
        made = self.waiting[leaf] = Early(leaf.home())
        return made

    def hearing(self, name: str, function: Callable, kept: Sequence, again: bool) -> Callable:
        self.called = ()  # a walk frees what ops were called with
        self.expected = None if again else next((value for value in kept if type(value) is Early), None)
        return super().hearing(name, function, kept, again)

    def touches(self, leaf: Any, adding: bool = False) -> None:
        super().touches(leaf, adding)
        if leaf in self.branch.leaves:
            self.branch.join()
        early = self.waiting.pop(leaf, None) if adding else None
        if early is not None and early is not self.expected:
            early.leave()

    def beside(self, function: Callable, leaves: Sequence) -> Callable:
        return functools.partial(self.branch.run, leaves, function)

    def joins(self) -> None:
        self.branch.join()

    def logged(self, name: str, function: Callable) -> Callable:
        return lambda *args, **options: self.run(name, function, args, options)

    def run(self, name: str, function: Callable, args: Sequence, options: dict[str, Any]) -> Any:
        try:
            return function(*args, **options)
        except Exception as error:
            if _is_refusal(error):
                raise _refused(name, error) from error
            raise

    def acts(self, name: str, function: Callable[[], Any], *arrays: Any) -> Any:
        self.actions.append(function)
        with Mode(recorder=None), self.aside():
            return function()

    def updates(self, optimizer: Any, work: Any, step: Callable[[], None], skips: bool) -> None:
        name = type(optimizer).__name__
        self.heard.append(f"step of {name}")
        self.meets(optimizer)
        if any(run.values.size for _, run in work.plain):
            self.refuse(
                f"a step of {name} without a kernel", "give the class one: `class ...(Optimizer, cuda=flat(...))`"
            )
        with self.aside():
            before_repetition = optimizer.repeatable(work, skips)
        step()
        self.changed += optimizer.arrays(work)
        self.actions.append(before_repetition)
        self.guards.append(lambda: optimizer._work is work or optimizer.counts_agree(work))
        self.versions += [version for members in work.fused.values() for _, run in members for version in run.versions]

    # --- afterwards ---------------------------------------------------------------------------------------------

    def finish(self) -> GraphRecording:
        recording = GraphRecording(self)
        recording.graph.launch(self.caller)
        return recording

    def settle(self) -> None:
        for generator, (offset, blocks) in self.generators.items():
            generator.follow(blocks)
            generator.offset = offset
        self.undone.clear()


def _is_refusal(error: BaseException) -> bool:
    """Whether CuPy or CUDA refuses what cannot be captured: they say so in words only."""
    return isinstance(error, RuntimeError) and not isinstance(error, Error) and "captur" in str(error)


def _refused(name: str, error: BaseException, where: BaseException | None = None) -> CaptureError:
    library, reason = gemm.load()
    if library is None and isinstance(error, NotImplementedError):
        return refusal(f"{name}, whose matrix product CuPy makes because {reason}", "install that", where)
    said = str(error).strip().splitlines()[0]
    return refusal(f"{name}, which CuPy refuses ({said})", "compute that outside of the function", where)


class GraphRecording(Recording):
    """A run as a CUDA graph."""

    def __init__(self, recorder: GraphRecorder):
        super().__init__(recorder)
        self.graph = recorder.graph
        self.actions = recorder.actions
        self.home = recorder.caller
        self.arena = recorder.arena
        self.epilogues = recorder.epilogues
        self.owned = recorder.workspaces, recorder.tickets, recorder.kept  # alive as long as the graph
        self.device = cupy.cuda.runtime.getDevice()

    def takes(self, arrays: Sequence[Any]) -> bool:
        return super().takes(arrays) and all(a.data.device_id == self.device for a in arrays)

    def repeat(self, arrays: Sequence[Any]) -> None:
        stream = cupy.cuda.get_current_stream()
        away = stream != self.home
        if away:
            stream.wait_event(self.home.record())
        for own, array in zip(self.input_arrays, arrays):
            if array is not own:
                fill(own, array)
        for act in self.actions:
            act()
        self.graph.launch(stream)
        if away:  # whatever stream the next replay is on, it comes after this one; so does what is done with the memory afterwards
            self.home.wait_event(stream.record())

    def advance(self, generator: Any, blocks: int) -> None:
        generator.follow(blocks)

    def nodes(self) -> list[str]:
        """The names of the graph's kernels, products, copies and fills."""
        labels = re.findall(r'\[[^\]]*?label="([^"]*)"[^\]]*\]', self.dot())
        return [re.sub(r"^\s*(?:\d+\b[\s\\n:]*)?|[\s\\n]+$", "", label) for label in labels]

    def report(self) -> dict[str, Any]:
        """What a replay consists of: `nodes`, and how many of each in `calls`; what matrix products do besides, in `epilogues`, by the
        library's names; and bytes: `arena_bytes`, of which arrays held `peak_bytes` at once, and `input_bytes`."""
        nodes = self.nodes()
        return {
            "nodes": len(nodes),
            "calls": dict(Counter(nodes).most_common()),
            "epilogues": dict(self.epilogues),
            "arena_bytes": self.arena.size,
            "peak_bytes": self.arena.peak,
            "input_bytes": sum(array.nbytes for array in self.input_arrays),
        }

    def dot(self) -> str:
        """The graph in Graphviz' language."""
        return self.graph.debug_dot_str()
