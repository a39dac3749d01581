"""The tape: what was computed, in order, and the one walk backwards over it.

`call` runs an op and, where an input needs a gradient, writes a `Record`. Tensors carry their record, so a part of the tape
that nothing refers to any more frees itself. Numbers come from one counter: a record's number is larger than those of the
records it depends on, so the walk takes the largest number first, without recursion and without sorting the graph.
The same counter dates mutations: a kept array is stale if it was changed after the record that keeps it was written.
"""

from __future__ import annotations

import contextlib
import operator
import os
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._tensor import Leaf, Tensor, _cast, _copied, as_data, host_array, number
from .device import BACKENDS, device_of, device_scope, is_array
from .errors import (
    AnomalyError,
    ArgumentError,
    DeviceError,
    DtypeError,
    Error,
    GraphError,
    MutationError,
    ShapeError,
    UndefinedGradientError,
    explained,
)

if TYPE_CHECKING:
    from ._op import Native, Op, Plan

_PACKAGE = str(Path(__file__).parent) + os.sep  # not its name: the user's own folder may be called gpuprop, too


class Tape(threading.local):
    """What belongs to this thread: whether calls are recorded, and how."""

    enabled = True
    dry = False  # records keep nothing: `checkpoint` only asks which results depend on what
    anomaly = False  # records keep the stack, and walks check every gradient
    recorder: Any = None  # what takes notes of all that is computed, while `gp.capture` looks on
    mode = 1  # all in one number, for the hot path: 0 off, 1 on, 2 on with `dry` or `anomaly`; 4 more with a recorder


tape = Tape()


class Mode(contextlib.ContextDecorator):
    """Sets the thread's tape for a while: `with Mode(enabled=False): ...`."""

    def __init__(self, **settings: Any):
        self.settings = settings
        self.before: list[dict[str, Any]] = []

    def __enter__(self) -> None:
        self.before.append({name: getattr(tape, name) for name in self.settings})
        self._set(self.settings)

    def __exit__(self, *_: object) -> None:
        self._set(self.before.pop())

    def _recreate_cm(self) -> Mode:  # a decorated function may run in several threads at once: each call has its own
        return Mode(**self.settings)

    @staticmethod
    def _set(settings: dict[str, Any]) -> None:
        tape.__dict__.update(settings)
        tape.mode = tape.enabled * (1 + (tape.dry or tape.anomaly)) + 4 * (tape.recorder is not None)


def no_grad() -> Mode:
    """Nothing is recorded in this context, in this thread. Also a decorator: `@gp.no_grad()`."""
    return Mode(enabled=False)


def enable_grad() -> Mode:
    """Calls are recorded in this context, also inside `no_grad()`."""
    return Mode(enabled=True)


def is_grad_enabled() -> bool:
    """Whether this thread records what it computes."""
    return tape.enabled


def detect_anomaly() -> Mode:
    """Backward walks raise `AnomalyError` at the first gradient that is not finite, naming the op and the line that called it.

    For finding a mistake: it keeps a stack per record and reads every gradient. The line is known where the forward pass ran in
    this context as well.
    """
    return Mode(anomaly=True)


class Record:
    """One call on the tape: the op, its options, what its gradient rules named, and where gradients go."""

    number: int
    shape: Any  # of the result, and so of its cotangent; a tuple of shapes where there are several
    dtype: Any
    plan: Plan
    options: dict[str, Any]
    edges: tuple  # the nodes of the inputs that need gradients
    kept: Sequence | None  # in the plan's order: inputs (as Tensors), shapes, the output, residuals; None once freed
    hooks: list[Callable] | None = None
    stack: Any = None  # who called, under `detect_anomaly`

    @property
    def op(self) -> Op:
        return self.plan.op

    @property
    def name(self) -> str:
        return self.plan.op.name

    def __repr__(self) -> str:
        return f"<record of {self.name}>"


