"""What NumPy is asked to do by an op, written down: the calls that a captured step makes again on a CPU.

Inside a recording an op's implementation gets its arrays as `Traced` views. NumPy hands every ufunc and function that meets one to
this module, which makes the call and logs a `Node`: the function, its arrays and where the result lies. What an implementation asks
for in between (shapes, views, constants) costs nothing when the log is played back. A function that needs to know values in Python
cannot be looked into; it becomes one node as a whole.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._tree import flatten, map_leaves


@dataclass(slots=True)
class Node:
    """One call of a log: `function(*args, **options)`."""

    name: str  # of the op that asked for it
    function: Callable
    args: tuple
    options: dict[str, Any]
    results: tuple[np.ndarray, ...] = ()  # the new arrays that it returned
    places: tuple[int, ...] = ()  # of `results` among all that it returned
    writes: tuple[np.ndarray, ...] = ()  # arrays that it changed
    acts: bool = False  # it does more than write arrays
    alone: bool = False  # all that it returned is one new array

    def reads(self) -> list[np.ndarray]:
        """The arrays that it is given, those to write among them."""
        return [leaf for leaf in flatten((self.args, self.options))[0] if isinstance(leaf, np.ndarray)]


class ValueNeeded(Exception):
    """An implementation asked for a value in Python."""


def owner(array: np.ndarray) -> np.ndarray:
    """The array whose memory a view shows."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


class Log:
    """The calls made so far, and what is known about the memory that they use."""

    def __init__(self, save: Callable[[np.ndarray], None] = lambda array: None) -> None:
        self.save = save  # called before lasting memory is written to
        self.nodes: list[Node] = []
        self.made: dict[int, np.ndarray] = {}  # memory that a node has filled, by id of its owner
        self.lasting: dict[int, np.ndarray] = {}  # memory that was there before, and stays: parameters, running means
        self.given: set[int] = set()  # ids of owners of arguments, which are not to be changed
        self.name = ""  # of the op that is running

    # --- called by a recording ----------------------------------------------------------------------------------

    def run(self, name: str, function: Callable, args: tuple, options: dict[str, Any], known: bool = True) -> Any:
        """Calls an op's implementation on arrays, and logs what it does.

        known: it is gpuprop's own. What another one does with arrays may be more than NumPy tells of, so it is one node as a whole.
        """
        leaves, build = flatten((args, options))
        for leaf in leaves:
            if isinstance(leaf, np.ndarray):
                self._know(leaf)
        self.name, begin = name, len(self.nodes)
        if known:
            try:
                traced_args, traced_options = build([self.traced(leaf) for leaf in leaves])
                result = map_leaves(plain, function(*traced_args, **traced_options))
                if all(self._is_known(leaf) for leaf in flatten(result)[0]):
                    return result
            except ValueNeeded:
                pass
            if any(node.writes for node in self.nodes[begin:]):
                raise ValueNeeded(name)  # it cannot be undone
            del self.nodes[begin:]
        places = [
            leaf for leaf in flatten((options.get("out"), options.get("scratch")))[0] if isinstance(leaf, np.ndarray)
        ]
        return map_leaves(plain, self.call(functools.partial(_fresh, function), args, options, tuple(places)))

    def _is_known(self, leaf: Any) -> bool:
        """Whether a result is no array, or lies in memory whose origin is known."""
        if isinstance(leaf, np.generic):
            return False
        key = id(owner(leaf)) if isinstance(leaf, np.ndarray) else None
        return key is None or key in self.made or key in self.lasting

    def create(self, array: np.ndarray) -> None:
        """Says that the recorded function made an array of constants: it holds them again at the start of every call."""
        self.made[id(owner(array))] = owner(array)
        self._refill(array)

    def forget(self) -> None:
        """Lets go of all arrays. (Some that outlive the log are views of traced ones, and these know it.)"""
        self.nodes, self.made, self.lasting = [], {}, {}

    # --- called by NumPy ----------------------------------------------------------------------------------------

    def call(
        self, function: Callable, args: tuple, options: dict[str, Any], writes: tuple = (), acts: bool = False
    ) -> Any:
        """Makes one call on plain arrays and logs it, unless it only looks at memory from another side."""
        args, options, writes = map_leaves(plain, (args, options, writes))
        reads = [leaf for leaf in flatten((args, options))[0] if isinstance(leaf, np.ndarray)]
        for array in writes:
            self._before_write(array, sum(leaf is array for leaf in reads) > 1 or "out" not in options)
        result = function(*args, **options)
        found, build = flatten(result)
        arrays = [np.asarray(leaf) if isinstance(leaf, np.generic) else leaf for leaf in found]
        known = {id(owner(array)) for array in [*reads, *writes]}
        new = {i: a for i, a in enumerate(arrays) if isinstance(a, np.ndarray) and id(owner(a)) not in known}
        if new or writes or acts:
            alone = bool(new) and isinstance(result, (np.ndarray, np.generic))
            results, places = tuple(new.values()), tuple(new)
            self.nodes.append(Node(self.name, function, args, options, results, places, writes, acts, alone))
            for array in new.values():
                self.made[id(owner(array))] = owner(array)
        return build([self.traced(a) for a in arrays])

    def traced(self, leaf: Any) -> Any:
        """An array as one whose calls come here."""
        if not isinstance(leaf, np.ndarray):
            return leaf
        view = np.ndarray.view(leaf, Traced)
        view.log = self
        return view

    def empty(self, array: np.ndarray) -> Traced:
        """A new array without values yet."""
        self.made[id(owner(array))] = owner(array)
        return self.traced(array)

    # --- memory -------------------------------------------------------------------------------------------------

    def _know(self, array: np.ndarray) -> None:
        root = owner(array)
        if id(root) not in self.made:
            self.lasting[id(root)] = root

    def _before_write(self, array: np.ndarray, also_read: bool) -> None:
        root = owner(array)
        if id(root) in self.lasting or id(root) in self.given:
            self.save(array)
        elif id(root) not in self.made:  # constants of the implementation
            self.made[id(root)] = root
            if also_read or array.size != root.size:
                self._refill(root)

    def _refill(self, array: np.ndarray) -> None:
        self.nodes.append(Node(self.name, np.copyto, (array, array.copy()), {}, writes=(array,)))


