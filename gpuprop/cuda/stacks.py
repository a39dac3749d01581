"""Matrix products as a BLAS takes them: how the operands lie in memory, told by their shapes and strides."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Stack:
    """Equal matrices at equal distances: each has its rows one after another, or, `transposed`, its columns."""

    rows: int
    columns: int
    leading: int  # elements from one row (or column) to the next
    transposed: bool
    step: int  # elements from one matrix to the next; 0: they are all the same one

    def extent(self, count: int) -> int:
        """Elements from the first one to behind the last one, of `count` matrices."""
        major, minor = (self.columns, self.rows) if self.transposed else (self.rows, self.columns)
        return (count - 1) * self.step + (major - 1) * self.leading + minor


@dataclass(frozen=True)
class Problem:
    """`count` products y = a @ b. An operand that is no stack has to be copied first: in C order, broadcast to the shape `pack_...`."""

    shape: Shape  # of the result
    count: int
    a: Stack
    b: Stack
    y: Stack
    pack_a: Shape | None
    pack_b: Shape | None

    @property
    def empty(self) -> bool:
        """Whether there is nothing to multiply: no result, or a sum without terms."""
        return not self.count * self.a.rows * self.a.columns * self.b.columns


def problem(a_shape: Shape, a_strides: Shape, b_shape: Shape, b_strides: Shape) -> Problem:
    """What `matmul` does with arrays of these shapes and strides, in elements. Raises: ValueError where it does nothing."""
    if not a_shape or not b_shape:
        raise ValueError("expected arrays of at least one axis")
    without_rows, without_columns = len(a_shape) == 1, len(b_shape) == 1
    if without_rows:
        a_shape, a_strides = (1, *a_shape), (0, *a_strides)
    if without_columns:
        b_shape, b_strides = (*b_shape, 1), (*b_strides, 0)
    rows, terms, columns = a_shape[-2], a_shape[-1], b_shape[-1]
    if terms != b_shape[-2]:
        raise ValueError(f"expected as many columns on the left as rows on the right, got {terms} and {b_shape[-2]}")
    batch = _broadcast(a_shape[:-2], b_shape[:-2])
    shape = (*batch, *(() if without_rows else (rows,)), *(() if without_columns else (columns,)))
    count = math.prod(batch)
    a, pack_a = _stacked(a_shape, a_strides, batch)
    b, pack_b = _stacked(b_shape, b_strides, batch)
    if b.step == 0 and not a.transposed and a.step == rows * a.leading:
        # One right factor for a stack without gaps: the rows of all its matrices make one tall matrix.
        rows, count = rows * count, 1
        a = replace(a, rows=rows, step=0)
    return Problem(shape, count, a, b, Stack(rows, columns, max(columns, 1), False, rows * columns), pack_a, pack_b)


def _broadcast(first: Shape, second: Shape) -> Shape:
    length = max(len(first), len(second))
    pairs = zip((1,) * (length - len(first)) + first, (1,) * (length - len(second)) + second)
    batch = []
    for m, n in pairs:
        if m != n and 1 not in (m, n):
            raise ValueError(f"expected leading axes that broadcast, got {first} and {second}")
        batch.append(n if m == 1 else m)
    return tuple(batch)


def _stacked(shape: Shape, strides: Shape, batch: Shape) -> tuple[Stack, Shape | None]:
    """The array as a stack, and the shape in which it has to be copied for that, or None."""
    for packed in (None, shape, (*batch, *shape[-2:])):
        stack = as_stack(packed or shape, _in_c_order(packed) if packed else strides, batch)
        if stack is not None:
            return stack, packed
    raise AssertionError("C order is a stack")


def as_stack(shape: Shape, strides: Shape, batch: Shape) -> Stack | None:
    """Matrices in the last two axes, the others broadcast to `batch`; None where no stack looks like that."""
    (*_, rows, columns), (*_, down, across) = shape, strides
    if (across == 1 or columns == 1) and (down >= columns or rows == 1):
        leading, transposed = (down if rows > 1 else max(columns, 1)), False
    elif (down == 1 or rows == 1) and (across >= rows or columns == 1):
        leading, transposed = (across if columns > 1 else max(rows, 1)), True
    else:
        return None
    missing = len(batch) - len(shape) + 2
    steps = [0] * missing + [0 if n == 1 else s for n, s in zip(shape[:-2], strides[:-2])]
    axes = [(n, s) for n, s in zip(batch, steps) if n != 1]
    if any(far != count * near for (_, far), (count, near) in zip(axes, axes[1:])):
        return None
    step = axes[-1][1] if axes else 0
    return None if step < 0 else Stack(rows, columns, leading, transposed, step)


def _in_c_order(shape: Shape) -> Shape:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