class Output:
    """One result of an op that has several: hands its cotangent to the record."""

    __slots__ = ("number", "shape", "dtype", "record", "index", "hooks", "__weakref__")

    def __init__(self, record: Record | Recomputed, index: int):
        self.number = next(number)
        self.shape, self.dtype = record.shape[index], record.dtype[index]
        self.record = record
        self.index = index
        self.hooks: list[Callable] | None = None

    def receive(self, walk: _Walk, dy: Any, owned: bool) -> None:
        """Puts the cotangent in its place of the record's tuple."""
        record = self.record
        if record not in walk.pending:
            walk.deliver(record, [None] * len(record.shape))
        if record in walk.pending:
            walk.pending[record][self.index] = dy

    @property
    def edges(self) -> tuple:
        return (self.record,)

    @property
    def name(self) -> str:
        return f"{self.record.name}[{self.index}]"


class _One:
    """The cotangent of a scalar loss, before anybody needs it as an array."""

    def __repr__(self) -> str:
        return "ONE"


ONE = _One()


class Deferred:
    """The gradient dy @ factor, before it is computed: the record that gets it may compute it together with its own.

    A walk has one at a time, and turns to no other record before it is computed: nothing can change in between.
    """

    __slots__ = ("function", "dy", "factor", "target", "shape", "dtype")

    def __init__(self, function: Callable, dy: Any, factor: Any, target: Record):
        self.function, self.dy, self.factor, self.target = function, dy, factor, target
        self.shape, self.dtype = target.shape, target.dtype

    def made(self) -> Any:
        """The gradient, computed by itself."""
        return self.function(self.dy, self.factor)


new = (
    object.__new__
)  # a call of the class would run `__init__` as one more Python function: 60 ns each for Tensor and Record
_WEAK = frozenset({float, int, bool, type(None)})  # take their dtype from the arrays beside them


def compute(function: Callable, *args: Any) -> Any:
    """A call on arrays that belongs to no op; a recorder hears of it."""
    return function(*args) if tape.recorder is None else tape.recorder.run(function.__name__, function, args, {})


def aside() -> contextlib.AbstractContextManager:
    """For what is done once, not in every run that a recorder's recording makes: memory that lasts, constants from the host."""
    return contextlib.nullcontext() if tape.recorder is None else tape.recorder.aside()


def keep(value: Any) -> Any:
    """The value, which lives as long as the recording that this thread's recorder makes: its runs use it."""
    if tape.recorder is not None:
        tape.recorder.keeps(value)
    return value


def anew(array: Any) -> Any:
    """An array of constants that was just made; a recorder has it made again in every run, because it may be changed in place."""
    return array if tape.recorder is None else tape.recorder.run("constant", _copied, (array,), {})


# --- Forward --------------------------------------------------------------------------------------------------------


def call(op: Op, inputs: Sequence, options: dict[str, Any]) -> Any:
    """Runs an op on tensors, arrays and numbers. Any Tensor in: Tensors out, recorded where needed. Else plain arrays."""
    arrays = []
    mask, bit, kind = 0, 1, None
    for value in inputs:
        if isinstance(value, Tensor):
            array = value._data
            if type(array) is not kind:
                if kind is not None:
                    raise _mixed(op, inputs)
                kind = type(array)
            if value._node is not None:
                mask |= bit
        elif type(value) in _WEAK:
            array = value
        else:
            return _call_with_other_kinds(op, inputs, options)
        arrays.append(array)
        bit += bit
    if kind is None:
        return _call_with_other_kinds(op, inputs, options)
    return _run(op, inputs, arrays, options, kind, mask, bit)


def operators(op: Op) -> tuple[Callable, Callable]:
    """The op of two operands as an operator and as its reflection: `call` without its loop, a sixth of a small op's price."""
    options = op.defaults

    def operate(self: Tensor, other: Any) -> Any:
        a = self._data
        if isinstance(other, Tensor):
            b = other._data
            if type(b) is type(a):
                mask = 0 if self._node is None else 1
                if other._node is not None:
                    mask |= 2
                return _run(op, (self, other), (a, b), options, type(a), mask, 4)
        elif type(other) in _WEAK:
            return _run(op, (self, other), (a, other), options, type(a), 0 if self._node is None else 1, 4)
        return call(op, (self, other), options)

    def reflected(self: Tensor, other: Any) -> Any:
        return call(op, (other, self), options)

    return operate, reflected


