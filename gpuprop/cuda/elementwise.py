"""`elementwise`: binds a functor of a `.cu` file to an op of one input, forward and backward in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .source import format_of, kernel

if TYPE_CHECKING:
    from .._op import Implementation, Op


class Elementwise:
    """A functor that computes y from x, and dx from dy and what the op's gradient rule keeps (x or y).

    The functor's members are the op's options, in order; with options it is a template of the type that it computes in.
    Where one option chooses among functors (`gelu`'s approximation), `functor` is a dict by its value and `by` names it.
    """

    def __init__(self, file: str, functor: str | Mapping[str, str], *, by: str = ""):
        self.file, self.functor, self.by = file, functor, by

    def implementation(self, op: Op) -> Implementation:
        """The functor as an implementation of an op. Raises: DeclarationError for an op that it does not fit."""
        from .._op import Implementation

        (rule,) = op.gradients
        (kept,) = rule.keeps
        members = [name for name in op.defaults if name != self.by]

        def launch(direction: str, arrays: list, out: Any, options: dict[str, Any]) -> Any:
            from . import launch as border

            if not border.takes(*arrays):
                return NotImplemented
            arrays = [border.packed(a) for a in arrays]
            result = border.place_for(out, arrays[0].shape, arrays[0].dtype)
            n, dtype = result.size, result.dtype
            if n:
                function = self._kernel(op, direction, dtype.name, border.index_type(n), options, members)
                values = [_scalar(options[name], dtype) for name in members]
                function((border.blocks_for(n, dtype.itemsize),), (border.THREADS,), (*arrays, result, border.index(n), *values))
            return border.finished(result, out)

        def forward(x: Any, *, out: Any = None, **options: Any) -> Any:
            return launch("forward", [x], out, options)

        def backward(dy: Any, kept: Any, *, out: Any = None, **options: Any) -> Any:
            return launch("backward", [dy, kept], out, options)

        made = Implementation(forward)
        made.gradients.append(replace(rule, function=backward, options=tuple(op.defaults), overwrites_dy=True))
        return made

    def _kernel(self, op: Op, direction: str, dtype: str, index: str, options: dict[str, Any], members: list[str]) -> Any:
        functor = self.functor if isinstance(self.functor, str) else self.functor[options[self.by]]
        t, a = format_of(dtype), "double" if dtype == "float64" else "float"
        kind = f"{functor}<{a}>" if members else functor
        names = ["x", "y"] if direction == "forward" else ["dy", "kept", "dx"]
        arrays = ", ".join([*(f"const {t}* {name}" for name in names[:-1]), f"{t}* {names[-1]}", f"{index} n"])
        scalars = "".join(f", {a} {name}" for name in members)
        call = f"elementwise_{direction}<{kind}, {t}, {index}>({', '.join(names)}, n, {kind}{{{', '.join(members)}}});"
        wide = "" if index == "int" else "_wide"
        return kernel(self.file, f"{op.name}_{direction}_{dtype}_{functor}{wide}".lower(), arrays + scalars, call, (dtype,))


def _scalar(value: Any, dtype: Any) -> Any:
    import numpy as np

    return np.float64(value) if dtype == np.float64 else np.float32(value)


def elementwise(file: str, functor: str | Mapping[str, str], *, by: str = "") -> Elementwise:
    """Binds a functor to an op: `silu.cuda = elementwise("activations.cu", "Silu")`. CuPy is not imported before the first call."""
    return Elementwise(file, functor, by=by)
