"""Devices and backends: which array type lives where, under which namespace, and what was found on this machine.

A *device* is a place (`cpu`, `cuda:0`). A *backend* is the table behind a place: an array type and the namespace `xp`
that rules are written against. Nothing else in gpuprop asks whether an array is NumPy's or CuPy's: it looks the array's
type up in `BACKENDS`. CuPy is imported here and under `cuda/`, nowhere else, and not before it is needed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import threading
import types
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._trace import primitive
from .errors import BoundsError, DeviceError, Error

OLDEST_COMPUTE_CAPABILITY = (7, 5)


@dataclass(frozen=True)
class Device:
    """A place that holds arrays: `Device("cpu")` or `Device("cuda", 0)`. Equal to its name, so `t.device == "cpu"` works."""

    type: str
    index: int = 0

    def __str__(self) -> str:
        return self.type if self.type == "cpu" else f"{self.type}:{self.index}"

    def __repr__(self) -> str:
        return f"device('{self}')"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            return str(self) == other or (self.index == 0 and self.type == other)
        return isinstance(other, Device) and (self.type, self.index) == (other.type, other.index)

    def __hash__(self) -> int:
        return hash((self.type, self.index))


# Always the same object for a place: dictionaries then find it without calling `__eq__`.
the_device = functools.cache(Device)


class Namespace(types.ModuleType):
    """An array namespace for rules: another module's functions plus those that it lacks, found once and then cached."""

    def __init__(self, name: str, module: types.ModuleType, extras: dict[str, str]):
        super().__init__(name)
        self._module, self._extras = module, extras

    def __getattr__(self, name: str) -> Any:  # only for names not found yet: later uses cost a plain attribute
        extras = self.__dict__["_extras"]
        if name in extras:
            module, _, function = extras[name].rpartition(":")
            value = getattr(importlib.import_module(module), function)
        else:
            value = getattr(self.__dict__["_module"], name)
        setattr(self, name, value)
        return value


_NO_SCOPE = contextlib.nullcontext()


class Backend:
    """An array type, its namespace, and how its arrays come, go and are waited for. This class is the one for NumPy."""

    name = "cpu"
    array_type: type = np.ndarray
    uses_implementations = True  # False: generic rules alone
    leaves_biases = False  # a linear map leaves its bias to the loss after it, if there is one

    def __init__(self) -> None:
        xp: Any = Namespace(
            "gpuprop.host",
            np,
            {
                "erf": "scipy.special:erf",
                "ndtr": "scipy.special:ndtr",
                "getitem": "operator:getitem",
                "where": "gpuprop._select:where",
                "array": "gpuprop._trace:array",
                "asarray": "gpuprop._trace:asarray",
                "index_add": "gpuprop.device:host_index_add",
                "blend": "gpuprop.device:host_blend",
                "philox": "gpuprop._philox:host_words",
                "norm_all": "gpuprop._norm:host_norm_all",
                "clip_all": "gpuprop._norm:host_clip_all",
            },
        )
        xp.report_if = primitive(self.report_if)
        self.xp = xp

    def device_of(self, array: Any) -> Device:
        return CPU

    def asarray(self, host: np.ndarray, device: Device) -> Any:
        """The host array on `device`; no copy where none is needed."""
        return host

    def to_host(self, array: Any) -> np.ndarray:
        """The array on the host; waits for it where it is computed asynchronously, and raises what a kernel reported."""
        return array

    def move(self, array: Any, device: Device) -> Any:
        """The array on another device of this backend."""
        return array

    def scope(self, device: Device) -> contextlib.AbstractContextManager:
        """Makes `device` current, so that new arrays are created there."""
        return _NO_SCOPE

    def synchronize(self) -> None:
        """Waits for the work that was submitted."""

    def report_if(self, bad: Any, message: str, error: type[Error] = BoundsError) -> None:
        """Raises the error where a value of the bool array is true: here at once, on a GPU at the host's next read."""
        if bad.any():
            raise error(message)


@primitive
def host_index_add(shape: tuple[int, ...], index: tuple, values: np.ndarray) -> np.ndarray:
    """Zeros of `shape` with `values` added at `index`; repeated positions add up, in order."""
    result = np.zeros(shape, values.dtype)
    if any(isinstance(i, np.ndarray) and i.dtype != np.bool_ for i in index):
        np.add.at(result, index, values)
    else:  # slices, integers and masks name each element at most once
        result[index] += values
    return result


