"""Derivatives of functions: grad, vjp, jvp, jacobian, hessian, hvp, under the names of JAX and autograd; and checkpoint.

Arguments and results may be nested tuples, lists and dicts. All plain in, plain out; any Tensor in, Tensors out. They nest: inside
another transform, or where an argument or something that f refers to requires a gradient, what is returned can be
differentiated again (not under `no_grad()`).
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ._random import replayed
from ._tensor import Leaf, Tensor, _copied, as_data
from ._tree import flatten, map_leaves
from .device import BACKENDS
from .errors import ArgumentError, DtypeError, MutationError, ShapeError
from .tape import Mode, Output, Recomputed, compute, is_floating, tape, walk


class _Depth(threading.local):
    value = 0


_depth = _Depth()


@contextlib.contextmanager
def _tracing() -> Iterator[bool]:
    """Yields whether another transform is at work, so that results must stay on the tape."""
    nested = _depth.value > 0
    _depth.value += 1
    try:
        yield nested
    finally:
        _depth.value -= 1


class _Call:
    """One evaluation of f with chosen arguments as fresh inputs of the tape."""

    def __init__(
        self,
        name: str,
        f: Callable,
        args: tuple,
        kwargs: dict,
        argnums: Sequence[int],
        has_aux: bool,
        again: bool = False,
    ):
        """again: what will be computed from the result is to be differentiated again, whatever the arguments say."""
        self.name = name
        trees = [args[i] for i in argnums]
        leaves, self.build = flatten(trees)
        self.tensors = [_tensor(name, leaf) for leaf in leaves]
        everything = flatten((args, kwargs))[0]
        with _tracing() as nested:
            self.plain = not nested and not any(isinstance(v, Tensor) for v in everything)
            outer = Mode(enabled=True)
            self.taped = again or (
                (nested or any(isinstance(v, Tensor) and v.requires_grad for v in everything)) and tape.enabled
            )
            with outer:
                # An input that is already on the tape gets a node of its own: derivatives stop there, and what they
                # are computed from still leads on to whatever the input was computed from.
                self.inputs = [_fresh(t) for t in self.tensors]
                arguments = list(args)
                for i, tree in zip(argnums, self.build(self.inputs)):
                    arguments[i] = tree
                result = f(*arguments, **kwargs)
        self.aux = None
        if has_aux:
            if not isinstance(result, tuple) or len(result) != 2:
                raise ArgumentError(
                    f"{name}: expected f to return (result, aux) with has_aux=True, got {type(result).__name__}"
                )
            result, self.aux = result
        self.result = result
        leaves, self.build_result = flatten(result)
        self.outputs = [_output(name, leaf) for leaf in leaves]
        if not (self.plain or self.taped) and tape.enabled:
            self.taped = _reaches_others(self.outputs, self.inputs)

    def pull(self, cotangents: Sequence[Any], *, taped: bool | None = None, retain: bool = True) -> list[Tensor]:
        """One gradient per input, for one cotangent per output (arrays, or Tensors where taped)."""
        taped = self.taped if taped is None else taped
        roots = [
            (y, dy if taped else dy._data if isinstance(dy, Tensor) else dy)
            for y, dy in zip(self.outputs, cotangents)
            if y.requires_grad
        ]
        with _tracing():
            found = walk(roots, wanted=[x._node for x in self.inputs], retain_graph=retain, create_graph=taped)
        gradients, seen = [], set()
        for x in self.inputs:
            gradient = found.get(x._node)
            if gradient is None:
                gradient = Tensor(BACKENDS[type(x._data)].xp.zeros_like(x._data))
            elif not isinstance(gradient, Tensor):
                # Rules may return a view, or the same array twice: the user gets arrays of his own.
                array = (
                    gradient
                    if hasattr(gradient, "base") and not isinstance(gradient, np.generic)
                    else np.asarray(gradient)
                )
                shared = id(array) in seen or array.base is not None or not roots or any(array is dy for _, dy in roots)
                seen.add(id(array))
                gradient = Tensor(compute(_copied, array) if shared else array)
            gradients.append(gradient)
        return gradients

    def give(self, value: Any) -> Any:
        """A result in the user's kind: plain arrays where all arguments were plain."""
        return map_leaves(
            lambda v: v._data if isinstance(v, Tensor) and self.plain else _off_tape(v, self.taped), value
        )


