"""Tensor: an array, its place on the tape, and its version. Operators and most methods are installed by the op registry."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from .device import (
    BACKENDS,
    Device,
    backend_for,
    copy_to,
    default_device,
    device_of,
    device_scope,
    is_array,
    names_device,
    require,
)
from .errors import (
    ArgumentError,
    DeviceError,
    DtypeError,
    GraphError,
    MutationError,
    ShapeError,
    explained,
)

if TYPE_CHECKING:
    from ._op import Op

number = count(1)  # dates records and mutations, for all threads

_default_dtype = np.dtype(np.float32)


def set_default_dtype(dtype: Any) -> None:
    """Sets the dtype that Python floats become: float16, float32 (at the start) or float64. Raises: DtypeError."""
    global _default_dtype
    dtype = as_dtype("set_default_dtype", dtype)
    if dtype.kind != "f":
        raise DtypeError(f"set_default_dtype: expected a floating dtype, got {dtype}")
    _default_dtype = dtype


def get_default_dtype() -> np.dtype:
    """The dtype that Python floats become."""
    return _default_dtype


def as_dtype(name: str, dtype: Any) -> np.dtype:
    """The dtype that is named. Raises: DtypeError for what names none, or none of real numbers or booleans."""
    try:
        found = np.dtype(dtype) if dtype is not None else None
    except TypeError:
        found = None
    if found is None or not _holds_numbers(found):
        raise DtypeError(f"{name}: expected a dtype of real numbers or booleans, such as gp.float32, got {dtype!r}")
    return found


def _holds_numbers(dtype: np.dtype) -> bool:
    return dtype.kind in "fiub" or dtype.name == "bfloat16"


class Leaf:
    """Where gradients of a leaf end: its `.grad`, its hooks, and for a parameter the memory that its gradient lives in."""

    __slots__ = ("number", "shape", "dtype", "grad", "hooks", "home", "__weakref__")

    name = "leaf"
    edges = ()

    def __init__(self, data: Any) -> None:
        self.number = next(number)
        self.shape, self.dtype = data.shape, data.dtype
        self.grad: Tensor | None = None
        self.hooks: list[Callable] | None = None
        self.home: Callable[[], Any] | None = None  # returns the array that the gradient is written to

    def place(self) -> Any:
        """The array to write the next contribution to, or None where a new one is to be made."""
        if _tape.tape.recorder is not None:
            _tape.tape.recorder.touches(self, adding=True)
        if self.grad is not None:
            if self.grad._node is not None:
                return None
            array = self.grad._data
        elif self.home is not None:
            array = self.home()
        else:
            return None
        return array if array.shape == self.shape and array.dtype == self.dtype else None

    def written(self, array: Any) -> None:
        """Says that the array that `place` returned now holds the gradient."""
        if self.grad is not None:
            self.grad._changed()
            return
        self.grad = Tensor(array)
        self.grad.version()[0] = next(number)
        if _tape.tape.recorder is not None:
            _tape.tape.recorder.writes(array)

    def receive(self, walk: Any, dy: Any, owned: bool) -> None:
        """The end of a walk: the total goes to `.grad`, unless only the gradients of others were asked for."""
        if walk.goals is None:
            self.accumulate(dy, owned=owned)

    def accumulate(self, gradient: Any, *, owned: bool) -> None:
        """Adds a walk's total: into the gradient that is there, into its home, or as a new array."""
        if isinstance(gradient, Tensor):  # create_graph: the sum is part of the tape
            self.grad = gradient if self.grad is None else self.grad + gradient
            return
        place = self.place()
        if place is None and self.grad is not None:
            self.grad = self.grad + Tensor(gradient)
        elif place is None:
            array = np.asarray(gradient) if isinstance(gradient, np.generic) else gradient
            self.grad = Tensor(array if owned else _tape.compute(_copied, array))
        elif self.grad is not None:
            _tape.compute(operator.iadd, place, gradient)
            self.written(place)
        else:
            _tape.compute(operator.setitem, place, ..., gradient)
            self.written(place)

    def retain(self, gradient: Tensor) -> None:
        """The hook of `Tensor.retain_grad`."""
        self.accumulate(gradient if gradient._node is not None else gradient._data, owned=False)


def _copied(array: Any) -> Any:
    return array.copy()


def _fill(array: Any, value: Any) -> None:
    array.fill(value)


def _cast(array: Any, dtype: Any) -> Any:
    return array.astype(dtype)


