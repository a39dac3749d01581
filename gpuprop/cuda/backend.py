"""CuPy as a backend: the array type, its namespace, copies, and checks that report without stopping the GPU."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import cupy
import numpy as np

from ..device import BACKENDS, Backend, Device, Namespace
from ..errors import BoundsError, Error


def _report_outside(name: str, places: Any, n: int) -> None:
    """CuPy wraps indices that are out of range; here they raise at the host's next read."""
    if isinstance(places, cupy.ndarray) and places.dtype.kind in "iu":
        message = f"{name}: expected indices from {-n} to {n - 1}, got one outside"
        BACKENDS[cupy.ndarray].report_if((places < -n) | (places >= n), message)


def _report_outside_shape(name: str, shape: tuple[int, ...], index: tuple) -> None:
    def width(item: Any) -> int:
        return 0 if item is None or item is Ellipsis else item.ndim if getattr(item, "dtype", None) == np.bool_ else 1

    axis = 0
    for item in index:
        if item is Ellipsis:
            axis = len(shape) - sum(map(width, index)) + axis
        elif axis < len(shape):  # else CuPy says that there are too many
            _report_outside(name, item, shape[axis])
        axis += width(item)


def getitem(x: Any, index: tuple) -> Any:
    """x[index]."""
    _report_outside_shape("getitem", x.shape, index)
    return x[index]


def take(x: Any, indices: Any, axis: int | None = None) -> Any:
    """Slices of x at these places of an axis."""
    _report_outside("take", indices, x.size if axis is None else x.shape[axis])
    return cupy.take(x, indices, axis=axis)


def take_along_axis(x: Any, indices: Any, axis: int | None = -1) -> Any:
    """y[..., i, ...] = x[..., indices[..., i, ...], ...]."""
    _report_outside("take_along_axis", indices, x.size if axis is None else x.shape[axis])
    return cupy.take_along_axis(x, indices, axis=axis)


def index_add(shape: tuple[int, ...], index: tuple, values: Any) -> Any:
    """Zeros of `shape` with `values` added at `index`; repeated positions add up."""
    _report_outside_shape("index_add", shape, index)
    result = cupy.zeros(shape, values.dtype)
    cupy.add.at(result, index, values)
    return result


class CudaBackend(Backend):
    """CuPy arrays. Asynchronous: only `to_host` and `synchronize` wait."""

    name = "cuda"
    array_type = cupy.ndarray

    def __init__(self) -> None:
        self.xp = Namespace(
            "gpuprop.cuda.namespace",
            cupy,
            {
                "erf": "cupyx.scipy.special:erf",
                "ndtr": "cupyx.scipy.special:ndtr",
                "getitem": "gpuprop.cuda.backend:getitem",
                "index_add": "gpuprop.cuda.backend:index_add",
                "take": "gpuprop.cuda.backend:take",
                "take_along_axis": "gpuprop.cuda.backend:take_along_axis",
                "philox": "gpuprop.cuda.random:words",
            },
        )
        self.xp.report_if = self.report_if
        self._flags: dict[str, Any] = {}  # message -> a bool on the device
        self._unread: dict[str, type[Error]] = {}  # message -> what to raise
        self._lock = threading.Lock()

    def device_of(self, array: Any) -> Device:
        return Device("cuda", array.device.id)

    def asarray(self, host: np.ndarray, device: Device) -> Any:
        with cupy.cuda.Device(device.index):
            return cupy.asarray(host)

    def to_host(self, array: Any) -> np.ndarray:
        host = cupy.asnumpy(array)
        self._raise_what_kernels_reported()
        return host

    def move(self, array: Any, device: Device) -> Any:
        with cupy.cuda.Device(device.index):
            return cupy.array(array)

    def scope(self, device: Device) -> contextlib.AbstractContextManager:
        return cupy.cuda.Device(device.index)

    def synchronize(self) -> None:
        cupy.cuda.runtime.deviceSynchronize()

    def report_if(self, bad: Any, message: str, error: type[Error] = BoundsError) -> None:
        with self._lock:
            flag = self._flags.get(message)
            if flag is None:
                flag = self._flags[message] = cupy.zeros((), bool)
            cupy.logical_or(flag, bad.any(), out=flag)
            self._unread[message] = error

    def _raise_what_kernels_reported(self) -> None:
        """Looks at the flags that were written since the last look; the host is waiting for a value anyway."""
        if not self._unread:
            return
        with self._lock:
            unread, self._unread = self._unread, {}
            wrong = [message for message in sorted(unread) if bool(self._flags[message])]
            for message in wrong:
                self._flags[message].fill(False)
        if wrong:
            raise unread[wrong[0]](wrong[0])
