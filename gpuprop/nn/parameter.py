"""Parameters and the flat memory that they live in.

Parameters of one device and dtype lie side by side in *chunks*, their gradients in a second buffer at the same places. An
optimizer that finds neighbours updates them as one array: a call costs the same for one bias as for a whole small network.
Nothing is ever moved: a parameter keeps its place until it goes to another device or dtype, and a chunk lives as long as a
parameter refers to it.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterable, Iterator
from math import prod
from typing import Any

import numpy as np

from .._tensor import Leaf, Tensor, as_data
from ..device import Device, backend_for, copy_to, device_of, device_scope, require
from ..tape import aside

ALIGNMENT = 128  # bytes: full cache lines for the vector units of a CPU, the fast path of cuBLASLt on a GPU
SMALL = 256 * 1024  # bytes of the chunks that small parameters share
OWN_CHUNK = (
    SMALL // 8
)  # bytes from which a parameter that fits nowhere gets a chunk of its own: wastes at most this much


def flat_zeros(count: int, dtype: Any, device: Device) -> Any:
    """A flat array of zeros on a device, its first element aligned."""
    dtype = np.dtype(dtype)
    with device_scope(device), aside():
        xp = backend_for(device).xp
        spare = ALIGNMENT // dtype.itemsize
        memory = xp.zeros(count + spare, dtype)
    if type(memory) is not np.ndarray:  # CuPy's pool aligns to 512 bytes
        return memory[:count]
    skip = (
        -memory.ctypes.data % ALIGNMENT // dtype.itemsize
    )  # misaligned, an Adam step of 9,000 elements takes 15 % longer
    return memory[skip : skip + count]


def padded(count: int, dtype: Any) -> int:
    """A number of elements rounded up to full alignment."""
    step = ALIGNMENT // np.dtype(dtype).itemsize
    return -(-count // step) * step


class Chunk:
    """Flat memory for parameters that lie side by side, and for their gradients. What is between them is zero and stays zero."""

    __slots__ = ("__weakref__", "_gradient", "data", "device", "used")

    _making = threading.Lock()

    def __init__(self, count: int, dtype: Any, device: Device):
        self.data = flat_zeros(count, dtype, device)
        self.device = device
        self.used = 0
        self._gradient: Any = None

    @property
    def gradient(self) -> Any:
        """The flat gradients; made when the first one arrives."""
        if self._gradient is None:
            with self._making:  # two threads may train models that share a chunk
                if self._gradient is None:
                    self._gradient = flat_zeros(self.data.size, self.data.dtype, self.device)
        return self._gradient

    def has_room(self, count: int) -> bool:
        return self.used + count <= self.data.size

    def take(self, shape: tuple[int, ...]) -> Segment:
        """The next part of the chunk, for an array of this shape."""
        start = self.used
        self.used += padded(prod(shape), self.data.dtype)
        return Segment(self, start, self.used, shape)


class Segment:
    """The place of one parameter: elements `start` to `stop` of a chunk, padding included."""

    __slots__ = ("_gradient", "array", "chunk", "shape", "start", "stop")

    def __init__(self, chunk: Chunk, start: int, stop: int, shape: tuple[int, ...]):
        self.chunk, self.start, self.stop, self.shape = chunk, start, stop, shape
        self.array = self.view(chunk.data, start)
        self._gradient: Any = None

    def view(self, flat: Any, start: int) -> Any:
        """The part of a flat array from `start` that this segment's parameter covers, in its shape."""
        return flat[start : start + prod(self.shape)].reshape(self.shape)

    def gradient(self) -> Any:
        """Where the gradient lives: always the same array."""
        if self._gradient is None:
            self._gradient = self.view(self.chunk.gradient, self.start)
        return self._gradient

    def holds(self, array: Any) -> bool:
        """Whether an array is the one where the gradient lives."""
        return array is self._gradient

    def follows(self, other: Segment) -> bool:
        """Whether it begins where the other one ends."""
        return self.chunk is other.chunk and self.start == other.stop


