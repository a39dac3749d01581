"""`elementwise`: binds a functor of a `.cu` file to an op of one input, forward and backward, with or without a bias, in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .source import format_of, kernel

if TYPE_CHECKING:
    from .._op import Implementation, Op

WARPS = 8  # of a block of `bias_backward`
PARTS_PER_PROCESSOR = 4  # blocks of `bias_backward` per multiprocessor: enough to hide its reads, few partial sums


class Elementwise:
    """A functor that computes y from x, and dx from dy and what the op's gradient rule keeps (x or y).

    The functor's members are the op's options, in order; with options it is a template of the type that it computes in.
    Where one option chooses among functors (`gelu`'s approximation), `functor` is a dict by its value and `by` names it.
    """

    def __init__(self, file: str, functor: str | Mapping[str, str], *, by: str = ""):
        self.file, self.functor, self.by = file, functor, by

    def implementation(self, op: Op) -> Implementation:
        """The functor as an implementation of an op of one input and one gradient rule."""
        from .._op import Implementation

        (rule,) = op.gradients
        (self.keeps,) = rule.keeps
        self.op = op
        made = Implementation(self.forward, binder=self)
        made.gradients.append(replace(rule, function=self.backward, options=tuple(op.defaults), overwrites_dy="out"))
        return made

    # --- plain ----------------------------------------------------------------------------------------------------

    def forward(self, x: Any, *, out: Any = None, **options: Any) -> Any:
        """y = f(x)."""
        return self._map("forward", [x], out, options)

    def backward(self, dy: Any, kept: Any, *, out: Any = None, **options: Any) -> Any:
        """dx = dy f'."""
        return self._map("backward", [dy, kept], out, options)

    def _map(self, direction: str, arrays: list, out: Any, options: dict[str, Any]) -> Any:
        from . import launch

        if not launch.takes(*arrays):
            return NotImplemented
        arrays = [launch.packed(a) for a in arrays]
        result = launch.place_for(out, arrays[0].shape, arrays[0].dtype)
        if result.size:
            names = ["x"] if direction == "forward" else ["dy", "kept"]
            index = launch.index_type(result.size)
            parameters = [*(f"const T* {name}" for name in names), "T* result", f"{index} n"]
            call = f"elementwise_{direction}<F, T, {index}>({', '.join(names)}, result, n, "
            function, members = self._kernel(direction, result.dtype, options, parameters, call, index)
            arguments = (*arrays, result, launch.index(result.size), *members)
            function((launch.blocks_for(result.size, result.itemsize),), (launch.THREADS,), arguments)
        return launch.finished(result, out)

    # --- with a bias ----------------------------------------------------------------------------------------------

    def bias_forward(self, x: Any, bias: Any, y: Any, **options: Any) -> None:
        """y = f(x + bias), x and y (rows, columns) and packed; y may be x."""
        from . import launch

        if x.size:
            rows, columns = x.shape
            width, index = _width(columns, x.dtype), launch.index_type(x.size)
            parameters = ["const T* x", "const T* bias", "T* y", f"{index} rows", f"{index} columns"]
            call = f"bias_forward<F, T, {index}, {width}>(x, bias, y, rows, columns, "
            function, members = self._kernel("bias_forward", x.dtype, options, parameters, call, f"{index}_{width}")
            blocks = max(1, min(-(-x.size // (width * launch.THREADS)), 2**20))
            function((blocks,), (launch.THREADS,), (x, bias, y, launch.index(rows), launch.index(columns), *members))

    def bias_backward(
        self, dy: Any, kept: Any, bias: Any, dx: Any, db: Any, *, accumulate: bool = False, **options: Any
    ) -> None:
        """dx = dy f', and db = dx summed over rows (or added to db), in one launch; dx may be dy. kept: y, or x without bias."""
        import cupy

        from . import launch

        rows, columns = dy.shape
        if not dy.size:
            if not accumulate:
                db.fill(0)
            return
        width, index = _width(columns, dy.dtype), launch.index_type(dy.size)
        keeps_x = str(self.keeps == "x").lower()
        parameters = ["const T* dy", "const T* kept", "const T* bias", "T* dx", "A* partial", "T* db", "unsigned int* tickets"]
        parameters += [f"{index} rows", f"{index} columns", "int accumulate"]
        call = f"bias_backward<F, T, {index}, {width}, {keeps_x}>(dy, kept, bias, dx, partial, db, tickets, rows, columns, accumulate, "
        function, members = self._kernel("bias_backward", dy.dtype, options, parameters, call, f"{index}_{width}")
        stripes = -(-columns // (32 * width))
        parts = max(1, min(-(-rows // WARPS), -(-PARTS_PER_PROCESSOR * launch.multiprocessors() // stripes)))
        partial = cupy.empty((parts, columns), _arithmetic(dy.dtype))
        sizes = launch.index(rows), launch.index(columns)
        places = (dy, kept, bias, dx, partial, db, launch.tickets(stripes))
        function((stripes, parts), (32 * WARPS,), (*places, *sizes, np.int32(accumulate), *members))

    # --- source ---------------------------------------------------------------------------------------------------

    def _kernel(
        self, what: str, dtype: Any, options: dict[str, Any], parameters: list[str], call: str, variant: str
    ) -> tuple[Any, list[Any]]:
        """The kernel that makes one call with the functor, and the functor's members as its last arguments."""
        functor = self.functor if isinstance(self.functor, str) else self.functor[options[self.by]]
        names = [name for name in self.op.defaults if name != self.by]
        arithmetic = _arithmetic(dtype)
        types = f"typedef {format_of(dtype)} T;\ntypedef {format_of(arithmetic)} A;\ntypedef {functor}{'<A>' if names else ''} F;"
        signature = ", ".join([*parameters, *(f"A {name}" for name in names)])
        name = f"{functor}_{what}_{dtype.name}_{variant}".replace(" ", "_").lower()
        compiled = kernel(self.file, name, signature, f"{call}F{{{', '.join(names)}}});", (dtype.name,), types=types)
        return compiled, [arithmetic.type(options[option]) for option in names]


def _arithmetic(dtype: Any) -> np.dtype:
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def _width(columns: int, dtype: Any) -> int:
    """Columns that a thread takes at a time: a pack of 16 bytes where that divides the rows."""
    pack = 16 // dtype.itemsize
    return pack if columns % pack == 0 else 1


def elementwise(file: str, functor: str | Mapping[str, str], *, by: str = "") -> Elementwise:
    """Binds a functor to an op: `silu.cuda = elementwise("activations.cu", "Silu")`. CuPy is not imported before the first call."""
    return Elementwise(file, functor, by=by)
