"""What kernels move through memory, against the least that their task needs: `python -m benchmarks.traffic`.

A simulated GPU counts the 32-byte sectors that each access of a warp touches. The least is what a launch reads and writes, each array once.
Small arrays that many rows share (a bias, 4 KiB) are read again and again; of what a launch reads twice, so much is left to the cache.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

N, D = 4096, 1024
SECTOR = 32
WARPS = 4 * D // 512  # that share a row of float32: a single number costs each of them a sector
SIMULATOR = os.environ.get("CUDASIM", "cudasim")  # the command that simulates a GPU


# --- What is measured: in the simulated process ---------------------------------------------------------------------


@dataclass
class Case:
    """What is launched: `run` returns the arrays (or None) that it wrote; `reads` are those it read, of which `shared` for each row."""

    name: str
    run: Callable[[], Sequence[Any]]
    reads: Sequence[Any]
    shared: Sequence[Any] = ()


def elementwise_cases(op: Any, x: Any, dy: Any) -> Iterator[Case]:
    """The loops of a functor of one input, alone."""
    binder, options = op.cuda.implementation.binder, op.defaults
    yield Case(f"{op.name} forward", lambda: [binder.forward(x, **options)], [x])
    yield Case(f"{op.name} backward", lambda: [binder.backward(dy, x, **options)], [dy, x])


def biased_cases(op: Any, x: Any, dy: Any, bias: Any, learnt: Any = None) -> Iterator[Case]:
    """Those with a bias, and with dropout."""
    import cupy

    from gpuprop.cuda._elementwise import Dropout, Learnt

    binder, options, name = op.cuda.implementation.binder, op.defaults, f"{op.name} bias"
    y, db, dlearnt, given = cupy.empty_like(x), cupy.empty_like(bias), None, None
    if learnt is not None:
        dlearnt = cupy.empty_like(learnt)
        given, name = Learnt(learnt, dlearnt), f"{op.name} of {learnt.size}, {x.dtype}, bias"

    def forward(dropout: Any) -> list:
        binder.bias_forward(x, bias, y, dropout, given, **options)
        return [y]

    def backward(dropout: Any) -> list:
        binder.bias_backward(dy, x, bias, y, db, dropout, given, **options)
        return [y, db, dlearnt]

    drops = Dropout(cupy.zeros(1, cupy.uint64), threshold=2**31, scale=2.0, seed=1, offset=0)
    own = [] if learnt is None else [learnt]
    for dropout, more in [(None, ""), (drops, " dropout")]:
        again = [bias, *own] if binder.keeps_of(dropout is not None) == "x" else []
        yield Case(f"{name}{more} forward", functools.partial(forward, dropout), [x, bias, *own], [bias, *own])
        yield Case(f"{name}{more} backward", functools.partial(backward, dropout), [dy, x, *again], again)


def op_cases(op: Any, inputs: Sequence[Any], shared: Sequence[Any], **options: Any) -> Iterator[Case]:
    """An op's implementation on arrays, with all that backward needs, and its gradients from what it keeps."""
    import cupy

    made, options = op.cuda.implementation, {**op.defaults, **options}
    arrays = [a for a in inputs if a is not None]
    inputs = [*inputs, *[None] * (len(op.inputs) - len(inputs))]

    def forward() -> list:
        results = made.forward(*inputs, **options, **({"keep": True} if made.residuals else {}))
        return list(results) if made.residuals else [results]

    yield Case(f"{op.name} forward", forward, arrays, shared)
    known = dict(zip(op.inputs, inputs)) | {f"{n}_shape": getattr(a, "shape", None) for n, a in zip(op.inputs, inputs)}
    known |= dict(zip(["y", *made.residuals], forward()))
    for rule in made.gradients:
        if rule.takes_unit_seed:  # forward has written it already
            continue
        kept = [known[name] for name in rule.keeps]
        dy = cupy.random.default_rng(1).standard_normal(known["y"].shape, known["y"].dtype)
        chosen = {name: options[name] for name in rule.options}
        if rule.takes_wanted:
            chosen["wanted"] = tuple(known[target] is not None for target in rule.targets)

        def backward(rule: Any = rule, dy: Any = dy, kept: Any = kept, chosen: Any = chosen) -> list:
            results = rule.function(dy, *kept, **chosen)
            return list(results) if isinstance(results, tuple) else [results]

        read = [a for a in [dy, *kept] if isinstance(a, cupy.ndarray)]
        again = [a for a in shared if any(a is b for b in read)]
        yield Case(f"{op.name} backward of {', '.join(rule.targets)}", backward, read, again)