def _run(op: Op, inputs: Sequence, arrays: Sequence, options: dict[str, Any], kind: type, mask: int, bit: int) -> Any:
    """Computes on arrays of one backend and numbers, and records. The hot path of everything, so written out in one piece.

    mask: a bit for each input that needs a gradient; bit: the one above them.
    """
    try:
        function, residuals, plans, generic = op.bound[kind]
    except KeyError:
        function, residuals, plans, generic = op.bind_to(kind)
    mode = tape.mode
    if mode != 1:
        if mode > 3:
            function, generic = tape.recorder.listening(op, inputs, arrays, function, generic)
            mode -= 4
        if not mode:
            mask = 0
    try:
        if residuals:
            y = function(*arrays, keep=mask != 0, **options)
            if y is not NotImplemented:
                y, *residuals = y
        elif options:
            y = function(*arrays, **options)
        else:
            y = function(*arrays)
        if y is NotImplemented and generic is not None:
            function, residuals, plans, _ = generic
            y = function(*arrays, **options)
    except Exception as error:
        raise explained(error, op.name, ", ".join(describe(a) for a in arrays)) from error

    if type(y) is not kind:
        if isinstance(y, tuple):
            return _wrap_several(op, inputs, arrays, options, mask and plans[mask | bit], y, residuals)
        if isinstance(y, (np.generic, float, int)):
            y = BACKENDS[kind].xp.asarray(y)  # ufuncs make 0-d arrays scalars
        elif not is_array(y):
            raise DtypeError(
                f"{op.name}: expected the rule to return an array or a tuple of them, got {type(y).__name__}"
            )
    result = new(Tensor)
    result._data = y
    if op.view and isinstance(inputs[0], Tensor) and shares_memory(y, arrays[0]):
        result._version = inputs[0].version()
        if inputs[0]._aliases is not None:
            inputs[0]._aliases(result)
    if mask:
        dtype = y.dtype
        if _FLOATING[dtype]:
            plan = plans[mask | bit]
            kept = plan.keep(inputs) if plan.keep else ()
            if plan.keeps_others:
                kept = [*kept, *_others(plan, arrays, result.detach() if plan.keeps_output else None, residuals)]
            record = result._node = new(Record)
            record.number = next(number)
            record.shape = y.shape
            record.dtype = dtype
            record.plan = plan
            record.options = options
            record.edges = (inputs[plan.only]._node,) if plan.only >= 0 else plan.sources(inputs)
            record.kept = kept
            if mode == 2:
                _mark(record)
    return result


def shares_memory(y: Any, x: Any) -> bool:
    """Whether a result is its input or a view of it. (A copy may have a base too: the array that it was made as.)"""
    base = y.base
    return y is x or (base is not None and (base is x or base is x.base))


def _others(plan: Plan, arrays: Sequence, outputs: Any, residuals: Sequence) -> list:
    """What a record keeps beside inputs."""
    others = [getattr(arrays[i], "shape", ()) for i in plan.kept_shapes]
    if plan.keeps_output:
        others.append(outputs)
    return others + [residuals[k] for k in plan.kept_residuals]


def _mark(record: Record) -> None:
    if tape.dry:
        record.kept = None
    elif tape.anomaly:
        record.stack = traceback.extract_stack()


def _wrap_several(
    op: Op,
    inputs: Sequence,
    arrays: Sequence,
    options: dict[str, Any],
    plan: Any,
    values: tuple,
    residuals: Sequence,
) -> tuple:
    kind = next(type(a) for a in arrays if type(a) not in _WEAK)
    values = tuple(BACKENDS[kind].xp.asarray(v) if isinstance(v, (np.generic, float, int)) else v for v in values)
    results = tuple(Tensor(v) for v in values)
    if op.view and isinstance(inputs[0], Tensor):
        for result in results:
            if shares_memory(result._data, arrays[0]):
                result._version = inputs[0].version()
    if plan and any(_FLOATING[v.dtype] for v in values):
        kept = [
            *(plan.keep(inputs) if plan.keep else ()),
            *_others(plan, arrays, tuple(r.detach() for r in results), residuals),
        ]
        shapes, dtypes = tuple(v.shape for v in values), tuple(v.dtype for v in values)
        record = new(Record)
        record.number, record.shape, record.dtype = next(number), shapes, dtypes
        record.plan, record.options, record.edges, record.kept = plan, options, plan.sources(inputs), kept
        if tape.mode == 2:
            _mark(record)
        for index, result in enumerate(results):
            if _FLOATING[dtypes[index]]:
                result._node = Output(record, index)
    return results