class _Open(threading.local):
    """The chunks that this thread fills. Weak: a model that is dropped takes its chunks with it."""

    def __init__(self) -> None:
        self.chunks: dict[tuple[Device, Any], weakref.ref[Chunk]] = {}


_open = _Open()


def allocate(shape: tuple[int, ...], dtype: Any, device: Device) -> Segment:
    """Memory for a parameter, beside the one that this thread made before it if there is room."""
    key = device, np.dtype(dtype)
    count = padded(prod(shape), dtype)
    reference = _open.chunks.get(key)
    chunk = reference() if reference is not None else None
    if chunk is None or not chunk.has_room(count):
        size = count * key[1].itemsize
        if size > OWN_CHUNK:
            return Chunk(count, dtype, device).take(shape)
        chunk = Chunk(SMALL // key[1].itemsize, dtype, device)
        _open.chunks[key] = weakref.ref(chunk)
    return chunk.take(shape)


@contextlib.contextmanager
def one_chunk(shapes: Iterable[tuple[int, ...]], dtype: Any, device: Device) -> Iterator[None]:
    """Parameters of these shapes that are made in this context lie in one chunk of just that size."""
    key = device, np.dtype(dtype)
    chunk = Chunk(sum(padded(prod(shape), dtype) for shape in shapes), dtype, device)
    before = _open.chunks.get(key)
    _open.chunks[key] = weakref.ref(chunk)
    try:
        yield
    finally:
        if before is None:
            del _open.chunks[key]
        else:
            _open.chunks[key] = before


class Parameter(Tensor):
    """A tensor that a model learns. `Parameter(data)` copies the data to flat memory beside the parameter made before it.

    `p.grad` lives in flat memory too: the first walk after `zero_grad()` overwrites it, so clone a gradient that is to be kept.
    Assigning `p.data` makes the parameter use that array instead, wherever it lies.
    Raises: DtypeError for a gradient of anything but a floating dtype.
    """

    segment: Segment

    def __init__(self, data: Any, requires_grad: bool = True):
        device = data.device if isinstance(data, Tensor) else None
        self._restore(as_data(data, device=device), requires_grad)

    def _restore(self, data: Any, requires_grad: bool) -> None:
        self.settle(data, device_of(data), data.dtype)
        self.requires_grad_(requires_grad)

    def settle(self, data: Any, device: Device, dtype: Any) -> None:
        """Takes new memory and fills it with the data."""
        segment = allocate(tuple(data.shape), dtype, device)
        with device_scope(device):
            segment.array[...] = copy_to(data, device)
        self.segment = segment
        if self._leaf is None:
            self._leaf = Leaf(segment.array)
        self.data = segment.array

    def _set_data(self, array: Any) -> None:
        Tensor.data.fset(self, array)  # type: ignore[attr-defined]
        if self._leaf is not None:
            self._leaf.home = self.segment.gradient if self._data is self.segment.array else None

    data = property(Tensor.data.fget, _set_data, doc=Tensor.data.__doc__)  # type: ignore[attr-defined,assignment]

    @property
    def at_home(self) -> bool:
        """Whether it lies in its segment: nobody has assigned another array to `data`."""
        return self._data is self.segment.array

    def move_(self, device: Any = None, dtype: Any = None) -> Parameter:
        """Moves the parameter and its gradient to another device or dtype; stays the same object, so optimizers keep it."""
        device = self.device if device is None else require(device)
        dtype = self.dtype if dtype is None else np.dtype(dtype)
        if device == self.device and dtype == self.dtype:
            return self
        grad, self.grad = self.grad, None
        self.settle(self._data, device, dtype)
        if grad is not None:
            place = self.segment.gradient()
            with device_scope(device):
                place[...] = copy_to(grad.data, device)
            self.grad = Tensor(place)
        return self

    def __repr__(self) -> str:
        return f"Parameter containing:\n{super().__repr__()}"
