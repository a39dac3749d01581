"""Kernels of whole columns: batch normalisation, and normalisation by given statistics."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .rowwise import SIZES, arithmetic, call, or_null
from .source import FORMATS, THREADS, Kernel, every_kernel, kernel

if TYPE_CHECKING:
    from .._op import Implementation, Op

FILE = "columns.cu"
PARTS_PER_PROCESSOR = 4  # blocks per multiprocessor: enough to hide their reads, few partial sums
# Rows of float32 that a block sums up: two partial sums, written and read, are then 3 % of what is read once. Less than so many, down to
# the second number, only where that brings more multiprocessors to work.
FEWEST_ROWS, FEWEST_ROWS_OF_FEW = 128, 32
SIZE = ", I rows, I columns, int height, int lanes"


# --- How threads share columns --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sharing:
    """`lanes` threads take `width` columns each of a stripe; a block takes `height` rows."""

    rows: int
    columns: int
    width: int
    lanes: int
    height: int

    @property
    def stripes(self) -> int:
        return -(-self.columns // (self.lanes * self.width))

    @property
    def parts(self) -> int:
        return -(-self.rows // self.height)

    @property
    def sizes(self) -> tuple[Any, ...]:
        """As a kernel's arguments."""
        from . import launch

        whole = self.rows * self.columns
        return (
            launch.index(self.rows, whole),
            launch.index(self.columns, whole),
            np.int32(self.height),
            np.int32(self.lanes),
        )


