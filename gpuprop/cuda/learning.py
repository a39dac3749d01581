"""Functors that learn a number, or one per column: a launch forward, one backward, which gives the number's gradient too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ._elementwise import Elementwise, Learnt
from .columns import Results, matches
from .rowwise import or_null
from .source import Kernel, every_kernel

if TYPE_CHECKING:
    from .._op import Implementation, Op

PARTS_PER_PROCESSOR = 4  # blocks per multiprocessor: enough to hide their reads, few partial sums


class Learning(Elementwise):
    """A functor of x whose gradient rules name x, with a member `learnt` before its options, which is the op's second input.

    Of that there is one number for all of x, or one per column of x (N, C). Beside `forward` and `backward` the functor has
    `to_learnt(dy, x)`: an element's summand of the gradient of what it learns.
    """

    def implementation(self, op: Op) -> Implementation:
        """The functor as an implementation of an op of x and what it learns."""
        from .._op import GradientRule, Implementation

        self.keeps = op.inputs[0]
        self.members = tuple(name for name in op.defaults if name != self.by)
        every_kernel(self._streaming_kernels)
        every_kernel(self._narrow_kernels, streaming=False)
        rule = GradientRule(
            function=self.gradients,
            targets=op.inputs,
            keeps=op.inputs,
            options=tuple(op.defaults),
            accumulates=True,
            overwrites_dy="scratch",
            takes_wanted=True,
        )
        return Implementation(self.value, gradients=[rule], binder=self)

    def takes(self, x: Any, learnt: Any) -> bool:
        """Whether there is one number, or one per column."""
        from . import launch

        return (learnt.size == 1 and learnt.ndim < 2 and launch.takes(x, learnt)) or matches(x, learnt)

    def value(self, x: Any, learnt: Any, *, out: Any = None, **options: Any) -> Any:
        """y."""
        from . import launch

        if not self.takes(x, learnt):
            return NotImplemented
        y = launch.place_for(out, x.shape, x.dtype)
        x, given = launch.packed(x), Learnt(launch.packed(learnt))
        if given.one and x.size:
            function, more = self._kernel(
                "elementwise_forward", x.dtype, options, launch.index_type(x.size), learnt=given
            )
            blocks = launch.blocks_for(x.size, x.itemsize)
            function((blocks,), (launch.THREADS,), (x, y, launch.index(x.size), *more))
        elif x.size:
            columns = x.shape[:2]
            self.bias_forward(x.reshape(columns), None, y.reshape(columns), learnt=given, **options)
        return launch.finished(y, out)

    def gradients(
        self,
        dy: Any,
        x: Any,
        learnt: Any,
        *,
        wanted: tuple[bool, ...],
        out: tuple | None = None,
        accumulate: tuple[bool, ...] = (False, False),
        scratch: Any = None,
        **options: Any,
    ) -> tuple:
        """Both gradients, None for what nobody wants. What has a place in `out` is written there, or added to it."""
        from . import launch

        dy = launch.packed(dy)
        results = Results(x, learnt, wanted, out, accumulate, dy if scratch is dy else None)
        dx, dlearnt = results.arrays
        x, given = launch.packed(x), Learnt(launch.packed(learnt), dlearnt, results.adds[1])
        if not x.size:
            results.clear()
        elif given.one:
            most = PARTS_PER_PROCESSOR * launch.multiprocessors()
            blocks = (min(most, launch.blocks_for(x.size, x.itemsize)),)
            index = launch.index_type(x.size)
            function, more = self._kernel("elementwise_backward", x.dtype, options, index, learnt=given, blocks=blocks)
            function(blocks, (launch.THREADS,), (dy, x, or_null(dx), launch.index(x.size), *more))
        else:
            columns = x.shape[:2]
            dx = dx if dx is None else dx.reshape(columns)
            self.bias_backward(dy.reshape(columns), x.reshape(columns), None, dx, None, learnt=given, **options)
        return results.finished()

    # --- kernels --------------------------------------------------------------------------------------------------

    def _streaming_kernels(self) -> Iterator[Kernel]:
        for make, pack in self._variants():
            yield make("elementwise_forward", learns="one")
            yield make("elementwise_backward", learns="one")
            yield from self._with_bias(make, pack)

    def _narrow_kernels(self) -> Iterator[Kernel]:
        for make, _ in self._variants():
            yield from self._with_bias(make, "1")

    def _with_bias(self, make: Any, width: str) -> Iterator[Kernel]:
        for learns in ("one", "each"):
            for dropped in (False, True):
                yield make("bias_forward", width, dropped=dropped, learns=learns)
                yield make("bias_backward", width, dropped=dropped, learns=learns)
