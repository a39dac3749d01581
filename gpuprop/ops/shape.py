"""Shapes: what rearranges, repeats, joins and splits arrays. Where NumPy returns a view, so do we."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._op import op
from .._tensor import Tensor, install
from ..device import copy_to
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
    """New axes of length 1, at these places of the result. Shapes: x (2, 3), axis=1 -> y (2, 1, 3). Raises: BoundsError."""
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
    return xp.swapaxes(x, axis1, axis2)


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
    try:
        return (x,), {"dtype": np.dtype(dtype)}
    except TypeError as error:
        raise DtypeError(f"astype: expected a dtype, got {dtype!r}") from error


@op(samples=_astype_samples, spelling=_astype_spelling)
def astype(xp, x, *, dtype):
    """A copy in another dtype; the gradient is cast back. The method takes `copy=False` as NumPy's does. Raises: DtypeError."""
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
    """x repeated along axes of length 1 and new leading ones, without a copy. Shapes: x (3,) -> y (2, 3). Raises: ShapeError."""
    return xp.broadcast_to(x, shape)


@broadcast_to.grad("x")
def _(xp, dy):
    return dy  # the walk sums over what was broadcast


# --- Joining --------------------------------------------------------------------------------------------------------


def _pieces(xp, dy: Any, axis: int, lengths: Sequence[int], shapes: Sequence[tuple[int, ...]]) -> tuple:
    """The parts of dy, one after the other along an axis, in the shapes of the arrays that were joined."""
    parts, start = [], 0
    for length, shape in zip(lengths, shapes):
        parts.append(xp.reshape(dy[at_axis(axis, slice(start, start + length))], shape))
        start += length
    return tuple(parts)


def _concatenate_samples(draw: Draw):
    yield Sample(draw.normal(3))
    yield Sample(draw.normal(2, 3), draw.normal(4, 3))
    yield Sample(draw.normal(2, 3), draw.normal(2, 1), draw.normal(2, 0), axis=-1)
    yield Sample(draw.normal(2, 3), draw.normal(), draw.normal(4), axis=None)


def _concatenate_errors(draw: Draw):
    yield ErrorSample(draw.normal(2, 3), draw.normal(2, 4), error=ShapeError, match=r"concatenate: .*\(2, 3\).*\(2, 4\)")
    yield ErrorSample(draw.normal(2, 3), draw.normal(2, 3), axis=2, error=BoundsError, match="concatenate: ")


@op(samples=_concatenate_samples, errors=_concatenate_errors)
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


# --- Methods whose arguments are not the op's -----------------------------------------------------------------------


def _flatten(self: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """The axes from start_dim to end_dim as one. Shapes: x (2, 3, 4), start_dim=1 -> y (2, 12). A view where it can be."""
    if not self.ndim:
        return reshape(self, shape=(1,))
    first, last = normal_axis(start_dim, self.ndim, "flatten"), normal_axis(end_dim, self.ndim, "flatten")
    if first > last:
        raise ArgumentError(f"flatten: expected start_dim at or before end_dim, got {start_dim} and {end_dim}")
    merged = math.prod(self.shape[first : last + 1])
    return reshape(self, shape=(*self.shape[:first], merged, *self.shape[last + 1 :]))


def _expand(self: Tensor, *sizes: Any) -> Tensor:
    """Broadcast to these sizes, -1 meaning the size that is there. Shapes: x (3, 1), sizes (2, -1, 4) -> y (2, 3, 4)."""
    shape = tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    there = (-1,) * (len(shape) - self.ndim) + self.shape
    return broadcast_to(self, shape=tuple(old if n == -1 else n for n, old in zip(shape, there)))


def _astype(self: Tensor, dtype: Any, *, copy: bool = True) -> Tensor:
    """In another dtype; itself where nothing changes and `copy` is False. Differentiable."""
    return self if not copy and self.dtype == np.dtype(dtype) else astype(self, dtype)


for _name, _method in {"flatten": _flatten, "expand": _expand, "astype": _astype}.items():
    setattr(Tensor, _name, _method)
Tensor.T = property(lambda self: transpose(self), doc="All axes reversed.")  # type: ignore[attr-defined]
Tensor.mT = property(lambda self: swapaxes(self, -1, -2), doc="The last two axes exchanged.")  # type: ignore[attr-defined]
