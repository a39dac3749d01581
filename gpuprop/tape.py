"""The tape: what was computed, in order, and the one walk backwards over it.

`call` runs an op and, where an input needs a gradient, writes a `Record`. Tensors carry their record, so a part of the tape
that nothing refers to any more frees itself. Numbers come from one counter: a record's number is larger than those of the
records it depends on, so the walk takes the largest number first, without recursion and without sorting the graph.
The same counter dates mutations: a kept array is stale if it was changed after the record that keeps it was written.
"""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

import numpy as np

from ._tensor import Leaf, Tensor, number
from .device import BACKENDS, device_of, device_scope
from .errors import (
    AnomalyError,
    DeviceError,
    DtypeError,
    Error,
    GraphError,
    MutationError,
    ShapeError,
    UndefinedGradientError,
)

if TYPE_CHECKING:
    from ._op import Op, Plan


class Tape(threading.local):
    """What belongs to this thread: whether calls are recorded, and how."""

    enabled = True
    dry = False  # records keep nothing: `checkpoint` only asks which results depend on what
    anomaly = False


tape = Tape()


class _Mode(contextlib.ContextDecorator):
    def __init__(self, **settings: bool):
        self.settings = settings
        self.before: list[dict[str, bool]] = []

    def __enter__(self) -> None:
        self.before.append({name: getattr(tape, name) for name in self.settings})
        tape.__dict__.update(self.settings)

    def __exit__(self, *_: object) -> None:
        tape.__dict__.update(self.before.pop())


def no_grad() -> contextlib.ContextDecorator:
    """Nothing is recorded in this context, in this thread. Also a decorator: `@gp.no_grad()`."""
    return _Mode(enabled=False)


def enable_grad() -> contextlib.ContextDecorator:
    """Calls are recorded in this context, also inside `no_grad()`."""
    return _Mode(enabled=True)


def is_grad_enabled() -> bool:
    """Whether this thread records what it computes."""
    return tape.enabled


def detect_anomaly() -> contextlib.ContextDecorator:
    """Backward walks raise `AnomalyError` at the first gradient that is not finite, naming the op and the line that called it.

    For finding a mistake: it keeps a stack per record and reads every gradient.
    """
    return _Mode(anomaly=True)


class Record:
    """One call on the tape: the op, its options, what its gradient rules named, and where gradients go."""

    hooks: list[Callable] | None = None
    outputs: list | None = None  # (shape, dtype) of each output, where there are several
    stack: Any = None

    def __init__(self, op: Op, options: dict[str, Any], plan: Plan, edges: Sequence, kept: Sequence | None, cells: Sequence):
        self.number = next(number)
        self.op = op
        self.options = options
        self.plan = plan
        self.edges = edges  # (node, shape, dtype) of each input that needs a gradient
        self.kept = kept  # inputs, shapes, output and residuals, in the plan's order; None once freed
        self.cells = cells  # versions of the kept arrays

    @property
    def name(self) -> str:
        return self.op.name


class Output:
    """One result of an op that has several: hands its cotangent to the record."""

    __slots__ = ("number", "record", "index", "hooks", "__weakref__")

    def __init__(self, record: Record, index: int):
        self.number = next(number)
        self.record = record
        self.index = index
        self.hooks: list[Callable] | None = None

    def receive(self, walk: _Walk, dy: Any, owned: bool) -> None:
        """Puts the cotangent in its place of the record's tuple."""
        record = self.record
        if record not in walk.pending:
            walk.deliver(record, [None] * len(record.outputs or ()))
        if record in walk.pending:
            walk.pending[record][self.index] = dy

    @property
    def name(self) -> str:
        return f"{self.record.op.name}[{self.index}]"


class _One:
    """The cotangent of a scalar loss, before anybody needs it as an array."""

    def __repr__(self) -> str:
        return "ONE"


ONE = _One()
_WEAK = frozenset({float, int, bool, type(None)})  # take their dtype from the arrays beside them


# --- Forward --------------------------------------------------------------------------------------------------------


def call(op: Op, inputs: Sequence, options: dict[str, Any]) -> Any:
    """Runs an op on tensors, arrays and numbers. Any Tensor in: Tensors out, recorded where needed. Else plain arrays.

    The hot path of everything, and so written out in one piece: it takes tensors of one backend and Python numbers; the
    rest goes to the border.
    """
    arrays = []
    mask, bit, kind = 0, 1, None
    for value in inputs:
        if isinstance(value, Tensor):
            array = value.data
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
    if mask and not tape.enabled:
        mask = 0

    bound = op.bound.get(kind)
    function, residuals, plans, generic = op.bind_to(kind) if bound is None else bound
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
        raise _explained(op, arrays, error) from error

    if type(y) is not kind:
        if isinstance(y, tuple):
            return _wrap_several(op, inputs, arrays, options, kind, mask, plans, y)
        y = BACKENDS[kind].xp.asarray(y)  # ufuncs make 0-d arrays scalars
    result = Tensor(y)
    if op.view and (y.base is not None or y is arrays[0]) and isinstance(inputs[0], Tensor):
        result._version = inputs[0].version()
    if mask and _FLOATING[y.dtype]:
        result._node = _record(op, inputs, arrays, options, plans[mask | bit], y, (result,), residuals)
    return result


