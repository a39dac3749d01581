"""How exactly matrix products of float32 are computed on a GPU."""

from __future__ import annotations

from .errors import OptionError

PRECISIONS = ("highest", "high")

current = "highest"


def get_float32_matmul_precision() -> str:
    """How matrix products of float32 are computed: "highest" or "high"."""
    return current


def set_float32_matmul_precision(precision: str) -> None:
    """Sets how matrix products of float32 are computed, for the whole process.

    "highest" (the default) multiplies in float32. "high" lets a GPU round the factors to TensorFloat-32, a mantissa of 10 bits
    instead of 23, and add in float32: several times faster from compute capability 8.0 on. It has no effect on the CPU, on other dtypes,
    and on products that do not go through cuBLASLt (`gp.device_report()` says whether they do).

    Raises: OptionError for another name.
    """
    global current
    if precision not in PRECISIONS:
        raise OptionError(f"set_float32_matmul_precision: expected 'highest' or 'high', got {precision!r}")
    current = precision