class Tensor:
    """An array that knows how it was computed.

    Made by `gp.tensor`, `gp.asarray` and the ops. `data` is the NumPy or CuPy array itself. Where NumPy's and PyTorch's meanings
    of a name differ, NumPy's holds: `size` is a number, `transpose` permutes all axes, `max(axis)` returns values.
    """

    _data: Any
    _node: Any = None  # None: no gradient is wanted; else a Leaf, or what computed it
    _leaf: Leaf | None = None
    _version: list[Any] | None = None
    __array_ufunc__ = None  # `ndarray * tensor` asks the tensor
    __array_priority__ = 1000.0

    def __init__(self, data: Any, node: Any = None):
        if type(data) not in BACKENDS and not is_array(data) and not isinstance(data, np.generic):
            raise ArgumentError(
                f"Tensor: expected an array, got {type(data).__name__}; gp.tensor makes one of anything"
            )
        self._data = data
        if node is not None:
            self._node = node

    def version(self) -> list[Any]:
        """The cell that dates the last change in place of this memory; views share it. After the date, the sums that wait for it."""
        if self._version is None:
            self._version = [0]
        return self._version

    if TYPE_CHECKING:  # what the registry installs, for type checkers

        def __getattr__(self, name: str) -> Any: ...
        def _unary(self) -> Tensor: ...
        def _binary(self, other: Any) -> Tensor: ...
        def __getitem__(self, index: Any) -> Tensor: ...

        __neg__ = __pos__ = __abs__ = __invert__ = _unary
        __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _binary
        __pow__ = __rpow__ = __matmul__ = __rmatmul__ = __mod__ = __rmod__ = __floordiv__ = __rfloordiv__ = _binary
        __lt__ = __le__ = __gt__ = __ge__ = __and__ = __or__ = __xor__ = _binary
        __eq__ = __ne__ = _binary  # type: ignore[assignment]

    @property
    def data(self) -> Any:
        """The NumPy or CuPy array itself. Writes to it are not seen by the tape; assigning another array is."""
        if _tape.tape.recorder is not None:
            _tape.tape.recorder.shows_array()
        return self._data

    @data.setter
    def data(self, array: Any) -> None:
        array = array._data if isinstance(array, Tensor) else array
        if not is_array(array):
            raise DtypeError(
                f"data: expected a NumPy or CuPy array, got {type(array).__name__}; use gp.tensor to make a tensor"
            )
        if not self.is_leaf:
            raise MutationError(f"data: expected a leaf, got a result of {self._node.name}; use .detach()")
        if self._node is not None and not _tape.is_floating(array.dtype):
            raise DtypeError(f"data: expected a floating dtype for a leaf that requires a gradient, got {array.dtype}")
        self._before_change()
        self._data = array
        if self._leaf is not None:
            self._leaf.shape, self._leaf.dtype = array.shape, array.dtype
        self.version()[0] = next(number)  # what was kept of it is stale

    # --- what it is ---------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        return self._data.shape

    @property
    def dtype(self) -> Any:
        return self._data.dtype

    @property
    def ndim(self) -> int:
        return self._data.ndim

    @property
    def size(self) -> int:
        """The number of elements, as in NumPy."""
        return self._data.size

    @property
    def itemsize(self) -> int:
        return self._data.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self._data.nbytes

    @property
    def device(self) -> Device:
        return device_of(self._data)

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def is_leaf(self) -> bool:
        """Whether it was made by the user rather than by a recorded op."""
        return self._node is None or type(self._node) is Leaf

    @property
    def grad_fn(self) -> Any:
        """What computed it, or None for a leaf."""
        return None if self.is_leaf else self._node

    def dim(self) -> int:
        return self._data.ndim

    def numel(self) -> int:
        return self._data.size

    def __len__(self) -> int:
        if not self._data.ndim:
            raise DtypeError("len: expected at least one axis, got a 0-d tensor")
        return self._data.shape[0]

    def __iter__(self):
        if not self._data.ndim:
            raise DtypeError("iteration: expected at least one axis, got a 0-d tensor")
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        text = np.array2string(self._peek(), separator=", ", prefix="tensor(", threshold=200, precision=4)
        facts = [f"shape={self.shape}", f"dtype={self.dtype}", f"device='{self.device}'"]
        if not self.is_leaf:
            facts.append(f"op={self._node.name}")
        elif self.requires_grad:
            facts.append("requires_grad=True")
        return f"tensor({text}, {', '.join(facts)})"

    # --- gradients ----------------------------------------------------------------------------------------------

    @property
    def requires_grad(self) -> bool:
        """Whether gradients flow to it: it is a leaf that asks for them, or was computed from one that does."""
        return self._node is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Sets whether this leaf wants a gradient. Raises: DtypeError for anything but a real floating dtype, GraphError for a result."""
        if not self.is_leaf:
            if requires_grad:
                return self
            raise GraphError(f"requires_grad_: expected a leaf, got a result of {self._node.name}; use .detach()")
        if not requires_grad:
            self._node = None
        elif self._node is None:
            if not _tape.is_floating(self._data.dtype):
                raise DtypeError(f"requires_grad: expected a floating dtype, got {self._data.dtype}; use .float()")
            if self._leaf is None:
                self._leaf = Leaf(self._data)
            self._node = self._leaf
        return self

    @property
    def grad(self) -> Tensor | None:
        """The gradient that walks have added up here, or None before the first and after `zero_grad()`."""
        if _tape.tape.recorder is not None and self._leaf is not None:
            _tape.tape.recorder.touches(self._leaf, adding=True)
        return self._leaf.grad if self._leaf is not None else None

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None:
            if not isinstance(value, Tensor):
                raise DtypeError(f"grad: expected a Tensor or None, got {type(value).__name__}")
            if value.shape != self.shape or value.device != self.device:
                raise ShapeError(f"grad: expected {self.shape} on {self.device}, got {value.shape} on {value.device}")
            if not _tape.is_floating(value.dtype):
                raise DtypeError(f"grad: expected a floating dtype, got {value.dtype}; use .float()")
        if self._leaf is None:
            if value is None:
                return
            self._leaf = Leaf(self._data)
        if _tape.tape.recorder is not None:
            _tape.tape.recorder.touches(self._leaf)
        self._leaf.grad = value

    def backward(self, gradient: Any = None, retain_graph: bool = False, create_graph: bool = False) -> None:
        """Adds to every leaf's `.grad` the derivative of `sum(gradient * self)` with respect to it.

        gradient: the cotangent, of this tensor's shape; may be omitted for a single element (then it is 1).
        retain_graph: keep what was kept, to walk again. create_graph: record the gradients, to differentiate them again.
        Raises: GraphError where nothing was recorded, ShapeError where a gradient is needed or does not fit.
        """
        if self._node is None:
            raise GraphError(
                "backward: expected a result that depends on a tensor with requires_grad=True, got one that does not"
            )
        if gradient is None:
            if self._data.size != 1:
                raise ShapeError(
                    f"backward: expected one element, got shape {self.shape}; reduce it (.sum(), .mean()) or pass gradient="
                )
            cotangent: Any = _tape.ONE
        else:
            given = gradient if isinstance(gradient, Tensor) else asarray(gradient, device=self.device)
            if given.shape != self.shape:
                raise ShapeError(f"backward: expected a gradient of shape {self.shape}, got {given.shape}")
            if given.device != self.device:
                raise ShapeError(f"backward: expected a gradient on {self.device}, got {given.device}")
            given = given if given.dtype == self.dtype else given.astype(self.dtype)
            cotangent = given if create_graph else given.data
        _tape.walk([(self, cotangent)], retain_graph=retain_graph, create_graph=create_graph)

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> Callable[[], None]:
        """Calls `hook(gradient)` in each walk, with the total; what it returns replaces the gradient.

        Returns a function that removes the hook (also as its method `remove`).
        """
        if self._node is None:
            raise GraphError("register_hook: expected a tensor that requires a gradient, got one that does not")
        if not callable(hook):
            raise ArgumentError(f"register_hook: expected a function of the gradient, got {type(hook).__name__}")
        node = self._node
        node.hooks = [*(node.hooks or ()), hook]

        def remove() -> None:
            node.hooks = [h for h in node.hooks or () if h is not hook] or None

        remove.remove = remove  # type: ignore[attr-defined]  # PyTorch's handle has a method
        return remove

    def retain_grad(self) -> None:
        """Makes `.grad` hold the gradient of this result too, after a walk."""
        if self._node is None or self.is_leaf:
            return
        leaf = self._leaf = self._leaf or Leaf(self._data)
        if leaf.retain not in (self._node.hooks or ()):
            self.register_hook(leaf.retain)

    _aliases: Callable[[Tensor], None] | None = None  # tells a tensor that it shows part of this one's memory

    def detach(self) -> Tensor:
        """The same memory without the tape."""
        result = Tensor(self._data)
        result._version = self.version()
        if self._aliases is not None:
            self._aliases(result)
        return result

    # --- values on the host -------------------------------------------------------------------------------------

    def _forbid_in_recording(self) -> None:
        if _tape.tape.recorder is not None:
            _tape.tape.recorder.refuse("a read of a value on the host", "return the tensor and read it after the call")

    def _peek(self) -> np.ndarray:
        self._forbid_in_recording()
        return BACKENDS[type(self._data)].to_host(self._data)

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array: the same memory on a CPU, a copy from a GPU."""
        return self._peek()

    def item(self) -> Any:
        """The value of a single element as a Python number."""
        if self._data.size != 1:
            raise ShapeError(f"item: expected one element, got shape {self.shape}")
        return self._peek().item()

    def tolist(self) -> Any:
        return self._peek().tolist()

    def __bool__(self):
        if self._data.size != 1:
            raise ShapeError(f"bool: expected one element, got shape {self.shape}; use .any() or .all()")
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self):
        return int(self.item())

    def __index__(self):
        if self._data.dtype.kind not in "iu" or self._data.ndim:
            raise DtypeError(f"index: expected a 0-d integer tensor, got {self.dtype} {self.shape}")
        return int(self.item())

    def __format__(self, spec: str) -> str:
        if spec and self._data.size == 1:
            return format(self.item(), spec)
        try:
            return format(str(self), spec)
        except ValueError as error:
            raise ShapeError(f"format: expected one element for {spec!r}, got shape {self.shape}") from error

    def __contains__(self, value: Any):
        return bool((self == value).any())

    def _forbid_hidden_exit(self, protocol: str) -> None:
        if self._node is not None:
            raise GraphError(
                f"{protocol}: expected a tensor without gradient, got one that requires it, and the tape would not see what "
                "happens there; use .detach() or .numpy()"
            )

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        self._forbid_hidden_exit("__array__")
        host = self._peek()
        if dtype is not None and host.dtype != dtype:
            return host.astype(dtype)
        return host.copy() if copy else host

    def __dlpack__(self, **options: Any) -> Any:
        self._forbid_hidden_exit("__dlpack__")
        self._forbid_in_recording()
        return self._data.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._data.__dlpack_device__()

    @property
    def __cuda_array_interface__(self) -> Any:
        if not hasattr(type(self._data), "__cuda_array_interface__"):
            raise AttributeError("__cuda_array_interface__: this tensor is not on a GPU")
        self._forbid_hidden_exit("__cuda_array_interface__")
        self._forbid_in_recording()
        return self._data.__cuda_array_interface__

    # --- copies -------------------------------------------------------------------------------------------------

    def to(self, *args: Any, device: Any = None, dtype: Any = None) -> Tensor:
        """On another device or in another dtype; itself where nothing changes. Differentiable.

        Takes what names a device ("cpu", "cuda:0"), a dtype, or another Tensor to be like.
        """
        device, dtype = destination(args, device, dtype)
        result = self
        if device is not None and self.device != device:
            if self._node is None:
                result = Tensor(copy_to(self._data, device))
            else:
                from .ops.shape import to_device

                result = to_device(self, device=str(device), origin=str(self.device))
        if dtype is not None and result.dtype != dtype:
            result = result.astype(dtype)
        return result

    def cpu(self) -> Tensor:
        return self.to("cpu")

    def cuda(self, index: int = 0) -> Tensor:
        return self.to(f"cuda:{index}")

    def float(self) -> Tensor:
        return self.to(dtype=np.float32)

    def double(self) -> Tensor:
        return self.to(dtype=np.float64)

    def half(self) -> Tensor:
        return self.to(dtype=np.float16)

    def long(self) -> Tensor:
        return self.to(dtype=np.int64)

    def int(self) -> Tensor:
        return self.to(dtype=np.int32)

    def bool(self) -> Tensor:
        return self.to(dtype=np.bool_)

    def contiguous(self) -> Tensor:
        """Itself where its memory is in C order, else a copy that is. Differentiable."""
        return self if self._data.flags.c_contiguous else self.clone()

    def __deepcopy__(self, memo: dict) -> Tensor:
        if not self.is_leaf:
            raise GraphError(f"deepcopy: expected a leaf, got a result of {self._node.name}; use .detach() or .clone()")
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied._restore(_tape.compute(_copied, self._data), self.requires_grad)
        if self.grad is not None:
            copied.grad = Tensor(self.grad.data.copy())
        return copied

    def __reduce__(self) -> tuple:
        if not self.is_leaf:
            raise GraphError(f"pickle: expected a leaf, got a result of {self._node.name}; use .detach()")
        grad = self.grad
        state = (self._peek(), str(self.device), self.requires_grad, grad._peek() if grad is not None else None)
        return _rebuild, (type(self), *state)

    def _restore(self, data: Any, requires_grad: Any) -> None:
        """Fills a new, empty object; subclasses say where their memory lives."""
        Tensor.__init__(self, data)
        self.requires_grad_(requires_grad)

    # --- changes in place ---------------------------------------------------------------------------------------

    def _before_change(self) -> None:
        """Has the sums made that were to be made of these values."""
        if self._version is not None and len(self._version) > 1:
            finish_sums(self._version)

    def _check_mutable(self, what: str, *others: Any) -> None:
        self._before_change()
        if not self.is_leaf:
            raise MutationError(
                f"{what}: expected a tensor that was not computed on the tape, got a result of {self._node.name}; use .clone()"
            )
        if _tape.tape.enabled:
            if self._node is not None:
                raise MutationError(
                    f"{what}: expected no change of a leaf that requires a gradient; use it under gp.no_grad()"
                )
            if any(isinstance(o, Tensor) and o._node is not None for o in others):
                raise MutationError(
                    f"{what}: expected a value that is not on the tape, got one that requires a gradient, which would be lost; "
                    "use .detach(), or compute a new tensor"
                )

    def _write(self, what: str, function: Callable, *args: Any, **options: Any) -> Tensor:
        """Calls what changes the array, and dates the change."""
        try:
            if _tape.tape.recorder is None:
                function(*args, **options)
            else:
                _tape.tape.recorder.run(what, function, args, options)
        except Exception as error:
            raise explained(error, what, f"{self.dtype} {self.shape}") from error
        return self._changed()

    def _changed(self) -> Tensor:
        if _tape.tape.recorder is not None:
            _tape.tape.recorder.changes(self)
        self.version()[0] = next(number)
        return self

    def _raw(self, what: str, value: Any) -> Any:
        """Another operand as something this tensor's array can take."""
        if isinstance(value, Tensor):
            if type(value._data) is not type(self._data):
                raise DeviceError(
                    f"{what}: expected arrays on {self.device}, got {value.device}; move it with .to(device)"
                )
            return value._data
        if value is None or isinstance(value, str):
            raise DtypeError(f"{what}: expected a tensor, an array or a number, got {value!r}")
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, np.ndarray) and _tape.tape.recorder is not None:
            _tape.tape.recorder.takes_in(value)
        if isinstance(value, (list, np.ndarray)) and type(self._data) is not np.ndarray:
            return BACKENDS[type(self._data)].asarray(np.asarray(value), self.device)
        return value

    def _in_place(self, function: str, other: Any) -> Tensor:
        what = f"{function} in place"
        self._check_mutable(what, other)
        ufunc = getattr(BACKENDS[type(self._data)].xp, function)
        return self._write(what, ufunc, self._data, self._raw(what, other), out=self._data)

    def add_(self, other: Any, *, alpha: Any = 1) -> Tensor:
        return self._in_place("add", other if alpha == 1 else other * alpha)

    def sub_(self, other: Any, *, alpha: Any = 1) -> Tensor:
        return self._in_place("subtract", other if alpha == 1 else other * alpha)

    def mul_(self, other: Any) -> Tensor:
        return self._in_place("multiply", other)

    def div_(self, other: Any) -> Tensor:
        return self._in_place("true_divide", other)

    def zero_(self) -> Tensor:
        return self.fill_(0)

    def fill_(self, value: Any) -> Tensor:
        self._check_mutable("fill_", value)
        raw = self._raw("fill_", value)
        if isinstance(value, Tensor):
            return self._write("fill_", operator.setitem, self._data, ..., raw)
        return self._write("fill_", _fill, self._data, raw)

    def copy_(self, other: Any) -> Tensor:
        """Overwrites the values with another tensor's, array's or number's, across devices and dtypes."""
        self._check_mutable("copy_", other)
        source = other if isinstance(other, Tensor) else asarray(other, device=self.device)
        return self._write("copy_", operator.setitem, self._data, ..., copy_to(source.data, self.device))

    def __setitem__(self, index: Any, value: Any) -> None:
        self._check_mutable("t[i] = v", value)
        parts = index if isinstance(index, tuple) else (index,)
        parts = tuple(i.data if isinstance(i, Tensor) else i for i in parts)
        place = parts if isinstance(index, tuple) else parts[0]
        self._write("t[i] = v", operator.setitem, self._data, place, self._raw("t[i] = v", value))

    def __hash__(self):
        return id(self)