def sharing(x: Any, *, summed: bool) -> Sharing:
    """For an array (N, C) or (N, C, 1, ...). summed: whether the parts' sums go through memory."""
    from . import launch

    rows, columns = x.shape[:2]
    pack = launch.PACK // x.dtype.itemsize
    width = pack if columns % pack == 0 else 1
    lanes = min(32, 1 << (columns // width - 1).bit_length())
    stripes = -(-columns // (lanes * width))
    at_once = THREADS // lanes
    most = -(-PARTS_PER_PROCESSOR * launch.multiprocessors() // stripes)
    if summed:
        fewest = FEWEST_ROWS * arithmetic(x.dtype).itemsize // x.dtype.itemsize
        busy = min(-(-rows // FEWEST_ROWS_OF_FEW), -(-launch.multiprocessors() // stripes))
        most = min(most, max(rows // fewest, busy))
    parts = max(1, min(-(-rows // at_once), most))
    return Sharing(rows, columns, width, lanes, -(-rows // parts))


def _has_columns(x: Any) -> bool:
    """Whether the second axis is what memory runs along."""
    return x.ndim > 1 and x.shape[1] > 0 and x.size == x.shape[0] * x.shape[1]


def matches(x: Any, *vectors: Any) -> bool:
    """Whether kernels take x (N, C), with vectors (C,) or None beside it."""
    from . import launch

    given = [v for v in vectors if v is not None]
    return launch.takes(x, *given) and _has_columns(x) and all(v.shape == x.shape[1:2] for v in given)


# --- Kernels --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Maker:
    """Makes the kernels of a template for each dtype, type of index and, where it has one, width of access."""

    name: str
    template: str
    parameters: str
    scalars: str = ""  # parameters that `functor` takes, or else the template
    functor: str = ""  # the template's last argument

    def __call__(self, dtype: str, width: int, index: str) -> Kernel:
        return _made(self, dtype, width, index)

    def launch(self, shared: Sharing, arrays: tuple, *numbers: Any) -> None:
        """Over all columns; the first array says of which dtype."""
        from . import launch

        function = self(arrays[0].dtype.name, shared.width, launch.index_type(shared.rows * shared.columns))
        function((shared.stripes, shared.parts), (THREADS,), (*map(or_null, arrays), *shared.sizes, *numbers))

    def launch_flat(self, blocks: int, arrays: tuple, *numbers: Any) -> None:
        """Over all elements of the first array."""
        from . import launch

        x = arrays[0]
        function = self(x.dtype.name, launch.PACK // x.itemsize, launch.index_type(x.size))
        function((blocks,), (THREADS,), (*map(or_null, arrays), launch.index(x.size), *numbers))


@functools.cache
def _made(maker: Maker, dtype: str, width: int, index: str) -> Kernel:
    computing = "double" if dtype == "float64" else "float"
    types = f"typedef {FORMATS[dtype][0]} T;\ntypedef {computing} A;\ntypedef {index} I;"
    parameters = maker.parameters + maker.scalars
    template = maker.template.replace("<W>", f"<{width}>")
    body = call(template, maker.parameters if maker.functor else parameters)
    if maker.functor:
        body = body.replace(");", f", {maker.functor});")
    name = f"{maker.name}_{dtype}_{index}_{width}".replace(" ", "_")
    return kernel(FILE, name, parameters, body, (dtype,), THREADS, types)


STATISTICS = Maker(
    "batch_statistics",
    "batch_statistics<W>",
    f"const T* x, T* mean, T* variance, A* means, A* scales, A* partials, unsigned int* tickets{SIZE}, A eps",
)
NORMALISE = Maker(
    "batch_normalise",
    "standardize<W>",
    f"const T* x, const A* mean, const A* scale, const T* weight, const T* bias, T* y{SIZE}",
    functor="Scale{}",
)
STANDARDISE = Maker(
    "standardize",
    "standardize<W>",
    f"const T* x, const T* mean, const T* variance, const T* weight, const T* bias, T* y{SIZE}",
    ", A eps",
    "OfVariance<A>{eps}",
)
GRADIENT_SUMS = Maker(
    "batch_gradient_sums",
    "batch_gradient_sums<W>",
    "const T* dy, const T* dmean, const T* dvariance, const T* x, const T* weight, const A* means, const A* scales, A* slopes, "
    f"T* dweight, T* dbias, A* partials, unsigned int* tickets{SIZE}, int add_to_dweight, int add_to_dbias",
)
GRADIENT = Maker(
    "batch_gradient",
    "batch_gradient<W>",
    f"const T* dy, const T* x, const A* means, const A* slopes, T* dx{SIZE}",
)
BLEND = Maker("blend", "blend", "T* x, const T* y, I n", ", A a, A b")
STREAMING = NORMALISE, STANDARDISE, GRADIENT  # the others store next to nothing


def _variants(makers: tuple[Maker, ...], *, wide: bool) -> Iterator[Kernel]:
    for make in makers:
        for dtype, size in SIZES.items():
            for index in ("int", "long long"):
                yield make(dtype, 16 // size if wide else 1, index)


every_kernel(lambda: _variants(STREAMING, wide=True))
every_kernel(lambda: _variants((STATISTICS, GRADIENT_SUMS), wide=True), streaming=False)
every_kernel(lambda: _variants((*STREAMING, STATISTICS, GRADIENT_SUMS), wide=False), streaming=False)
every_kernel(lambda: _variants((BLEND,), wide=True), streaming=False)  # of single elements, because vectors are short


# --- Gradients where they live --------------------------------------------------------------------------------------


class Results:
    """Where a kernel writes dx, new memory or `scratch`, and gradients per column: those where the walk wants them, if it can."""

    def __init__(
        self, x: Any, vector: Any, wanted: tuple[bool, ...], out: Any, accumulate: tuple[bool, ...], scratch: Any = None
    ):
        import cupy

        from . import launch

        self.places = out or (None,) * len(wanted)
        self.accumulate = accumulate
        self.arrays: list[Any] = [None] * len(wanted)
        if wanted[0]:
            self.arrays[0] = cupy.empty(x.shape, x.dtype) if scratch is None else scratch
        for i in range(1, len(wanted)):
            if wanted[i]:
                self.arrays[i] = launch.place_for(self.places[i], vector.shape, vector.dtype)
        self.adds = [
            a is not None and a is place and add for a, place, add in zip(self.arrays, self.places, accumulate)
        ]

    def clear(self) -> None:
        """Of no rows."""
        for array, adds in zip(self.arrays, self.adds):
            if array is not None and not adds:
                array.fill(0)

    def finished(self) -> tuple:
        """The gradients, in their places."""
        for array, place, add in zip(self.arrays, self.places, self.accumulate):
            if place is not None and array is not place:
                place[...] = place + array if add else array
        return tuple(a if place is None else place for a, place in zip(self.arrays, self.places))


# --- Batch normalisation --------------------------------------------------------------------------------------------


class BatchNorm:
    """Batch norm over the rows of x (N, C): one launch for the statistics and one for y; one for the sums of the gradients, one for dx.

    The least would be to read x once: with statistics over all rows that takes the whole of x in registers and a barrier over the grid.
    So 3 arrays are moved where 2 would be enough, and in the gradient 5 instead of 3; a GPU's cache serves the second reading up to its
    size. Mean and 1/std of each column are kept for the gradient.
    """

    def implementation(self, op: Op) -> Implementation:
        """For an op of x, weight and bias that returns y, mean and variance, with the option `eps`."""
        from .._op import GradientRule, Implementation

        rule = GradientRule(
            function=self.backward,
            targets=op.inputs,
            keeps=("x", "weight", "mean", "scale"),
            options=(),
            accumulates=True,
            takes_wanted=True,
        )
        return Implementation(self.forward, ("mean", "scale"), [rule])

    def forward(self, x: Any, weight: Any = None, bias: Any = None, *, keep: bool, eps: float) -> Any:
        """(y, mean, variance), and mean and 1/std as the gradient needs them."""
        from . import launch

        if not matches(x, weight, bias) or x.shape[0] < 2:
            return NotImplemented
        x, weight, bias = (a if a is None else launch.packed(a) for a in (x, weight, bias))
        mean, variance, means, scales = self.statistics(x, eps)
        y = self.normalised(x, means, scales, weight, bias)
        return ((y, mean, variance), means, scales) if keep else ((y, mean, variance),)

    def statistics(self, x: Any, eps: float) -> tuple:
        """Mean and variance of each column, in x's dtype; mean and 1/std, as they are computed."""
        import cupy

        from . import launch

        shared, calculated = sharing(x, summed=True), arithmetic(x.dtype)
        mean, variance = cupy.empty(shared.columns, x.dtype), cupy.empty(shared.columns, x.dtype)
        means, scales = cupy.empty(shared.columns, calculated), cupy.empty(shared.columns, calculated)
        partials = cupy.empty((shared.parts, 2, shared.columns), calculated)
        arrays = (x, mean, variance, means, scales, partials, launch.tickets(shared.stripes))
        STATISTICS.launch(shared, arrays, calculated.type(eps))
        return mean, variance, means, scales

    def normalised(self, x: Any, means: Any, scales: Any, weight: Any, bias: Any) -> Any:
        """y."""
        import cupy

        y = cupy.empty(x.shape, x.dtype)
        NORMALISE.launch(sharing(x, summed=False), (x, means, scales, weight, bias, y))
        return y

    def backward(
        self,
        dy: tuple,
        x: Any,
        weight: Any,
        means: Any,
        scales: Any,
        *,
        wanted: tuple[bool, ...],
        out: tuple | None = None,
        accumulate: tuple[bool, ...] = (False, False, False),
    ) -> tuple:
        """dx, dweight and dbias, None for those that nobody wants. What has a place in `out` is written there, or added to it."""
        from . import launch

        dy, dmean, dvariance = map(launch.packed, dy)
        x, weight = launch.packed(x), weight if weight is None else launch.packed(weight)
        results = Results(x, dmean, wanted, out, accumulate)
        slopes = self.gradient_sums(dy, dmean, dvariance, x, weight, means, scales, results)
        if wanted[0]:
            self.gradient(dy, x, means, slopes, results.arrays[0])
        return results.finished()

    def gradient_sums(
        self, dy: Any, dmean: Any, dvariance: Any, x: Any, weight: Any, means: Any, scales: Any, results: Results
    ) -> Any:
        """Writes dweight and dbias, and returns what `gradient` makes dx of."""
        import cupy

        from . import launch

        shared = sharing(x, summed=True)
        slopes = cupy.empty((3, shared.columns), means.dtype)
        partials = cupy.empty((shared.parts, 2, shared.columns), means.dtype)
        given, sums = (dy, dmean, dvariance, x, weight, means, scales), results.arrays[1:]
        arrays = (*given, slopes, *sums, partials, launch.tickets(shared.stripes))
        GRADIENT_SUMS.launch(shared, arrays, *map(np.int32, results.adds[1:]))
        return slopes

    def gradient(self, dy: Any, x: Any, means: Any, slopes: Any, dx: Any) -> None:
        """Writes dx."""
        GRADIENT.launch(sharing(x, summed=False), (dy, x, means, slopes, dx))


def standardize(
    x: Any,
    mean: Any,
    variance: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    eps: float,
    out: Any = None,
) -> Any:
    """y = (x - mean) / sqrt(variance + eps) * weight + bias of each column, in one launch; its gradients by the generic rules."""
    from . import launch

    if not matches(x, mean, variance, weight, bias):
        return NotImplemented
    y = launch.place_for(out, x.shape, x.dtype)
    if x.size:
        given = [a if a is None else launch.packed(a) for a in (x, mean, variance, weight, bias)]
        STANDARDISE.launch(sharing(x, summed=False), (*given, y), arithmetic(x.dtype).type(eps))
    return launch.finished(y, out)


def blend(x: Any, a: float, y: Any, b: float) -> None:
    """x = a x + b y in place, in one launch: running averages."""
    from . import generic, launch

    if not launch.takes(x, y) or x.shape != y.shape or not (x.flags.c_contiguous and y.flags.c_contiguous):
        generic.blend(x, a, y, b)
    elif x.size:
        scalar = arithmetic(x.dtype).type
        BLEND.launch_flat(-(-x.size // THREADS), (x, y), scalar(a), scalar(b))
