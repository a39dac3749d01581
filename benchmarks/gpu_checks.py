"""What `benchmarks.first_gpu` looks at: each check is a generator of findings, so that one that is stopped has said what it knows.

A finding is a dict that JSON can hold: `what` it is about, `said` in a few words, `bad` where it is wrong, and figures. Nothing here
needs a simulator's counters. Imports that may fail on a machine stand in the checks.
"""

from __future__ import annotations

import importlib.util
import math
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

Finding = dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """smoke: sizes so small that it shows whether everything runs, and no more. deadline: by `time.monotonic()`."""

    smoke: bool
    deadline: float
    device: str = "cuda"

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()


def finding(what: str, said: str, bad: bool = False, **figures: Any) -> Finding:
    return {"what": what, "said": said, "bad": bad, **figures}


def in_short(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def free_bytes() -> int:
    """Memory of the GPU that can be had now."""
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()
    return cupy.cuda.runtime.memGetInfo()[0]


# --- The device -----------------------------------------------------------------------------------------------------


def device(effort: Effort) -> Iterator[Finding]:
    """What it is, what is installed, and how fast it copies and multiplies."""
    import cupy

    import gpuprop as gp

    report, runtime = gp.device_report(), cupy.cuda.runtime
    properties = runtime.getDeviceProperties(cupy.cuda.Device().id)
    name, (free, total) = properties["name"].decode(), runtime.memGetInfo()
    capability = f"{properties['major']}.{properties['minor']}"
    figures = {
        "memory": total,
        "free": free,
        "multiprocessors": properties["multiProcessorCount"],
        "l2": properties["l2CacheSize"],
        "driver": runtime.driverGetVersion(),
        "runtime": runtime.runtimeGetVersion(),
    }
    yield finding("GPU", f"{name}, sm {capability}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free", **figures)
    versions = {"Python": platform.python_version(), "NumPy": report["numpy"], "CuPy": report["cupy"]}
    versions["cuBLASLt"] = report["cublaslt"] or f"none: {report['cublaslt_reason']}"
    yield finding(
        "versions", ", ".join(f"{k} {v}" for k, v in versions.items()), report["cublaslt"] is None, **versions
    )
    for package in ("torch", "jax", "nvmath", "xdist", "ml_dtypes"):
        if importlib.util.find_spec(package) is None:
            yield finding(package, "not installed")
    yield from _rates(effort)


RATES = {  # name -> precision of float32 products, dtype
    "float32": ("highest", "float32"),
    "TF32": ("high", "float32"),
    "float16": ("highest", "float16"),
    "bfloat16": ("highest", "bfloat16"),
    "float64": ("highest", "float64"),
}


def _rates(effort: Effort) -> Iterator[Finding]:
    """The rates of a copy, and of products in each format."""
    from gpuprop.errors import OptionError

    from .limits import measure

    for name, (precision, dtype) in RATES.items():
        try:
            limits = measure(effort.device, precision, effort.smoke, dtype)
        except OptionError as error:
            yield finding(f"products in {name}", str(error))
            continue
        if name == "float32":
            copy = limits.copy_bytes_per_second
            yield finding("a large copy", f"{copy / 1e9:,.0f} GB/s", bytes_per_second=copy)
        flops = limits.flops_per_second
        yield finding(f"products in {name}", f"{flops / 1e12:,.3g} TFLOP/s", flops_per_second=flops)


# --- Kernels against rules ------------------------------------------------------------------------------------------

DTYPES = ("float32", "float16", "bfloat16", "float64")
ALLOWED = 8  # units of the last place of the largest value or 1, times the root of the length of the sums: as in tests/test_every_op.py
# In float64 the rule that kernels are held against rounds itself: where it computes 1 - t^2 at the tail of a GELU, by 35 units.
ALLOWED_IN_FLOAT64 = 80


def precision(effort: Effort) -> Iterator[Finding]:
    """The largest error of each op that has a kernel, over its samples, against its rule in float64 on the host."""
    from gpuprop._op import REGISTRY
    from gpuprop.device import require
    from gpuprop.errors import OptionError

    from .limits import numpy_dtype

    place = require(effort.device)
    ops = [op for op in REGISTRY.values() if op.cuda.implementation is not None]
    if effort.smoke:
        ops = [REGISTRY[name] for name in ("relu", "cross_entropy")]
    for name in DTYPES[:2] if effort.smoke else DTYPES:
        try:
            dtype = numpy_dtype(name)
        except OptionError as error:
            yield finding(name, str(error))
            continue
        for op in ops:
            try:
                yield _error_of(op, name, dtype, place)
            except Exception as error:  # of one op: the others are still to be looked at
                yield finding(f"{op.name}, {name}", in_short(error), True, op=op.name, dtype=name)


def _error_of(op: Any, name: str, dtype: Any, place: Any) -> Finding:
    from gpuprop import testing

    from .ops import arrays

    worst = {"ulp": 0.0, "of_largest": 0.0}
    bad, where = False, ""
    for index, sample in enumerate(op.samples(testing.Draw(zlib.crc32(op.name.encode())))):
        allowed = (ALLOWED_IN_FLOAT64 if name == "float64" else ALLOWED) * math.sqrt(
            max([1, *(a.size for a in arrays(sample))])
        )
        for actual, expected in zip(*_both(op, sample, dtype, place), strict=True):
            errors = ulp_errors(actual, expected, name)
            wrong = errors["of_largest"] > allowed
            if wrong or (errors["ulp"] > worst["ulp"] and not bad):
                where = f"sample {index}"
            bad |= wrong
            worst = {key: max(worst[key], errors[key]) for key in worst}
    said = f"{worst['ulp']:.3g} ulp, {worst['of_largest']:.3g} of the largest value's"
    return finding(f"{op.name}, {name}", said, bad, op=op.name, dtype=name, where=where, **worst)


def _both(op: Any, sample: Any, dtype: Any, place: Any) -> tuple[list[Any], list[Any]]:
    """Results and gradients on the GPU, and those of the rule in float64, from the same numbers; a missing one as None."""
    from gpuprop.device import CPU, device_scope
    from gpuprop.tape import is_floating
    from gpuprop.testing import Sample

    from .ops import Case, by_rule

    def rounded(value: Any) -> Any:
        real = isinstance(value, np.ndarray) and is_floating(value.dtype)
        return value.astype(dtype).astype(np.float64) if real else value

    rounded_sample = Sample(*map(rounded, sample.inputs), order=sample.order, **sample.options)

    def run(device: Any, dtype_there: Any) -> list[Any]:
        with device_scope(device), np.errstate(all="ignore"):
            case = Case(op, rounded_sample, device, dtype_there)
            case.forward()
            gradient = case.gradient(rounded_to=dtype) if sample.order else None
            found = case.results if gradient is None else [*case.results, *gradient()]
            return [np.asarray(a.get() if hasattr(a, "get") else a) for a in (getattr(t, "_data", t) for t in found)]

    with by_rule(op, CPU):
        expected = run(CPU, np.float64)
    return run(place, dtype), expected


FORMATS = {  # bits of the mantissa, the smallest normal number, the largest number
    "bfloat16": (7, 2.0**-126, 3.39e38),
    "float16": (10, 2.0**-14, 65504.0),
    "float32": (23, 2.0**-126, 3.4028e38),
    "float64": (52, 2.0**-1022, 1.797e308),
}


def ulp_errors(actual: Any, expected: Any, coarsest: str = "float64") -> dict[str, float]:
    """The largest error in units of the last place: of the number that it is an error of, and of the largest one in the array or 1.

    coarsest: the dtype that was computed in; rules that CuPy runs in bfloat16 return float32, no more precise for that.
    Where terms cancel, the first is large for good reasons. What is not finite or not a number has to be the same.
    """
    from gpuprop.tape import is_floating

    if actual.shape != expected.shape or not actual.size:
        return dict.fromkeys(("ulp", "of_largest"), math.inf if actual.shape != expected.shape else 0.0)
    if not is_floating(actual.dtype):
        return dict.fromkeys(("ulp", "of_largest"), 0.0 if np.array_equal(actual, expected) else math.inf)
    bits, least, greatest = FORMATS[actual.dtype.name]
    bits = min(bits, FORMATS[coarsest][0])
    a, e = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    finite = np.isfinite(e) & (np.abs(e) <= greatest)
    if np.any(np.isnan(a) != np.isnan(e)) or not np.all(np.isfinite(a[finite])):
        return dict.fromkeys(("ulp", "of_largest"), math.inf)
    if not finite.any():
        return dict.fromkeys(("ulp", "of_largest"), 0.0)
    size = np.maximum(np.abs(e[finite]), least)
    unit = 2.0 ** (np.floor(np.log2(size)) - bits)
    errors = np.abs(a[finite] - e[finite])
    return {"ulp": float((errors / unit).max()), "of_largest": float(errors.max() / max(unit.max(), 2.0**-bits))}


# --- Replay against eager -------------------------------------------------------------------------------------------


def _networks() -> dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """Networks and optimizers that differ in what a recording has to carry from step to step."""
    import gpuprop as gp
    from gpuprop import nn

    def full() -> Any:
        gp.manual_seed(0)
        hidden = [nn.Linear(64, 96), nn.BatchNorm1d(96), nn.SiLU(), nn.Dropout(0.2)]
        return nn.Sequential(*hidden, nn.Linear(96, 80), nn.LayerNorm(80), nn.GELU(), nn.Linear(80, 10))

    def plain(activation: str) -> Callable[[], Any]:
        return lambda: nn.MLP([64, 96, 80, 10], activation=activation, seed=1)

    return {
        "ReLU, Adam": (plain("relu"), lambda p: gp.optim.Adam(p, lr=1e-2)),
        "SiLU, Adam": (plain("silu"), lambda p: gp.optim.Adam(p, lr=1e-2)),
        "tanh, clipped momentum": (plain("tanh"), lambda p: gp.optim.SGD(p, lr=0.1, momentum=0.9, max_grad_norm=0.5)),
        "batch norm, dropout, layer norm, AdamW with averages": (
            full,
            lambda p: gp.optim.AdamW(p, lr=1e-2, ema_decay=0.99),
        ),
    }


def replay(effort: Effort) -> Iterator[Finding]:
    """Whether steps that a captured graph makes have the bits of eager ones."""
    steps = 5 if effort.smoke else 100
    for name, (model, optimizer) in _networks().items():
        try:
            eager, captured = (_trained(model, optimizer, steps, way) for way in (False, True))
        except Exception as error:
            yield finding(name, in_short(error), True)
            continue
        differs = sum(a != b for a, b in zip(eager, captured, strict=True))
        said = f"{steps} steps, {'equal bits' if not differs else f'{differs} of {len(eager)} arrays differ'}"
        yield finding(name, said, differs > 0, steps=steps, arrays=len(eager), differ=differs)


def _trained(model_of: Callable, optimizer_of: Callable, steps: int, captured: bool) -> list[bytes]:
    """Bytes of the losses and of the parameters after some steps."""
    import gpuprop as gp
    import gpuprop.nn.functional as F

    gp.manual_seed(0)
    model = model_of().to("cuda")
    optimizer = optimizer_of(model.parameters())
    rng = np.random.default_rng(0)
    batches = [
        (
            gp.tensor(rng.standard_normal((32, 64), np.float32), device="cuda"),
            gp.tensor(rng.integers(0, 10, 32), device="cuda"),
        )
        for _ in range(3)
    ]

    def step(x: Any, labels: Any) -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss

    run = gp.capture(step) if captured else step
    losses = [run(*batches[i % 3]).numpy().tobytes() for i in range(steps)]
    return [b"".join(losses), *(value.numpy().tobytes() for value in model.state_dict().values())]


# --- Launches and nodes ---------------------------------------------------------------------------------------------


def problems(smoke: bool) -> list[Any]:
    """The networks of FACTS: small, wide, deep, and one that is nothing but products."""
    from .problem import Problem

    if smoke:
        return [Problem((16, 16, 10), 8, device="cuda"), Problem((16, 16, 10), 8, precision="high", device="cuda")]
    return [
        Problem((64, 64, 64, 10), 32, device="cuda"),
        Problem((784, 1024, 1024, 10), 512, precision="high", device="cuda"),
        Problem((784, 2048, 2048, 2048, 10), 1024, precision="high", device="cuda"),
        Problem((1024, 4096, 4096, 4096, 4096, 1024), 8192, precision="high", device="cuda"),
    ]


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Counts launches of gpuprop's kernels and calls for products that are captured while the context lasts."""
    import cupy

    from gpuprop.cuda.gemm import Plan
    from gpuprop.cuda.source import Kernel

    counts = {"kernels": 0, "products": 0}
    launch, multiply = Kernel.__call__, Plan.multiply

    def captured() -> bool:  # some launches of a recording are made aside, and not repeated
        return cupy.cuda.get_current_stream().is_capturing()

    def launching(self: Any, *args: Any, **options: Any) -> None:
        counts["kernels"] += captured()
        launch(self, *args, **options)

    def multiplying(self: Any, *args: Any) -> None:
        counts["products"] += captured()
        multiply(self, *args)

    Kernel.__call__, Plan.multiply = launching, multiplying  # type: ignore[method-assign, assignment]
    try:
        yield counts
    finally:
        Kernel.__call__, Plan.multiply = launch, multiply  # type: ignore[method-assign]


def nodes(effort: Effort) -> Iterator[Finding]:
    """What the graph of a captured step consists of: our kernels, and what the library launches for its products (of split-K: two)."""
    import gpuprop as gp

    from .providers.gpuprop import training_step

    for problem in problems(effort.smoke):
        try:
            function, _ = training_step(problem)
            batches = [(gp.tensor(x), gp.tensor(labels)) for x, labels in problem.batches()]
            step = gp.capture(function)
            step(*batches[0])
            with counted() as counts:
                step(*batches[1])
            labels = step.recording.nodes()
        except Exception as error:
            yield finding(str(problem), in_short(error), True)
            continue
        moves = sum(bool(re.match(r"\W*mem(cpy|set)\b", label, re.I)) for label in labels)
        library = len(labels) - counts["kernels"] - moves
        layers = len(problem.sizes) - 1
        said = (
            f"{len(labels)} nodes: {counts['kernels']} kernels of ours, {library} of the library for {counts['products']} products, "
            f"{moves} copies and fills; {5 * layers - 1} calls without epilogues, {3 * layers + 1} with"
        )
        few = counts["kernels"] + counts["products"] > 5 * layers - 1
        yield finding(str(problem), said, few, nodes=len(labels), library=library, moves=moves, **counts, labels=labels)
        del step, function, batches
        free_bytes()


# --- Rates of kernels and products ----------------------------------------------------------------------------------


def kernels(effort: Effort) -> Iterator[Finding]:
    """GB/s of every streaming kernel, on what it must move, against the copy."""
    from .clock import gpu_seconds
    from .harness import interleave
    from .limits import measure
    from .traffic import D, cases

    # One array: more than a GPU's L2 cache holds (126 MB), and a sixteenth of the memory at most; a case keeps up to a dozen.
    rows = 32 if effort.smoke else min(1 << 15, 1 << int(math.log2(free_bytes() / 16 / (4 * D))))
    copy = measure(effort.device, smoke=effort.smoke).copy_bytes_per_second
    found = cases(rows)
    while True:
        try:
            case = next(found, None)
            if case is None:
                return
            written = case.run()
            least = sum(a.nbytes for a in [*case.reads, *written] if a is not None)
            timing = interleave(
                {"": case.run}, rounds=2 if effort.smoke else 5, seconds=0 if effort.smoke else 0.01, clock=gpu_seconds
            )
        except MemoryError as error:
            yield finding("memory", in_short(error), True)
            return
        rate = least / timing[""].median
        said = f"{rate / 1e9:,.0f} GB/s, {rate / copy:.0%} of a copy"
        yield finding(case.name, said, bytes_per_second=rate, share=rate / copy, bytes=least, rows=rows)


def products(effort: Effort) -> Iterator[Finding]:
    """The products of the networks' steps against the largest rate measured: the library's first proposal, and the fastest of eight."""
    import gpuprop as gp

    from .limits import measure

    rates: dict[str, float] = {}  # by precision
    for problem in problems(effort.smoke):
        if problem.precision not in rates:
            rates[problem.precision] = measure(effort.device, problem.precision, effort.smoke).flops_per_second
        peak, name = rates[problem.precision], {"high": "TF32", "highest": "float32"}[problem.precision]
        gp.set_float32_matmul_precision(problem.precision)
        try:
            for product in step_products(problem.sizes, problem.batch):
                seconds, tuned = _product_seconds(product, effort.smoke)
                rate, gain = product.flops / seconds, seconds / tuned
                said = f"{rate / 1e12:.3g} TFLOP/s, {rate / peak:.0%} of the peak; tuned {gain:.2f}x"
                yield finding(
                    f"{product}, {name}", said, flops_per_second=rate, share=rate / peak, tuned=gain, seconds=seconds
                )
        except MemoryError as error:
            yield finding(str(problem), in_short(error))
        finally:
            gp.set_float32_matmul_precision("highest")


@dataclass(frozen=True)
class Product:
    """(m, k) @ (k, n), of which one may be the transposed of what lies in memory."""

    m: int
    k: int
    n: int
    transposed: str = ""

    @property
    def flops(self) -> int:
        return 2 * self.m * self.k * self.n

    def __str__(self) -> str:
        a, b = ("T" if self.transposed == letter else "" for letter in "ab")
        return f"{self.m}x{self.k}{a} @ {self.k}x{self.n}{b}"

    def operands(self) -> tuple[Any, Any]:
        import cupy

        rng = cupy.random.default_rng(0)
        shapes = {"a": (self.m, self.k), "b": (self.k, self.n)}
        draw = lambda shape: rng.standard_normal(shape, cupy.float32)
        a, b = (draw(s[::-1]).T if name == self.transposed else draw(s) for name, s in shapes.items())
        return a, b


def step_products(sizes: Sequence[int], batch: int) -> list[Product]:
    """A step's products, each once: x @ W.T, the gradients dz.T @ x of weights and dz @ W of inputs."""
    pairs = list(zip(sizes, sizes[1:], strict=False))
    forward, weights = [Product(batch, i, o, "b") for i, o in pairs], [Product(o, batch, i, "a") for i, o in pairs]
    return list(dict.fromkeys([*forward, *weights, *(Product(batch, o, i) for i, o in pairs[1:])]))


def _product_seconds(product: Product, smoke: bool) -> tuple[float, float]:
    """By the algorithm that the library proposes first, and by the fastest of those that it proposes."""
    import cupy

    import gpuprop as gp
    from gpuprop.cuda import gemm

    from .clock import gpu_seconds
    from .harness import interleave

    a, b = product.operands()
    y, seconds = cupy.empty((product.m, product.n), np.float32), []
    rounds, long_enough = (2, 0.0) if smoke else (5, 0.005)
    try:
        for tuned in (False, True):
            gp.set_matmul_autotuning(tuned)
            run = {"": lambda: gemm.product(a, b, out=y)}
            seconds.append(interleave(run, rounds=rounds, seconds=long_enough, clock=gpu_seconds)[""].median)
    finally:
        gp.set_matmul_autotuning(False)
        gp.set_matmul_choices({})
    return seconds[0], seconds[1]


# --- Time per step --------------------------------------------------------------------------------------------------

PEERS = ("gpuprop-captured", "gpuprop-eager", "cupy", "torch", "torch-fused", "torch-graphs", "jax")


def steps(effort: Effort) -> Iterator[Finding]:
    """Seconds per step of gpuprop, PyTorch and JAX, each in a process of its own, in turns; their losses are compared."""
    from . import stage
    from .providers import PROVIDERS
    from .throughput import check_losses, least_memory
    from .workers import Failed, Worker

    contestants = {}
    for name in PEERS:
        if PROVIDERS[name].installed:
            contestants[name] = PROVIDERS[name]
        else:
            yield finding(name, f"{PROVIDERS[name].package} is not installed")
    rounds, seconds = (2, 0.001) if effort.smoke else (7, 0.05)
    threads = max(1, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))
    with ExitStack() as stack, ThreadPoolExecutor(len(contestants)) as pool:
        workers = {name: stack.enter_context(Worker(threads)) for name in contestants}
        for problem in problems(effort.smoke):
            needed, free = least_memory(problem) * len(workers), free_bytes()
            if needed > free:
                said = f"not measured: {needed / 1e9:.1f} GB for all at once, and {free / 1e9:.1f} are free"
                yield finding(str(problem), said)
                continue

            def ready(name: str, problem: Any = problem) -> Any:
                """The losses of its first steps, once it is ready for its turns; or why it is not."""
                try:
                    patience = max(effort.left, 10)
                    seen = workers[name].call(stage.rehearse, contestants[name], problem, patience, patience=patience)
                    workers[name].call(stage.enter, contestants[name], problem, seconds, patience=max(effort.left, 10))
                    return seen.losses
                except Failed as failed:
                    return str(failed)

            entered = dict(zip(workers, pool.map(ready, list(workers)), strict=True))
            for name in [name for name, losses in entered.items() if isinstance(losses, str)]:
                why = entered.pop(name)
                yield finding(f"{name}, {problem}", why, name.startswith("gpuprop"), provider=name)
                if "out of memory" not in why:  # smaller problems may come
                    workers.pop(name).close()
            expected = entered.get("gpuprop-eager")
            taken: dict[str, list[float]] = {name: [] for name in entered}
            for _ in range(rounds):
                for name in list(entered):
                    try:
                        taken[name].append(workers[name].call(stage.turn, seconds, patience=max(effort.left, 10))[0])
                    except Failed as failed:
                        yield finding(f"{name}, {problem}", str(failed), True, provider=name)
                        del entered[name]
                        workers.pop(name).close()
            for name, losses in entered.items():
                wrong = ""
                try:
                    if expected is not None:
                        check_losses(losses, expected, problem.precision)
                except Failed as failed:
                    wrong = str(failed)
                median = float(np.median(taken[name]))
                said = wrong or f"{median * 1e6:,.1f} us"
                yield finding(
                    f"{name}, {problem}",
                    said,
                    bool(wrong),
                    provider=name,
                    problem=str(problem),
                    seconds=median,
                    all=taken[name],
                )