def destination(args: tuple, device: Any = None, dtype: Any = None) -> tuple[Device | None, Any]:
    """What `.to(...)` was given, as (device or None, dtype or None). Raises: DeviceError for a device that this machine lacks."""
    for argument in args:
        if isinstance(argument, Tensor):
            device, dtype = argument.device, argument.dtype
        elif names_device(argument):
            device = argument
        elif argument is not None:
            dtype = argument
    return None if device is None else require(device), None if dtype is None else as_dtype("to", dtype)


def _rebuild(kind: Any, host: np.ndarray, device: str, requires_grad: bool, grad: np.ndarray | None) -> Tensor:
    made = kind.__new__(kind)
    made._restore(copy_to(host.copy(), device), requires_grad)
    if grad is not None:
        made.grad = Tensor(copy_to(grad, device))
    return made


# --- Operators ------------------------------------------------------------------------------------------------------


def install(op: Op, *, operator: str | None = None, method: str | None = None) -> None:
    """Gives Tensor an operator (from both sides for two operands) or a method that calls the op."""
    if operator is not None:
        if len(op.inputs) == 1:
            setattr(Tensor, f"__{operator}__", lambda self: _tape.call(op, (self,), op.defaults))
        else:
            operate, reflected = _tape.operators(op)
            setattr(Tensor, f"__{operator}__", operate)
            if operator not in ("lt", "le", "gt", "ge", "eq", "ne"):
                setattr(Tensor, f"__r{operator}__", reflected)
    if method is not None:

        def bound(self, *args: Any, **options: Any):
            return op.public(self, *args, **options)

        bound.__name__, bound.__doc__ = method, op.__doc__
        setattr(Tensor, method, bound)


