"""Generators of random numbers, and the tensors drawn from them.

A generator is a place in a stream: a seed, a base on the device and an offset on the host. Drawing reserves the next
blocks of the stream and hands their key (seed, base, offset) to an op of `ops/random.py`; nothing is ever read back
from the device. The same seed gives the same numbers on every device.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ._philox import PERIOD
from ._tensor import Tensor, asarray, get_default_dtype, number
from .device import Device, backend_for, default_device, device_scope, require
from .errors import ArgumentError, DeviceError, GraphError, OptionError
from .ops.random import (
    blocks_of_floats,
    blocks_of_words,
    random_integers,
    random_normal,
    random_permutation,
    random_uniform,
)
from .tape import aside, tape


class Generator:
    """A stream of random numbers for one device: `gp.Generator("cuda", seed=1)`.

    Its place is `base + offset`, counted in blocks of four words from the start of the seed's stream.
    seed: which stream; 0 if None, so that two runs of a program agree.
    """

    def __init__(self, device: Device | str | None = None, seed: int | None = None):
        self.device = require(device) if device is not None else default_device()
        with device_scope(self.device), aside():
            self.base = Tensor(backend_for(self.device).xp.zeros(1, np.uint64))
        self._base_value = 0  # of `base`, so that nobody has to read it
        self._lock = threading.Lock()
        self.manual_seed(0 if seed is None else seed)

    def manual_seed(self, seed: int) -> Generator:
        """Goes to the start of a seed's stream. Raises: OptionError unless -2^63 <= seed < 2^64."""
        self.set_state({"seed": seed, "position": 0})
        return self

    def get_state(self) -> dict[str, int]:
        """The stream and the place in it: `{"seed": ..., "position": ...}`."""
        with self._lock:
            return {"seed": self.seed, "position": (self._base_value + self.offset) % PERIOD}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to where another generator was, on whatever device. Raises: ArgumentError, OptionError."""
        if set(state) != {"seed", "position"}:
            raise ArgumentError(f"Generator.set_state: expected seed and position, got {', '.join(map(str, state))}")
        for name, value in state.items():
            if not isinstance(value, (int, np.integer)) or not -PERIOD // 2 <= value < PERIOD:
                raise OptionError(f"Generator: expected an integer {name} from -2^63 to 2^64 - 1, got {value!r}")
        with self._lock:
            # The offset goes there, not the base: what is on the tape has kept the base, and draws its numbers again.
            self.seed = int(state["seed"]) % PERIOD
            self.offset = (int(state["position"]) - self._base_value) % PERIOD

    def reserve(self, blocks: int) -> tuple[int, int]:
        """Takes the next blocks of the stream: (seed, offset) of the call that draws them."""
        if _here.again:
            key = _next_again()
        else:
            with self._lock:
                key = self.seed, self.offset
                self.offset = (self.offset + blocks) % PERIOD
            if tape.recorder is not None:
                tape.recorder.reserves(self, blocks)
        for log in _here.logs:
            log.append(key)
        return key

    def advance(self, blocks: int) -> None:
        """Moves the base on, on the device: calls with the same offsets draw new numbers from now on.

        What was drawn before cannot be drawn again, as a walk over a dropout would; it raises MutationError.
        """
        with device_scope(self.device):
            self.add_to_base(blocks)
        self.follow(blocks)

    def add_to_base(self, blocks: int) -> None:
        """The device's part of `advance`."""
        self.base._data += np.uint64(blocks % PERIOD)

    def follow(self, blocks: int) -> None:
        """The host's part of `advance`."""
        with self._lock:
            self.base.version()[0] = next(number)
            self._base_value = (self._base_value + blocks) % PERIOD

    def rebase(self, offset: int) -> None:
        """Stays in its place of the stream, and gets there from the base by this offset."""
        self.advance(self.offset - offset)
        self.offset = offset

    def __repr__(self) -> str:
        state = self.get_state()
        return f"Generator(device='{self.device}', seed={state['seed']}, position={state['position']})"

    def __reduce__(self) -> tuple:
        return _rebuild, (str(self.device), self.get_state())


class _Here(threading.local):
    """What `replayed` does in this thread, innermost last."""

    def __init__(self) -> None:
        self.logs: list[list[tuple[int, int]]] = []
        self.again: list[Iterator[tuple[int, int]]] = []


_here = _Here()


def _next_again() -> tuple[int, int]:
    try:
        return next(_here.again[-1])
    except StopIteration:
        raise GraphError(
            "random numbers: expected as many draws as in the forward pass, got more; what is recomputed must not "
            "depend on anything that changes between the two"
        ) from None


@contextlib.contextmanager
def replayed() -> Iterator[Callable[[], contextlib.AbstractContextManager]]:
    """Yields a function: in `with it():` this thread's generators hand out the keys again that they hand out here."""
    log: list[tuple[int, int]] = []

    @contextlib.contextmanager
    def again() -> Iterator[None]:
        _here.again.append(iter(log))
        try:
            yield
        finally:
            _here.again.pop()

    _here.logs.append(log)
    try:
        yield again
    finally:
        _here.logs.pop()


def _rebuild(device: str, state: dict[str, int]) -> Generator:
    made = Generator(device)
    made.set_state(state)
    return made


_default_seed = 0
_defaults: dict[Device, Generator] = {}
_defaults_lock = threading.Lock()


