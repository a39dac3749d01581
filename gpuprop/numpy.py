"""The ops under their NumPy names, on tensors and on plain arrays: the namespace that rules and users write against.

Plain arrays in, plain arrays out, as NumPy computes them; any Tensor in, Tensors out, recorded on the tape. What makes
new arrays (`zeros`, `arange`, ...) makes plain ones, on the default device; constants and dtypes are NumPy's.
"""

from __future__ import annotations

import math as _math
from typing import Any

from . import ops as _ops  # noqa: F401  (fills the registry)
from ._op import REGISTRY as _REGISTRY
from ._tensor import Tensor as _Tensor
from .device import BACKENDS as _BACKENDS
from .device import backend_for as _backend_for
from .device import default_device as _default_device

is_tape = True  # inside a rule, `op(xp, x)` is then recorded

_ALIASES = {
    "abs": "absolute",
    "true_divide": "divide",
    "remainder": "mod",
    "pow": "power",
    "amax": "max",
    "amin": "min",
    "asin": "arcsin",
    "acos": "arccos",
    "atan": "arctan",
    "atan2": "arctan2",
    "asinh": "arcsinh",
    "acosh": "arccosh",
    "atanh": "arctanh",
    "degrees": "rad2deg",
    "radians": "deg2rad",
    "concat": "concatenate",
    "permute_dims": "transpose",
    "around": "round",
    "cumulative_sum": "cumsum",
    "cumulative_prod": "cumprod",
}

# Not differentiated and not ops: they make arrays, or say something about them.
_PLAIN = frozenset(
    "array empty zeros ones full arange linspace eye identity tri finfo iinfo result_type promote_types dtype "
    "pi e inf nan newaxis float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool_ "
    "broadcast_shapes indices ix_ tril_indices triu_indices index_exp s_ issubdtype floating integer".split()
)


def _like(name: str) -> Any:
    def like(a: Any, *args: Any, dtype: Any = None, **options: Any) -> Any:
        array = a.data if isinstance(a, _Tensor) else a
        xp = _BACKENDS[type(array)].xp if type(array) in _BACKENDS else _backend_for(_default_device()).xp
        made = getattr(xp, name)(array, *args, dtype=dtype, **options)
        return _Tensor(made) if isinstance(a, _Tensor) else made

    like.__name__ = name
    return like


zeros_like, ones_like, empty_like, full_like = map(_like, ("zeros_like", "ones_like", "empty_like", "full_like"))


def asarray(a: Any, dtype: Any = None) -> Any:
    """A Tensor as it is (in another dtype if asked), anything else as a plain array on the default device."""
    if isinstance(a, _Tensor):
        return a if dtype is None else a.to(dtype=dtype)
    return _backend_for(_default_device()).xp.asarray(a, dtype=dtype)


def shape(a: Any) -> tuple[int, ...]:
    """The shape of a tensor, an array, a number or nested lists."""
    return tuple(a.shape) if hasattr(a, "shape") else asarray(a).shape


def ndim(a: Any) -> int:
    """The number of axes."""
    return len(shape(a))


def size(a: Any, axis: int | None = None) -> int:
    """The number of elements, or the length of an axis."""
    return _math.prod(shape(a)) if axis is None else shape(a)[axis]


class linalg:  # lower case, as the module in NumPy
    """`numpy.linalg`, as far as it is here."""

    norm = _REGISTRY["norm"]


def __getattr__(name: str) -> Any:
    if name in _REGISTRY or name in _ALIASES:
        value = globals()[name] = _REGISTRY[_ALIASES.get(name, name)]
        return value
    if name in _PLAIN:
        return getattr(_backend_for(_default_device()).xp, name)
    raise AttributeError(f"gpuprop.numpy has no {name!r}; it has the ops of gpuprop and what makes arrays")


def __dir__() -> list[str]:
    return sorted({*_REGISTRY, *_ALIASES, *_PLAIN, *(n for n in globals() if not n.startswith("_"))})