def _call_with_other_kinds(op: Op, inputs: Sequence, options: dict[str, Any]) -> Any:
    """The border: NumPy scalars become Python numbers, lists arrays; plain arrays alone follow NumPy and stay plain."""
    any_tensor = next((v for v in inputs if isinstance(v, Tensor)), None)
    values: list[Any] = []
    for value in inputs:
        if isinstance(value, Tensor) or type(value) in _WEAK:
            values.append(value)
        elif isinstance(value, np.generic):
            values.append(value.item() if any_tensor is not None else np.asarray(value))
        elif isinstance(value, (list, tuple)):
            if _wants_gradient(value):
                raise GraphError(
                    f"{op.name}: expected tensors, arrays or numbers, got a list of tensors that require a gradient, which would "
                    "be lost; join them with gp.numpy.stack"
                )
            device = any_tensor.device if any_tensor is not None else None
            values.append(as_data(value, device=device) if device is not None else np.asarray(value))
        else:
            values.append(_known_array(op, value))
    if all(v is None for v in values):
        raise ArgumentError(f"{op.name}: expected tensors, arrays or numbers, got None")
    if all(type(v) in _WEAK for v in values):
        values = [v if v is None else np.asarray(v) for v in values]
    arrays = [v._data if isinstance(v, Tensor) else v for v in values]
    kinds = {type(a) for a in arrays if type(a) not in _WEAK}
    if len(kinds) > 1:
        raise _mixed(op, values)
    if any_tensor is None:
        return _plain(op, arrays, options, kinds.pop())
    constants = [v if isinstance(v, Tensor) or type(v) in _WEAK else Tensor(v) for v in values]
    return call(op, constants, options)


def _plain(op: Op, arrays: list, options: dict[str, Any], kind: type) -> Any:
    """The op's value on plain arrays."""
    results = call(op, [Tensor(a) if type(a) is kind else a for a in arrays], options)
    values = tuple(r._data for r in results) if isinstance(results, tuple) else results._data
    return values if tape.recorder is None else tape.recorder.plainly(values)


def _wants_gradient(values: Any) -> bool:
    if isinstance(values, (list, tuple)):
        return any(map(_wants_gradient, values))
    return isinstance(values, Tensor) and values._node is not None


def _known_array(op: Op, value: Any) -> Any:
    try:
        BACKENDS[type(value)]
    except TypeError:
        raise DtypeError(
            f"{op.name}: expected tensors, arrays or numbers, got {type(value).__name__}; make it one with gp.tensor"
        ) from None
    if not isinstance(value, np.ndarray):
        return value
    if tape.recorder is not None:
        tape.recorder.takes_in(value)
    return host_array(op.name, value)


def is_floating(dtype: Any) -> bool:
    """Whether a dtype is a real floating type (bfloat16 included), the only kind that has gradients."""
    return _FLOATING[dtype]


class _Floating(dict):
    def __missing__(self, dtype: Any) -> bool:
        self[dtype] = known = dtype.kind == "f" or dtype.name == "bfloat16"
        return known


_FLOATING = _Floating()


# --- Errors of a call -----------------------------------------------------------------------------------------------


def describe(value: Any) -> str:
    """`float32 (2, 3) on cuda:0`, for messages."""
    if isinstance(value, Tensor):
        value = value.data
    if value is None or type(value) in _WEAK:
        return repr(value)
    device = device_of(value)
    return f"{value.dtype} {tuple(value.shape)}" + ("" if device.type == "cpu" else f" on {device}")


