"""What this device can do at all, measured in the same run as what is compared with it: bytes of a large copy and operations of a
large matrix product per second."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from .clock import clock_of

COPY_BYTES = 1 << 29  # of one array: beyond the caches of any GPU (126 MB) and of most CPUs
LARGEST_PRODUCT = {"cpu": 4096, "cuda": 8192}
DTYPES = ("float16", "bfloat16", "float32", "float64")
LONG_ENOUGH = 0.02  # seconds: below it a product does not show the device's full rate


@dataclass(frozen=True)
class Limits:
    """Rates that nothing on this device exceeds by much. Bytes count what is read and what is written."""

    copy_bytes_per_second: float
    flops_per_second: float

    def seconds(self, flops: float, nbytes: float) -> float:
        """The least time for so much work, when arithmetic and memory traffic overlap wholly (the roofline)."""
        return max(flops / self.flops_per_second, nbytes / self.copy_bytes_per_second)


def measure(device: str, precision: str = "highest", smoke: bool = False, dtype: str = "float32") -> Limits:
    """Copies and multiplies on `device`, with the threads that NumPy's products use or on the whole GPU.

    precision: of float32 products on a GPU, "highest" or "high" (TF32). dtype: of the product. smoke: sizes so small that it is
    quick and means nothing. Raises: DeviceError where the device cannot be had.
    """
    from gpuprop.device import device_scope, require

    with device_scope(require(device)) as place:
        return Limits(_copy_rate(place, smoke), _product_rate(place, precision, smoke, dtype))


def _median_seconds(device: Any, work: Callable[[], object], rounds: int) -> float:
    seconds = clock_of(device)
    seconds(work)  # pages and buffers are made, clocks rise
    return statistics.median(seconds(work) for _ in range(rounds))


def _free_bytes(device: Any) -> int:
    """Memory to be had; of a CPU, more than is asked for here."""
    if device.type == "cpu":
        return 16 * COPY_BYTES
    import cupy

    free, _ = cupy.cuda.runtime.memGetInfo()
    return free + cupy.get_default_memory_pool().free_bytes()


def _copy_rate(device: Any, smoke: bool) -> float:
    count = (1 << 20 if smoke else min(COPY_BYTES, _free_bytes(device) // 4)) // 4
    if device.type == "cuda":
        import cupy

        source, target = cupy.ones(count, np.float32), cupy.zeros(count, np.float32)
        seconds = _median_seconds(device, lambda: cupy.copyto(target, source), 3 if smoke else 15)
        return (source.nbytes + target.nbytes) / seconds
    source, target = np.ones(count, np.float32), np.zeros(count, np.float32)
    threads = _blas_threads()  # one thread alone does not fill the memory's channels
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:
        seconds = _median_seconds(device, lambda: list(pool.map(lambda p: np.copyto(*p), parts)), 3 if smoke else 7)
    return (source.nbytes + target.nbytes) / seconds


def _blas_threads() -> int:
    """Threads of NumPy's matrix products."""
    from threadpoolctl import threadpool_info

    return max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)


def _product_rate(device: Any, precision: str, smoke: bool, dtype: str) -> float:
    """Of the largest product up to `LARGEST_PRODUCT`, or of the first that takes `LONG_ENOUGH`: some CPUs need seconds for a large one."""
    import gpuprop as gp

    before = gp.get_float32_matmul_precision()
    gp.set_float32_matmul_precision(precision)
    try:
        n = 64 if smoke else 256
        while True:
            work, seconds = _product(device, n, dtype), clock_of(device)
            best = min(seconds(work) for _ in range(4))  # the first call chooses an algorithm
            more_memory = 3 * (2 * n) ** 2 * 8
            if smoke or best > LONG_ENOUGH or n == LARGEST_PRODUCT[device.type] or more_memory > _free_bytes(device):
                return 2 * n**3 / _median_seconds(device, work, 9 if best < 0.1 else 3)
            n *= 2
    finally:
        gp.set_float32_matmul_precision(before)


def _product(device: Any, n: int, dtype: str) -> Callable[[], object]:
    """One product of (n, n) random matrices: zeros and ones take less power, and a GPU then runs faster than it does in earnest."""
    from gpuprop.device import copy_to

    rng = np.random.default_rng(0)
    a, b = (
        copy_to(rng.standard_normal((n, n), np.float32), device).astype(numpy_dtype(dtype), copy=False)
        for _ in range(2)
    )
    if device.type == "cpu":
        out = np.empty_like(a)
        return lambda: np.matmul(a, b, out=out)
    import cupy

    from gpuprop.cuda.gemm import product

    y = cupy.empty_like(a)
    return lambda: product(a, b, out=y)


def numpy_dtype(name: str) -> Any:
    """NumPy's dtype of one of these names, bfloat16's from ml_dtypes. Raises: OptionError for others, or where that is missing."""
    from gpuprop.errors import OptionError

    if name not in DTYPES:
        raise OptionError(f"dtype: expected {', '.join(DTYPES)}, got {name!r}")
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError:
        raise OptionError("dtype: bfloat16 needs ml_dtypes, which is not installed") from None
    return np.dtype(ml_dtypes.bfloat16)