def column_cases(x: Any, dy: Any, weight: Any, bias: Any) -> Iterator[Case]:
    """Batch normalisation, launch by launch."""
    from gpuprop.cuda.columns import BatchNorm, Results
    from gpuprop.ops.normalisation import standardize

    norm, wanted = BatchNorm(), (True, True, True)
    mean, variance, means, scales = norm.statistics(x, 1e-5)
    vectors = [means, scales, weight, bias]
    yield Case("batch_norm statistics", lambda: norm.statistics(x, 1e-5), [x])
    yield Case("batch_norm y", lambda: [norm.normalised(x, means, scales, weight, bias)], [x, *vectors], vectors)

    results = Results(x, weight, wanted, None, (False,) * 3)
    given = (dy, mean, variance, x, weight, means, scales)
    slopes = norm.gradient_sums(*given, results)

    def sums() -> list:
        return [norm.gradient_sums(*given, results), *results.arrays[1:]]

    def gradient() -> list:
        norm.gradient(dy, x, means, slopes, results.arrays[0])
        return results.arrays[:1]

    yield Case("batch_norm sums of the gradients", sums, given, [means])
    yield Case("batch_norm dx", gradient, [dy, x, means, slopes], [means, slopes])
    yield next(op_cases(standardize, [x, mean, variance, weight, bias], [mean, variance, weight, bias]))


def biased_loss_cases(op: Any, x: Any, bias: Any, targets: Sequence[Any]) -> Iterator[Case]:
    """A loss of x + bias with all gradients for dy = 1, and what scales them."""
    from gpuprop.cuda.losses import bias_gradients

    made, dy = op.cuda.implementation.binder, x.dtype.type(2) * x[0, :1].reshape(())

    def forward() -> list:
        return list(made.with_bias(x, bias, *targets, keep=True, **op.defaults))

    yield Case(f"{op.name} with a bias, {x.dtype}, forward", forward, [x, bias, *targets], [bias])
    _, dx, dbias = forward()
    scaled = functools.partial(bias_gradients, dy, dx, dbias, (True, True))
    yield Case(f"{op.name} with a bias, {x.dtype}, backward", scaled, [dx, dy])


def optimizer_cases(count: int) -> Iterator[Case]:
    """A step of each optimizer over parameters of which nothing but the sizes matters."""
    import gpuprop as gp

    for kind, options, states in [
        (gp.optim.SGD, {}, 0),
        (gp.optim.SGD, {"momentum": 0.9}, 1),
        (gp.optim.Adam, {}, 2),
        (gp.optim.AdamW, {}, 2),
        (gp.optim.RMSprop, {}, 1),
        (gp.optim.Adagrad, {}, 1),
    ]:
        parameter = gp.nn.Parameter(gp.ones(count, device="cuda"))
        parameter.grad = gp.ones(count, device="cuda")
        optimizer = kind([parameter], lr=0.01, **options)

        def step(optimizer: Any = optimizer, values: Any = parameter.data, states: int = states) -> list:
            optimizer.step()
            return [values] * (1 + states)

        step()  # makes the states
        name = " ".join([kind.__name__, *options])
        yield Case(f"{name} step", step, [parameter.data] * (2 + states))