def _mixed(op: Op, inputs: Iterable) -> Error:
    arrays = [v.data if isinstance(v, Tensor) else v for v in inputs]
    places = [f"{a.dtype} {tuple(a.shape)} on {device_of(a)}" for a in arrays if type(a) not in _WEAK]
    return DeviceError(f"{op.name}: expected arrays on one device, got {', '.join(places)}; move them with .to(device)")


# --- Backward -------------------------------------------------------------------------------------------------------


def walk(
    roots: Sequence[tuple[Tensor, Any]],
    *,
    wanted: Sequence[Any] | None = None,
    retain_graph: bool = False,
    create_graph: bool = False,
) -> dict[Any, Any]:
    """Walks from the roots to the leaves, by falling number, and computes each intermediate gradient once.

    roots: (Tensor, cotangent) pairs; a cotangent is an array, a Tensor where `create_graph`, or `ONE`.
    wanted: nodes whose gradients are returned (by node; absent where the roots do not depend on one). Only what leads to
    them is computed, and no `.grad` changes. None: every leaf's `.grad` is written.
    create_graph: gradients are computed by generic rules on Tensors, and recorded.
    """
    if not roots:
        return {}
    if not create_graph and not tape.anomaly and type(roots[0][0]._data) is np.ndarray:
        return _Walk(roots, wanted, retain_graph, False).run()
    # Rules make new arrays on the current device, and on Tensors they are recorded. Under `detect_anomaly`, what NumPy would
    # warn of is what is looked for.
    warnings = np.errstate(all="ignore" if tape.anomaly else None)
    with Mode(enabled=create_graph or tape.enabled), device_scope(roots[0][0].device), warnings:
        return _Walk(roots, wanted, retain_graph, create_graph).run()