def _reaches_others(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> bool:
    """Whether results depend on a leaf beside the inputs: on parameters in f's closure, say."""
    seen = {x._node for x in inputs}
    stack = [y._node for y in outputs if y._node is not None]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if type(node) is Leaf:
            return True
        stack.extend(node.edges)
    return False


def _off_tape(value: Any, taped: bool) -> Any:
    return value.detach() if isinstance(value, Tensor) and not taped else value


def _tensor(name: str, leaf: Any) -> Tensor:
    t = leaf if isinstance(leaf, Tensor) else Tensor(as_data(leaf))
    if not is_floating(t.dtype):
        raise DtypeError(
            f"{name}: expected real floating arguments to differentiate, got {t.dtype} {t.shape}; use floats, or argnums="
        )
    return t


def _fresh(t: Tensor) -> Tensor:
    if t.requires_grad and tape.enabled:
        return t.clone()
    return Tensor(t._data).requires_grad_()


def _output(name: str, leaf: Any) -> Tensor:
    t = leaf if isinstance(leaf, Tensor) else Tensor(as_data(leaf))
    if not is_floating(t.dtype):
        raise DtypeError(
            f"{name}: expected f to return real floating values, got {t.dtype} {t.shape}; return others with has_aux=True"
        )
    return t


def _argnums(name: str, argnums: int | Sequence[int], args: tuple) -> tuple[int, ...]:
    if not args:
        raise ArgumentError(f"{name}: expected positional arguments to differentiate, got none")
    chosen = tuple(argnums) if isinstance(argnums, Sequence) else (argnums,)
    for i in chosen:
        if not isinstance(i, int) or not -len(args) <= i < len(args):
            raise ArgumentError(f"{name}: expected argnums among 0 to {len(args) - 1}, got {i!r}")
    chosen = tuple(i % len(args) for i in chosen)
    if len(set(chosen)) != len(chosen):
        raise ArgumentError(f"{name}: expected each argument once in argnums, got {argnums}")
    return chosen


# --- Reverse mode ---------------------------------------------------------------------------------------------------


def value_and_grad(f: Callable, argnums: int | Sequence[int] = 0, *, has_aux: bool = False) -> Callable:
    """A function that returns (f(x), df/dx): one forward and one backward walk.

    f: returns a scalar (shape () or one element); with has_aux a pair (scalar, anything), and then ((value, aux), gradient) is returned.
    argnums: which positional arguments to differentiate; an int gives one gradient, a sequence a tuple of them.

    Raises: ShapeError where f is not scalar, DtypeError for arguments that are not floating.
    """

    @functools.wraps(f)
    def function(*args: Any, **kwargs: Any) -> Any:
        chosen = _argnums("grad", argnums, args)
        run = _Call("grad", f, args, kwargs, chosen, has_aux)
        if len(run.outputs) != 1 or run.outputs[0].size != 1:
            shapes = ", ".join(str(y.shape) for y in run.outputs)
            raise ShapeError(
                f"grad: expected f to return one scalar, got {shapes or 'nothing'}; reduce it, or use gp.vjp or gp.jacobian"
            )
        y = run.outputs[0]
        seed = BACKENDS[type(y._data)].xp.ones(y.shape, y.dtype)
        gradients = run.build(run.pull([Tensor(seed) if run.taped else seed], retain=run.taped))
        gradients = gradients[0] if isinstance(argnums, int) else tuple(gradients)
        value = run.give(run.result)
        return ((value, run.give(run.aux)) if has_aux else value), run.give(gradients)

    return function


def grad(f: Callable, argnums: int | Sequence[int] = 0, *, has_aux: bool = False) -> Callable:
    """A function that returns df/dx of a scalar function: `gp.grad(f)(x)`; with has_aux, (gradient, aux). See `value_and_grad`."""
    both = value_and_grad(f, argnums, has_aux=has_aux)

    @functools.wraps(f)
    def function(*args: Any, **kwargs: Any) -> Any:
        value, gradients = both(*args, **kwargs)
        return (gradients, value[1]) if has_aux else gradients

    return function


def vjp(f: Callable, *args: Any, has_aux: bool = False) -> tuple:
    """(y, pullback): y = f(*args), and pullback(dy) returns the tuple of dy^T J, one entry per argument.

    The pullback may be called any number of times; dy has y's structure and shapes. With has_aux: (y, pullback, aux).
    Raises: ShapeError where dy does not fit.
    """
    if not args:
        raise ArgumentError("vjp: expected arguments to differentiate, got none")
    run = _Call("vjp", f, args, {}, range(len(args)), has_aux)

    def pullback(dy: Any) -> tuple:
        cotangents = _like_outputs("pullback", dy, run.outputs)
        taped = run.taped or any(c.requires_grad for c in cotangents)
        plain = run.plain and not any(isinstance(leaf, Tensor) for leaf in flatten(dy)[0])
        gradients = tuple(run.build(run.pull(cotangents, taped=taped)))
        return map_leaves(lambda g: g._data if plain else _off_tape(g, taped), gradients)

    y = run.give(run.result)
    return (y, pullback, run.give(run.aux)) if has_aux else (y, pullback)


def _like_outputs(name: str, given: Any, outputs: Sequence[Tensor]) -> list[Tensor]:
    leaves = flatten(given)[0]
    if len(leaves) != len(outputs):
        raise ShapeError(f"{name}: expected {len(outputs)} arrays, one for each result, got {len(leaves)}")
    fitted = []
    for leaf, y in zip(leaves, outputs):
        t = leaf if isinstance(leaf, Tensor) else Tensor(as_data(leaf, device=y.device))
        if t.shape != y.shape:
            raise ShapeError(f"{name}: expected shape {y.shape}, got {t.shape}")
        fitted.append(t if t.dtype == y.dtype else t.to(dtype=y.dtype))
    return fitted


# --- Forward mode ---------------------------------------------------------------------------------------------------


def jvp(f: Callable, primals: Sequence[Any], tangents: Sequence[Any], *, has_aux: bool = False) -> tuple:
    """(y, dy): y = f(*primals) and dy = J v, the derivative of f along the tangents v.

    Computed from the reverse rules: u -> u^T J is linear, and its transpose is v -> J v. So ops declare nothing for it.
    Raises: ShapeError where tangents do not fit the primals. With has_aux: (y, dy, aux).
    """
    if (
        not isinstance(primals, (tuple, list))
        or not isinstance(tangents, (tuple, list))
        or len(primals) != len(tangents)
    ):
        raise ArgumentError("jvp: expected two sequences of the same length, primals and tangents")
    run = _Call("jvp", f, tuple(primals), {}, range(len(primals)), has_aux, again=True)
    directions = _like_outputs("jvp", list(tangents), run.tensors)
    with _tracing() as nested, Mode(enabled=True):
        xp_of = [BACKENDS[type(y._data)].xp for y in run.outputs]
        cotangents = [Tensor(xp.zeros_like(y._data)).requires_grad_() for xp, y in zip(xp_of, run.outputs)]
        products = run.pull(cotangents, taped=True)  # J^T u, as a function of u
        pairs = [(g, v) for g, v in zip(products, directions) if g.requires_grad]
        taped = nested or any(t.requires_grad for t in (*run.tensors, *directions))
        roots = [(g, v if taped else v._data) for g, v in pairs]
        found = walk(roots, wanted=[u._node for u in cotangents], retain_graph=True, create_graph=taped)
    dys = []
    for y, u, xp in zip(run.outputs, cotangents, xp_of):
        dy = found.get(u._node)
        dys.append(
            Tensor(xp.zeros_like(y._data))
            if dy is None
            else dy
            if isinstance(dy, Tensor)
            else Tensor(compute(_copied, dy))
        )
    plain = run.plain and not any(isinstance(leaf, Tensor) for leaf in flatten(list(tangents))[0])

    def give(value: Any) -> Any:
        return map_leaves(lambda v: v._data if isinstance(v, Tensor) and plain else _off_tape(v, taped), value)

    result = (give(run.result), give(run.build_result(dys)))
    return (*result, give(run.aux)) if has_aux else result


# --- Matrices of derivatives ----------------------------------------------------------------------------------------


def jacobian(f: Callable, argnums: int | Sequence[int] = 0, *, has_aux: bool = False) -> Callable:
    """A function that returns the Jacobian J[i..., j...] = dy_i / dx_j, of shape y.shape + x.shape.

    One backward walk per element of y. For containers: y's structure, with x's structure in each place.
    """

    @functools.wraps(f)
    def function(*args: Any, **kwargs: Any) -> Any:
        chosen = _argnums("jacobian", argnums, args)
        run = _Call("jacobian", f, args, kwargs, chosen, has_aux)
        blocks = []
        for position, y in enumerate(run.outputs):
            xp = BACKENDS[type(y._data)].xp
            rows = []
            for unit in range(y.size):
                seeds = []
                for k, other in enumerate(run.outputs):
                    basis = xp.zeros(other.size, other.dtype)
                    if k == position:
                        basis[unit] = 1
                    basis = basis.reshape(other.shape)
                    seeds.append(Tensor(basis) if run.taped else basis)
                rows.append(run.pull(seeds))
            columns = [_stacked(xp, [row[j] for row in rows], y.shape, x) for j, x in enumerate(run.inputs)]
            gradients = run.build(columns)
            blocks.append(gradients[0] if isinstance(argnums, int) else tuple(gradients))
        result = run.give(run.build_result(blocks) if blocks else ())
        return (result, run.give(run.aux)) if has_aux else result

    return function


def _stacked(xp: Any, rows: list[Tensor], shape: tuple[int, ...], x: Tensor) -> Tensor:
    full = (*shape, *x.shape)
    if not rows:
        return Tensor(xp.zeros(full, x.dtype))
    if any(row.requires_grad for row in rows):
        from .ops.shape import stack

        return stack(rows).reshape(full)
    return Tensor(compute(xp.stack, [row._data for row in rows]).reshape(full))


def hessian(f: Callable, argnums: int | Sequence[int] = 0, *, has_aux: bool = False) -> Callable:
    """A function that returns the matrix of second derivatives of a scalar function, of shape x.shape + x.shape."""
    return jacobian(grad(f, argnums, has_aux=has_aux), argnums, has_aux=has_aux)


def hvp(f: Callable, x: Any, v: Any) -> Any:
    """The Hessian of a scalar function times v, H v = d/dx <grad f(x), v>, for the price of two gradients.

    x, v: arrays or containers of one structure. Raises: ShapeError where they do not fit.
    """
    leaves, directions = flatten(x)[0], flatten(v)[0]
    tensors = [_tensor("hvp", leaf) for leaf in leaves]
    fitted = _like_outputs("hvp", list(directions), tensors)

    def along(x: Any) -> Tensor:
        total: Any = 0.0
        for g, d in zip(flatten(grad(f)(x))[0], fitted):
            total = total + (g * d).sum()
        return total

    if any(isinstance(d, Tensor) for d in directions):  # any Tensor in, Tensors out
        x = map_leaves(lambda leaf: leaf if isinstance(leaf, Tensor) else Tensor(as_data(leaf)), x)
    return grad(along)(x)


# --- Memory for time ------------------------------------------------------------------------------------------------


def checkpoint(f: Callable, *args: Any, **kwargs: Any) -> Any:
    """f(*args), keeping only the arguments: the backward walk calls f again instead of keeping what is inside.

    Gradients reach the arguments and whatever f's closure refers to, such as a module's parameters. f must compute the same when
    it is called again; random numbers of gpuprop's generators are drawn again with the same keys.
    """
    if not tape.enabled:
        return f(*args, **kwargs)
    leaves, build = flatten((args, kwargs))
    edges = tuple(leaf._node for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad)
    versions = [(leaf, leaf.version()[0]) for leaf in leaves if isinstance(leaf, Tensor)]
    with Mode(dry=True), replayed() as replay:
        result = f(*args, **kwargs)
    outputs, build_result = flatten(result)
    on_tape = {i: y for i, y in enumerate(outputs) if isinstance(y, Tensor) and not y.is_leaf}
    if not on_tape:
        return result
    # The arguments again, with the nodes that they have: what is recomputed hangs where the call hung.
    held = [_alias(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]

    def recompute() -> list[Tensor]:
        for leaf, version in versions:
            if leaf.version()[0] != version:
                raise MutationError(
                    "checkpoint: expected the arguments of the forward pass, got one that was changed in place since"
                )
        with Mode(enabled=True, dry=False), replay():
            again_args, again_kwargs = build([_alias(h) if isinstance(h, Tensor) else h for h in held])
            again = flatten(f(*again_args, **again_kwargs))[0]
        return [again[i] for i in on_tape]

    name = f"checkpoint of {getattr(f, '__name__', type(f).__name__)}"
    record = Recomputed(list(on_tape.values()), edges, recompute, name)
    for place, (i, y) in enumerate(on_tape.items()):
        outputs[i] = Tensor(y._data, Output(record, place))
    return build_result(outputs)


def _alias(t: Tensor) -> Tensor:
    made = Tensor(t._data, t._node)
    made._version = t.version()
    return made
