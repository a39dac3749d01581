"""`elementwise`: binds a functor of a `.cu` file to an op of one input, forward and backward, with or without a bias, in one line."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .column_sums import columns_at_once, grid, places
from .source import FORMATS, THREADS, Kernel, every_kernel, kernel

if TYPE_CHECKING:
    from .._op import Implementation, Op

LOOPS = {  # templates of elementwise.cuh and bias.cuh, which take the functor last
    "elementwise_forward": "const T* x, T* y, I n",
    "elementwise_backward": "const T* dy, const T* kept, T* dx, I n",
    "bias_forward": "const T* x, const T* bias, T* y, I rows, I columns",
    "bias_backward": "const T* dy, const T* kept, const T* bias, T* dx, A* partial, T* db, unsigned int* tickets, "
    "I rows, I columns, int accumulate",
}


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
        self.members = tuple(name for name in op.defaults if name != self.by)
        every_kernel(self._streaming_kernels)
        every_kernel(self._narrow_kernels, streaming=False)
        made = Implementation(self.forward, binder=self)
        made.gradients.append(replace(rule, function=self.backward, options=tuple(op.defaults), overwrites_dy="out"))
        return made

    # --- plain ----------------------------------------------------------------------------------------------------

    def forward(self, x: Any, *, out: Any = None, **options: Any) -> Any:
        """y = f(x)."""
        return self._map("elementwise_forward", [x], out, options)

    def backward(self, dy: Any, kept: Any, *, out: Any = None, **options: Any) -> Any:
        """dx = dy f'."""
        return self._map("elementwise_backward", [dy, kept], out, options)

    def _map(self, loop: str, arrays: list, out: Any, options: dict[str, Any]) -> Any:
        from . import launch

        if not launch.takes(*arrays):
            return NotImplemented
        arrays = [launch.packed(a) for a in arrays]
        result = launch.place_for(out, arrays[0].shape, arrays[0].dtype)
        if result.size:
            function, members = self._kernel(loop, result.dtype, options, launch.index_type(result.size))
            arguments = (*arrays, result, launch.index(result.size), *members)
            function((launch.blocks_for(result.size, result.itemsize),), (launch.THREADS,), arguments)
        return launch.finished(result, out)

    # --- with a bias ----------------------------------------------------------------------------------------------

    def bias_forward(self, x: Any, bias: Any, y: Any, **options: Any) -> None:
        """y = f(x + bias), x and y (rows, columns) and packed; y may be x."""
        from . import launch

        if x.size:
            rows, columns = x.shape
            taken, index = columns_at_once(columns, x.itemsize), launch.index_type(x.size)
            function, members = self._kernel("bias_forward", x.dtype, options, index, str(taken))
            blocks = max(1, min(-(-x.size // (taken * THREADS)), 2**20))
            sizes = launch.index(rows, x.size), launch.index(columns, x.size)
            function((blocks,), (THREADS,), (x, bias, y, *sizes, *members))

    def bias_backward(
        self, dy: Any, kept: Any, bias: Any, dx: Any, db: Any, *, accumulate: bool = False, **options: Any
    ) -> None:
        """dx = dy f', and db = dx summed over rows (or added to db), in one launch; dx may be dy. kept: y, or x without bias."""
        from . import launch

        rows, columns = dy.shape
        if not dy.size:
            if not accumulate:
                db.fill(0)
            return
        taken, index = columns_at_once(columns, dy.itemsize), launch.index_type(dy.size)
        function, members = self._kernel("bias_backward", dy.dtype, options, index, str(taken), self._keeps_x)
        blocks = grid(rows, columns, dy.itemsize)
        partials, tickets = places(blocks, columns, dy.dtype)
        sizes = launch.index(rows, dy.size), launch.index(columns, dy.size)
        function(
            blocks, (THREADS,), (dy, kept, bias, dx, partials, db, tickets, *sizes, np.int32(accumulate), *members)
        )

    # --- kernels --------------------------------------------------------------------------------------------------

    @property
    def _keeps_x(self) -> str:
        return str(self.keeps == "x").lower()

    def _kernel(
        self, loop: str, dtype: Any, options: dict[str, Any], index: str, *more: str
    ) -> tuple[Kernel, list[Any]]:
        """The kernel that runs one loop with the functor, and the functor's members as its last arguments."""
        functor = self.functor if isinstance(self.functor, str) else self.functor[options[self.by]]
        scalar = _arithmetic(dtype).type
        members = [scalar(options[name]) for name in self.members]
        return functor_kernel(self.file, functor, self.members, dtype.name, index, loop, *more), members

    def _variants(self) -> Iterator[tuple[Callable[..., Kernel], str]]:
        """For each functor, dtype and index type: what makes its kernels, and how many elements are a pack."""
        for functor in [self.functor] if isinstance(self.functor, str) else self.functor.values():
            for dtype, pack in (("float32", "4"), ("float64", "2"), ("float16", "8"), ("bfloat16", "8")):
                for index in ("int", "long long"):
                    yield functools.partial(functor_kernel, self.file, functor, self.members, dtype, index), pack

    def _streaming_kernels(self) -> Iterator[Kernel]:
        for make, pack in self._variants():
            yield make("elementwise_forward")
            yield make("elementwise_backward")
            yield make("bias_forward", pack)
            yield make("bias_backward", pack, self._keeps_x)

    def _narrow_kernels(self) -> Iterator[Kernel]:
        for make, _ in self._variants():
            yield make("bias_forward", "1")
            yield make("bias_backward", "1", self._keeps_x)


@functools.cache
def functor_kernel(
    file: str, functor: str, members: tuple[str, ...], dtype: str, index: str, loop: str, *more: str
) -> Kernel:
    """One of `LOOPS` for a functor, a dtype and the type that counts elements; more: what else the template depends on."""
    arithmetic = "double" if dtype == "float64" else "float"
    functor_type = f"{functor}<A>" if members else functor
    types = f"typedef {FORMATS[dtype][0]} T;\ntypedef {arithmetic} A;\ntypedef {index} I;\ntypedef {functor_type} F;"
    names = ", ".join(parameter.split()[-1] for parameter in LOOPS[loop].split(", "))
    body = f"{loop}<{', '.join(['F', 'T', 'I', *more])}>({names}, F{{{', '.join(members)}}});"
    name = "_".join([functor, loop.removeprefix("elementwise_"), dtype, index, *more]).replace(" ", "_").lower()
    parameters = ", ".join([LOOPS[loop], *(f"A {member}" for member in members)])
    return kernel(file, name, parameters, body, (dtype,), THREADS, types)


def _arithmetic(dtype: Any) -> np.dtype:
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def elementwise(file: str, functor: str | Mapping[str, str], *, by: str = "") -> Elementwise:
    """Binds a functor to an op: `silu.cuda = elementwise("activations.cu", "Silu")`. CuPy is not imported before the first call."""
    return Elementwise(file, functor, by=by)