def _fresh(function: Callable, *args: Any, **options: Any) -> Any:
    """What a function returns, in memory of its own: which of its arguments it returns may depend on values."""
    return map_leaves(lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, function(*args, **options))


def plain(leaf: Any) -> Any:
    return np.ndarray.view(leaf, np.ndarray) if type(leaf) is Traced else leaf


# --- What implementations see ---------------------------------------------------------------------------------------

# Functions of shapes and dtypes; they read no values.
_OF_SHAPES = {np.shape, np.ndim, np.size, np.result_type, np.can_cast, np.iscomplexobj, np.isrealobj}
# Functions that consist of ufuncs, which have `out=`.
_COMPOSED = {np.sum, np.prod, np.max, np.min, np.mean, np.var, np.std, np.all, np.any, np.clip, np.amax, np.amin}
_IN_PLACE = {
    np.copyto,
    np.put,
    np.putmask,
    np.place,
    np.fill_diagonal,
    np.put_along_axis,
}  # write to the first argument
_CREATING = {np.empty, np.zeros, np.ones, np.full, np.empty_like, np.zeros_like, np.ones_like, np.full_like}


class Traced(np.ndarray):
    """An array whose calls are logged."""

    log: Log

    def __array_finalize__(self, other: Any) -> None:
        log = getattr(other, "log", None)
        if log is not None:
            self.log = log

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        log = self.log
        function = ufunc if method == "__call__" else getattr(ufunc, method)
        if method == "at":
            return log.call(function, inputs, options, writes=inputs[:1])
        if out is None or all(place is None for place in out):
            return log.call(function, inputs, options)
        places = tuple(place for place in out if place is not None)
        return log.call(function, inputs, {**options, "out": out if len(out) > 1 else out[0]}, writes=places)

    def __array_function__(self, function: Callable, types: Any, args: Any, options: Any) -> Any:
        log = self.log
        if function in _OF_SHAPES:
            return function(*map_leaves(plain, args), **map_leaves(plain, options))
        if function in _COMPOSED:
            return function._implementation(*args, **options)  # type: ignore[attr-defined]
        if function in _CREATING:
            made = function(*map_leaves(plain, args), **map_leaves(plain, options))
            if function in (np.empty, np.empty_like):
                return log.empty(made)
            log.create(made)
            return log.traced(made)
        out = args[0] if function in _IN_PLACE else options.get("out")
        return log.call(function, args, options, writes=() if out is None else (out,))

    def mean(self, *args: Any, **options: Any) -> Any:
        return self._statistic(np.ndarray.mean, args, options)

    def var(self, *args: Any, **options: Any) -> Any:
        return self._statistic(np.ndarray.var, args, options)

    def std(self, *args: Any, **options: Any) -> Any:
        return self._statistic(np.ndarray.std, args, options)

    def _statistic(self, method: Callable, args: tuple, options: dict[str, Any]) -> Any:
        if self.dtype == np.float16:  # ends in np.float16(array), of which NumPy does not tell
            return self.log.call(method, (self, *args), options)
        return method(self, *args, **options)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.log.call(_setitem, (self, key, value), {}, writes=(self,))

    def fill(self, value: Any) -> None:
        self.log.call(np.ndarray.fill, (self, value), {}, writes=(self,))

    def take(self, indices: Any, axis: Any = None, out: Any = None, mode: Any = "raise") -> Any:
        writes = () if out is None else (out,)
        return self.log.call(np.ndarray.take, (self, indices, axis, out, mode), {}, writes)

    def sort(self, *args: Any, **options: Any) -> None:
        self.log.call(np.ndarray.sort, (self, *args), options, writes=(self,))


