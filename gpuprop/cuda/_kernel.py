"""`kernel`: binds free-form CUDA kernels to an op, each with its launch geometry."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DeclarationError
from .source import FORMATS, OPTIONS, THREADS, text

if TYPE_CHECKING:
    from .._op import Implementation, Op

Shape = Sequence[int]


@dataclass(frozen=True)
class Launch:
    """One kernel and its geometry, worked out from the arrays that it reads."""

    name: str
    blocks: Callable[..., int | tuple[int, ...]]
    threads: int
    sizes: Callable[..., Sequence[int]]
    shape: Callable[..., Shape]


class FreeForm:
    """Kernels of one source: the forward one, and those that `grad` adds."""

    def __init__(self, source: str, forward: Launch):
        self.source, self.forward = source, forward
        self.gradients: dict[str, tuple[Launch, tuple[str, ...]]] = {}

    def grad(
        self,
        target: str,
        name: str,
        *,
        keeps: Sequence[str],
        blocks: Callable[..., int | tuple[int, ...]],
        threads: int = THREADS,
        sizes: Callable[..., Sequence[int]] = lambda *arrays: (),
        shape: Callable[..., Shape] = lambda dy, *kept: dy.shape,
    ) -> FreeForm:
        """Adds the kernel for the gradient of one input; it reads dy and what it `keeps` (inputs, or "y"). Returns the binder."""
        self.gradients[target] = Launch(name, blocks, threads, sizes, shape), tuple(keeps)
        return self

    def implementation(self, op: Op) -> Implementation:
        """The kernels as an implementation of an op. Raises: DeclarationError for inputs and names that the op does not have."""
        from .._op import GradientRule, Implementation

        options = tuple(op.defaults)

        def function(launch: Launch) -> Callable:
            def run(*arrays: Any, out: Any = None, **given: Any) -> Any:
                return self._run(launch, arrays, [given[name] for name in options], out)

            return run

        made = Implementation(function(self.forward), binder=self)
        for target, (launch, keeps) in self.gradients.items():
            strange = [name for name in (target, *keeps) if name not in (*op.inputs, "y")]
            if strange or target == "y":
                raise DeclarationError(
                    f"{op.name}.cuda: expected names among {', '.join(op.inputs)} and y (kept only), got {strange or target!r}"
                )
            made.gradients.append(GradientRule(function(launch), (target,), keeps, options))
        return made

    def _run(self, launch: Launch, arrays: Sequence[Any], options: list[Any], out: Any) -> Any:
        from . import launch as border

        if any(isinstance(a, (int, float, type(None))) for a in arrays) or not border.takes(*arrays):
            return NotImplemented
        arrays = [border.packed(a) for a in arrays]
        dtype = arrays[0].dtype
        result = border.place_for(out, tuple(launch.shape(*arrays)), dtype)
        if result.size:
            blocks = launch.blocks(*arrays)
            scalar = np.float64 if dtype == np.float64 else np.float32
            sizes = [np.int64(size) for size in launch.sizes(*arrays)]
            arguments = (*arrays, result, *sizes, *(scalar(option) for option in options))
            grid = blocks if isinstance(blocks, tuple) else (blocks,)
            _compiled(self.source, launch.name, dtype.name)(grid, (launch.threads,), arguments)
        return border.finished(result, out)


@functools.cache
def _compiled(source: str, name: str, dtype: str) -> Any:
    import cupy

    format_, header = FORMATS[dtype]
    types = f"typedef {format_} T;\ntypedef {'double' if dtype == 'float64' else 'float'} A;\n"
    return cupy.RawKernel(f"{header}{types}{text(source)}", name, options=OPTIONS)


def kernel(
    source: str,
    name: str,
    *,
    blocks: Callable[..., int | tuple[int, ...]],
    threads: int = THREADS,
    sizes: Callable[..., Sequence[int]] = lambda *arrays: (),
    shape: Callable[..., Shape] = lambda x, *others: x.shape,
) -> FreeForm:
    """Binds a kernel of your own to an op: `my_op.cuda = kernel(source, "name", blocks=..., sizes=...).grad("x", ...)`.

    source: text with `extern "C" __global__ void name(...)`, or the absolute path of a file. In it `T` is the arrays' type and `A` the
    type to compute in (float for 16-bit formats); it may include `"common.cuh"`. The kernel gets the op's inputs in C order, starting at
    multiples of 16 bytes, then the result, then each of `sizes` as `long long`, then the op's options, numbers, as `A`.
    blocks, sizes, shape: functions of these inputs that return the grid, numbers for the kernel and the result's shape (by default the
    first input's). An empty result launches nothing; arrays of mixed or other dtypes than float16, bfloat16, float32 and float64 are left
    to the op's rule, as are gradients without a kernel.
    """
    return FreeForm(source, Launch(name, blocks, threads, sizes, shape))
