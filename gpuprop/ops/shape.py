"""Shapes: what rearranges, repeats, joins and splits arrays. Where NumPy returns a view, so do we."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._op import op
from .._tensor import Tensor, as_dtype, install
from ..device import copy_to, is_array
from ..errors import ArgumentError, BoundsError, DtypeError, OptionError, ShapeError
from ..testing import Draw, ErrorSample, Sample, real_line


def normal_axis(axis: int, ndim: int, name: str) -> int:
    """The axis counted from 0. Raises: BoundsError."""
    if not -ndim <= axis < ndim:
        raise BoundsError(f"{name}: expected an axis from {-ndim} to {ndim - 1}, got {axis}")
    return axis % ndim


def at_axis(axis: int, index: Any) -> tuple:
    """`x[at_axis(2, i)]` is `x[:, :, i]`; never a scalar."""
    return (*(slice(None),) * axis, index, ...)


# --- How methods say shapes -----------------------------------------------------------------------------------------


def _sizes(name: str) -> Any:
    """`f(x, (2, 3))`, `f(x, 2, 3)` and `f(x, 6)` all name one tuple."""

    def spelling(x: Any, *sizes: Any, **given: Any) -> tuple[tuple, dict]:
        if sizes:
            given[name] = sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], (int, np.integer)) else sizes
        if isinstance(given.get(name), (int, np.integer)):
            given[name] = (given[name],)
        return (x,), given

    return spelling


# --- The same elements in another shape -----------------------------------------------------------------------------


def _reshape_samples(draw: Draw):
    yield Sample(draw.normal(), shape=(1, 1))
    yield Sample(draw.normal(2, 3), shape=(3, 2))
    yield Sample(draw.normal(2, 3, 4), shape=(-1, 6))
    yield Sample(draw.normal(1, 1), shape=())
    yield Sample(draw.normal(0, 3), shape=(3, 0, 2))


def _reshape_errors(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), shape=(4,), error=ShapeError, match=r"reshape: .*\(2, 3\)")
    yield ErrorSample(draw.normal(2, 3), shape=(-1, -1), error=ShapeError, match="reshape: ")


@op(samples=_reshape_samples, errors=_reshape_errors, spelling=_sizes("shape"), method=True, view=True)
def reshape(xp, x, *, shape):
    """The elements of x, in C order, in another shape; one size may be -1. Methods also take `x.reshape(2, 3)`.

    Shapes: x (...) -> y (shape), as many elements. Raises: ShapeError.
    """
    return xp.reshape(x, shape)


@reshape.grad("x")
def _(xp, dy, x_shape):
    return xp.reshape(dy, x_shape)


install(reshape, method="view")


@op(samples=real_line, method=True, view=True)
def ravel(xp, x):
    """The elements of x, in C order, along one axis. Shapes: x (...) -> y (size,)."""
    return xp.ravel(x)


@ravel.grad("x")
def _(xp, dy, x_shape):
    return xp.reshape(dy, x_shape)


def _expand_dims_samples(draw: Draw):
    yield Sample(draw.normal(), axis=0)
    yield Sample(draw.normal(2, 3), axis=-1)
    yield Sample(draw.normal(2, 3), axis=(0, 2))
    yield Sample(draw.normal(0, 3), axis=1)


def _expand_dims_errors(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), axis=4, error=BoundsError, match="expand_dims: .*4")


@op(samples=_expand_dims_samples, errors=_expand_dims_errors, method=True, view=True)
def expand_dims(xp, x, *, axis):
    """New axes of length 1, at these places of the result.

    Shapes: x (2, 3), axis=1 -> y (2, 1, 3). Raises: BoundsError.
    """
    return xp.expand_dims(x, axis)


@expand_dims.grad("x")
def _(xp, dy, x_shape):
    return xp.reshape(dy, x_shape)


install(expand_dims, method="unsqueeze")


def _squeeze_samples(draw: Draw):
    yield Sample(draw.normal())
    yield Sample(draw.normal(1, 3, 1))
    yield Sample(draw.normal(1, 3, 1), axis=-1)
    yield Sample(draw.normal(1, 3, 1), axis=(0, 2))
    yield Sample(draw.normal(1, 0), axis=0)


def _squeeze_errors(draw: Draw):
    yield ErrorSample(draw.normal(2, 1), axis=0, error=ShapeError, match=r"squeeze: .*\(2, 1\)")


@op(samples=_squeeze_samples, errors=_squeeze_errors, method=True, view=True)
def squeeze(xp, x, *, axis=None):
    """Without the axes of length 1, or without those given. Shapes: x (2, 1, 3) -> y (2, 3). Raises: ShapeError."""
    return xp.squeeze(x, axis=axis)


@squeeze.grad("x")
def _(xp, dy, x_shape):
    return xp.reshape(dy, x_shape)


@op(samples=real_line, view=True)
def atleast_1d(xp, x):
    """A 0-d array as shape (1,), others as they are."""
    return xp.atleast_1d(x)


@atleast_1d.grad("x")
def _(xp, dy, x_shape):
    return xp.reshape(dy, x_shape)


@op(samples=real_line, view=True)
def atleast_2d(xp, x):
    """With axes of length 1 in front until there are two. Shapes: x (3,) -> y (1, 3)."""
    return xp.atleast_2d(x)


@atleast_2d.grad("x")
def _(xp, dy, x_shape):
    return xp.reshape(dy, x_shape)


# --- Axes in another order ------------------------------------------------------------------------------------------


def _transpose_samples(draw: Draw):
    yield from real_line(draw)
    yield Sample(draw.normal(2, 3, 4), axes=(2, 0, 1))
    yield Sample(draw.normal(2, 3, 4), axes=(-2, 0, -1))


def _transpose_errors(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), axes=(0,), error=ShapeError, match=r"transpose: .*\(2, 3\)")
    yield ErrorSample(draw.normal(2, 3), axes=(0, 0), error=ShapeError, match=r"transpose: .*\(2, 3\)")


@op(samples=_transpose_samples, errors=_transpose_errors, spelling=_sizes("axes"), method=True, view=True)
def transpose(xp, x, *, axes=None):
    """Axis i of y is axis axes[i] of x; all axes reversed without `axes`. Methods also take `x.transpose(1, 0)`.

    Shapes: x (2, 3, 4), axes (2, 0, 1) -> y (4, 2, 3). Raises: ShapeError.
    """
    return xp.transpose(x, axes)


@transpose.grad("x")
def _(xp, dy, *, axes):
    if axes is None:
        return xp.transpose(dy)
    inverse = sorted(range(len(axes)), key=lambda i: axes[i] % len(axes))
    return xp.transpose(dy, tuple(inverse))


install(transpose, method="permute")


def _moveaxis_samples(draw: Draw):
    yield Sample(draw.normal(2, 3), source=0, destination=1)
    yield Sample(draw.normal(2, 3, 4), source=-1, destination=0)
    yield Sample(draw.normal(2, 3, 4), source=(0, 1), destination=(-1, 0))
    yield Sample(draw.normal(0, 3), source=1, destination=0)


def _moveaxis_errors(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), source=2, destination=0, error=BoundsError, match="moveaxis: .*2")


@op(samples=_moveaxis_samples, errors=_moveaxis_errors, method=True, view=True)
def moveaxis(xp, x, *, source, destination):
    """Axes taken out and put in elsewhere, the others in their order. Shapes: x (2, 3, 4), 0 to -1 -> y (3, 4, 2)."""
    return xp.moveaxis(x, source, destination)


@moveaxis.grad("x")
def _(xp, dy, *, source, destination):
    return xp.moveaxis(dy, destination, source)


def _swapaxes_samples(draw: Draw):
    yield Sample(draw.normal(2, 3), axis1=0, axis2=1)
    yield Sample(draw.normal(2, 3, 4), axis1=0, axis2=-1)
    yield Sample(draw.normal(0, 3), axis1=1, axis2=1)


def _swapaxes_errors(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), axis1=0, axis2=2, error=BoundsError, match="swapaxes: ")


@op(samples=_swapaxes_samples, errors=_swapaxes_errors, method=True, view=True)
def swapaxes(xp, x, *, axis1, axis2):
    """Two axes exchanged. Shapes: x (2, 3, 4), axes 0 and 2 -> y (4, 3, 2). Raises: BoundsError."""
    return xp.swapaxes(x, normal_axis(axis1, x.ndim, "swapaxes"), normal_axis(axis2, x.ndim, "swapaxes"))


@swapaxes.grad("x")
def _(xp, dy, *, axis1, axis2):
    return xp.swapaxes(dy, axis1, axis2)


# --- Copies in another dtype, on another device, of another size ----------------------------------------------------


def _astype_samples(draw: Draw):
    yield Sample(draw.normal(2, 3), dtype=np.dtype(np.float64))
    yield Sample(draw.normal(), dtype=np.dtype(np.float64))
    yield Sample(draw.normal(0, 3), dtype=np.dtype(np.float64))
    yield Sample(draw.normal(2, 3), dtype=np.dtype(np.int32), order=0)


def _astype_spelling(x: Any, dtype: Any) -> tuple[tuple, dict]:
    return (x,), {"dtype": as_dtype("astype", dtype)}


@op(samples=_astype_samples, spelling=_astype_spelling)
def astype(xp, x, *, dtype):
    """A copy in another dtype; the gradient is cast back. The method takes `copy=False` too. Raises: DtypeError."""
    return xp.array(x, dtype=dtype)


@astype.grad("x")
def _(xp, dy):
    return dy


@op(samples=real_line, method=True)
def copy(xp, x):
    """A copy in C order: y = x, in memory of its own."""
    return xp.copy(x, order="C")


@copy.grad("x")
def _(xp, dy):
    return dy


install(copy, method="clone")


def _to_device_samples(draw: Draw):
    yield Sample(draw.normal(2, 3), device="cpu", origin="cpu")


@op(samples=_to_device_samples, view=True)
def to_device(xp, x, *, device, origin):
    """x on another device; the gradient goes back to `origin`, where x lives. Raises: DeviceError."""
    return copy_to(x, device)


@to_device.grad("x")
def _(xp, dy, *, device, origin):
    return to_device(xp, dy, device=origin, origin=device)


def _broadcast_to_samples(draw: Draw):
    yield Sample(draw.normal(), shape=(2, 3))
    yield Sample(draw.normal(3), shape=(2, 3))
    yield Sample(draw.normal(2, 1, 4), shape=(3, 2, 5, 4))
    yield Sample(draw.normal(1, 3), shape=(0, 3))
    yield Sample(draw.normal(2, 3), shape=(2, 3))


def _broadcast_to_errors(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), shape=(3, 2), error=ShapeError, match="broadcast_to: ")


@op(samples=_broadcast_to_samples, errors=_broadcast_to_errors, spelling=_sizes("shape"), method=True, view=True)
def broadcast_to(xp, x, *, shape):
    """x repeated along axes of length 1 and new leading ones, without a copy.

    Shapes: x (3,) -> y (2, 3). Raises: ShapeError.
    """
    return xp.broadcast_to(x, shape)


@broadcast_to.grad("x")
def _(xp, dy):
    return dy  # the walk sums over what was broadcast


# --- Joining --------------------------------------------------------------------------------------------------------


def _pieces(xp, dy: Any, axis: int, lengths: Sequence[int], shapes: Sequence[tuple[int, ...]]) -> tuple:
    """The parts of dy, one after the other along an axis, in the shapes of the arrays that were joined."""
    parts, start = [], 0
    for length, shape in zip(lengths, shapes, strict=True):
        parts.append(xp.reshape(dy[at_axis(axis, slice(start, start + length))], shape))
        start += length
    return tuple(parts)


def _rows(*arrays: Any, **given: Any) -> tuple[tuple, dict]:
    """`stack(x)` and `stack(x, 1)` of one array join its rows, as in NumPy."""
    one = len(arrays) == 1 or (len(arrays) == 2 and (arrays[1] is None or isinstance(arrays[1], int)))
    if one and (isinstance(arrays[0], Tensor) or is_array(arrays[0])):
        return (tuple(arrays[0]), *arrays[1:]), given
    return arrays, given


def _concatenate_samples(draw: Draw):
    yield Sample(draw.normal(2, 3), draw.normal(4, 3))
    yield Sample(draw.normal(2, 3), draw.normal(2, 1), draw.normal(2, 0), axis=-1)
    yield Sample(draw.normal(2, 3), draw.normal(), draw.normal(4), axis=None)


def _concatenate_errors(draw: Draw):
    yield ErrorSample(
        draw.normal(2, 3), draw.normal(2, 4), error=ShapeError, match=r"concatenate: .*\(2, 3\).*\(2, 4\)"
    )
    yield ErrorSample(draw.normal(2, 3), draw.normal(2, 3), axis=2, error=BoundsError, match="concatenate: ")


@op(samples=_concatenate_samples, errors=_concatenate_errors, spelling=_rows)
def concatenate(xp, *arrays, axis=0):
    """Arrays one after the other along an axis; flattened first with `axis=None`.

    Shapes: (2, 3) and (4, 3), axis=0 -> y (6, 3). Raises: ShapeError, BoundsError.
    """
    return xp.concatenate(arrays, axis=axis)


@concatenate.grad("arrays")
def _(xp, dy, *arrays_shape, axis):
    if axis is None:
        return _pieces(xp, dy, 0, [math.prod(s) for s in arrays_shape], arrays_shape)
    axis %= dy.ndim
    return _pieces(xp, dy, axis, [s[axis] for s in arrays_shape], arrays_shape)


def _stack_samples(draw: Draw):
    yield Sample(draw.normal(), draw.normal())
    yield Sample(draw.normal(2, 3), draw.normal(2, 3), axis=-1)
    yield Sample(draw.normal(0, 3), draw.normal(0, 3))


def _stack_errors(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), draw.normal(3), error=ShapeError, match=r"stack: .*\(2, 3\).*\(3,\)")
    yield ErrorSample(draw.normal(2, 3), draw.normal(2, 3), axis=3, error=BoundsError, match="stack: ")


@op(samples=_stack_samples, errors=_stack_errors, spelling=_rows)
def stack(xp, *arrays, axis=0):
    """Arrays of one shape along a new axis.

    Shapes: k arrays (2, 3), axis=1 -> y (2, k, 3). Raises: ShapeError, BoundsError.
    """
    return xp.stack(arrays, axis=axis)


@stack.grad("arrays")
def _(xp, dy, *, axis):
    axis %= dy.ndim
    return tuple(dy[at_axis(axis, i)] for i in range(dy.shape[axis]))


def _vstack_samples(draw: Draw):
    yield Sample(draw.normal(), draw.normal(1, 1))
    yield Sample(draw.normal(3), draw.normal(2, 3))
    yield Sample(draw.normal(2, 3, 4), draw.normal(0, 3, 4))


def _vstack_errors(draw: Draw):
    yield ErrorSample(draw.normal(3), draw.normal(4), error=ShapeError, match=r"vstack: .*\(3,\).*\(4,\)")


@op(samples=_vstack_samples, errors=_vstack_errors, spelling=_rows)
def vstack(xp, *arrays):
    """Arrays one below the other; a vector is a row. Shapes: (3,) and (2, 3) -> y (3, 3). Raises: ShapeError."""
    return xp.vstack(arrays)


@vstack.grad("arrays")
def _(xp, dy, *arrays_shape):
    return _pieces(xp, dy, 0, [s[0] if len(s) > 1 else 1 for s in arrays_shape], arrays_shape)


def _hstack_samples(draw: Draw):
    yield Sample(draw.normal(), draw.normal(3))
    yield Sample(draw.normal(2, 3), draw.normal(2, 1))
    yield Sample(draw.normal(2, 3, 4), draw.normal(2, 0, 4))


def _hstack_errors(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), draw.normal(4, 3), error=ShapeError, match=r"hstack: .*\(2, 3\).*\(4, 3\)")


@op(samples=_hstack_samples, errors=_hstack_errors, spelling=_rows)
def hstack(xp, *arrays):
    """Arrays side by side: along axis 1, vectors along axis 0.

    Shapes: (2, 3) and (2, 1) -> y (2, 4). Raises: ShapeError.
    """
    return xp.hstack(arrays)


@hstack.grad("arrays")
def _(xp, dy, *arrays_shape):
    axis = 0 if dy.ndim == 1 else 1
    return _pieces(xp, dy, axis, [s[axis] if s else 1 for s in arrays_shape], arrays_shape)


# --- Splitting ------------------------------------------------------------------------------------------------------


def _split_samples(draw: Draw):
    yield Sample(draw.normal(6), indices_or_sections=3)
    yield Sample(draw.normal(2, 3), indices_or_sections=1)
    yield Sample(draw.normal(2, 6), indices_or_sections=(1, 4), axis=-1)
    yield Sample(draw.normal(4, 3), indices_or_sections=(2, 9))
    yield Sample(draw.normal(0, 3), indices_or_sections=3, axis=1)


def _split_errors(draw: Draw):
    yield ErrorSample(draw.normal(5, 3), indices_or_sections=2, error=ShapeError, match=r"split: .*\(5, 3\)")
    yield ErrorSample(draw.normal(5, 3), indices_or_sections=0, error=ShapeError, match=r"split: .*\(5, 3\)")
    yield ErrorSample(draw.normal(5, 3), indices_or_sections=1, axis=2, error=BoundsError, match="split: ")


@op(samples=_split_samples, errors=_split_errors, method=True, view=True)
def split(xp, x, *, indices_or_sections, axis=0):
    """x in equal parts, or cut before these places. A tuple, where NumPy has a list.

    Shapes: x (6, 3), 3 sections -> 3 outputs (2, 3); cut at (1, 4) -> (1, 3), (3, 3), (2, 3).
    Raises: ShapeError, BoundsError.
    """
    return tuple(xp.split(x, indices_or_sections, axis=normal_axis(axis, x.ndim, "split")))


@split.grad("x")
def _(xp, dy, *, axis):
    return xp.concatenate(dy, axis=axis)


def _array_split_samples(draw: Draw):
    yield Sample(draw.normal(7), indices_or_sections=3)
    yield Sample(draw.normal(2, 3), indices_or_sections=4, axis=-1)
    yield Sample(draw.normal(2, 6), indices_or_sections=(1, 4), axis=1)
    yield Sample(draw.normal(0, 3), indices_or_sections=2)


def _array_split_errors(draw: Draw):
    yield ErrorSample(draw.normal(5, 3), indices_or_sections=0, error=ShapeError, match=r"array_split: .*\(5, 3\)")


@op(samples=_array_split_samples, errors=_array_split_errors, view=True)
def array_split(xp, x, *, indices_or_sections, axis=0):
    """As `split`, but the first parts are longer by one where they cannot be equal.

    Shapes: x (7,), 3 sections -> (3,), (2,), (2,). Raises: ShapeError, BoundsError.
    """
    if indices_or_sections == 0:
        raise ShapeError(f"array_split: expected at least one section, got 0 for {x.shape}")
    return tuple(xp.array_split(x, indices_or_sections, axis=normal_axis(axis, x.ndim, "array_split")))


@array_split.grad("x")
def _(xp, dy, *, axis):
    return xp.concatenate(dy, axis=axis)


# --- Elements in another order --------------------------------------------------------------------------------------


def _flip_samples(draw: Draw):
    yield from real_line(draw)
    yield Sample(draw.normal(2, 3, 4), axis=1)
    yield Sample(draw.normal(2, 3, 4), axis=(0, -1))


def _flip_errors(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), axis=2, error=BoundsError, match="flip: ")


@op(samples=_flip_samples, errors=_flip_errors, method=True, view=True)
def flip(xp, x, *, axis=None):
    """The order along these axes, or all of them, reversed. Raises: BoundsError."""
    return xp.flip(x, axis=axis)


@flip.grad("x")
def _(xp, dy, *, axis):
    return xp.flip(dy, axis=axis)


def _roll_samples(draw: Draw):
    yield Sample(draw.normal(5), shift=2)
    yield Sample(draw.normal(2, 3), shift=-4)
    yield Sample(draw.normal(2, 3), shift=1, axis=-1)
    yield Sample(draw.normal(2, 3, 4), shift=(1, -2), axis=(0, 2))
    yield Sample(draw.normal(0, 3), shift=1, axis=0)


def _roll_errors(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), shift=1, axis=2, error=BoundsError, match="roll: ")


@op(samples=_roll_samples, errors=_roll_errors, method=True)
def roll(xp, x, *, shift, axis=None):
    """Elements moved on by `shift` places, those past the end coming in at the front; x is flattened without `axis`."""
    return xp.roll(x, shift, axis=axis)


@roll.grad("x")
def _(xp, dy, *, shift, axis):
    back = tuple(-s for s in shift) if isinstance(shift, tuple) else -shift
    return xp.roll(dy, back, axis=axis)


def _rot90_samples(draw: Draw):
    for k in range(-1, 3):
        yield Sample(draw.normal(2, 3), k=k)
    yield Sample(draw.normal(2, 3, 4), axes=(-1, 0))
    yield Sample(draw.normal(0, 3))


def _rot90_errors(draw: Draw):
    yield ErrorSample(draw.normal(3), error=ShapeError, match=r"rot90: .*\(3,\)")


@op(samples=_rot90_samples, errors=_rot90_errors, view=True)
def rot90(xp, x, *, k=1, axes=(0, 1)):
    """Turned k times by 90 degrees, from the first of the axes towards the second.

    Shapes: x (2, 3) -> y (3, 2). Raises: ShapeError.
    """
    if x.ndim < 2:
        raise ShapeError(f"rot90: expected at least two axes, got {x.shape}")
    return xp.rot90(x, k, axes)


@rot90.grad("x")
def _(xp, dy, *, k, axes):
    return xp.rot90(dy, -k, axes)


# --- Repeating and padding ------------------------------------------------------------------------------------------


def _repeat_samples(draw: Draw):
    yield Sample(draw.normal(), repeats=3)
    yield Sample(draw.normal(2, 3), repeats=2)
    yield Sample(draw.normal(2, 3, 4), repeats=2, axis=1)
    yield Sample(draw.normal(2, 3), repeats=(2, 0, 1), axis=-1)
    yield Sample(draw.normal(2, 2), repeats=(1, 2, 0, 3))
    yield Sample(draw.normal(0, 3), repeats=2, axis=0)


def _repeat_errors(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), repeats=(1, 2), axis=1, error=ShapeError, match=r"repeat: .*\(2, 3\)")
    yield ErrorSample(draw.normal(2, 3), repeats=-1, error=ShapeError, match="repeat: ")


@op(samples=_repeat_samples, errors=_repeat_errors, method=True)
def repeat(xp, x, *, repeats, axis=None):
    """Each element along the axis `repeats` times, or repeats[i] times; x is flattened without `axis`.

    NumPy's meaning; what PyTorch calls repeat is `tile`.

    Shapes: x (2, 3), 2 repeats, axis=1 -> y (2, 6). Raises: ShapeError.
    """
    return xp.repeat(x, repeats, axis=axis)


@repeat.grad("x")
def _(xp, dy, x_shape, *, repeats, axis):
    shape = (math.prod(x_shape),) if axis is None else x_shape
    axis = 0 if axis is None else axis % len(shape)
    if isinstance(repeats, tuple) and len(repeats) == 1:
        (repeats,) = repeats
    if isinstance(repeats, int):
        dx = xp.sum(xp.reshape(dy, (*shape[: axis + 1], repeats, *shape[axis + 1 :])), axis=axis + 1)
    else:
        index = xp.repeat(xp.arange(shape[axis]), repeats)
        dx = xp.index_add(shape, at_axis(axis, index)[:-1], dy)
    return xp.reshape(dx, x_shape)


def _tile_samples(draw: Draw):
    yield Sample(draw.normal(), reps=3)
    yield Sample(draw.normal(2, 3), reps=2)
    yield Sample(draw.normal(2, 3), reps=(3, 1))
    yield Sample(draw.normal(3), reps=(2, 1, 4))
    yield Sample(draw.normal(2, 3), reps=(2, 0))


@op(samples=_tile_samples, method=True)
def tile(xp, x, *, reps):
    """The whole of x side by side, reps[i] times along axis i. Shapes: x (2, 3), reps (2, 4) -> y (4, 12)."""
    return xp.tile(x, reps)


@tile.grad("x")
def _(xp, dy, x_shape, *, reps):
    reps = reps if isinstance(reps, tuple) else (reps,)
    ndim = max(len(reps), len(x_shape))
    reps = (1,) * (ndim - len(reps)) + reps
    shape = (1,) * (ndim - len(x_shape)) + x_shape
    apart = tuple(n for pair in zip(reps, shape, strict=True) for n in pair)
    return xp.reshape(xp.sum(xp.reshape(dy, apart), axis=tuple(range(0, 2 * ndim, 2))), x_shape)


PAD_MODES = ("constant", "edge", "reflect", "symmetric", "wrap")


def _pad_samples(draw: Draw):
    yield Sample(draw.normal(3), pad_width=2)
    yield Sample(draw.normal(2, 3), pad_width=(1, 0), constant_values=-2.5)
    yield Sample(draw.normal(2, 3), pad_width=((1, 2), (0, 3)), constant_values=((1.0, 2.0), (3.0, 4.0)))
    yield Sample(draw.normal(0, 3), pad_width=1)
    yield Sample(draw.normal(), pad_width=1)
    for mode in PAD_MODES[1:]:
        yield Sample(draw.normal(3), pad_width=7, mode=mode)
        yield Sample(draw.normal(2, 3), pad_width=((1, 2), (0, 3)), mode=mode)


def _pad_errors(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), pad_width=((1, 2), (1, 2), (1, 2)), error=ShapeError, match=r"pad: .*\(2, 3\)")
    yield ErrorSample(draw.normal(2, 3), pad_width=-1, error=ShapeError, match="pad: ")
    yield ErrorSample(draw.normal(2, 3), pad_width=1.5, error=DtypeError, match="pad: .*integer")
    yield ErrorSample(
        draw.normal(2, 3), pad_width=1, mode="mirror", error=OptionError, match="pad: .*reflect.*'mirror'"
    )
    yield ErrorSample(draw.normal(0, 3), pad_width=1, mode="edge", error=ShapeError, match=r"pad: .*\(0, 3\)")


def _pad_widths(pad_width: Any, ndim: int) -> list[tuple[int, int]]:
    pairs = np.broadcast_to(pad_width, (ndim, 2)).tolist()
    return [(operator.index(before), operator.index(after)) for before, after in pairs]


@op(samples=_pad_samples, errors=_pad_errors)
def pad(xp, x, *, pad_width, mode="constant", constant_values=0):
    """x with borders: `pad_width` elements before and after, (before, after), or one such pair per axis.

    mode: "constant" (`constant_values`), "edge" (the last value), "reflect" (mirrored, without the edge), "symmetric"
    (mirrored, with the edge), "wrap" (from the other end).
    Shapes: x (2, 3), pad_width=1 -> y (4, 5). Raises: ShapeError, OptionError.
    """
    if mode not in PAD_MODES:
        raise OptionError(f"pad: expected mode to be one of {', '.join(PAD_MODES)}, got {mode!r}")
    widths = _pad_widths(pad_width, x.ndim)
    if not widths:
        return xp.copy(x)
    if mode == "constant":
        return xp.pad(x, widths, constant_values=constant_values)
    return xp.pad(x, widths, mode=mode)


@pad.grad("x")
def _(xp, dy, x_shape, *, pad_width, mode):
    widths = _pad_widths(pad_width, len(x_shape))
    for axis, (n, (before, after)) in enumerate(zip(x_shape, widths, strict=True)):
        if mode == "constant":
            dy = dy[at_axis(axis, slice(before, before + n))]
        elif before or after:  # every element of the border is a copy of one inside: its gradient goes there
            origin = xp.pad(xp.arange(n), (before, after), mode=mode)
            shape = (*dy.shape[:axis], n, *dy.shape[axis + 1 :])
            dy = xp.index_add(shape, at_axis(axis, origin)[:-1], dy)
    return dy


# --- Diagonals and triangles ----------------------------------------------------------------------------------------


def _on_diagonal(xp, values: Any, offset: int, rows: int, columns: int) -> Any:
    """Matrices of zeros with the values along a diagonal. Shapes: values (..., k) -> (..., rows, columns)."""
    count = values.shape[-1]
    top, left = min(max(-offset, 0), rows), min(max(offset, 0), columns)
    square = xp.where(xp.eye(count, dtype=bool), xp.expand_dims(values, -1), 0)
    widths = [(0, 0)] * (values.ndim - 1) + [(top, rows - count - top), (left, columns - count - left)]
    return xp.pad(square, widths)


def _diagonal_samples(draw: Draw):
    yield Sample(draw.normal(2, 3))
    yield Sample(draw.normal(4, 3), offset=-2)
    yield Sample(draw.normal(2, 4, 3), offset=1, axis1=-1, axis2=0)
    yield Sample(draw.normal(2, 3), offset=5)
    yield Sample(draw.normal(0, 3))


def _diagonal_errors(draw: Draw):
    yield ErrorSample(draw.normal(3), error=ShapeError, match=r"diagonal: .*\(3,\)")
    yield ErrorSample(draw.normal(2, 3), axis1=1, error=ShapeError, match="diagonal: ")


@op(samples=_diagonal_samples, errors=_diagonal_errors, method=True, view=True)
def diagonal(xp, x, *, offset=0, axis1=0, axis2=1):
    """The elements x[..., i, i + offset] of two axes, as the last axis.

    Shapes: x (2, 3, 4) -> y (4, 2). Raises: ShapeError.
    """
    if x.ndim < 2:
        raise ShapeError(f"diagonal: expected at least two axes, got {x.shape}")
    first, second = normal_axis(axis1, x.ndim, "diagonal"), normal_axis(axis2, x.ndim, "diagonal")
    if first == second:
        raise ShapeError(f"diagonal: expected two different axes, got {axis1} and {axis2} of {x.shape}")
    return xp.diagonal(x, offset, first, second)


@diagonal.grad("x")
def _(xp, dy, x_shape, *, offset, axis1, axis2):
    return xp.moveaxis(_on_diagonal(xp, dy, offset, x_shape[axis1], x_shape[axis2]), (-2, -1), (axis1, axis2))


def _diag_samples(draw: Draw):
    for k in (0, 2, -1):
        yield Sample(draw.normal(3), k=k)
        yield Sample(draw.normal(3, 4), k=k)
    yield Sample(draw.normal(0))


def _diag_errors(draw: Draw):
    yield ErrorSample(draw.normal(2, 3, 4), error=ShapeError, match=r"diag: .*\(2, 3, 4\)")


@op(samples=_diag_samples, errors=_diag_errors, method=True, view=True)
def diag(xp, x, *, k=0):
    """The k-th diagonal of a matrix, or a matrix with the vector x on it.

    Shapes: x (m, n) -> y (min(m, n),), or x (n,) -> y (n, n), both for k = 0. Raises: ShapeError.
    """
    if x.ndim not in (1, 2):
        raise ShapeError(f"diag: expected a vector or a matrix, got {x.shape}; diagonal() takes more axes")
    return xp.diag(x, k)


@diag.grad("x")
def _(xp, dy, x_shape, *, k):
    return xp.diagonal(dy, k) if len(x_shape) == 1 else _on_diagonal(xp, dy, k, *x_shape)


def _triangle_samples(draw: Draw):
    yield Sample(draw.normal(3, 4))
    yield Sample(draw.normal(2, 4, 3), k=1)
    yield Sample(draw.normal(4, 3), k=-2)
    yield Sample(draw.normal(0, 3))


@op(samples=_triangle_samples, method=True)
def tril(xp, x, *, k=0):
    """The last two axes with zeros above the k-th diagonal. Shapes: x (..., m, n) -> y the same."""
    return xp.tril(x, k)


@tril.grad("x")
def _(xp, dy, *, k):
    return xp.tril(dy, k)


@op(samples=_triangle_samples, method=True)
def triu(xp, x, *, k=0):
    """The last two axes with zeros below the k-th diagonal. Shapes: x (..., m, n) -> y the same."""
    return xp.triu(x, k)


@triu.grad("x")
def _(xp, dy, *, k):
    return xp.triu(dy, k)


# --- Methods whose arguments are not the op's -----------------------------------------------------------------------


def _flatten(self: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """The axes from start_dim to end_dim as one, as a view where that can be.

    Shapes: x (2, 3, 4), start_dim=1 -> y (2, 12). Raises: BoundsError, ArgumentError.
    """
    if not self.ndim:
        return reshape(self, shape=(1,))
    first, last = normal_axis(start_dim, self.ndim, "flatten"), normal_axis(end_dim, self.ndim, "flatten")
    if first > last:
        raise ArgumentError(f"flatten: expected start_dim at or before end_dim, got {start_dim} and {end_dim}")
    merged = math.prod(self.shape[first : last + 1])
    return reshape(self, shape=(*self.shape[:first], merged, *self.shape[last + 1 :]))


def _expand(self: Tensor, *sizes: Any) -> Tensor:
    """Broadcast to these sizes, -1 meaning the size that is there.

    Shapes: x (3, 1), sizes (2, -1, 4) -> y (2, 3, 4). Raises: ShapeError.
    """
    shape = tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    there = (-1,) * (len(shape) - self.ndim) + self.shape
    return broadcast_to(self, shape=tuple(old if n == -1 else n for n, old in zip(shape, there, strict=True)))


def _astype(self: Tensor, dtype: Any, *, copy: bool = True) -> Tensor:
    """In another dtype; itself where nothing changes and `copy` is False. Differentiable."""
    return self if not copy and self.dtype == np.dtype(dtype) else astype(self, dtype)


def _t(self: Tensor) -> Tensor:
    """The transpose of a matrix; vectors and 0-d tensors as they are. Raises: ShapeError."""
    if self.ndim > 2:
        raise ShapeError(f"t: expected at most two axes, got {self.shape}; use .transpose(axes)")
    return transpose(self)


def _view_as(self: Tensor, other: Tensor) -> Tensor:
    """Reshaped to another tensor's shape. Raises: ShapeError."""
    return reshape(self, shape=other.shape)


for _name, _method in {
    "flatten": _flatten,
    "expand": _expand,
    "astype": _astype,
    "t": _t,
    "view_as": _view_as,
    "reshape_as": _view_as,
}.items():
    setattr(Tensor, _name, _method)
Tensor.T = property(lambda self: transpose(self), doc="All axes reversed.")  # type: ignore[attr-defined]
Tensor.mT = property(lambda self: swapaxes(self, -1, -2), doc="The last two axes exchanged.")  # type: ignore[attr-defined]