class _Walk:
    """One walk: what has been delivered to which node, and which nodes wait."""

    def __init__(
        self, roots: Sequence[tuple[Tensor, Any]], wanted: Sequence[Any] | None, retain_graph: bool, create_graph: bool
    ):
        self.roots = roots
        self.retain_graph = retain_graph or create_graph
        self.create_graph = create_graph
        self.waiting: list[tuple[int, Any]] = []  # a heap by falling number
        self.pending: dict[Any, Any] = {}  # node -> cotangent
        # Nodes whose pending cotangent is an array that only this walk refers to. What an implementation returns is one, unless
        # the graph is retained: it may be a residual, which the next walk needs again.
        self.ours: set[Any] = set()
        self.found: dict[Any, Any] = {}
        self.goals = frozenset(wanted) if wanted is not None else None
        self.useful = leading_to(self.goals, [t._node for t, _ in roots]) if self.goals is not None else None
        for tensor, cotangent in roots:
            if cotangent is ONE and (tensor._node in self.pending or create_graph):
                cotangent = self.ones(tensor._node)
            self.deliver(tensor._node, cotangent)

    def deliver(self, node: Any, gradient: Any, fresh: bool = False) -> None:
        """Adds to what a node has received; in place only where the array is the walk's own."""
        pending = self.pending
        if self.useful is not None and node not in self.useful:
            return
        if node not in pending:
            self.wait(node, gradient)
            if fresh:
                self.ours.add(node)
            return
        total = self.ones(node) if pending[node] is ONE else pending[node]
        if node in self.ours:
            total = compute(operator.iadd, total, gradient)
        else:
            total = compute(operator.add, total, gradient)
            if not self.create_graph and total.ndim:  # a sum of 0-d arrays is a scalar
                self.ours.add(node)
        pending[node] = total

    def wait(self, node: Any, gradient: Any) -> None:
        """Puts a node that has received its first contribution among those that wait."""
        self.pending[node] = gradient
        heappush(self.waiting, (-node.number, node))

    def ones(self, node: Any) -> Any:
        """The seed of a root as an array."""
        tensor = next(t for t, cotangent in self.roots if t._node is node and cotangent is ONE)
        seed = BACKENDS[type(tensor._data)].xp.ones(tensor._data.shape, tensor._data.dtype)
        return Tensor(seed) if self.create_graph else seed

    def run(self) -> dict[Any, Any]:
        """Takes the waiting node of the largest number until none waits. Written for few steps per record, as `call` is."""
        waiting, pending, ours, goals, useful = self.waiting, self.pending, self.ours, self.goals, self.useful
        create_graph, retain_graph, watching = self.create_graph, self.retain_graph, tape.anomaly
        recorder = None if create_graph else tape.recorder  # what runs on Tensors is heard when it calls ops
        front = front_dy = gradient = None  # one node may wait outside the heap: in a chain there is never another
        deferred: Deferred | None = None
        while waiting or front is not None:
            if front is not None and (not waiting or front.number > -waiting[0][0]):
                node, dy = front, front_dy
                front = front_dy = None
            else:
                if front is not None:
                    self.wait(front, front_dy)
                    front = None
                node = heappop(waiting)[1]
                dy = pending.pop(node)
            if deferred is not None:
                if dy is not deferred:
                    pending[deferred.target] = deferred.made()
                    if not retain_graph:
                        ours.add(deferred.target)
                deferred = None
            mine = False
            if ours and node in ours:
                ours.discard(node)
                mine = True
            if type(node) is not Record or goals or node.hooks:
                dy = self.ones(node) if dy is ONE else dy
                if node.hooks:
                    if recorder is not None:
                        recorder.joins()
                    dy, mine = _hooked(node, dy, create_graph), False
                if goals and node in goals:
                    self.found[node] = np.asarray(dy) if isinstance(dy, np.generic) else dy
                    continue
                if type(node) is not Record:
                    node.receive(self, dy, mine)
                    continue

            plan, edges, number = node.plan, node.edges, node.number
            if plan.missing:
                raise _undefined(node)
            if node.kept is None:
                raise _freed(node)
            kept = []
            for value in node.kept:
                if isinstance(value, Tensor):
                    if value._version is not None and value._version[0] > number:
                        raise _stale(node)
                    kept.append(value if create_graph else value._data)
                else:
                    kept.append(value)
            if type(dy) is list:
                dy = _filled(node, dy, create_graph)
            if create_graph:
                steps = plan.generic
                if plan.keeps_output:
                    kept[plan.output_place] = _taped_output(node)
            else:
                steps = plan.steps
            for function, targets, places, names, native in steps:
                if (
                    useful is not None
                    and not any(e >= 0 and edges[e] in useful for e in targets)
                    and not (native and native.replaces_dy)
                ):
                    continue
                if dy is ONE and not (native and native.takes_unit_seed):
                    dy = self.ones(node)
                arguments: Any = kept if places is None else [kept[i] for i in places]
                if names or native:
                    options = {name: node.options[name] for name in names}
                    last = function is steps[-1][0]
                    if native and native.overwrites_dy and mine and (native.replaces_dy or last):
                        options[native.overwrites_dy] = dy  # nobody else refers to it, and no later step reads it
                    if recorder is not None:
                        function = recorder.hearing(node.name, function, arguments, retain_graph)
                    if native and native.defers and last and self.leaves_to(target := edges[targets[0]], front):
                        deferred = Deferred(function, dy, arguments[0], target)
                        self.wait(target, deferred)
                        continue
                    if native and native.accumulates and useful is None:
                        gradients = self.write_in_place(function, dy, arguments, options, edges, targets, native, last)
                    else:
                        gradients = function(dy, *arguments, **options)
                    if native and native.replaces_dy:
                        dy, *gradients = gradients
                        mine = not retain_graph
                        if mine:
                            node.kept = value = arguments = None
                            for place in native.spends:
                                kept[place] = None
                elif recorder is not None:
                    gradients = recorder.hearing(node.name, function, arguments, retain_graph)(dy, *arguments)
                else:
                    gradients = function(dy, *arguments)
                for e in targets:
                    try:
                        if len(targets) == 1 and not (native and native.replaces_dy):
                            gradient = gradients
                        else:
                            gradient, *gradients = gradients
                        if e < 0 or (gradient is None and native):  # not wanted, or written where it lives
                            continue
                        target = edges[e]
                        if gradient.shape != target.shape:
                            gradient = compute(unbroadcast, gradient, target.shape)
                        if gradient.dtype is not target.dtype and gradient.dtype != target.dtype:
                            gradient = compute(_cast, gradient, target.dtype)
                    except (AttributeError, TypeError, ValueError) as error:
                        raise _misfit(node, e, gradient) from error
                    if watching:
                        _check_finite(node, e, gradient)
                    if front is None and native is None and useful is None and target not in pending:
                        front, front_dy = target, gradient
                    else:
                        if target is front:
                            self.wait(front, front_dy)
                            front = None
                        self.deliver(target, gradient, native is not None and not retain_graph)
            if not retain_graph:
                node.kept, node.edges = None, ()
            # Frees what only this record kept, and its cotangent, before the next step allocates.
            value = kept = arguments = dy = gradients = gradient = None  # type: ignore[assignment]
        if recorder is not None:
            recorder.joins()
        return self.found

    def leaves_to(self, target: Any, front: Any) -> bool:
        """Whether a record is left to compute its first contribution itself: it can, and nobody wants to see that before."""
        return (
            type(target) is Record
            and target.plan.joins
            and not target.hooks
            and target not in self.pending
            and target is not front
            and not (self.goals and target in self.goals)
            and not tape.anomaly
        )

    def write_in_place(
        self,
        function: Callable,
        dy: Any,
        arguments: Any,
        options: dict,
        edges: tuple,
        targets: tuple[int, ...],
        native: Native,
        last: bool,
    ) -> Any:
        """Calls an implementation that writes gradients of leaves where they live, and returns the others (None for those).

        It gets a place, or None, for each of its targets (one place, not a tuple, where that is all it returns).
        last: of its record's steps. What comes before another one, and returns nothing, may run beside what follows in a recording.
        """
        places = tuple(self.place_in(edges[e]) if e >= 0 else None for e in targets)
        if not any(place is not None for place in places):
            return function(dy, *arguments, **options)
        add = tuple(place is not None and edges[e].grad is not None for e, place in zip(targets, places))
        everywhere = all(place is not None for place in places)
        if tape.recorder is not None and everywhere and not last and not native.replaces_dy:
            function = tape.recorder.beside(function, [edges[e] for e in targets])
        if len(targets) == 1 and not native.replaces_dy:
            function(dy, *arguments, out=places[0], accumulate=add[0], **options)
            results: Any = None
        else:
            results = list(function(dy, *arguments, out=places, accumulate=add, **options))
            first = len(results) - len(places)
            results[first:] = [None if place is not None else g for g, place in zip(results[first:], places)]
        for e, place in zip(targets, places):
            if place is not None:
                edges[e].written(place)
        return results

    def place_in(self, node: Any) -> Any:
        """Where the gradient of a leaf can be written at once: nobody wants to see it before, and nothing else has come."""
        if type(node) is not Leaf or node.hooks or tape.anomaly or node in self.pending:
            return None
        return node.place()