def _record(
    op: Op, inputs: Sequence, arrays: list, options: dict[str, Any], plan: Plan, y: Any, results: tuple, residuals: Sequence
) -> Record:
    wanted, kept_inputs, others = plan.wanted, plan.kept_inputs, plan.keeps_others
    if len(wanted) == 1:
        i = wanted[0]
        array = arrays[i]
        edges: Any = ((inputs[i]._node, array.shape, array.dtype),)
    else:
        edges = [(inputs[i]._node, arrays[i].shape, arrays[i].dtype) for i in wanted]
    kept: Any = ()
    cells: Any = ()
    if tape.dry:
        kept = None
    elif kept_inputs or others:
        kept, cells = [], []
        for i in kept_inputs:
            kept.append(arrays[i])
            value = inputs[i]
            if isinstance(value, Tensor):
                cells.append(value._version or value.version())
        if others:
            kept += [getattr(arrays[i], "shape", ()) for i in plan.kept_shapes]
            if plan.keeps_output:
                kept.append(y)
                cells += [result.version() for result in results]
            kept += [residuals[k] for k in plan.kept_residuals]
    record = Record(op, options, plan, edges, kept, cells)
    if tape.anomaly:
        record.stack = traceback.extract_stack()
    return record


def _wrap_several(
    op: Op, inputs: Sequence, arrays: list, options: dict[str, Any], kind: type, mask: int, plans: dict[int, Plan], values: tuple
) -> tuple:
    xp = BACKENDS[kind].xp
    values = tuple(v if type(v) is kind else xp.asarray(v) for v in values)
    results = tuple(Tensor(v) for v in values)
    if op.view and isinstance(inputs[0], Tensor):
        for result in results:
            if result.data.base is not None:
                result._version = inputs[0].version()
    if mask and any(_FLOATING[v.dtype] for v in values):
        record = _record(op, inputs, arrays, options, plans[mask | 1 << len(arrays)], values, results, ())
        record.outputs = [(v.shape, v.dtype) for v in values]
        for index, result in enumerate(results):
            if _FLOATING[result.data.dtype]:
                result._node = Output(record, index)
    return results


def _call_with_other_kinds(op: Op, inputs: Sequence, options: dict[str, Any]) -> Any:
    """The border: NumPy scalars become Python numbers, lists arrays; plain arrays alone follow NumPy and stay plain."""
    from ._tensor import as_data

    any_tensor = next((v for v in inputs if isinstance(v, Tensor)), None)
    values: list[Any] = []
    for value in inputs:
        if isinstance(value, Tensor) or type(value) in _WEAK:
            values.append(value)
        elif isinstance(value, np.generic):
            values.append(value.item() if any_tensor is not None else np.asarray(value))
        elif isinstance(value, (list, tuple)):
            device = any_tensor.device if any_tensor is not None else None
            values.append(as_data(value, device=device) if device is not None else np.asarray(value))
        else:
            values.append(_known_array(op, value))
    if all(type(v) in _WEAK for v in values):
        values = [v if v is None else np.asarray(v) for v in values]
    arrays = [v.data if isinstance(v, Tensor) else v for v in values]
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
    return tuple(r.data for r in results) if isinstance(results, tuple) else results.data


def _known_array(op: Op, value: Any) -> Any:
    try:
        BACKENDS[type(value)]
    except TypeError:
        raise DtypeError(
            f"{op.name}: expected tensors, arrays or numbers, got {type(value).__name__}; make it one with gp.tensor"
        ) from None
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiub":
            raise DtypeError(f"{op.name}: expected numbers, got an array of dtype {value.dtype}")
        return np.asarray(value)  # subclasses such as np.matrix have rules of their own
    return value


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


def _explained(op: Op, arrays: list, error: Exception) -> Exception:
    """What NumPy or CuPy said, as an error of ours that names the op and what came."""
    if isinstance(error, Error) or not isinstance(error, (ValueError, TypeError, IndexError, AttributeError)):
        return error
    from .errors import BoundsError

    kind = BoundsError if isinstance(error, IndexError) else ShapeError if isinstance(error, ValueError) else DtypeError
    said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return kind(f"{op.name}: {said}; got {', '.join(describe(a) for a in arrays)}")


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
    with _Mode(enabled=True) if create_graph else contextlib.nullcontext(), _place_of(roots, create_graph):
        return _Walk(roots, wanted, retain_graph, create_graph).run()


