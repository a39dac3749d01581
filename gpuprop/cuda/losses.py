"""Losses in one launch: the loss and its gradient for dy = 1, from one pass over the inputs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .._recorder import Early
from ..errors import Error
from ..tape import ONE, tape
from . import column_sums
from .rowwise import (
    LONGEST,
    NULL,
    ONE_ROW,
    SIZES,
    TWO_ROWS,
    Layout,
    arithmetic,
    blocks_for,
    every_row_kernel,
    layout_for,
    or_null,
    row_kernel,
)
from .source import FORMATS, INTEGERS, RESIDENT, THREADS, Kernel, every_kernel, kernel

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


def bias_gradients(
    dy: Any,
    dx: Any,
    dbias: Any,
    wanted: tuple[bool, ...],
    out: tuple = (None, None),
    accumulate: tuple[bool, ...] = (False, False),
) -> tuple:
    """dx and dbias from those for dy = 1, None where each row has a dy: for dy = 1 at hand, else one launch."""
    if type(dbias) is Early:
        dbias = dbias.brought_to(out[1])
    if dy is not ONE and wanted[1]:
        rows = dx.reshape(math.prod(dx.shape[:-1]), dx.shape[-1])
        dbias, scaled_rows = column_sums.scaled_column_sums(rows, dy, out=out[1], accumulate=accumulate[1])
        dx = scaled_rows.reshape(dx.shape)
    else:
        dx = scaled(dx, dy)
        dbias = _placed(dbias, out[1], accumulate[1])
    return _placed(dx, out[0], accumulate[0]), dbias


def _gradient_of(bias: Any) -> tuple[Early | None, Any]:
    """Where to write the gradient of a bias: in a recording where it will live, if it can."""
    import cupy

    early = None if tape.recorder is None else tape.recorder.early(bias)
    return early, cupy.empty(bias.shape, bias.dtype) if early is None else early.array


def _placed(gradient: Any, place: Any, accumulate: bool) -> Any:
    """A gradient where it lives, if there is such a place."""
    import cupy

    if place is None or place is gradient:
        return gradient
    if accumulate:
        place += gradient
    else:
        cupy.copyto(place, gradient)  # for equal dtypes a copy of memory, not a kernel
    return place


# --- Cross-entropy of rows ------------------------------------------------------------------------------------------

CHUNKS, OF_CHUNK = (
    512,
    128,
)  # the labels are cut into so many chunks at most, of so many at least; one warp sums the weights of each
LABELS = (
    "const Label* labels, const T* weight, long long ignore_index, A kept, A spread, unsigned long long* words, int chunks, "
    "int* outside, int* nothing"
)
PROBABILITIES = "const T* probabilities, const T* weight, A kept, A spread"
ROWS = "T* loss, T* dlogits, A* partials, unsigned int* ticket, long long rows, int columns, int reduction"
BIAS = "const T* bias, T* dbias, A* column_partials"
BIASED_THREADS = 512  # per block: they share the sums of columns
BIASED_ROWS = 16  # registers per thread for the logits, of the arithmetic type; half as many where there are probabilities as well


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
        for label, smoothed in (("int32", False), ("int64", False), ("int32", True), ("int64", True), ("", True)):
            make = functools.partial(self._kernel, label, smoothed, biased=True)
            every_row_kernel(make, BIASED_ROWS if label else BIASED_ROWS // 2, BIASED_THREADS)
        rule = GradientRule(lambda dy, dlogits: scaled(dlogits, dy), ("input",), ("dlogits",), (), takes_unit_seed=True)
        return Implementation(self.forward, ("dlogits",), [rule], binder=self)

    def with_bias(self, input: Any, bias: Any, *others: Any, keep: bool, **options: Any) -> Any:
        """The loss of input + bias, and the gradients of both for dy = 1."""
        return self.forward(input, *others, bias=bias, keep=keep, **options)

    def forward(
        self,
        input: Any,
        target: Any,
        weight: Any = None,
        *,
        bias: Any = None,
        keep: bool,
        ignore_index: int,
        reduction: str,
        label_smoothing: float,
    ) -> Any:
        """The loss, and the gradient of the logits for dy = 1."""
        import cupy

        from . import launch

        by_label = getattr(target, "dtype", np.dtype(bool)).kind in "iu"
        of_one_dtype = [a for a in (input, None if by_label else target, weight, bias) if a is not None]
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
        if bias is None:
            layout = layout_for(columns, dtype.name, ONE_ROW if by_label and not label_smoothing else TWO_ROWS)
            blocks = blocks_for(rows, layout, _most_blocks(layout.threads))
        else:
            layout = layout_for(columns, dtype.name, BIASED_ROWS if by_label else BIASED_ROWS // 2, BIASED_THREADS)
            processors = launch.multiprocessors()
            enough = max(processors // 2, rows * dtype.itemsize // column_sums.PARTIAL)
            blocks = blocks_for(rows, layout, min(RESIDENT // layout.threads * processors, enough))
        input, weight = launch.packed(input), weight if weight is None else launch.packed(weight)
        shares = number(1 - label_smoothing), number(label_smoothing / columns)
        if by_label:
            if target.dtype.itemsize < 4 or target.dtype.kind == "u":
                target = target.astype(np.int64)
            chunks = max(1, min(CHUNKS, -(-rows // OF_CHUNK), blocks * (layout.threads // 32)))
            counters = launch.tickets(2 + 2 * chunks)  # a ticket, and words of 8 bytes
            words = np.uintp(counters.data.ptr + 8)
            flags = _raises(*self.outside(columns, ignore_index)), _raises(*self.nothing)
            about: tuple = (np.int64(ignore_index), *shares, words, np.int32(chunks), *flags)
        else:
            counters = launch.tickets(1)
            about = shares
        loss = cupy.empty(input.shape[:-1] if reduction == "none" else (), dtype)
        dlogits = cupy.empty(input.shape, dtype) if keep else None
        early = dbias = None
        if keep and bias is not None and reduction != "none":
            early, dbias = _gradient_of(bias)
        to_bias: tuple = ()
        if bias is not None:
            own = None if dbias is None or not layout.packs else cupy.empty((blocks, columns), arithmetic(dtype))
            to_bias = launch.packed(bias), NULL if own is None else dbias, or_null(own)
        if rows or reduction != "none":
            label = target.dtype.name if by_label else ""
            self._kernel(label, label_smoothing > 0, dtype.name, layout, bias is not None)(
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
                    *to_bias,
                ),
            )
        if bias is None:
            return (loss, dlogits) if keep else (loss,)
        if (
            dlogits is not None and dbias is not None and not layout.packs
        ):  # the sums of so many columns are no thread's to hold
            column_sums.column_sums(dlogits.reshape(rows, columns), out=dbias)
        return (loss, dlogits, dbias if early is None else early) if keep else (loss,)

    @staticmethod
    @functools.cache
    def _kernel(label: str, smoothed: bool, dtype: str, layout: Layout, biased: bool = False) -> Kernel:
        """label: the labels' dtype, or "" for probabilities, which may always be smoothed."""
        if label:
            more = "_smoothed" if smoothed else ""
            types = f"typedef {INTEGERS[label]} Label;\ntypedef Labels<L, Label, {str(smoothed).lower()}> Target;"
            arrays, target = "{logits}", "{labels, weight, ignore_index, kept, spread, words, chunks, outside, nothing}"
        else:
            label, more, types = "probabilities", "", "typedef Probabilities<L> Target;"
            arrays, target = "{logits, probabilities}", "{weight, kept, spread}"
        bias = "Bias<L>{bias, dbias, column_partials}" if biased else "NoBias()"
        body = f"cross_entropy<L, Target>({arrays}, Target{target}, {bias}, loss, dlogits, partials, ticket, rows, columns, reduction);"
        parameters = f"const T* logits, {PROBABILITIES if label == 'probabilities' else LABELS}, {ROWS}"
        if biased:
            more, parameters = f"{more}_biased", f"{parameters}, {BIAS}"
        return row_kernel("losses.cu", f"cross_entropy_{label}{more}", parameters, body, dtype, layout, types)