def _freed(record: Any) -> Error:
    return GraphError(
        f"{record.name}: expected what was kept for the backward walk, got a record that a walk has freed; "
        "say retain_graph=True in the first walk to walk it again"
    )


def _undefined(record: Record) -> Error:
    return UndefinedGradientError(
        f"{record.name}: expected a gradient rule for {record.plan.missing[0]!r}, got none; "
        "detach() that input, or declare the rule with @op.grad"
    )


def _misfit(record: Record, edge: int, gradient: Any) -> Error:
    """A gradient rule returned what the walk cannot use: nothing, too few results, or a wrong shape."""
    got = describe(gradient) if isinstance(gradient, Tensor) or is_array(gradient) else repr(gradient)
    name, shape = record.op.input_name(record.plan.wanted[edge]), record.edges[edge].shape
    return ShapeError(
        f"{record.name}: expected a gradient of shape {shape} for {name!r}, got {got}; mend what its gradient rule returns"
    )


def _stale(record: Record) -> Error:
    return MutationError(
        f"{record.name}: expected the values of the forward pass, got an array that was changed in place since; "
        "change a copy (.clone()), or change it after backward"
    )


def unbroadcast(gradient: Any, shape: tuple[int, ...]) -> Any:
    """Sums over the axes along which an input of `shape` was broadcast. The one place where broadcasting is undone."""
    lead = gradient.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(i + lead for i, n in enumerate(shape) if n == 1 and gradient.shape[i + lead] != 1)
    return gradient.sum(axis=axes).reshape(shape) if axes else gradient.reshape(shape)