class _Walk:
    """One walk: what has been delivered to which node, and which nodes wait."""

    def __init__(self, roots: Sequence[tuple[Tensor, Any]], wanted: Sequence[Any] | None, retain_graph: bool, create_graph: bool):
        self.roots = roots
        self.retain_graph = retain_graph or create_graph
        self.create_graph = create_graph
        self.waiting: list[tuple[int, Any]] = []  # a heap by falling number
        self.pending: dict[Any, Any] = {}  # node -> cotangent
        self.ours: set[Any] = set()  # nodes whose pending cotangent is an array that only this walk refers to
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
            pending[node] = gradient
            heappush(self.waiting, (-node.number, node))
            if fresh:
                self.ours.add(node)
            return
        total = self.ones(node) if pending[node] is ONE else pending[node]
        if node in self.ours:
            total += gradient
        else:
            total = total + gradient
            if not self.create_graph and total.ndim:  # a sum of 0-d arrays is a scalar
                self.ours.add(node)
        pending[node] = total

    def ones(self, node: Any) -> Any:
        """The seed of a root as an array."""
        tensor = next(t for t, cotangent in self.roots if t._node is node and cotangent is ONE)
        with device_scope(tensor.device):
            seed = BACKENDS[type(tensor.data)].xp.ones(tensor.data.shape, tensor.data.dtype)
        return Tensor(seed) if self.create_graph else seed

    def run(self) -> dict[Any, Any]:
        waiting, pending, ours, goals, useful = self.waiting, self.pending, self.ours, self.goals, self.useful
        create_graph, deliver = self.create_graph, self.deliver
        anomaly = tape.anomaly
        while waiting:
            node = heappop(waiting)[1]
            dy = pending.pop(node)
            mine = False
            if ours and node in ours:
                ours.discard(node)
                mine = True
            if type(node) is not Record or node.hooks or goals:
                dy = self.ones(node) if dy is ONE else dy
                if node.hooks:
                    dy, mine = _hooked(node, dy, create_graph), False
                if goals and node in goals:
                    self.found[node] = dy
                    continue
                if type(node) is not Record:
                    node.receive(self, dy, mine)
                    continue

            kept, plan, edges, options = node.kept, node.plan, node.edges, node.options
            if kept is None or plan.missing:
                raise _unwalkable(node)
            for cell in node.cells:
                if cell[0] > node.number:
                    raise _stale(node)
            if node.outputs is not None:
                dy = _filled(node, dy, create_graph)
            if create_graph:
                kept, steps = _taped(node), plan.generic
            else:
                steps = plan.steps
            for step in steps:
                function, targets, places, names, native = step
                if useful is not None and not any(e >= 0 and edges[e][0] in useful for e in targets):
                    continue
                arguments = kept if places is None else [kept[i] for i in places]
                if names or native is not None:
                    chosen = {name: options[name] for name in names}
                    if native is not None:
                        if dy is ONE and not native.takes_unit_seed:
                            dy = self.ones(node)
                        if native.accumulates and useful is None and len(targets) == 1:
                            leaf, shape, dtype = edges[targets[0]]
                            if type(leaf) is Leaf and not leaf.hooks and (place := leaf.place(shape, dtype)) is not None:
                                function(dy, *arguments, out=place, accumulate=leaf.grad is not None, **chosen)
                                leaf.written(place)
                                continue
                        if native.overwrites_dy and mine and step is steps[-1]:
                            chosen["out"] = dy  # nobody else refers to it, and no later step reads it
                    elif dy is ONE:
                        dy = self.ones(node)
                    gradients = function(dy, *arguments, **chosen)
                else:
                    if dy is ONE:
                        dy = self.ones(node)
                    gradients = function(dy, *arguments)
                for e, gradient in ((targets[0], gradients),) if len(targets) == 1 else zip(targets, gradients):
                    if e < 0:
                        continue
                    target, shape, dtype = edges[e]
                    if gradient.shape != shape:
                        gradient = unbroadcast(gradient, shape)
                    if gradient.dtype != dtype:
                        gradient = gradient.astype(dtype)
                    if anomaly:
                        _check_finite(node, e, gradient)
                    if target in pending or useful is not None or native is not None:
                        deliver(target, gradient, native is not None)
                    else:  # the common case of `deliver`, without the call
                        pending[target] = gradient
                        heappush(waiting, (-target.number, target))
            if not self.retain_graph:
                node.kept, node.edges, node.cells = None, (), ()
            # Frees what only this record kept, and its cotangent, before the next step allocates.
            kept = arguments = dy = gradients = gradient = None  # type: ignore[assignment]
        return self.found