def cases(rows: int = N) -> Iterator[Case]:
    """Every streaming kernel, at (rows, D) or as near as it goes."""
    import cupy

    import gpuprop  # noqa: F401  (its ops bind their kernels)
    from gpuprop._op import REGISTRY

    rng = cupy.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape, cupy.float32)

    x, other, bias, scale = normal(rows, D), normal(rows, D), normal(D), normal(D)
    positive, labels = cupy.abs(other) + 0.1, cupy.arange(rows) % D
    for name in (
        "relu",
        "tanh",
        "gelu",
    ):  # these keep y or x, before dropout and after: all functors run in the same loops
        yield from elementwise_cases(REGISTRY[name], x, other)
        yield from biased_cases(REGISTRY[name], x, other, bias)
    prelu, half = REGISTRY["prelu"], [a.astype(cupy.float16) for a in (x, other, bias, scale)]
    for values, cotangents, column, weights in ((x, other, bias, scale), half):
        for learnt in (weights[:1], weights):
            yield from biased_cases(prelu, values, cotangents, column, learnt)
    for learnt in (scale[:1], scale):
        yield from (replace(c, name=f"{c.name} of {learnt.size}") for c in op_cases(prelu, [x, learnt], [learnt]))
    for name, inputs, shared in [
        ("softmax", [x], []),
        ("log_softmax", [x], []),
        ("logsumexp", [x], []),
        ("layer_norm", [x, scale, bias], [scale, bias]),
        ("rms_norm", [x, scale], [scale]),
        ("cross_entropy", [x, labels], []),
        ("cross_entropy", [x.astype(cupy.float16), labels], []),
        ("mse_loss", [x, other], []),
        ("l1_loss", [x, other], []),
        ("smooth_l1_loss", [x, other], []),
        ("huber_loss", [x, other], []),
        ("binary_cross_entropy_with_logits", [x, positive], []),
        ("binary_cross_entropy_with_logits", [x, positive, None, scale], [scale]),
        ("poisson_nll_loss", [x, positive], []),
        ("gaussian_nll_loss", [x, other, positive], []),
    ]:
        options = {"axis": -1} if name == "logsumexp" else {}
        yield from op_cases(REGISTRY[name], inputs, shared, **options)
    for dtype in (cupy.float32, cupy.float16):
        row, column = x.astype(dtype), bias.astype(dtype)
        yield from biased_loss_cases(REGISTRY["cross_entropy"], row, column, [labels])
        yield from biased_loss_cases(REGISTRY["mse_loss"], row, column, [other.astype(dtype)])
        yield from biased_loss_cases(
            REGISTRY["binary_cross_entropy_with_logits"], row, column, [positive.astype(dtype)]
        )
    yield from op_cases(REGISTRY["sum"], [x], [], axis=0)
    yield from op_cases(REGISTRY["sum"], [x.astype(cupy.float16)], [], axis=0)
    yield from column_cases(x, other, scale, bias)
    base = cupy.zeros((), cupy.uint64)
    yield from op_cases(REGISTRY["dropout"], [x, base], [], p=0.5, seed=1, offset=0)
    yield from op_cases(REGISTRY["gather_rows"], [x, labels], [])
    yield from optimizer_cases(rows * D)


@dataclass
class Step:
    """A captured training step of an MLP with softmax-cross-entropy and Adam, in float32, on arguments that lie where it reads them."""

    activation: str
    rides: bool  # on the products: bias, activation, and their gradients
    sizes: tuple[int, ...] = (784, 512, 512, 10)
    batch: int = 256

    @property
    def name(self) -> str:
        path = "on the products" if self.rides else "by kernels"
        return f"step of {'-'.join(map(str, self.sizes))}, batch {self.batch}, {self.activation} {path}"

    def recorded(self) -> Callable[[], Any]:
        """Its replay."""
        import cupy

        import gpuprop as gp
        from gpuprop.nn import functional as F

        gp.set_matmul_epilogues(self.rides)
        model = gp.nn.MLP(self.sizes, activation=self.activation, seed=0, device="cuda")
        optimizer = gp.optim.Adam(model.parameters())

        @gp.capture
        def step(x: Any, labels: Any) -> Any:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), labels)
            loss.backward()
            optimizer.step()
            return loss

        x = gp.asarray(cupy.random.default_rng(0).standard_normal((self.batch, self.sizes[0]), cupy.float32))
        labels = gp.asarray(cupy.arange(self.batch) % self.sizes[-1])
        for _ in range(2):
            step(x, labels)
        return lambda: step(*step.inputs)

    def budget(self) -> dict[str, int]:
        """Bytes that have to be moved, by what for: each array that a product, a kernel or the optimizer works on, once.

        Of products the simulator counts factors and result alone, so this does too: neither a bias that rides, nor ReLU's signs as bits.
        """
        float32, int64 = 4, 8
        pairs = list(zip(self.sizes, self.sizes[1:]))
        product = [float32 * (self.batch * n + n * m + self.batch * m) for n, m in pairs]
        hidden, classes = self.sizes[1:-1], self.sizes[-1]
        return {
            "products": 3 * sum(product)
            - product[0],  # forward, gradient of the weight, of the input but for the first layer
            "activations": 0
            if self.rides
            else sum(
                float32 * (5 * self.batch * n + 2 * n) for n in hidden
            ),  # z -> y; dy, y -> dz; bias and its gradient
            "loss": float32 * (2 * self.batch * classes + 2 * classes + 1) + int64 * self.batch,
            "optimizer": 28 * sum(n * m + m for n, m in pairs),
        }

    @property
    def cached(self) -> int:
        """Bytes that are read again from the cache: biases, for each row."""
        return 4 * (self.batch - 1) * sum(self.sizes[1:])