def leading_to(goals: frozenset, starts: list) -> set:
    """The nodes through which some goal is reached from the starts."""
    order, seen, stack = [], set(), list(starts)
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        order.append(node)
        if node not in goals:
            stack.extend(node.edges)
    useful = set()
    for node in sorted(order, key=lambda n: n.number):
        if node in goals or type(node) is Recomputed or any(source in useful for source in node.edges):
            useful.add(node)
    return useful


def _hooked(node: Any, gradient: Any, taped: bool) -> Any:
    for hook in list(node.hooks):
        before = gradient if isinstance(gradient, Tensor) else Tensor(gradient)
        changed = hook(before)
        if changed is not None:
            got = describe(changed) if isinstance(changed, Tensor) else type(changed).__name__
            if got != describe(before):
                raise ShapeError(f"hook on {node.name}: expected None or a Tensor of {describe(before)}, got {got}")
            gradient = changed if taped else changed.data
    return gradient


def _filled(record: Record, cotangents: list, taped: bool) -> tuple:
    """Zeros for the outputs that nothing differentiable used."""
    some = next(c for c in cotangents if c is not None)
    array = some.data if isinstance(some, Tensor) else some
    xp = BACKENDS[type(array)].xp
    filled = []
    for cotangent, shape, dtype in zip(cotangents, record.shape, record.dtype):
        if cotangent is None:
            zeros = xp.zeros(shape, dtype)
            cotangent = Tensor(zeros) if taped else zeros
        filled.append(cotangent)
    return tuple(filled)


def _taped_output(record: Record) -> Any:
    """The kept output as a Tensor that continues the tape, so that a gradient computed from it can be differentiated again.

    It is kept without its node: a record that referred to itself would be freed by the collector only.
    """
    kept = record.kept[record.plan.output_place]  # type: ignore[index]
    if isinstance(kept, Tensor):
        return Tensor(kept._data, record)
    return tuple(Tensor(t._data, Output(record, k) if _FLOATING[t._data.dtype] else None) for k, t in enumerate(kept))


def _check_finite(record: Record, edge: int, gradient: Any) -> None:
    array = gradient.data if isinstance(gradient, Tensor) else gradient
    xp = BACKENDS[type(array)].xp if type(array) in BACKENDS else np
    if not bool(xp.isfinite(array).all()):
        name = record.op.input_name(record.plan.wanted[edge])
        where = ""
        if record.stack is not None:
            frames = [f for f in record.stack if not f.filename.startswith(_PACKAGE)]
            where = "".join(traceback.format_list(frames[-1:])) if frames else ""
        raise AnomalyError(
            f"{record.op.name}: the gradient with respect to {name!r} is not finite"
            + (
                f"; the op was called here:\n{where}"
                if where
                else "; run the forward pass under detect_anomaly() too, to see where"
            )
        )


# --- Recomputing instead of keeping ---------------------------------------------------------------------------------


class Recomputed:
    """A checkpointed call on the tape: when its cotangents are complete, the call is made again, and the walk goes on into it."""

    __slots__ = ("number", "shape", "dtype", "edges", "again", "hooks", "name", "__weakref__")

    def __init__(self, results: Sequence[Tensor], edges: tuple, again: Callable[[], list[Tensor]], name: str):
        self.number = next(number)
        self.shape, self.dtype = tuple(r.shape for r in results), tuple(r.dtype for r in results)
        self.edges = edges
        self.again: Callable[[], list[Tensor]] | None = again
        self.hooks: list[Callable] | None = None
        self.name = name

    def receive(self, walk: _Walk, dys: list, owned: bool) -> None:
        if self.again is None:
            raise _freed(self)
        results = self.again()
        if not walk.retain_graph:
            self.again = None
        for result, dy in zip(results, dys):
            if result._node is not None and dy is not None:
                if walk.useful is not None and walk.goals is not None:
                    walk.useful |= leading_to(walk.goals, [result._node])
                walk.deliver(result._node, dy)