def _unwalkable(record: Record) -> Error:
    if record.kept is None:
        return GraphError(
            f"{record.name}: expected what was kept for the backward walk, got a record that a walk has freed; "
            "say retain_graph=True in the first walk to walk it again"
        )
    return UndefinedGradientError(
        f"{record.name}: expected a gradient rule for {record.plan.missing[0]!r}, got none; "
        "detach() that input, or declare the rule with @op.grad"
    )


def _stale(record: Record) -> Error:
    return MutationError(
        f"{record.name}: expected the values of the forward pass, got an array that was changed in place since; "
        "change a copy (.clone()), or change it after backward"
    )


def _place_of(roots: Sequence, create_graph: bool) -> contextlib.AbstractContextManager:
    """Rules that run on Tensors make new arrays on the default device: it has to be the one that the gradients are on."""
    return device_scope(roots[0][0].device) if create_graph and roots else contextlib.nullcontext()


def unbroadcast(gradient: Any, shape: tuple[int, ...]) -> Any:
    """Sums over the axes along which an input of `shape` was broadcast. The one place where broadcasting is undone."""
    lead = gradient.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(
        i + lead for i, n in enumerate(shape) if n == 1 and gradient.shape[i + lead] != 1
    )
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
            stack.extend(_sources(node))
    useful = set()
    for node in sorted(order, key=lambda n: n.number):
        if node in goals or getattr(node, "opaque", False) or any(s in useful for s in _sources(node)):
            useful.add(node)
    return useful


def _sources(node: Any) -> list:
    if type(node) is Output:
        return [node.record]
    return [edge[0] for edge in getattr(node, "edges", ())]


def _hooked(node: Any, gradient: Any, taped: bool) -> Any:
    for hook in list(node.hooks):
        before = gradient if isinstance(gradient, Tensor) else Tensor(gradient)
        changed = hook(before)
        if changed is not None:
            if not isinstance(changed, Tensor) or changed.shape != before.shape:
                raise ShapeError(
                    f"hook on {node.name}: expected None or a Tensor of shape {before.shape}, got {describe(changed) if isinstance(changed, Tensor) else type(changed).__name__}"
                )
            gradient = changed if taped else changed.data
    return gradient


def _filled(record: Record, cotangents: list, taped: bool) -> tuple:
    """Zeros for the outputs that nothing differentiable used."""
    some = next(c for c in cotangents if c is not None)
    array = some.data if isinstance(some, Tensor) else some
    xp = BACKENDS[type(array)].xp
    filled = []
    for cotangent, (shape, dtype) in zip(cotangents, record.outputs or ()):
        if cotangent is None:
            with device_scope(device_of(array)):
                zeros = xp.zeros(shape, dtype)
            cotangent = Tensor(zeros) if taped else zeros
        filled.append(cotangent)
    return tuple(filled)


def _taped(record: Record) -> list:
    """What a record kept, as Tensors that continue the tape: a gradient computed from them can be differentiated again."""
    plan, kept = record.plan, list(record.kept or ())
    node_of = {i: edge[0] for i, edge in zip(plan.wanted, record.edges)}
    for place, i in enumerate(plan.kept_inputs):
        if type(kept[place]) not in _WEAK:
            kept[place] = Tensor(kept[place], node_of.get(i))
    if plan.keeps_output:
        place = len(plan.kept_inputs) + len(plan.kept_shapes)
        if record.outputs is None:
            kept[place] = Tensor(kept[place], record)
        else:
            kept[place] = tuple(
                Tensor(a, Output(record, k) if _FLOATING[a.dtype] else None) for k, a in enumerate(kept[place])
            )
    return kept


def _check_finite(record: Record, edge: int, gradient: Any) -> None:
    array = gradient.data if isinstance(gradient, Tensor) else gradient
    xp = BACKENDS[type(array)].xp if type(array) in BACKENDS else np
    if not bool(xp.isfinite(array).all()):
        name = record.op.input_name(record.plan.wanted[edge])
        where = ""
        if record.stack is not None:
            frames = [f for f in record.stack if "gpuprop" not in f.filename.replace("\\", "/").split("/")[-3:-1]]
            where = "".join(traceback.format_list(frames[-1:])) if frames else ""
        raise AnomalyError(
            f"{record.op.name}: the gradient with respect to {name!r} is not finite"
            + (f"; the op was called here:\n{where}" if where else "; run the forward pass under detect_anomaly() too, to see where")
        )
