"""Kernels of whole rows: how threads share them, and the binders of softmax and its kin and of normalisation over the last axes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .source import FORMATS, THREADS, Kernel, every_kernel, kernel

if TYPE_CHECKING:
    from .._op import Implementation, Op

SIZES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}  # bytes of an element
LONGEST = 2**31 - 2**16  # columns that an int counts, with room for one more round of a group


# --- How threads share rows -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """`group` threads work on a row, each on `packs` accesses of `width` elements (0 packs: on as many as it takes)."""

    group: int
    packs: int
    width: int
    threads: int  # per block

    @property
    def side_by_side(self) -> int:
        """Rows that a block works on at a time."""
        return self.threads // self.group

    @property
    def type(self) -> str:
        """In C++."""
        return f"Layout<T, {self.group}, {self.packs}, {self.width}, {self.threads}>"

    def __str__(self) -> str:
        return f"{self.group}x{self.packs}x{self.width}"


@functools.cache
def layouts(dtype: str, registers: int, threads: int, width: int) -> tuple[Layout, ...]:
    """From short rows to long, for one access width. registers: 32-bit ones per thread that may hold elements of a row.

    Single elements get half of them: each needs a place and a bound of its own. In float64 there is room for one access, because exp and
    log take most registers; where rows are read again it is one element.
    """
    double = dtype == "float64"
    most = 1 if double else max(1, registers // (2 if width == 1 else 1) // width)
    held = [(8, 1 if width > 1 else 2), (32, max(1, most // 4)), (32, most), (128, most), (512, most)]
    possible = [Layout(*shape, width, max(threads, shape[0])) for shape in dict.fromkeys(held)]
    return (*possible, Layout(512, 0, 1 if double else width, max(threads, 512)))


@functools.cache
def layout_for(columns: int, dtype: str, registers: int, threads: int = THREADS) -> Layout:
    """How threads share rows of so many columns: in packs of 16 bytes where these divide the row, in registers where there is room."""
    pack = 16 // SIZES[dtype]
    possible = layouts(dtype, registers, threads, pack if columns % pack == 0 else 1)
    return next((p for p in possible if p.group * p.packs * p.width >= columns), possible[-1])


def every_row_kernel(
    make: Callable[[str, Layout], Kernel], registers: int, threads: int = THREADS, *, streaming: bool = True
) -> None:
    """Says that kernels are made for all dtypes with all layouts."""

    def those(wide: bool) -> Iterator[Kernel]:
        for dtype, size in SIZES.items():
            for layout in (p for width in (16 // size, 1) for p in layouts(dtype, registers, threads, width)):
                if (layout.width > 1) == wide:
                    yield make(dtype, layout)

    every_kernel(lambda: those(True), streaming=streaming)
    every_kernel(lambda: those(False), streaming=False)


@functools.cache
def row_kernel(file: str, name: str, parameters: str, body: str, dtype: str, layout: Layout, types: str = "") -> Kernel:
    """A kernel for a dtype (T, computing in A) and a layout (L)."""
    computing = "double" if dtype == "float64" else "float"
    types = f"typedef {FORMATS[dtype][0]} T;\ntypedef {computing} A;\ntypedef {layout.type} L;\n{types}"
    return kernel(file, f"{name}_{dtype}_{layout}".lower(), parameters, body, (dtype,), layout.threads, types)


def call(template: str, parameters: str) -> str:
    """The call of a template with parameters of the same names."""
    return f"{template}({', '.join(parameter.split()[-1] for parameter in parameters.split(', '))});"


def arithmetic(dtype: Any) -> np.dtype:
    """What is computed in: float32 for the 16-bit formats."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def blocks_for(rows: int, layout: Layout, most: int = 2**20) -> int:
    return max(1, min(-(-rows // layout.side_by_side), most))


NULL = np.uintp(0)


def or_null(array: Any) -> Any:
    """An array as a kernel's argument, where it may be missing."""
    return NULL if array is None else array


# --- Softmax and its kin --------------------------------------------------------------------------------------------

SIZE = ", long long rows, int columns"
FORWARD = "const T* x, T* y" + SIZE
BACKWARD = "const T* dy, const T* y, T* dx" + SIZE
LOGSUMEXP_BACKWARD = "const T* dy, const T* x, const T* y, T* dx" + SIZE
ONE_ROW, TWO_ROWS = (
    32,
    16,
)  # registers per thread for each row that a kernel holds: at most 64 in all, so that half of the warps fit


class Rowwise:
    """A functor that computes a row of y from one of x, and of dx from dy and y, over the last axis; other axes by the generic rules."""

    def __init__(self, file: str, functor: str):
        self.file, self.functor = file, functor

    def implementation(self, op: Op) -> Implementation:
        """The functor as an implementation of an op of x with the option `axis`, whose gradient rule keeps y."""
        from .._op import GradientRule, Implementation

        every_row_kernel(functools.partial(self._kernel, True), ONE_ROW)
        every_row_kernel(functools.partial(self._kernel, False), TWO_ROWS)
        rule = GradientRule(self.backward, ("x",), ("y",), ("axis",), overwrites_dy="out")
        return Implementation(self.forward, gradients=[rule])

    def forward(self, x: Any, *, out: Any = None, axis: int = -1) -> Any:
        """y, the functor of each row."""
        return self._launch(True, [x], out, axis)

    def backward(self, dy: Any, y: Any, *, out: Any = None, axis: int = -1) -> Any:
        """dx."""
        return self._launch(False, [dy, y], out, axis)

    def _launch(self, forward: bool, arrays: list, out: Any, axis: int) -> Any:
        from . import launch

        shape = arrays[0].shape
        columns = shape[-1] if shape else 1
        if not launch.takes(*arrays) or axis not in (-1, len(shape) - 1) or columns > LONGEST:
            return NotImplemented
        arrays = [launch.packed(a) for a in arrays]
        result = launch.place_for(out, shape, arrays[0].dtype)
        if result.size:
            rows, dtype = result.size // columns, result.dtype.name
            layout = layout_for(columns, dtype, ONE_ROW if forward else TWO_ROWS)
            function = self._kernel(forward, dtype, layout)
            function(
                (blocks_for(rows, layout),), (layout.threads,), (*arrays, result, np.int64(rows), np.int32(columns))
            )
        return launch.finished(result, out)

    def _kernel(self, forward: bool, dtype: str, layout: Layout) -> Kernel:
        template, parameters = ("softmax_forward", FORWARD) if forward else ("softmax_backward", BACKWARD)
        body = call(f"{template}<{self.functor}, L>", parameters)
        return row_kernel(self.file, f"{template}_{self.functor}", parameters, body, dtype, layout)


def rowwise(file: str, functor: str) -> Rowwise:
    """Binds a functor to an op of rows: `softmax.cuda = rowwise("rows.cu", "Softmax")`. CuPy is not imported before the first call."""
    return Rowwise(file, functor)


class LogSumExp:
    """logsumexp over the last axis; over others by the generic rules."""

    def implementation(self, op: Op) -> Implementation:
        """Forward and gradient."""
        from .._op import GradientRule, Implementation

        every_row_kernel(functools.partial(self._kernel, True), ONE_ROW, streaming=False)  # stores a number per row
        every_row_kernel(functools.partial(self._kernel, False), ONE_ROW)
        rule = GradientRule(self.backward, ("x",), ("x", "y"), ("axis", "keepdims"))
        return Implementation(self.forward, gradients=[rule])

    def forward(self, x: Any, *, out: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
        """y = log(sum(exp(x))) of each row."""
        import cupy

        from . import launch

        if not launch.takes(x) or not x.size or not _is_last(axis, x.ndim) or x.shape[-1] > LONGEST:
            return NotImplemented
        y = cupy.empty((*x.shape[:-1], 1) if keepdims else x.shape[:-1], x.dtype)
        self._launch(True, x, (x, y))
        return launch.finished(y, out)

    def backward(self, dy: Any, x: Any, y: Any, *, axis: Any, keepdims: bool) -> Any:
        """dx = dy softmax(x)."""
        import cupy

        dx = cupy.empty(x.shape, x.dtype)
        self._launch(False, x, (dy, x, y, dx))
        return dx

    def _launch(self, forward: bool, x: Any, arrays: tuple) -> None:
        from . import launch

        *given, result = arrays
        columns = x.shape[-1]
        rows, dtype = x.size // columns, x.dtype.name
        layout = layout_for(columns, dtype, ONE_ROW)
        arguments = (*map(launch.packed, given), result, np.int64(rows), np.int32(columns))
        self._kernel(forward, dtype, layout)((blocks_for(rows, layout),), (layout.threads,), arguments)

    @staticmethod
    def _kernel(forward: bool, dtype: str, layout: Layout) -> Kernel:
        template, parameters = ("logsumexp_forward", FORWARD) if forward else ("logsumexp_backward", LOGSUMEXP_BACKWARD)
        return row_kernel("rows.cu", template, parameters, call(f"{template}<L>", parameters), dtype, layout)


def _is_last(axis: Any, ndim: int) -> bool:
    """Whether a reduction's axis is the last one alone."""
    if axis is None:
        return ndim == 1
    axes = axis if isinstance(axis, tuple) else (axis,)
    return ndim > 0 and len(axes) == 1 and axes[0] in (-1, ndim - 1)


# --- Normalisation --------------------------------------------------------------------------------------------------

NORM_FORWARD = "const T* x, const T* weight, const T* bias, T* y, A* means, A* scales, long long rows, int columns, A eps, int stays"
NORM_BACKWARD = (
    "const T* dy, const T* x, const T* weight, const A* means, const A* scales, T* dx, T* dweight, T* dbias, A* partials, "
    "unsigned int* tickets, long long rows, int columns, int add_to_dweight, int add_to_dbias, int stays"
)
NORM_THREADS = 512
NORM_ROWS = 8  # registers per row and thread of the gradient: it holds two rows and two rows of sums
NEAR = 32 * 1024  # bytes of parameters that are brought into shared memory
FEWEST_ROWS = (
    48  # that a block sums up, where there are many: its sums and parameters are then less than 5 % of what it moves
)


class Norm:
    """Layer norm (centred), or by the root mean square. Mean and 1/std of each row are kept for the gradient."""

    def __init__(self, *, centred: bool, epsilon: Callable[[Any, Any], float] | None = None):
        self.centred = centred
        self.epsilon = epsilon or (lambda dtype, eps: eps)

    def implementation(self, op: Op) -> Implementation:
        """For an op of x, weight and, if centred, bias, with the options `normalized_shape` and `eps`."""
        from .._op import GradientRule, Implementation

        every_row_kernel(self._forward_kernel, ONE_ROW, NORM_THREADS)
        every_row_kernel(self._backward_kernel, NORM_ROWS, NORM_THREADS)
        rule = GradientRule(
            function=self.backward,
            targets=op.inputs,
            keeps=("x", "weight", "mean", "scale"),
            options=("normalized_shape",),
            accumulates=True,
            overwrites_dy="scratch",
            takes_wanted=True,
        )
        return Implementation(self.forward, ("mean", "scale"), [rule])

    def forward(
        self, x: Any, weight: Any = None, bias: Any = None, *, keep: bool, normalized_shape: Any, eps: Any
    ) -> Any:
        """y, and the mean and 1/std of each row."""
        import cupy

        from . import launch

        given = [a for a in (x, weight, bias) if a is not None]
        shape = x.shape[-1:] if normalized_shape is None else normalized_shape
        shape = shape if isinstance(shape, tuple) else (shape,)
        columns = math.prod(shape)
        fits = shape and x.shape[-len(shape) :] == shape and all(getattr(p, "shape", None) == shape for p in given[1:])
        if not fits or not 0 < columns <= LONGEST or not launch.takes(*given):
            return NotImplemented
        x, weight, bias = (a if a is None else launch.packed(a) for a in (x, weight, bias))
        rows, calculated = x.size // columns, arithmetic(x.dtype)
        y = cupy.empty(x.shape, x.dtype)
        means = cupy.empty(rows, calculated) if keep and self.centred else None
        scales = cupy.empty(rows, calculated) if keep else None
        if rows:
            layout = layout_for(columns, x.dtype.name, ONE_ROW, NORM_THREADS)
            shared = 2 * columns * x.itemsize if 2 * columns * x.itemsize <= NEAR and len(given) > 1 else 0
            arguments = (
                x,
                or_null(weight),
                or_null(bias),
                y,
                or_null(means),
                or_null(scales),
                np.int64(rows),
                np.int32(columns),
            )
            self._forward_kernel(x.dtype.name, layout)(
                (blocks_for(rows, layout, launch.multiprocessors()),),
                (layout.threads,),
                (*arguments, calculated.type(self.epsilon(x.dtype, eps)), np.int32(shared > 0)),
                shared_mem=shared,
            )
        return (y, means, scales) if keep else (y,)

    def backward(
        self,
        dy: Any,
        x: Any,
        weight: Any,
        means: Any,
        scales: Any,
        *,
        normalized_shape: Any,
        wanted: tuple[bool, ...],
        out: tuple | None = None,
        accumulate: tuple[bool, ...] = (False, False, False),
        scratch: Any = None,
    ) -> tuple:
        """dx, dweight and dbias, None for those that nobody wants. What has a place in `out` is written there, or added to it."""
        import cupy

        from . import launch

        shape = x.shape[-1:] if normalized_shape is None else normalized_shape
        shape = shape if isinstance(shape, tuple) else (shape,)
        columns, places = math.prod(shape), out or (None,) * len(wanted)
        rows = x.size // columns
        given = [launch.packed(dy), launch.packed(x), weight if weight is None else launch.packed(weight)]
        results, add = [], [False] * 3
        for i, (want, place) in enumerate(zip(wanted, places)):
            if i == 0:
                where = given[0] if scratch is given[0] else cupy.empty(x.shape, x.dtype)
            else:
                where = launch.place_for(place, shape, x.dtype)
            add[i] = where is place and accumulate[i]
            results.append(where if want else None)
        if rows:
            self._launch_backward(given, [means, scales], results, add, rows, columns)
        else:
            for i, result in enumerate(results):
                if result is not None and not add[i]:
                    result.fill(0)
        for i, (result, place) in enumerate(zip(results, places)):
            if place is not None and result is not place:
                cupy.add(place, result, out=place) if accumulate[i] else launch.finished(result, place)
        return tuple(r if place is None else place for r, place in zip(results, places))

    def _launch_backward(
        self, given: list, kept: list, results: list, add: list[bool], rows: int, columns: int
    ) -> None:
        import cupy

        from . import launch

        dtype = given[0].dtype
        layout = layout_for(columns, dtype.name, NORM_ROWS, NORM_THREADS)
        processors = launch.multiprocessors()
        blocks = blocks_for(rows, layout, min(processors, max(processors // 2, rows // FEWEST_ROWS)))
        dx, dweight, dbias = [*results, None][:3]
        sums = any(r is not None for r in results[1:])
        partials = cupy.empty((blocks, 2, columns), arithmetic(dtype)) if sums else None
        tickets = launch.tickets(-(-columns // layout.threads)) if sums else None
        shared = columns * dtype.itemsize if columns * dtype.itemsize <= NEAR and given[2] is not None else 0
        arrays = [*given, *kept, dx, dweight, dbias, partials, tickets]
        numbers = (np.int64(rows), np.int32(columns), np.int32(add[1]), np.int32(add[2]), np.int32(shared > 0))
        function = self._backward_kernel(dtype.name, layout)
        function((blocks,), (layout.threads,), (*map(or_null, arrays), *numbers), shared_mem=shared)

    def _forward_kernel(self, dtype: str, layout: Layout) -> Kernel:
        return self._kernel("norm_forward", NORM_FORWARD, dtype, layout)

    def _backward_kernel(self, dtype: str, layout: Layout) -> Kernel:
        return self._kernel("norm_backward", NORM_BACKWARD, dtype, layout)

    def _kernel(self, template: str, parameters: str, dtype: str, layout: Layout) -> Kernel:
        name = f"{template}_{'layer' if self.centred else 'rms'}"
        body = call(f"{template}<{str(self.centred).lower()}, L>", parameters)
        return row_kernel("rows.cu", name, parameters, body, dtype, layout)