STEPS = [Step("tanh", rides=False), Step("relu", rides=True)]


def measure(what: str) -> None:
    """Runs every case under the simulator's profile, between launches of a kernel that marks where it begins and ends."""
    import cupy

    mark = cupy.RawKernel('extern "C" __global__ void mark() {}', "mark")
    for case in cases() if what == "kernels" else STEPS:
        run = case.recorded() if isinstance(case, Step) else case.run
        mark((1,), (1,), ())
        written = run()
        mark((1,), (1,), ())
        if isinstance(case, Step):
            least, cached = sum(case.budget().values()), case.cached
        else:
            least = sum(a.nbytes for a in [*case.reads, *written] if a is not None)
            cached = sum(max(a.nbytes, WARPS * SECTOR) * (N - 1) for a in case.shared)
        print(json.dumps({"name": case.name, "least": least, "cached": cached}), flush=True)


# --- What is printed ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Traffic:
    """What one case moved: bytes of sectors, but for reads of shared arrays from the cache; the least; bytes that threads asked for."""

    name: str
    launches: tuple[str, ...]  # and products
    moved: int
    least: int
    asked: int
    sectors: int

    @property
    def excess(self) -> float:
        return self.moved / self.least

    @property
    def coalescing(self) -> float:
        """Bytes that threads asked for over those of the sectors that came."""
        return self.asked / (self.sectors * SECTOR)


def profile(simulator: str, what: str) -> list[Traffic]:
    """Runs `measure` of "kernels" or "steps" in a process on the simulated GPU."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "profile.jsonl"
        command = [
            simulator,
            "run",
            "--profile",
            str(log),
            "--",
            sys.executable,
            "-m",
            "benchmarks.traffic",
            "--measure",
            what,
        ]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent)
        named = [json.loads(line) for line in done.stdout.splitlines()]
        records = [json.loads(line) for line in log.read_text().splitlines()]
    marks = [i for i, record in enumerate(records) if record["name"] == "mark"]
    found = []
    for case, begin, end in zip(named, marks[::2], marks[1::2], strict=True):
        launches = [r for r in records[begin + 1 : end] if r["kind"] == "kernel"]
        products = [r["name"] for r in records[begin + 1 : end] if r["kind"] == "gemm"]
        sectors = sum(r[way]["sectors"] for r in launches for way in ("loads", "stores"))
        asked = sum(r[way]["bytes"] for r in launches for way in ("loads", "stores"))
        copied = sum(r["bytes"] for r in records[begin + 1 : end] if r["kind"] != "kernel")
        again = sum(r["loads"]["sectors"] * SECTOR - r["read_footprint"] for r in launches)
        moved = sectors * SECTOR + copied - min(again, case["cached"])
        names = (*(r["name"] for r in launches), *products)
        found.append(Traffic(case["name"], names, moved, case["least"], asked, sectors))
    return found


def main(
    simulator: Annotated[str, typer.Option(help="The command that simulates a GPU.")] = SIMULATOR,
    measuring: Annotated[str, typer.Option("--measure", hidden=True)] = "",
) -> None:
    """Prints the bytes that each streaming kernel, and a captured training step, moves over the least, and how well accesses coalesce."""
    if measuring:
        measure(measuring)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "launches", "least", "moved", "over the least", "coalescing")
    for traffic in [*profile(simulator, "kernels"), *profile(simulator, "steps")]:
        table.add_row(
            traffic.name,
            ", ".join(traffic.launches) if len(traffic.launches) < 5 else f"{len(traffic.launches)} in one graph",
            f"{traffic.least / 1e6:.2f} MB",
            f"{traffic.moved / 1e6:.2f} MB",
            f"{traffic.excess:.3f}",
            f"{traffic.coalescing:.3f}",
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    typer.run(main)
