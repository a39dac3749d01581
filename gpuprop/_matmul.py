"""How matrix products are computed on a GPU: what users may choose. Nothing here has an effect on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .errors import OptionError

PRECISIONS = ("highest", "high")


class Settings(NamedTuple):
    """What a product's algorithm depends on besides the product itself."""

    precision: str = "highest"
    autotuning: bool = False
    epilogues: bool = True
    generation: int = 0  # raised by what concerns the choices: algorithms are then looked up anew


settings = Settings()
choices: dict[str, int] = {}


def get_float32_matmul_precision() -> str:
    """How matrix products of float32 are computed: "highest" or "high"."""
    return settings.precision


def set_float32_matmul_precision(precision: str) -> None:
    """Sets how matrix products of float32 are computed, for the whole process.

    "highest" (the default) multiplies in float32. "high" lets a GPU round the factors to TensorFloat-32, a mantissa of 10 bits
    instead of 23, and add in float32: several times faster. It has no effect on the CPU, before compute capability 8.0, on other
    dtypes, and on products that do not go through cuBLASLt (`gp.device_report()` says whether they do).

    Raises: OptionError for another name.
    """
    global settings
    if precision not in PRECISIONS:
        raise OptionError(f"set_float32_matmul_precision: expected 'highest' or 'high', got {precision!r}")
    settings = settings._replace(precision=precision)


def set_matmul_autotuning(enabled: bool) -> None:
    """Sets whether the library's first few algorithms are timed when a matrix product is first met, and the fastest taken.

    Off by default: then the library's first proposal is taken, which is the same in every run. Algorithms add in different orders, so
    a run that is to give the same bits as a tuned one needs its choices: `get_matmul_choices`, `set_matmul_choices`. Switched off
    again, it times nothing new, and what was chosen stays. Timing waits for the GPU; a product that is first met while a graph is
    captured is not timed. No effect on the CPU.
    """
    global settings
    settings = settings._replace(autotuning=bool(enabled), generation=settings.generation + 1)


def get_matmul_epilogues() -> bool:
    """Whether matrix products do what comes before or after them on a GPU, where cuBLASLt offers that."""
    return settings.epilogues


def set_matmul_epilogues(enabled: bool) -> None:
    """Sets whether matrix products take over biases, ReLU, the tanh form of GELU, and the gradients of these.

    On by default, for float32 and 16-bit types where cuBLASLt offers an algorithm for it. Off, all of these are kernels of gpuprop: to
    compare, or to find out which of the two is wrong. Values differ by rounding. No effect on the CPU.
    """
    global settings
    settings = settings._replace(epilogues=bool(enabled))


def get_matmul_choices() -> dict[str, int]:
    """The algorithms that autotuning chose: product, GPU and library version -> place in the library's list. JSON can hold it."""
    return dict(choices)


def set_matmul_choices(chosen: Mapping[str, int]) -> None:
    """Takes these algorithms from now on, instead of those chosen so far; those for another GPU or library version are never looked up.

    Raises: OptionError for anything but what `get_matmul_choices` returns.
    """
    global settings
    if not isinstance(chosen, Mapping) or not all(
        isinstance(key, str) and type(place) is int and place >= 0 for key, place in chosen.items()
    ):
        raise OptionError("set_matmul_choices: expected what get_matmul_choices returned, got other keys or values")
    choices.clear()
    choices.update(chosen)
    settings = settings._replace(generation=settings.generation + 1)