def _changing(function: str) -> Callable:
    return lambda self, other: self._in_place(function, other)


for _name, _function in {
    "iadd": "add",
    "isub": "subtract",
    "imul": "multiply",
    "itruediv": "true_divide",
    "ifloordiv": "floor_divide",
    "imod": "remainder",
    "ipow": "power",
    "iand": "bitwise_and",
    "ior": "bitwise_or",
    "ixor": "bitwise_xor",
}.items():
    setattr(Tensor, f"__{_name}__", _changing(_function))


class Unfinished(Tensor):
    """x + bias, computed when somebody looks at it: a loss adds the bias itself, in its one launch, and then nobody needs to.

    Made in grad mode; finished in it too, and before the bias changes, so that nobody can tell when that was.
    """

    def __init__(self, x: Tensor, bias: Tensor):
        self.parts: tuple[Tensor, Tensor] | None = (x, bias)
        version = bias.version()
        version.append(weakref.ref(self, version.remove))

    def finish(self) -> None:
        """Becomes an ordinary tensor."""
        if self.parts is None:
            return
        (x, bias), self.parts = self.parts, None
        version = bias.version()
        version[1:] = [waiting for waiting in version[1:] if waiting() is not self]
        with _tape.enable_grad():
            result = x + bias
        self.__class__ = Tensor  # type: ignore[assignment]
        self.__dict__.update(_data=result._data, _node=result._node)

    @property
    def _data(self) -> Any:  # type: ignore[misc]
        self.finish()
        return self.__dict__["_data"]

    @property
    def _node(self) -> Any:  # type: ignore[misc]
        self.finish()
        return self.__dict__["_node"]

    @property
    def shape(self) -> tuple[int, ...]:
        return self._data.shape if self.parts is None else self.parts[0].shape


