"""Losses in one launch: the loss and its gradient for dy = 1, from one pass over the inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import Error
from ..tape import ONE
from .rowwise import (
    LONGEST,
    NULL,
    ONE_ROW,
    TWO_ROWS,
    Layout,
    arithmetic,
    blocks_for,
    every_row_kernel,
    layout_for,
    or_null,
    row_kernel,
)
from .source import FORMATS, INTEGERS, THREADS, Kernel, every_kernel, kernel

if TYPE_CHECKING:
    from .._op import Implementation, Op

REDUCTIONS = {"none": 0, "sum": 1, "mean": 2}  # as in losses.cu
ROOM = 2048  # threads on a multiprocessor: more blocks would only make more partial sums
INDEX_TYPES = ("int", "long long")


def _partials(blocks: int, dtype: Any) -> Any:
    import cupy

    return cupy.empty(blocks, arithmetic(dtype))


def _raises(message: str, error: type[Error]) -> Any:
    """Where a kernel sets a number other than 0 to have the host's next read raise."""
    import cupy

    from ..device import BACKENDS

    backend: Any = BACKENDS[cupy.ndarray]
    return backend.flag(message, error)


def _most_blocks(threads: int) -> int:
    from . import launch

    return launch.multiprocessors() * (ROOM // threads)


# --- Upstream gradients ---------------------------------------------------------------------------------------------


@functools.cache
def _scaling_kernel(dtype: str, index: str) -> Kernel:
    types = f"typedef {FORMATS[dtype][0]} T;\ntypedef {arithmetic_name(dtype)} A;\ntypedef {index} I;"
    parameters = "const T* gradient, const T* dy, T* result, I n, I inner, A factor"
    name = f"scaled_{dtype}_{index}".replace(" ", "_")
    return kernel(
        "losses.cu", name, parameters, "scaled(gradient, dy, result, n, inner, factor);", (dtype,), types=types
    )


@every_kernel
def _() -> Iterator[Kernel]:
    for dtype in FORMATS:
        for index in INDEX_TYPES:
            yield _scaling_kernel(dtype, index)


def arithmetic_name(dtype: str) -> str:
    return "double" if dtype == "float64" else "float"


def scaled(gradient: Any, dy: Any, factor: float = 1.0) -> Any:
    """gradient * dy * factor, dy being one number or one for each row or element. For dy = 1 and no factor the gradient itself."""
    import cupy

    from . import launch

    if dy is ONE and factor == 1:
        return gradient
    result, n = cupy.empty(gradient.shape, gradient.dtype), gradient.size
    if n:
        inner = n if dy is ONE else n // dy.size
        place = NULL if dy is ONE else launch.packed(dy)
        function = _scaling_kernel(gradient.dtype.name, launch.index_type(n))
        numbers = (launch.index(n), launch.index(n).dtype.type(inner), arithmetic(gradient.dtype).type(factor))
        function((launch.blocks_for(n, gradient.itemsize),), (launch.THREADS,), (gradient, place, result, *numbers))
    return result


# --- Cross-entropy of rows ------------------------------------------------------------------------------------------

CHUNKS, OF_CHUNK = (
    512,
    128,
)  # the labels are cut into so many chunks at most, of so many at least; one warp sums the weights of each
LABELS = (
    "const Label* labels, const T* weight, long long ignore_index, A smoothing, unsigned long long* words, int chunks, "
    "int* outside, int* nothing"
)
PROBABILITIES = "const T* probabilities, const T* weight, A smoothing"
ROWS = "T* loss, T* dlogits, A* partials, unsigned int* ticket, long long rows, int columns, int reduction"


class CrossEntropy:
    """Softmax-cross-entropy of (N, C) or (C,) logits with class labels or probabilities; other shapes by the generic rules.

    outside, nothing: what is raised for labels that are no class, and where no row counts, as functions of
    (number of classes, ignore_index) and of nothing.
    """

    def __init__(self, *, outside: Callable[[int, int], tuple[str, type[Error]]], nothing: tuple[str, type[Error]]):
        self.outside, self.nothing = outside, nothing

    def implementation(self, op: Op) -> Implementation:
        """For an op of logits, target and class weights."""
        from .._op import GradientRule, Implementation

        for label in ("int32", "int64"):
            every_row_kernel(functools.partial(self._kernel, label, False), ONE_ROW)
        for label in ("int32", "int64", ""):
            every_row_kernel(functools.partial(self._kernel, label, True), TWO_ROWS)
        rule = GradientRule(lambda dy, dlogits: scaled(dlogits, dy), ("input",), ("dlogits",), (), takes_unit_seed=True)
        return Implementation(self.forward, ("dlogits",), [rule])

    def forward(
        self,
        input: Any,
        target: Any,
        weight: Any = None,
        *,
        keep: bool,
        ignore_index: int,
        reduction: str,
        label_smoothing: float,
    ) -> Any:
        """The loss, and the gradient of the logits for dy = 1."""
        import cupy

        from . import launch

        by_label = getattr(target, "dtype", np.dtype(bool)).kind in "iu"
        of_one_dtype = [a for a in (input, None if by_label else target, weight) if a is not None]
        if (
            input.ndim not in (1, 2)
            or not all(isinstance(a, cupy.ndarray) for a in (target, *of_one_dtype))
            or not launch.takes(*of_one_dtype)
            or target.shape != (input.shape[:-1] if by_label else input.shape)
            or not 0 < input.shape[-1] <= LONGEST
            or (weight is not None and weight.shape != input.shape[-1:])
            or reduction not in REDUCTIONS
            or (reduction == "mean" and not input.size)
            or not 0 <= label_smoothing <= 1
        ):
            return NotImplemented
        dtype, columns = input.dtype, input.shape[-1]
        rows, number = input.size // columns, arithmetic(dtype).type
        layout = layout_for(columns, dtype.name, ONE_ROW if by_label and not label_smoothing else TWO_ROWS)
        blocks = blocks_for(rows, layout, _most_blocks(layout.threads))
        input, weight = launch.packed(input), weight if weight is None else launch.packed(weight)
        if by_label:
            if target.dtype.itemsize < 4 or target.dtype.kind == "u":
                target = target.astype(np.int64)
            chunks = max(1, min(CHUNKS, -(-rows // OF_CHUNK), blocks * (layout.threads // 32)))
            counters = launch.tickets(2 + 2 * chunks)  # a ticket, and words of 8 bytes
            words = np.uintp(counters.data.ptr + 8)
            flags = _raises(*self.outside(columns, ignore_index)), _raises(*self.nothing)
            about: tuple = (np.int64(ignore_index), number(label_smoothing), words, np.int32(chunks), *flags)
        else:
            counters = launch.tickets(1)
            about = (number(label_smoothing),)
        loss = cupy.empty(input.shape[:-1] if reduction == "none" else (), dtype)
        dlogits = cupy.empty(input.shape, dtype) if keep else None
        if rows or reduction != "none":
            label = target.dtype.name if by_label else ""
            self._kernel(label, label_smoothing > 0, dtype.name, layout)(
                (blocks,),
                (layout.threads,),
                (
                    *(input, launch.packed(target), or_null(weight), *about, loss, or_null(dlogits)),
                    *(
                        _partials(blocks, dtype),
                        counters,
                        np.int64(rows),
                        np.int32(columns),
                        np.int32(REDUCTIONS[reduction]),
                    ),
                ),
            )
        return (loss, dlogits) if keep else (loss,)

    @staticmethod
    @functools.cache
    def _kernel(label: str, smoothed: bool, dtype: str, layout: Layout) -> Kernel:
        """label: the labels' dtype, or "" for probabilities, which may always be smoothed."""
        if label:
            more = "_smoothed" if smoothed else ""
            types = f"typedef {INTEGERS[label]} Label;\ntypedef Labels<L, Label, {str(smoothed).lower()}> Target;"
            arrays, target = "{logits}", "{labels, weight, ignore_index, smoothing, words, chunks, outside, nothing}"
        else:
            label, more, types = "probabilities", "", "typedef Probabilities<L> Target;"
            arrays, target = "{logits, probabilities}", "{weight, smoothing}"
        body = f"cross_entropy<L, Target>({arrays}, Target{target}, loss, dlogits, partials, ticket, rows, columns, reduction);"
        parameters = f"const T* logits, {PROBABILITIES if label == 'probabilities' else LABELS}, {ROWS}"
        return row_kernel("losses.cu", f"cross_entropy_{label}{more}", parameters, body, dtype, layout, types)


# --- Losses of elements ---------------------------------------------------------------------------------------------


class ElementLoss:
    """A functor of losses.cu that computes the loss of an element and its derivatives.

    inputs: of the op, in the functor's order; all but input and target may be missing, or broadcast to these. slopes: the inputs by which
    it differentiates. negated: inputs whose derivative is minus the first of these; others by the generic rule. The functor's
    members are the op's options but `reduction`, in order, then where it reports what `reports` says, if anything.
    """

    def __init__(
        self,
        functor: str,
        *,
        inputs: tuple[str, ...] = ("input", "target"),
        slopes: tuple[str, ...] = ("input",),
        negated: tuple[str, ...] = (),
        allowed: Callable[..., bool] = lambda **options: True,
        aligned: Callable[[tuple[int, ...], Any], Any] = lambda shape, array: array,
        reports: tuple[str, type[Error]] | None = None,
    ):
        self.functor, self.inputs, self.slopes, self.negated = functor, inputs, slopes, negated
        self.allowed, self.aligned, self.reports = allowed, aligned, reports

    def implementation(self, op: Op) -> Implementation:
        """For an op of input, target and perhaps more, with the option `reduction`."""
        from .._op import GradientRule, Implementation

        self.order = tuple(op.inputs.index(name) for name in self.inputs)
        self.members = {name: type(value) for name, value in op.defaults.items() if name != "reduction"}
        every_kernel(lambda: (self._kernel(dtype, index) for dtype in FORMATS for index in INDEX_TYPES))
        made = Implementation(self.forward, tuple(f"d{name}" for name in self.slopes))
        for name, residual, factor in [
            *((name, f"d{name}", 1.0) for name in self.slopes),
            *((name, f"d{self.slopes[0]}", -1.0) for name in self.negated),
        ]:
            function = functools.partial(self.backward, factor)
            made.gradients.append(
                GradientRule(function, (name,), (residual, f"{name}_shape"), (), takes_unit_seed=True)
            )
        return made

    def forward(self, *arrays: Any, keep: bool, reduction: str, **options: Any) -> Any:
        """The loss, and its gradients for dy = 1."""
        import cupy

        from . import launch

        x, target = arrays[:2]
        given = [a for a in arrays if a is not None]
        if (
            not all(isinstance(a, cupy.ndarray) for a in given)
            or not launch.takes(*given)
            or target.shape != x.shape
            or reduction not in REDUCTIONS
            or (reduction == "mean" and not x.size)
            or not self.allowed(**options)
        ):
            return NotImplemented
        dtype, n = x.dtype, x.size
        operands: list[Any] = []
        for i in self.order:
            operand = _operand(x.shape, arrays[i] if i < 2 or arrays[i] is None else self.aligned(x.shape, arrays[i]))
            if operand is NotImplemented:
                return NotImplemented
            operands += [or_null(operand), launch.index(n).dtype.type(1 if operand is None else operand.size)]
        loss = cupy.empty(x.shape if reduction == "none" else (), dtype)
        gradients = [cupy.empty(x.shape, dtype) if keep else None for _ in self.slopes]
        if n or reduction != "none":
            number = arithmetic(dtype).type
            blocks = min(launch.blocks_for(n, dtype.itemsize), _most_blocks(THREADS))
            members: list[Any] = [
                (np.bool_ if kind is bool else number)(options[name]) for name, kind in self.members.items()
            ]
            members += [] if self.reports is None else [_raises(*self.reports)]
            results = (loss, *map(or_null, gradients), _partials(blocks, dtype), launch.tickets(1))
            numbers = (launch.index(n), number(n if reduction == "mean" else 1), np.int32(REDUCTIONS[reduction]))
            function = self._kernel(dtype.name, launch.index_type(n))
            function((blocks,), (THREADS,), (*operands, *results, *numbers, *members))
        return (loss, *gradients) if keep else (loss,)

    @staticmethod
    def backward(factor: float, dy: Any, gradient: Any, shape: tuple[int, ...]) -> Any:
        """dx, from the gradient for dy = 1."""
        result = scaled(gradient, dy, factor)
        # One value per row, which is aligned with the first axes; what is aligned with the last ones the walk adds up.
        return result.sum(axis=-1) if shape and len(shape) == result.ndim - 1 else result

    @functools.cache  # noqa: B019  (binders live as long as ops)
    def _kernel(self, dtype: str, index: str) -> Kernel:
        computing = arithmetic_name(dtype)
        functor = f"{self.functor}<A>" if self.members else self.functor
        types = f"typedef {FORMATS[dtype][0]} T;\ntypedef {computing} A;\ntypedef {index} I;\ntypedef {functor} F;"
        members = {name: "bool" if kind is bool else "A" for name, kind in self.members.items()}
        if self.reports is not None:
            members["report"] = "int*"
        parameters = [
            *(f"const T* {name}, I {name}_period" for name in self.inputs),
            "T* loss",
            *(f"T* d{name}" for name in self.slopes),
            "A* partials, unsigned int* ticket, I n, A divisor, int reduction",
            *(f"{kind} {name}" for name, kind in members.items()),
        ]
        operands = ", ".join(f"{{{name}, {name}_period}}" for name in self.inputs)
        gradients = ", ".join(f"d{name}" for name in self.slopes)
        body = (
            f"element_loss<F, T, I, A>({{{operands}}}, loss, {{{gradients}}}, partials, ticket, n, divisor, reduction, "
            f"F{{{', '.join(members)}}});"
        )
        name = f"{self.functor}_{dtype}_{index}".replace(" ", "_").lower()
        return kernel("losses.cu", name, ", ".join(parameters), body, (dtype,), THREADS, types)


def _operand(shape: tuple[int, ...], array: Any) -> Any:
    """An array that broadcasts to `shape` as a kernel reads it: element i of `shape` has its element i modulo its size."""
    import cupy

    from . import launch

    if array is None:
        return None
    used = array.shape
    while used[:1] == (1,):
        used = used[1:]
    if used == shape[len(shape) - len(used) :]:
        return launch.packed(array)
    try:
        return launch.packed(cupy.broadcast_to(array, shape))
    except ValueError:
        return NotImplemented
