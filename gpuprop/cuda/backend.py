"""CuPy as a backend: the array type, its namespace, copies, and checks that report without stopping the GPU."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any

import cupy
import numpy as np

from ..device import BACKENDS, Backend, Device, Namespace, device_of, the_device
from ..errors import BoundsError, Error, OptionError
from ..tape import aside, keep, tape


def _report_outside(name: str, places: Any, n: int) -> None:
    """CuPy wraps indices that are out of range; here they raise at the host's next read."""
    if isinstance(places, cupy.ndarray) and places.dtype.kind in "iu":
        BACKENDS[cupy.ndarray].report_if((places < -n) | (places >= n), _outside(name, n))


def flag_outside(name: str, n: int) -> Any:
    """The same for a kernel to report: a number on the device that it sets to 1."""
    return BACKENDS[cupy.ndarray].flag(_outside(name, n))  # type: ignore[attr-defined]


def _outside(name: str, n: int) -> str:
    return f"{name}: expected indices from {-n} to {n - 1}, got one outside"


def report_outside_shape(name: str, shape: tuple[int, ...], index: tuple) -> None:
    """The same for each array of an index."""

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
    report_outside_shape("getitem", x.shape, index)
    return x[index]


def take(x: Any, indices: Any, axis: int | None = None) -> Any:
    """Slices of x at these places of an axis."""
    _report_outside("take", indices, x.size if axis is None else x.shape[axis])
    return cupy.take(x, indices, axis=axis)


def take_along_axis(x: Any, indices: Any, axis: int | None = -1) -> Any:
    """y[..., i, ...] = x[..., indices[..., i, ...], ...]."""
    _report_outside("take_along_axis", indices, x.size if axis is None else x.shape[axis])
    return cupy.take_along_axis(x, indices, axis=axis)


def repeat(x: Any, repeats: int | tuple[int, ...], axis: int | None = None) -> Any:
    """Elements, or slices along an axis, so many times each."""
    if isinstance(repeats, int):
        return cupy.repeat(x, repeats, axis)
    places = np.repeat(np.arange(x.size if axis is None else x.shape[axis]), repeats)
    return cupy.take(x, BACKENDS[cupy.ndarray].asarray(places, device_of(x)), axis=axis)


# What the namespace has beyond CuPy's, and the module whose kernels do it; `generic` has each of them too.
NATIVE = {
    "index_add": "indexing",
    "blend": "columns",
    "norm_all": "segments",
    "clip_all": "segments",
    "philox": "random",
}


def _kernels_are_on() -> bool:
    asked = os.environ.get("GPUPROP_KERNELS", "").strip() or "on"
    if asked not in ("on", "off"):
        raise OptionError(f"GPUPROP_KERNELS: expected 'on' or 'off', got {asked!r}")
    return asked == "on"


class CudaBackend(Backend):
    """CuPy arrays. Asynchronous: only `to_host` and `synchronize` wait."""

    name = "cuda"
    array_type = cupy.ndarray

    def __init__(self) -> None:
        self.uses_implementations = self.leaves_biases = _kernels_are_on()
        self.xp = Namespace(
            "gpuprop.cuda.namespace",
            cupy,
            {
                "erf": "cupyx.scipy.special:erf",
                "ndtr": "cupyx.scipy.special:ndtr",
                "getitem": "gpuprop.cuda.backend:getitem",
                "take": "gpuprop.cuda.backend:take",
                "take_along_axis": "gpuprop.cuda.backend:take_along_axis",
                "repeat": "gpuprop.cuda.backend:repeat",
                "matmul": "gpuprop.cuda.gemm:product",
                **{name: f"gpuprop.cuda.products:{name}" for name in ("dot", "inner", "vdot", "tensordot", "einsum")},
                **{
                    name: f"gpuprop.cuda.{kernels if self.uses_implementations else 'generic'}:{name}"
                    for name, kernels in NATIVE.items()
                },
            },
        )
        self.xp.report_if = self.report_if
        self._flags: dict[tuple[str, int], Any] = {}  # (message, device) -> 1 there where it is so, else 0
        self._unread: dict[tuple[str, int], type[Error]] = {}  # what to raise
        self._lock = threading.Lock()

    def device_of(self, array: Any) -> Device:
        return the_device("cuda", array.device.id)

    def asarray(self, host: np.ndarray, device: Device) -> Any:
        with cupy.cuda.Device(device.index), aside():
            return keep(cupy.asarray(host))

    def to_host(self, array: Any) -> np.ndarray:
        if tape.recorder is not None:
            tape.recorder.refuse("a copy from the GPU to the host", "return the tensor and copy it after the call")
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
        flag = self.flag(message, error)
        cupy.logical_or(flag, bad.any(), out=flag)

    def flag(self, message: str, error: type[Error] = BoundsError) -> Any:
        """An int32 on the current device: a kernel that sets it to 1 has the host's next read raise the error."""
        with self._lock:
            key = message, cupy.cuda.runtime.getDevice()
            if key not in self._flags:
                with aside():
                    self._flags[key] = cupy.zeros((), np.int32)

        def expect() -> None:
            with self._lock:
                self._unread[key] = error

        if tape.recorder is None:
            expect()
        else:
            tape.recorder.acts("flag", expect)
        return self._flags[key]

    def _raise_what_kernels_reported(self) -> None:
        """Looks at the flags that were written since the last look; the host is waiting for a value anyway."""
        if not self._unread:
            return
        with self._lock:
            unread, self._unread = self._unread, {}
            wrong = [key for key in sorted(unread) if bool(self._flags[key])]
            for key in wrong:
                self._flags[key].fill(0)
        if wrong:
            raise unread[wrong[0]](wrong[0][0])