def finish_sums(version: list[Any]) -> None:
    """Has the sums computed that wait for values that are about to change."""
    for waiting in version[1:]:
        unfinished = waiting()
        if unfinished is not None:
            unfinished.finish()


# --- Making tensors -------------------------------------------------------------------------------------------------


def as_data(data: Any, *, dtype: Any = None, device: Any = None, copy: bool = False) -> Any:
    """An array on a device from a Tensor, an array, a number or nested lists, by the border's rules for dtypes."""
    if isinstance(data, Tensor):
        data = data.data
    elif isinstance(data, np.ndarray) and _tape.tape.recorder is not None:
        _tape.tape.recorder.takes_in(data)
    if dtype is not None:
        dtype = as_dtype("tensor", dtype)
    given = data.dtype if type(data) is np.ndarray else None
    if (
        given is not None
        and given.kind in "fiub"
        and given.isnative
        and device is None
        and default_device().type == "cpu"
    ):
        array = data if dtype is None or given == dtype else _tape.compute(_cast, data, dtype)
        if copy and array is data:
            return _tape.compute(_copied, array)
        if array is data and _tape.tape.recorder is not None:
            _tape.tape.recorder.shares(array)
        return array
    place = require(device) if device is not None else None
    if is_array(data):
        array = data
        place = place or (default_device() if isinstance(data, np.ndarray) else device_of(data))
    else:
        array = _from_python(data, dtype)
        copy = _tape.tape.recorder is not None  # its values are the same at the start of every run
        if copy:
            _tape.tape.recorder.takes_in(array, of_python=True)
        place = place or default_device()
    if isinstance(array, np.ndarray):
        array = host_array("tensor", array)
        if dtype is None and not array.dtype.isnative:
            dtype = array.dtype.newbyteorder("=")  # files may hold the other byte order, which GPUs do not read
    if dtype is not None and array.dtype != dtype:
        array, copy = _tape.compute(_cast, array, dtype), False
    moved = copy_to(array, place)
    if copy and (moved is array or _tape.tape.recorder is not None):
        return _tape.compute(_copied, moved)
    if moved is array and _tape.tape.recorder is not None:
        _tape.tape.recorder.shares(array)
    return moved


