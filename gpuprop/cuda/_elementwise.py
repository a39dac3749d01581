"""`elementwise`: binds a functor of a `.cu` file to an op of one input, forward and backward, with or without a bias, in one line."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .column_sums import columns_at_once, grid, places
from .rowwise import NULL, or_null
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
DROPOUT = "const Word* drop_base, Word drop_seed, Word drop_offset, Word drop_threshold, A drop_scale"
LEARNT = "const T* learnt"
LEARNT_GRADIENT = "T* dlearnt, A* learnt_partials, unsigned int* learnt_tickets, int learnt_adds"
LANES_PER_BLOCK = 8  # of the stream of random numbers: elements that a thread draws for at once


class Dropout(NamedTuple):
    """What the loops with a bias drop of an activation's result: the arguments of `random.dropout`."""

    base: Any
    threshold: int
    scale: float
    seed: int
    offset: int

    def arguments(self, dtype: Any) -> tuple:
        """As a kernel takes them, in the order of `DROPOUT`."""
        key = self.base, np.uint64(self.seed), np.uint64(self.offset)
        return *key, np.uint64(self.threshold), _arithmetic(dtype).type(self.scale)


class Learnt(NamedTuple):
    """What a functor learns, one number or one per column; in a backward pass also where its gradient goes."""

    values: Any
    gradient: Any = None  # None: nobody wants it
    accumulate: bool = False

    @property
    def one(self) -> bool:
        return self.values.size == 1

    def gradient_arguments(self, blocks: tuple[int, ...]) -> tuple:
        """For a grid of (stripes of columns, parts of the rows), as a kernel takes them, in the order of `LEARNT_GRADIENT`."""
        import cupy

        from . import launch

        if self.gradient is None:
            return NULL, NULL, NULL, np.int32(0)
        sums = math.prod(blocks) if self.one else blocks[1] * self.values.size
        partials = cupy.empty(sums, _arithmetic(self.values.dtype))
        return self.gradient, partials, launch.tickets(2 * blocks[0]), np.int32(self.accumulate)