def host_blend(x: np.ndarray, a: float, y: np.ndarray, b: float) -> None:
    """x = a x + b y, in place: running averages."""
    x *= a
    x += b * y


CPU = the_device("cpu", 0)
HOST = Backend()


class _Backends(dict):
    """Backends by array type. The first CuPy array that is seen loads CuPy's."""

    def __missing__(self, array_type: type) -> Backend:
        for base in array_type.__mro__:
            if base in self.keys():
                self[array_type] = self[base]
                return self[base]
        if array_type.__module__.partition(".")[0] == "cupy":
            return _cuda_backend()
        raise TypeError(f"{array_type.__module__}.{array_type.__qualname__} is not an array type that gpuprop knows")


BACKENDS: dict[type, Backend] = _Backends({np.ndarray: HOST})
_by_name: dict[str, Backend] = {"cpu": HOST}


def register_backend(backend: Backend) -> None:
    """Adds an array type, as the tests do with one that refuses what a GPU refuses."""
    BACKENDS[backend.array_type] = backend
    _by_name[backend.name] = backend


def is_array(value: Any) -> bool:
    """Whether the value is an array of a backend that is in use."""
    return (
        type(value) in BACKENDS or isinstance(value, np.ndarray) or type(value).__module__.partition(".")[0] == "cupy"
    )


def backend_of(array: Any) -> Backend:
    """The backend of an array."""
    return BACKENDS[type(array)]


def device_of(array: Any) -> Device:
    """The device that holds an array."""
    backend = BACKENDS[type(array)]
    return backend.device_of(array)


def backend_for(device: Device) -> Backend:
    """The backend of a device; for CUDA this loads CuPy, and raises `DeviceError` saying why where that cannot be."""
    if device.type == "cuda" and "cuda" not in _by_name:
        return _cuda_backend()
    return _by_name[device.type]


# --- What this machine has ------------------------------------------------------------------------------------------


_probe_lock = threading.Lock()
_probe: tuple[list[dict[str, Any]], str] | None = None


def _probe_cuda() -> tuple[list[dict[str, Any]], str]:
    """The usable CUDA devices, and the reason why there is none (or "")."""
    global _probe
    with _probe_lock:
        if _probe is None:
            _probe = _find_cuda()
        return _probe