def _setitem(array: np.ndarray, key: Any, value: Any) -> None:
    array[key] = value


def _method(name: str) -> Callable:
    function = getattr(np.ndarray, name)

    def called(self: Traced, *args: Any, **options: Any) -> Any:
        out = options.get("out")
        return self.log.call(function, (self, *args), options, () if out is None else (out,))

    return called


def _value(name: str) -> Callable:
    def needed(self: Traced, *args: Any) -> Any:
        raise ValueNeeded(name)

    return needed


# `sum`, `mean` and their like end in ufuncs by themselves. These do not; those that return views are not logged.
for _name in (
    "__getitem__ argmax argmin argsort astype choose clip compress copy cumprod cumsum diagonal dot flatten nonzero ravel repeat "
    "reshape round searchsorted trace view"
).split():
    setattr(Traced, _name, _method(_name))
for _name in "__bool__ __float__ __int__ __index__ __complex__ __repr__ __str__ item tolist tobytes".split():
    setattr(Traced, _name, _value(_name))


def array(x: Any, dtype: Any = None) -> np.ndarray:
    """`np.array`, which NumPy does not tell of arrays like these."""
    return x.astype(dtype or x.dtype) if type(x) is Traced else np.array(x, dtype)


def asarray(x: Any, dtype: Any = None) -> np.ndarray:
    """`np.asarray`, which NumPy does not tell of arrays like these."""
    return x.astype(dtype or x.dtype, copy=False) if type(x) is Traced else np.asarray(x, dtype)


def primitive(function: Callable | None = None, *, writes: Sequence[str] = ()) -> Any:
    """Makes a function of arrays one call in a log, for what NumPy's own functions do not see (checks, blocks, random bits).

    writes: names of positional arguments that it writes to.
    """
    if function is None:
        return functools.partial(primitive, writes=writes)
    order = list(inspect.signature(function).parameters)
    places = [order.index(name) for name in writes]

    @functools.wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        for leaf in (*args, *options.values()):
            if type(leaf) is Traced:
                return leaf.log.call(function, args, options, tuple(args[i] for i in places), acts=True)
        return function(*args, **options)

    return called