class Elementwise:
    """A functor that computes y from x, and dx from dy and what the op's gradient rule keeps (x or y).

    The functor's members are the op's options, in order; with options it is a template of the type that it computes in.
    Where one option chooses among functors (`gelu`'s approximation), `functor` is a dict by its value and `by` names it.
    of_sign: y is kept, and nothing but its sign matters, which dropout leaves where it leaves anything.
    """

    def __init__(self, file: str, functor: str | Mapping[str, str], *, by: str = "", of_sign: bool = False):
        self.file, self.functor, self.by, self.of_sign = file, functor, by, of_sign

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

    def bias_forward(
        self,
        x: Any,
        bias: Any,
        y: Any,
        dropout: Dropout | None = None,
        learnt: Learnt | None = None,
        **options: Any,
    ) -> None:
        """y = f(x + bias), then dropout; x and y (rows, columns) and packed; y may be x, bias None."""
        from . import launch

        if x.size:
            rows, columns = x.shape
            taken, index = columns_at_once(columns, x.itemsize), launch.index_type(x.size)
            function, members = self._kernel(
                "bias_forward", x.dtype, options, index, str(taken), dropout=dropout, learnt=learnt
            )
            each = taken if dropout is None else LANES_PER_BLOCK
            blocks = min(-(-x.size // (each * THREADS)), launch.BLOCKS)
            sizes = launch.index(rows, x.size), launch.index(columns, x.size)
            function((blocks,), (THREADS,), (x, or_null(bias), y, *sizes, *members))

    def bias_backward(
        self,
        dy: Any,
        kept: Any,
        bias: Any,
        dx: Any,
        db: Any,
        dropout: Dropout | None = None,
        learnt: Learnt | None = None,
        *,
        accumulate: bool = False,
        **options: Any,
    ) -> None:
        """dx = dy f', and db = dx summed over rows (or added to db), in one launch; dx may be dy, db None: nobody wants it.

        kept: what `keeps_of` says, x being without the bias. dropout: what comes after f, undone first.
        """
        from . import launch

        rows, columns = dy.shape
        if not dy.size:
            if db is not None and not accumulate:
                db.fill(0)
            if learnt is not None and learnt.gradient is not None and not learnt.accumulate:
                learnt.gradient.fill(0)
            return
        taken, index = columns_at_once(columns, dy.itemsize), launch.index_type(dy.size)
        blocks = grid(rows, columns, dy.itemsize)
        function, members = self._kernel(
            "bias_backward", dy.dtype, options, index, str(taken), dropout=dropout, learnt=learnt, blocks=blocks
        )
        partials, tickets = (None, None) if db is None else places(blocks, columns, dy.dtype)
        sizes = launch.index(rows, dy.size), launch.index(columns, dy.size)
        arrays = map(or_null, (dy, kept, bias, dx, partials, db, tickets))
        function(blocks, (THREADS,), (*arrays, *sizes, np.int32(accumulate), *members))

    def keeps_of(self, dropped: bool) -> str:
        """What `bias_backward` is given, "x" or "y": after dropout y is no more, and is computed from x again.

        (Dividing what dropout left by its scale would not do: y is rounded then, and 1 - tanh(x)^2 is off by a lot for large x.)
        """
        return "x" if dropped and not self.of_sign else self.keeps

    # --- kernels --------------------------------------------------------------------------------------------------

    def _kernel(
        self,
        loop: str,
        dtype: Any,
        options: dict[str, Any],
        index: str,
        *more: str,
        dropout: Dropout | None = None,
        learnt: Learnt | None = None,
        blocks: tuple[int, ...] = (),
    ) -> tuple[Kernel, list[Any]]:
        """The kernel that runs one loop with the functor, and its last arguments: of dropout, of what is learnt, the functor's members.

        blocks: the grid of a backward loop.
        """
        functor = self.functor if isinstance(self.functor, str) else self.functor[options[self.by]]
        scalar = _arithmetic(dtype).type
        arguments = [scalar(options[name]) for name in self.members]
        if learnt is not None:
            gradient = learnt.gradient_arguments(blocks) if blocks else ()
            arguments = [learnt.values, *gradient, *arguments]
        if dropout is not None:
            arguments = [*dropout.arguments(dtype), *arguments]
        learns = "" if learnt is None else "one" if learnt.one else "each"
        return self._made(
            functor, dtype.name, index, loop, *more, dropped=dropout is not None, learns=learns
        ), arguments

    def _made(
        self, functor: str, dtype: str, index: str, loop: str, *more: str, dropped: bool = False, learns: str = ""
    ) -> Kernel:
        keeps = self.keeps_of(dropped)
        if loop == "bias_backward":
            more = (*more, str(keeps == "x").lower())
        recomputes = keeps != self.keeps
        return functor_kernel(
            self.file,
            functor,
            self.members,
            dtype,
            index,
            loop,
            *more,
            dropped=dropped,
            recomputes=recomputes,
            learns=learns,
        )

    def _variants(self) -> Iterator[tuple[Callable[..., Kernel], str]]:
        """For each functor, dtype and index type: what makes its kernels, and how many elements are a pack."""
        for functor in [self.functor] if isinstance(self.functor, str) else self.functor.values():
            for dtype, pack in (("float32", "4"), ("float64", "2"), ("float16", "8"), ("bfloat16", "8")):
                for index in ("int", "long long"):
                    yield functools.partial(self._made, functor, dtype, index), pack

    def _streaming_kernels(self) -> Iterator[Kernel]:
        for make, pack in self._variants():
            yield make("elementwise_forward")
            yield make("elementwise_backward")
            for dropped in (False, True):
                yield make("bias_forward", pack, dropped=dropped)
                yield make("bias_backward", pack, dropped=dropped)

    def _narrow_kernels(self) -> Iterator[Kernel]:
        for make, _ in self._variants():
            for dropped in (False, True):
                yield make("bias_forward", "1", dropped=dropped)
                yield make("bias_backward", "1", dropped=dropped)


@functools.cache
def functor_kernel(
    file: str,
    functor: str,
    members: tuple[str, ...],
    dtype: str,
    index: str,
    loop: str,
    *more: str,
    dropped: bool = False,
    recomputes: bool = False,
    learns: str = "",
) -> Kernel:
    """One of `LOOPS` for a functor, a dtype and the type that counts elements; more: what else the template depends on.

    dropped: dropout comes after the functor. recomputes: the functor's gradient names y, and gets x. learns: "one" number, "each"
    column its own, or nothing.
    """
    arithmetic = "double" if dtype == "float64" else "float"
    functor_type = f"{functor}<A>" if members or learns else functor
    if recomputes:
        functor_type = f"FromX<{functor_type}, T>"
    loops_type = f"Learnt<F, T, {str(learns == 'one').lower()}>" if learns else "Fixed<F>"
    types = (
        f"typedef {FORMATS[dtype][0]} T;\ntypedef {arithmetic} A;\ntypedef {index} I;\n"
        f"typedef {functor_type} F;\ntypedef {loops_type} S;"
    )
    with_learnt = [LEARNT, LEARNT_GRADIENT][: 1 + loop.endswith("backward")] if learns else []
    first = {"one": ["widen<A>(*learnt)"], "each": ["A(0)"]}.get(learns, [])
    functors = [f"F{{{', '.join([*first, *members])}}}", *names_in(with_learnt)]
    arguments = [*names_in([LOOPS[loop]]), f"S{{{', '.join(functors)}}}"]
    if dropped:
        arguments.append("Dropout<A>{*drop_base + drop_offset + 1, drop_seed, drop_threshold, drop_scale}")
    parameters = [LOOPS[loop], *[DROPOUT] * dropped, *with_learnt, *(f"A {member}" for member in members)]
    body = f"{loop}<{', '.join(['S', 'T', 'I', *more])}>({', '.join(arguments)});"
    parts = [
        functor,
        loop.removeprefix("elementwise_"),
        *["dropout"] * dropped,
        dtype,
        index,
        *more,
        *[learns] * bool(learns),
    ]
    name = "_".join(parts).replace(" ", "_").lower()
    return kernel(file, name, ", ".join(parameters), body, (dtype,), THREADS, types)


def names_in(parameters: Iterable[str]) -> list[str]:
    """The names of a kernel's parameters."""
    return [parameter.split()[-1] for some in parameters for parameter in some.split(", ")]


def _arithmetic(dtype: Any) -> np.dtype:
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def elementwise(
    file: str, functor: str | Mapping[str, str], *, by: str = "", of_sign: bool = False, learns: str = ""
) -> Elementwise:
    """Binds a functor to an op: `silu.cuda = elementwise("activations.cu", "Silu")`. CuPy is not imported before the first call.

    learns: the op's second input, of which there is one number, or one per column of the first (axis 1).
    """
    if learns:
        from .learning import Learning

        return Learning(file, functor, by=by)
    return Elementwise(file, functor, by=by, of_sign=of_sign)
