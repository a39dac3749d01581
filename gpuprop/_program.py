"""A log of NumPy calls as a program: the same calls again, without what nobody reads, on buffers that share memory."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ._blocks import ALIGNMENT, aligned
from ._trace import Log, Node, owner
from ._tree import flatten, map_leaves

# Functions that write to `out=` what they would return, to the bit.
WITH_OUT = {np.ndarray.clip, np.dot, np.concatenate, np.stack, np.argmax, np.argmin, np.cumsum, np.cumprod}
# Ufuncs that compute in the dtype of their arrays, whatever Python number comes with them.
OF_ONE_DTYPE = {
    np.add,
    np.subtract,
    np.multiply,
    np.divide,
    np.maximum,
    np.minimum,
    np.greater,
    np.greater_equal,
    np.less,
    np.less_equal,
}
OUT_BY_NAME = {np.maximum, np.minimum}  # NumPy 2.4 warns of a third argument
REDUCTION = ("axis", "dtype", "out", "keepdims")  # the options of `ufunc.reduce` in the order of its arguments


def label(node: Node) -> str:
    """`add of linear`: a call and the op that asked for it."""
    function = getattr(node.function, "__name__", "call")
    ufunc = getattr(node.function, "__self__", None)
    name = f"{ufunc.__name__}.{function}" if isinstance(ufunc, np.ufunc) else function
    return f"{name} of {node.name}" if node.results or node.writes else node.name


class Program:
    """Calls on fixed buffers: `for function, args in program.calls: function(*args)`.

    pinned: ids of owners whose memory is known outside of the program; what else the log's calls made lies in one arena, where buffers
    whose lifetimes do not overlap share bytes.
    """

    def __init__(self, log: Log, pinned: Iterable[int]):
        self.pinned = set(pinned)
        self._bound: dict[int, np.ndarray] = {}  # in place of the memory of an id, what is bound to it now
        self.nodes = _needed(log.nodes, self.pinned | log.lasting.keys())
        self._lay_out(log)
        self.sources = _sources(self.nodes)
        # From here on nodes refer to the arena, so that the arrays of the recorded run can go.
        self.nodes = [
            replace(
                node,
                args=map_leaves(self._place, node.args),
                options=map_leaves(self._place, node.options),
                results=tuple(map(self._place, node.results)),
                writes=tuple(map(self._place, node.writes)),
            )
            for node in self.nodes
        ]
        self.offsets.clear()
        self.calls = [self._call(node) for node in self.nodes]

    # --- what it is ---------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """How many calls, of what functions; which of them make new arrays each time; and the bytes of the buffers."""
        return {
            "nodes": len(self.nodes),
            "calls": dict(Counter(label(node) for node in self.nodes).most_common()),
            "allocating": dict(Counter(label(n) for n in self.nodes if n.results and not _has_out(n.function))),
            "arena_bytes": self.arena_bytes,
            "peak_bytes": self.least_bytes,
        }

    def dot(self) -> str:
        """The calls in Graphviz' language, an arrow from each to those that read what it wrote."""
        lines = ["digraph recording {", "  node [shape=box]"]
        for index, (node, sources) in enumerate(zip(self.nodes, self.sources)):
            lines.append(f'  n{index} [label="{label(node)}"]')
            lines += [f"  n{source} -> n{index}" for source in sources]
        return "\n".join([*lines, "}"])

    # --- buffers ------------------------------------------------------------------------------------------------

    def _lay_out(self, log: Log) -> None:
        """Gives each buffer its place in the arena."""
        lives: dict[int, list[int]] = {}
        for index, node in enumerate(self.nodes):
            for array in [*node.reads(), *node.results, *node.writes]:
                key = id(owner(array))
                if key in log.made and key not in self.pinned:
                    lives.setdefault(key, [index, index])[1] = index
        owners = {key: log.made[key] for key in lives}
        needs = [(lives[key][0], lives[key][1], -(-owners[key].nbytes // ALIGNMENT) * ALIGNMENT) for key in lives]
        self.offsets = dict(zip(lives, lay_out(needs)))
        self.arena_bytes = max((at + size for at, (*_, size) in zip(self.offsets.values(), needs)), default=0)
        self.least_bytes = most_at_once(needs)
        self.arena = aligned(self.arena_bytes, np.uint8)

    def _place(self, leaf: Any) -> Any:
        """An array of the log as it is in the program."""
        if not isinstance(leaf, np.ndarray):
            return leaf
        root = owner(leaf)
        key = id(root)
        if key in self._bound:
            memory, start = self._bound[key], 0
        elif key in self.offsets:
            memory, start = self.arena, self.offsets[key]
        else:
            return leaf
        return np.ndarray(
            leaf.shape, leaf.dtype, memory.data, start + leaf.ctypes.data - root.ctypes.data, leaf.strides
        )

    # --- inputs -------------------------------------------------------------------------------------------------

    def uses(self, array: np.ndarray) -> list[Use]:
        """The calls that are given memory of an array."""
        root = owner(array)
        found = []
        for i, (node, (_, args)) in enumerate(zip(self.nodes, self.calls)):
            count = sum(owner(a) is root for a in [*node.reads(), *node.writes])
            views = {j: a for j, a in enumerate(args) if isinstance(a, np.ndarray) and owner(a) is root}
            if count:
                found.append(Use(i, {j: _view(a, root) for j, a in views.items()} if len(views) == count else None))
        return found

    def bind(self, array: np.ndarray, uses: Sequence[Use], value: np.ndarray) -> None:
        """Has the calls that are given `array` work on `value` from now on: C-contiguous as that is, of its shape and dtype."""
        self._bound[id(owner(array))] = value
        for i, views in uses:
            if views is None:
                self.calls[i] = self._call(self.nodes[i])
            else:
                function, args = self.calls[i]
                self.calls[i] = function, tuple(views[j](value) if j in views else a for j, a in enumerate(args))

    # --- calls --------------------------------------------------------------------------------------------------

    def _call(self, node: Node) -> tuple[Callable, tuple]:
        """A node as a function and its arguments, by position where that is possible: names cost 0.1 us."""
        function, args = node.function, map_leaves(self._place, node.args)
        options = map_leaves(self._place, node.options)
        results = tuple(self._place(array) for array in node.results)
        ufunc, of_ufunc = isinstance(function, np.ufunc), _is_method_of_ufunc(function)
        if function in OF_ONE_DTYPE and not options:
            args = _without_numbers(args)
        if results:
            if not _has_out(function):
                copied = functools.partial(_copied, results, node.places, function, **options)
                return (functools.partial(_copied_one, results[0], function, **options) if node.alone else copied), args
            options["out"] = results if len(results) > 1 else results[0]
        out = options.get("out")
        if ufunc and options.keys() == {"out"} and function not in OUT_BY_NAME:
            return function, (*args, *(out if isinstance(out, tuple) else (out,)))
        if function is np.dot and options.keys() == {"out"}:
            return function, (*args, out)
        if of_ufunc and function.__name__ == "reduce" and options.keys() <= set(REDUCTION) and len(args) == 1:
            usual = {"axis": 0, "dtype": None, "out": None, "keepdims": False}
            return function, (*args, *({**usual, **options}[name] for name in REDUCTION))
        return (functools.partial(function, **options) if options else function), args


class Use(NamedTuple):
    """A call that is given memory of an array."""

    call: int
    # By place among its arguments, functions of an array; None where it is given some otherwise.
    views: dict[int, Callable] | None


def _view(array: np.ndarray, root: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function that returns of another array what this one is of its owner."""
    shape, dtype, strides, start = array.shape, array.dtype, array.strides, array.ctypes.data - root.ctypes.data
    return lambda value: np.ndarray(shape, dtype, value.data, start, strides)


Need = tuple[int, int, int]  # of a buffer: first use, last use, size


def lay_out(needs: Sequence[Need]) -> list[int]:
    """Offsets of buffers in one piece of memory: in the best of some orders, each as low as those that live beside it permit."""
    least, best, found = most_at_once(needs), -1, list[int]()
    for order in (_by_size, _by_area, _by_length, _by_start):
        offsets = _placed(needs, sorted(range(len(needs)), key=lambda i: order(needs[i])))
        total = max((at + size for at, (*_, size) in zip(offsets, needs)), default=0)
        if best < 0 or total < best:
            best, found = total, offsets
        if best == least:
            break
    return found


def most_at_once(needs: Iterable[Need]) -> int:
    """Bytes of all buffers that live at once, at most."""
    changes = [change for first, last, size in needs for change in ((first, size), (last + 1, -size))]
    live = most = 0
    for _, change in sorted(changes):
        live += change
        most = max(most, live)
    return most


def _by_size(need: Need) -> tuple:
    return -need[2], need[:2]


def _by_area(need: Need) -> tuple:
    return -need[2] * (need[1] - need[0] + 1), need[:2]


def _by_length(need: Need) -> tuple:
    return need[0] - need[1], -need[2]


def _by_start(need: Need) -> tuple:
    return need[0], -need[2]


def _placed(needs: Sequence[Need], order: Iterable[int]) -> list[int]:
    placed: list[tuple[int, int, int, int]] = []  # first and last use, begin and end
    offsets = [0] * len(needs)
    for i in order:
        first, last, size = needs[i]
        offset = 0
        for _, _, begin, end in sorted((p for p in placed if p[0] <= last and first <= p[1]), key=lambda p: p[2]):
            if offset + size <= begin:
                break
            offset = max(offset, end)
        placed.append((first, last, offset, offset + size))
        offsets[i] = offset
    return offsets


def _without_numbers(args: tuple) -> tuple:
    """Python's numbers as arrays without axes in the dtype of the others, as which NumPy takes them: 0.2 to 0.4 us less per call."""
    dtypes = {a.dtype for a in args if isinstance(a, np.ndarray)}
    # Integers that a dtype cannot hold are compared as what they are.
    if len(dtypes) != 1 or next(iter(dtypes)).kind != "f":
        return args
    return tuple(np.array(a, *dtypes) if type(a) in (int, float) else a for a in args)


def _is_method_of_ufunc(function: Callable) -> bool:
    return isinstance(getattr(function, "__self__", None), np.ufunc)


def _has_out(function: Callable) -> bool:
    return isinstance(function, np.ufunc) or _is_method_of_ufunc(function) or function in WITH_OUT


def _copied_one(result: np.ndarray, function: Callable, *args: Any, **options: Any) -> None:
    """Calls a function that returns a new array, and keeps its values in a buffer."""
    np.copyto(result, function(*args, **options))


def _copied(results: tuple, places: tuple[int, ...], function: Callable, *args: Any, **options: Any) -> None:
    """Calls a function that returns new arrays, and keeps their values in buffers."""
    found = flatten(function(*args, **options))[0]
    for array, place in zip(results, places):
        np.copyto(array, found[place])


def _sources(nodes: Sequence[Node]) -> list[list[int]]:
    """For each call those whose results it reads."""
    writers: dict[int, int] = {}  # id of memory -> the last call that wrote to it
    sources = []
    for index, node in enumerate(nodes):
        sources.append(sorted({writers[id(owner(a))] for a in node.reads() if id(owner(a)) in writers}))
        writers.update((id(owner(a)), index) for a in [*node.results, *node.writes])
    return sources


def _needed(nodes: Sequence[Node], kept: set[int]) -> list[Node]:
    """The nodes that act, or write memory that is kept or read later."""
    needed, read = [], set(kept)
    for node in reversed(nodes):
        written = {id(owner(array)) for array in [*node.results, *node.writes]}
        if node.acts or written & read:
            needed.append(node)
            read.update(id(owner(array)) for array in node.reads())
    return needed[::-1]
