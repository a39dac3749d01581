"""A backend for machines without a GPU: NumPy arrays in a shell that refuses what a GPU refuses.

What would wait for the device (`float(a)`, `bool(a)`, `a.item()`, iteration), copy to it or from it (`__array__`,
`asarray`), or mix memories (a host array as an operand) raises `GuardError`. No op has an implementation for it, so it
runs the generic rules: tests take its results as the specification.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from gpuprop.device import HOST, Backend, Device, Namespace, register_backend
from gpuprop.errors import BoundsError


class GuardError(AssertionError):
    """Something was asked for that would stop a GPU, or that it cannot do."""


def inside(value: Any) -> Any:
    """An argument with its shells taken off; host arrays are refused, but for scalars, which CuPy takes as well."""
    if isinstance(value, GuardArray):
        return value._host
    if isinstance(value, np.ndarray) and value.ndim:
        raise GuardError(f"a host array of shape {value.shape} was mixed with arrays on a device")
    if isinstance(value, (list, tuple)):
        return type(value)(inside(v) for v in value)
    return value


def shell(value: Any) -> Any:
    """A result with its shells put on."""
    if isinstance(value, (np.ndarray, np.generic)):
        return GuardArray(np.asarray(value))
    if isinstance(value, (list, tuple)):
        return type(value)(shell(v) for v in value)
    return value


def guarded(function: Any) -> Any:
    """A function of NumPy as one of guarded arrays."""

    def call(*args: Any, **options: Any) -> Any:
        result = function(*map(inside, args), **{name: inside(v) for name, v in options.items()})
        return options["out"] if options.get("out") is not None else shell(result)

    return call


def refused(name: str) -> Any:
    def refuse(*_: Any, **__: Any) -> Any:
        raise GuardError(f"{name} would wait for the device, or copy between host and device")

    return refuse


def on_the_device(function: Any) -> Any:
    """`array` or `asarray`, which copy from the host what is not on the device yet."""

    def make(value: Any, *args: Any, **options: Any) -> Any:
        return (guarded(function) if isinstance(value, GuardArray) else refused(function.__name__))(
            value, *args, **options
        )

    return make


class GuardArray:
    """A NumPy array that can only be read by its backend."""

    __array_ufunc__ = None  # NumPy's operators and functions are to ask this class

    def __init__(self, host: np.ndarray):
        self._host = host

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._host, name)
        return guarded(value) if callable(value) else value

    @property
    def T(self) -> GuardArray:
        return GuardArray(self._host.T)

    def __len__(self) -> int:
        return len(self._host)

    def __getitem__(self, index: Any) -> GuardArray:
        return shell(self._host[inside(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self._host[inside(index)] = inside(value)


def two(function: Any) -> Any:
    return lambda a, b: shell(function(inside(a), inside(b)))


def reflected(function: Any) -> Any:
    return lambda a, b: shell(function(inside(b), inside(a)))


def in_place(function: Any) -> Any:
    def change(a: GuardArray, b: Any) -> GuardArray:
        function(a._host[...], inside(b))
        return a

    return change


for _name in (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
    "matmul",
):
    _function = getattr(operator, f"__{_name}__")
    setattr(GuardArray, f"__{_name}__", two(_function))
    setattr(GuardArray, f"__r{_name}__", reflected(_function))
    setattr(GuardArray, f"__i{_name}__", in_place(getattr(operator, f"__i{_name}__")))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(GuardArray, f"__{_name}__", two(getattr(operator, f"__{_name}__")))
for _name in ("neg", "pos", "abs", "invert"):
    setattr(GuardArray, f"__{_name}__", guarded(getattr(operator, f"__{_name}__")))
for _name in ("float", "int", "bool", "index", "iter", "contains", "array", "array_function", "dlpack"):
    setattr(GuardArray, f"__{_name}__", refused(f"__{_name}__"))
for _name in ("item", "tolist", "tobytes", "nonzero"):
    setattr(GuardArray, _name, refused(_name))


class GuardNamespace(Namespace):
    """NumPy's functions and gpuprop's extras, on guarded arrays."""

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        if callable(value) and not isinstance(value, type):
            value = guarded(value)
            setattr(self, name, value)
        return value


class GuardBackend(Backend):
    """Guarded arrays, on the one device `guard`. Like a GPU, it copies what comes and goes, and reports late."""

    name = "guard"
    array_type = GuardArray

    def __init__(self) -> None:
        self.xp = GuardNamespace("guard", HOST.xp, {})
        self.xp.array, self.xp.asarray = on_the_device(np.array), on_the_device(np.asarray)
        for name in ("nonzero", "argwhere", "flatnonzero", "unique"):  # their shapes depend on values
            setattr(self.xp, name, refused(name))
        self.xp.report_if = self.report_if
        self._reports: list[tuple[GuardArray, str, type[Exception]]] = []

    def device_of(self, array: Any) -> Device:
        return Device("guard")

    def asarray(self, host: np.ndarray, device: Device) -> GuardArray:
        return GuardArray(host.copy())

    def to_host(self, array: GuardArray) -> np.ndarray:
        reports, self._reports = self._reports, []
        for bad, message, error in reports:
            if bad._host.any():
                raise error(message)
        return array._host.copy()

    def report_if(self, bad: Any, message: str, error: type[Exception] = BoundsError) -> None:
        self._reports.append((bad, message, error))


register_backend(GuardBackend())