# --- The tests ------------------------------------------------------------------------------------------------------


LAST_WORDS = 10.0  # seconds that pytest has for its summary when it is stopped


def tests(effort: Effort) -> Iterator[Finding]:
    """The tests marked cuda, for as long as there is time: those that fail."""
    if importlib.util.find_spec("pytest") is None:
        yield finding("pytest", "not installed: pip install 'gpuprop[test]'", True)
        return
    root = Path(__file__).parent.parent
    chosen = ["tests/test_backpropagation.py"] if effort.smoke else ["tests"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "-m",
        "cuda",
        "-rfE",
        "--tb=line",
        "-p",
        "no:cacheprovider",
        *chosen,
    ]
    command += ["--ignore", "tests/test_first_gpu.py"]  # it would run this again
    if importlib.util.find_spec("xdist") is not None and not effort.smoke:
        command += ["-n", str(min(8, os.cpu_count() or 1))]
    with tempfile.TemporaryFile("w+") as output:
        # Unbuffered, a line for each test, so that it is known how far they came.
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(command, cwd=root, stdout=output, stderr=subprocess.STDOUT, env=environment)
        ended = True
        try:
            process.wait(max(effort.left - LAST_WORDS, 1))
        except subprocess.TimeoutExpired:
            ended = False
            process.send_signal(signal.SIGINT)  # then it says why tests failed
            try:
                process.wait(LAST_WORDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        output.seek(0)
        text = output.read()
    results, reasons = results_in(text)
    failed = [test for test, result in results.items() if result in ("FAILED", "ERROR")]
    for test in failed:
        yield finding(test, reasons.get(test, "failed"), True)
    counts = Counter(result.lower() for result in results.values())
    said = ", ".join(f"{n} {word}" for word, n in counts.items()) or f"no test ran, exit code {process.returncode}"
    wrong = bool(failed) or not counts["passed"] or (ended and process.returncode != 0)
    what = "all" if ended else "stopped when time was up"
    yield finding(
        what, f"{said}{'' if ended else ', and then time was up'}", wrong, **counts, tail=text.splitlines()[-5:]
    )


RESULT = "PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS"


def results_in(output: str) -> tuple[dict[str, str], dict[str, str]]:
    """What became of each test, and why it failed, from what `pytest -v -rfE` printed, with or without xdist."""
    by_worker = re.findall(rf"^\[gw\d+\] \[ *\d+%\] ({RESULT}) (\S.*?) *$", output, re.M)
    alone = re.findall(rf"^(\S+::.*?) ({RESULT})(?: \(.*\))? +\[ *\d+%\]$", output, re.M)
    results = {test: result for result, test in by_worker} | dict(alone)
    reasons = dict(re.findall(r"^(?:FAILED|ERROR) (\S+::.*?) - (.*)$", output, re.M))
    return results, reasons


@dataclass(frozen=True)
class Check:
    """seconds: what it may take; it is asked to stop then, and made to a little later."""

    run: Callable[[Effort], Iterator[Finding]]
    seconds: float

    @property
    def name(self) -> str:
        return self.run.__name__

    @property
    def says(self) -> str:
        return (self.run.__doc__ or "").split("\n")[0]

    def within(self, seconds: float) -> Check:
        return replace(self, seconds=min(self.seconds, seconds))


# In this order; the tests come last and have what time is left.
CHECKS = {
    check.name: check
    for check in (
        Check(device, 30),
        Check(precision, 75),
        Check(replay, 30),
        Check(nodes, 30),
        Check(products, 30),
        Check(kernels, 45),
        Check(steps, 100),
        Check(tests, 400),
    )
}