# --- Losses of elements ---------------------------------------------------------------------------------------------

BIASED_ELEMENTS = (
    "const T* x, const T* target, const T* bias, T* loss, T* dx, T* dbias, A* partials, unsigned int* ticket, "
    "A* column_partials, unsigned int* tickets, I rows, I columns"
)


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
        if len(self.slopes) == 1:
            every_kernel(lambda: self._biased_kernels(packs=True))
            every_kernel(lambda: self._biased_kernels(packs=False), streaming=False)
        made = Implementation(self.forward, tuple(f"d{name}" for name in self.slopes), binder=self)
        for name, residual, factor in [
            *((name, f"d{name}", 1.0) for name in self.slopes),
            *((name, f"d{self.slopes[0]}", -1.0) for name in self.negated),
        ]:
            function = functools.partial(self.backward, factor)
            made.gradients.append(
                GradientRule(function, (name,), (residual, f"{name}_shape"), (), takes_unit_seed=True)
            )
        return made

    def with_bias(self, input: Any, bias: Any, target: Any, *others: Any, keep: bool, **options: Any) -> Any:
        """The loss of input + bias, and the gradients of both for dy = 1: in one launch where there is nothing but a target."""
        import cupy

        from . import launch

        if (
            len(self.slopes) > 1
            or not bias.size
            or not isinstance(target, cupy.ndarray)
            or not launch.takes(input, bias, target)
            or not self._takes(input, target, **options)
        ):
            return NotImplemented
        reduced = keep and options["reduction"] != "none"
        if any(other is not None for other in others):
            made = self.forward(input + bias, target, *others, keep=keep, **options)
            if made is NotImplemented or not keep:
                return made
            return *made, column_sums.column_sums(made[1].reshape(-1, bias.size)) if reduced else None
        dtype, n, columns = input.dtype, input.size, bias.size
        loss, dx = self._results(input, keep, options)
        early, dbias = _gradient_of(bias) if reduced else (None, None)
        if n or options["reduction"] != "none":
            rows, taken = n // columns, column_sums.columns_at_once(columns, dtype.itemsize)
            blocks = column_sums.grid(rows, columns, dtype.itemsize)
            tickets = launch.tickets(blocks[0] + 1)
            function = self._biased_kernel(dtype.name, launch.index_type(n), taken)
            arrays = (
                launch.packed(input),
                launch.packed(target),
                launch.packed(bias),
                loss,
                or_null(dx),
                or_null(dbias),
            )
            of_loss = _partials(math.prod(blocks), dtype), np.uintp(tickets.data.ptr + 4 * blocks[0])
            of_columns = cupy.empty((blocks[1], columns), arithmetic(dtype)), tickets
            sizes = launch.index(rows, n), launch.index(columns, n)
            function(blocks, (THREADS,), (*arrays, *of_loss, *of_columns, *sizes, *self._numbers(input, options)))
        return (loss, dx, dbias if early is None else early) if keep else (loss,)

    def forward(self, *arrays: Any, keep: bool, **options: Any) -> Any:
        """The loss, and its gradients for dy = 1."""
        import cupy

        from . import launch

        x, target = arrays[:2]
        given = [a for a in arrays if a is not None]
        if (
            not all(isinstance(a, cupy.ndarray) for a in given)
            or not launch.takes(*given)
            or not self._takes(x, target, **options)
        ):
            return NotImplemented
        dtype, n = x.dtype, x.size
        operands: list[Any] = []
        for i in self.order:
            array = arrays[i] if i < len(arrays) else None
            operand = _operand(x.shape, array if i < 2 or array is None else self.aligned(x.shape, array))
            if operand is NotImplemented:
                return NotImplemented
            operands += [or_null(operand), launch.index(1 if operand is None else operand.size, n)]
        loss, *gradients = self._results(x, keep, options)
        if n or options["reduction"] != "none":
            blocks = min(launch.blocks_for(n, dtype.itemsize), _most_blocks(THREADS))
            places = (loss, *map(or_null, gradients), _partials(blocks, dtype), launch.tickets(1), launch.index(n))
            function = self._kernel(dtype.name, launch.index_type(n))
            function((blocks,), (THREADS,), (*operands, *places, *self._numbers(x, options)))
        return (loss, *gradients) if keep else (loss,)

    def _takes(self, x: Any, target: Any, *, reduction: str, **options: Any) -> bool:
        """Whether the kernels are made for these shapes and options."""
        return (
            target.shape == x.shape
            and reduction in REDUCTIONS
            and (reduction != "mean" or x.size > 0)
            and self.allowed(**options)
        )

    def _results(self, x: Any, keep: bool, options: dict[str, Any]) -> list[Any]:
        """Places for the loss and its gradients."""
        import cupy

        loss = cupy.empty(x.shape if options["reduction"] == "none" else (), x.dtype)
        return [loss, *(cupy.empty(x.shape, x.dtype) if keep else None for _ in self.slopes)]

    def _numbers(self, x: Any, options: dict[str, Any]) -> list[Any]:
        """A kernel's last arguments: what a mean divides by, the reduction, and the functor's members."""
        number, reduction = arithmetic(x.dtype).type, options["reduction"]
        members = [(np.bool_ if kind is bool else number)(options[name]) for name, kind in self.members.items()]
        reports = [] if self.reports is None else [_raises(*self.reports)]
        return [number(x.size if reduction == "mean" else 1), np.int32(REDUCTIONS[reduction]), *members, *reports]

    @staticmethod
    def backward(factor: float, dy: Any, gradient: Any, shape: tuple[int, ...]) -> Any:
        """dx, from the gradient for dy = 1."""
        result = scaled(gradient, dy, factor)
        # One value per row, which is aligned with the first axes; what is aligned with the last ones the walk adds up.
        return result.sum(axis=-1) if shape and len(shape) == result.ndim - 1 else result

    def _biased_kernels(self, *, packs: bool) -> Iterator[Kernel]:
        for dtype, size in SIZES.items():
            for index in INDEX_TYPES:
                yield self._biased_kernel(dtype, index, 16 // size if packs else 1)

    def _kernel(self, dtype: str, index: str) -> Kernel:
        gradients = ", ".join(f"d{name}" for name in self.slopes)
        parameters = [
            *(f"const T* {name}, I {name}_period" for name in self.inputs),
            "T* loss",
            *(f"T* d{name}" for name in self.slopes),
            "A* partials, unsigned int* ticket, I n",
        ]
        operands = ", ".join(f"{{{name}, {name}_period}}" for name in self.inputs)
        arguments = f"{{{operands}}}, loss, {{{gradients}}}, partials, ticket, n"
        return self._made("element_loss", (), dtype, index, ", ".join(parameters), arguments)

    def _biased_kernel(self, dtype: str, index: str, taken: int) -> Kernel:
        arguments = ", ".join(parameter.split()[-1] for parameter in BIASED_ELEMENTS.split(", "))
        return self._made("biased_element_loss", (str(taken),), dtype, index, BIASED_ELEMENTS, arguments)

    @functools.cache  # noqa: B019  (binders live as long as ops)
    def _made(
        self, loop: str, more: tuple[str, ...], dtype: str, index: str, parameters: str, arguments: str
    ) -> Kernel:
        """The kernel that runs a loop of losses.cu with the functor. more: what else the template depends on."""
        computing = arithmetic_name(dtype)
        functor = f"{self.functor}<A>" if self.members else self.functor
        types = f"typedef {FORMATS[dtype][0]} T;\ntypedef {computing} A;\ntypedef {index} I;\ntypedef {functor} F;"
        members = {name: "bool" if kind is bool else "A" for name, kind in self.members.items()}
        if self.reports is not None:
            members["report"] = "int*"
        last = ["A divisor, int reduction", *(f"{kind} {name}" for name, kind in members.items())]
        template = ", ".join(["F", "T", "I", "A", *more])
        body = f"{loop}<{template}>({arguments}, divisor, reduction, F{{{', '.join(members)}}});"
        name = "_".join([self.functor, *(["biased"] if more else []), dtype, index, *more]).replace(" ", "_").lower()
        return kernel("losses.cu", name, ", ".join([parameters, *last]), body, (dtype,), THREADS, types)


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