def host_array(name: str, array: np.ndarray) -> np.ndarray:
    """A NumPy array of numbers, without the rules of a subclass such as np.matrix. Raises: DtypeError."""
    if isinstance(array, np.ma.MaskedArray):
        raise DtypeError(f"{name}: expected an array without a mask, which would be lost; use .filled(value)")
    if not _holds_numbers(array.dtype):
        raise DtypeError(f"{name}: expected real numbers or booleans, got dtype {array.dtype}")
    return np.asarray(array)


def _from_python(data: Any, dtype: Any) -> np.ndarray:
    if isinstance(data, (list, tuple)) and any(isinstance(v, Tensor) for v in data):
        data = [v.numpy() if isinstance(v, Tensor) else v for v in data]
    for protocol in ("__array__", "__dlpack__", "__cuda_array_interface__"):
        if hasattr(data, protocol):
            break
    else:
        protocol = ""
    try:
        array = np.asarray(data, dtype=dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise ShapeError(
            f"tensor: expected numbers or nested lists of one shape; {str(error).splitlines()[0]}"
        ) from error
    if array.dtype.kind not in "fiub":
        raise DtypeError(f"tensor: expected real numbers or booleans, got {type(data).__name__} of dtype {array.dtype}")
    if dtype is None and array.dtype == np.float64 and not protocol:
        array = array.astype(_default_dtype)
    return array


def tensor(data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor with a copy of the data.

    data: a number, nested lists, an array of NumPy, CuPy or anything that offers one, or a Tensor. Python floats become the default
    dtype (float32), ints int64, bools bool; arrays keep theirs.
    device: "cpu", "cuda", "cuda:1"; the default device if None (a CuPy array stays where it is).
    Raises: DtypeError, ShapeError (ragged lists), DeviceError.
    """
    made = Tensor(as_data(data, dtype=dtype, device=device, copy=True))
    return made.requires_grad_() if requires_grad else made


def asarray(data: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
    """A tensor that shares the array's memory where dtype and device allow it; a Tensor is returned as it is."""
    if isinstance(data, Tensor):
        return data.to(device=device, dtype=dtype) if device is not None or dtype is not None else data
    return Tensor(as_data(data, dtype=dtype, device=device))


def from_numpy(array: np.ndarray) -> Tensor:
    """A tensor on the CPU that shares the NumPy array's memory."""
    if not isinstance(array, np.ndarray):
        raise ArgumentError(f"from_numpy: expected a numpy.ndarray, got {type(array).__name__}")
    return Tensor(as_data(array, device="cpu"))


def _as_shape(name: str, sizes: Sequence[Any]) -> tuple[int, ...]:
    """The shape that `name(2, 3)` or `name((2, 3))` asks for."""
    try:
        if len(sizes) == 1 and not isinstance(sizes[0], (int, np.integer)):
            (sizes,) = sizes
        shape = tuple(operator.index(n) for n in sizes)
    except TypeError as error:
        raise ArgumentError(f"{name}: expected a shape of integers, got {sizes!r}") from error
    if any(n < 0 for n in shape):
        raise ShapeError(f"{name}: expected a shape of integers that are not negative, got {shape}")
    return shape


def _creator(name: str, doc: str, takes_fill: bool = False) -> Callable:
    def create(*shape: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False, **given: Any) -> Tensor:
        for spelling in ("shape", "size"):
            if spelling in given:
                shape = (given.pop(spelling), *shape)
        fill = None
        if takes_fill:
            if "fill_value" in given:
                fill = given.pop("fill_value")
            elif len(shape) > 1:
                shape, fill = shape[:-1], shape[-1]
            else:
                raise ArgumentError(f"{name}: expected a shape and a value, got {shape}; say gp.{name}((2, 3), 0.5)")
            fill = _plain(fill)
            if dtype is None or _tape.tape.recorder is not None:  # which hears of the number
                filled = as_data(fill).dtype
                dtype = filled if dtype is None else dtype
        if given:
            raise ArgumentError(f"{name}: unknown argument {next(iter(given))!r}")
        sizes = _as_shape(name, shape)
        kind = as_dtype(name, dtype) if dtype is not None else _default_dtype
        place = require(device) if device is not None else default_device()
        with device_scope(place):
            xp = backend_for(place).xp
            try:
                made = Tensor(xp.full(sizes, fill, kind) if takes_fill else getattr(xp, name)(sizes, kind))
            except Exception as error:
                raise explained(error, name, f"{kind} {sizes}") from error
            made._data = _tape.anew(made._data)
        return made.requires_grad_() if requires_grad else made

    create.__name__ = create.__qualname__ = name
    create.__doc__ = doc
    return create


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, (Tensor, np.generic)) else value


zeros = _creator(
    "zeros", "Zeros of a shape: `gp.zeros(2, 3)` or `gp.zeros((2, 3))`; default dtype and device unless given."
)
ones = _creator("ones", "Ones of a shape: `gp.ones(2, 3)` or `gp.ones((2, 3))`; default dtype and device unless given.")
empty = _creator("empty", "Uninitialised memory of a shape; default dtype and device unless given.")
full = _creator("full", "A shape filled with one value: `gp.full((2, 3), 0.5)`.", takes_fill=True)


def _like(create: Callable, name: str) -> Callable:
    def like(
        other: Any, *fill: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False, **given: Any
    ) -> Tensor:
        other = asarray(other)
        return create(
            tuple(other.shape),
            *fill,
            dtype=dtype or other.dtype,
            device=device or other.device,
            requires_grad=requires_grad,
            **given,
        )

    like.__name__ = like.__qualname__ = name
    like.__doc__ = f"`gp.{create.__name__}` with another tensor's shape, dtype and device."
    return like


zeros_like = _like(zeros, "zeros_like")
ones_like = _like(ones, "ones_like")
empty_like = _like(empty, "empty_like")
full_like = _like(full, "full_like")


def _on_device(name: str, args: tuple, dtype: Any, device: Any, requires_grad: bool, floating: bool) -> Tensor:
    place = require(device) if device is not None else default_device()
    kind = _default_dtype if dtype is None and floating else as_dtype(name, dtype)
    with device_scope(place):
        try:
            made = Tensor(_tape.anew(getattr(backend_for(place).xp, name)(*map(_plain, args), dtype=kind)))
        except Exception as error:
            raise explained(error, name, ", ".join(map(repr, args))) from error
    return made.requires_grad_() if requires_grad else made


def arange(
    start: Any, stop: Any = None, step: Any = 1, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """`arange(stop)`, `arange(start, stop)`, `arange(start, stop, step)`: the stop is not included; int64 for integers."""
    args = (0, start, step) if stop is None else (start, stop, step)
    floating = any(isinstance(_plain(a), float) for a in args)
    return _on_device("arange", args, dtype or (None if floating else np.int64), device, requires_grad, floating)


def linspace(
    start: Any, stop: Any, num: int = 50, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """`num` evenly spaced values from start to stop, both included."""
    return _on_device("linspace", (start, stop, num), dtype, device, requires_grad, True)


def eye(n: int, m: int | None = None, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones on the diagonal of an (n, m) matrix, zeros elsewhere."""
    return _on_device("eye", (n, m), dtype, device, requires_grad, True)


from . import tape as _tape  # noqa: E402  (the tape makes Tensors, so it comes after them)