def _find_cuda() -> tuple[list[dict[str, Any]], str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CuPy warns of what we report
            import cupy
    except ImportError as error:
        if getattr(error, "name", None) == "cupy":
            return [], "cupy is not installed (it comes with gpuprop's extras cuda13 and cuda12)"
        return [], f"cupy cannot be imported: {str(error).strip().splitlines()[0]}"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CuPy raises several kinds: no driver, no device, a driver that is too old
        return [], f"no CUDA device: {error}"
    found: list[dict[str, Any]] = []
    too_old: list[dict[str, Any]] = []
    for index in range(count):
        properties = cupy.cuda.runtime.getDeviceProperties(index)
        name = properties["name"].decode() if isinstance(properties["name"], bytes) else str(properties["name"])
        capability = (int(properties["major"]), int(properties["minor"]))
        row = {"index": index, "name": name, "capability": capability, "memory": int(properties["totalGlobalMem"])}
        (found if capability >= OLDEST_COMPUTE_CAPABILITY else too_old).append(row)
    if not found:
        rows = ", ".join(
            f"{r['name']} has compute capability {r['capability'][0]}.{r['capability'][1]}" for r in too_old
        )
        return [], f"{rows or 'no CUDA device'}; 7.5 or newer is needed"
    return found, ""


def is_available() -> bool:
    """Whether a CUDA device can be used: CuPy is installed, a driver answers, and the GPU is new enough."""
    return bool(_probe_cuda()[0])


def device_report() -> dict[str, Any]:
    """What was found on this machine and why the default device is what it is.

    Returns a dict: `default` (a Device), `reason` (why that one), `cuda` (a list of dicts: index, name, capability, memory in
    bytes), `cuda_reason` (why there is none, or ""), `cublaslt` (the version of the library that multiplies matrices on a GPU and can
    be captured, or None: then CuPy multiplies), `cublaslt_reason` (why there is none, or ""), `numpy` and `cupy` (versions, or None).
    """
    devices, reason = _probe_cuda()
    cublaslt, cublaslt_reason = None, reason
    if devices:
        from .cuda.gemm import report

        cublaslt, cublaslt_reason = report()
    default, why = _choose_default()
    cupy_version = None
    with contextlib.suppress(ImportError):
        from importlib.metadata import PackageNotFoundError, version

        for name in ("cupy-cuda13x", "cupy-cuda12x", "cupy"):
            with contextlib.suppress(PackageNotFoundError):
                cupy_version = version(name)
                break
    return {
        "default": default,
        "reason": why,
        "cuda": devices,
        "cuda_reason": reason,
        "cublaslt": cublaslt,
        "cublaslt_reason": cublaslt_reason,
        "numpy": np.__version__,
        "cupy": cupy_version,
    }


# --- The default device ---------------------------------------------------------------------------------------------


_default: Device | None = None
_default_reason = ""
_here = threading.local()  # a device that a scope makes current in this thread


def names_device(value: Any) -> bool:
    """Whether the value is a device or the name of one, rather than of a dtype, say."""
    return isinstance(value, Device) or (
        isinstance(value, str) and value.partition(":")[0] in ("cpu", "cuda", *_by_name)
    )


def as_device(device: Device | str) -> Device:
    """A `Device` from its name: "cpu", "cuda", "cuda:1". Raises `DeviceError` for a name that is none."""
    if isinstance(device, Device):
        if device.type in ("cpu", "cuda", *_by_name):
            return the_device(device.type, device.index if device.type != "cpu" else 0)
        device = str(device)
    if isinstance(device, str):
        kind, colon, index = device.partition(":")
        if kind in ("cpu", "cuda", *_by_name) and (not colon or (index.isascii() and index.isdigit())):
            return the_device(kind, int(index or 0) if kind != "cpu" else 0)
    raise DeviceError(f"device: expected 'cpu', 'cuda' or 'cuda:<index>', got {device!r}")


def require(device: Device | str) -> Device:
    """The device, if this machine has it. Who asks for CUDA never gets a CPU instead."""
    device = as_device(device)
    if device.type == "cuda":
        devices, reason = _probe_cuda()
        if not devices:
            raise DeviceError(
                f"device: '{device}' was asked for and cannot be had: {reason}; use 'cpu' to run without a GPU"
            )
        if device.index not in [row["index"] for row in devices]:
            raise DeviceError(
                f"device: '{device}' was asked for, found {', '.join(str(Device('cuda', row['index'])) for row in devices)}"
            )
    return device


def _choose_default() -> tuple[Device, str]:
    global _default, _default_reason
    if _default is None:
        asked = os.environ.get("GPUPROP_DEVICE", "").strip()
        if asked:
            _default, _default_reason = require(asked), f"GPUPROP_DEVICE={asked}"
        else:
            devices, reason = _probe_cuda()
            if devices:
                _default, _default_reason = the_device("cuda", devices[0]["index"]), f"{devices[0]['name']} was found"
            else:
                _default, _default_reason = CPU, reason
                if not reason.startswith("cupy is not installed"):  # someone wanted a GPU here: say why there is none
                    warnings.warn(f"gpuprop runs on the CPU: {reason}", stacklevel=4)
    return _default, _default_reason


def default_device() -> Device:
    """Where new tensors go: CUDA where it can be used, else the CPU; `GPUPROP_DEVICE=cpu|cuda|cuda:1` decides otherwise.

    Raises: DeviceError where the environment asks for a device that this machine does not have.
    """
    return getattr(_here, "device", None) or _choose_default()[0]


def set_default_device(device: Device | str) -> None:
    """Sets where new tensors go, for the whole process. Raises: DeviceError where this machine does not have it."""
    global _default, _default_reason
    _default, _default_reason = require(device), "set_default_device"


@contextlib.contextmanager
def device_scope(device: Device):
    """New arrays of this thread go to `device` while the scope lasts."""
    before = getattr(_here, "device", None)
    _here.device = device
    try:
        with backend_for(device).scope(device):
            yield device
    finally:
        _here.device = before


def synchronize() -> None:
    """Waits until every device has done what was submitted to it."""
    for backend in set(_by_name.values()):
        backend.synchronize()


def copy_to(array: Any, device: Device | str) -> Any:
    """The array on `device`: itself where it is there already, else a copy."""
    device = require(device)
    source, target = backend_of(array), backend_for(device)
    if source.device_of(array) == device:
        return array
    if source is target:
        return source.move(array, device)
    return target.asarray(source.to_host(array), device)


# --- CuPy -----------------------------------------------------------------------------------------------------------


def _cuda_backend() -> Backend:
    require("cuda")
    if "cuda" not in _by_name:
        from .cuda.backend import CudaBackend

        register_backend(CudaBackend())
    return _by_name["cuda"]