def default_generator(device: Device | str | None = None) -> Generator:
    """The generator of a device that is used where none is given."""
    place = require(device) if device is not None else default_device()
    with _defaults_lock:
        if place not in _defaults:
            _defaults[place] = Generator(place, _default_seed)
        return _defaults[place]


def manual_seed(seed: int) -> None:
    """Sends the default generators of all devices to the start of a seed's stream."""
    global _default_seed
    with _defaults_lock:
        for generator in _defaults.values():
            generator.manual_seed(seed)
        _default_seed = Generator("cpu", seed).seed


# --- Drawing --------------------------------------------------------------------------------------------------------


def _chosen(name: str, generator: Generator | None, device: Device | str | None) -> Generator:
    if generator is None:
        return default_generator(device)
    if device is not None and require(device) != generator.device:
        raise DeviceError(f"{name}: expected a generator on {device}, got one on {generator.device}")
    return generator


def _shape(name: str, size: Sequence[Any]) -> tuple[int, ...]:
    """The shape that `name(2, 3)` or `name((2, 3))` asks for."""
    given = size[0] if len(size) == 1 and isinstance(size[0], (tuple, list)) else size
    if not all(isinstance(n, (int, np.integer)) and n >= 0 for n in given):
        raise ArgumentError(f"{name}: expected a shape of integers that are not negative, got {tuple(size)}")
    return tuple(int(n) for n in given)


def _draw(op: Any, generator: Generator, blocks: int, requires_grad: bool = False, **options: Any) -> Tensor:
    seed, offset = generator.reserve(blocks)
    with device_scope(generator.device):
        made = op(generator.base, **options, seed=seed, offset=offset)
    return made.requires_grad_() if requires_grad else made


def _draw_floats(
    name: str, op: Any, size: Sequence[Any], dtype: Any, device: Any, generator: Any, requires_grad: bool
) -> Tensor:
    shape = _shape(name, size)
    dtype = np.dtype(dtype) if dtype is not None else get_default_dtype()
    blocks = blocks_of_floats(math.prod(shape), dtype)
    return _draw(op, _chosen(name, generator, device), blocks, requires_grad, shape=shape, dtype=dtype)


def rand(
    *size: Any,
    dtype: Any = None,
    device: Device | str | None = None,
    generator: Generator | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """Uniform numbers in [0, 1): `gp.rand(2, 3)` or `gp.rand((2, 3))`."""
    return _draw_floats("rand", random_uniform, size, dtype, device, generator, requires_grad)


def randn(
    *size: Any,
    dtype: Any = None,
    device: Device | str | None = None,
    generator: Generator | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """Numbers of the standard normal distribution: `gp.randn(2, 3)` or `gp.randn((2, 3))`."""
    return _draw_floats("randn", random_normal, size, dtype, device, generator, requires_grad)


def normal(
    mean: float,
    std: float,
    size: Sequence[int],
    *,
    dtype: Any = None,
    device: Device | str | None = None,
    generator: Generator | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """Numbers of a normal distribution: `gp.normal(0.0, 0.02, (2, 3))`. Raises: OptionError for a std below 0."""
    if not std >= 0:
        raise OptionError(f"normal: expected std >= 0, got {std}")
    made = randn(tuple(size), dtype=dtype, device=device, generator=generator) * std + mean
    return made.requires_grad_() if requires_grad else made


def randint(
    low: int,
    high: Any = None,
    size: Any = None,
    *,
    dtype: Any = np.int64,
    device: Device | str | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Integers from low to high - 1, or from 0 to low - 1: `gp.randint(0, 10, (2, 3))`, `gp.randint(10, (2, 3))`."""
    if size is None and isinstance(high, (tuple, list)):
        high, size = None, high
    if not isinstance(size, (tuple, list)):
        raise ArgumentError(f"randint: expected a shape as a tuple, got {size!r}; say gp.randint(0, 10, (2, 3))")
    low, high = (0, low) if high is None else (low, high)
    shape = _shape("randint", (size,))
    blocks = blocks_of_words(math.prod(shape))
    options = {"low": int(low), "high": int(high), "shape": shape, "dtype": np.dtype(dtype)}
    return _draw(random_integers, _chosen("randint", generator, device), blocks, **options)


def randperm(n: int, *, device: Device | str | None = None, generator: Generator | None = None) -> Tensor:
    """The integers from 0 to n - 1 in random order, int64."""
    return _draw(random_permutation, _chosen("randperm", generator, device), 1, n=int(n))


def rand_like(other: Any, *, dtype: Any = None, device: Any = None, **given: Any) -> Tensor:
    """`gp.rand` with another tensor's shape, dtype and device."""
    other = asarray(other)
    return rand(other.shape, dtype=dtype or other.dtype, device=device or other.device, **given)


def randn_like(other: Any, *, dtype: Any = None, device: Any = None, **given: Any) -> Tensor:
    """`gp.randn` with another tensor's shape, dtype and device."""
    other = asarray(other)
    return randn(other.shape, dtype=dtype or other.dtype, device=device or other.device, **given)


def randint_like(
    other: Any, low: int, high: Any = None, *, dtype: Any = None, device: Any = None, **given: Any
) -> Tensor:
    """`gp.randint` with another tensor's shape and device; its dtype too, which must be one of integers."""
    other = asarray(other)
    low, high = (0, low) if high is None else (low, high)
    return randint(low, high, tuple(other.shape), dtype=dtype or other.dtype, device=device or other.device, **given)
