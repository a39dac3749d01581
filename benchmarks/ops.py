"""Every op of the registry, by its generic rule and by its implementation: `gpuprop bench ops`, or `python -m benchmarks.ops`.

Forward and gradient are timed apart, rule and implementation in turns. Bytes are those of the arrays that an op was handed and hands
back, each once; a view moves none. The rate is held against that of a large copy in the same run; an op that reads a part of what it gets
(`take`, `trace`) can beat it.
"""

from __future__ import annotations

import contextlib
import json
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from gpuprop import testing

ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 26}  # in an op's arguments and results together: more than a GPU's caches hold
SLOW = 0.1  # seconds on a CPU: an op whose call would take longer is not enlarged any more
SIZES = ("shape", "normalized_shape", "n")  # options that count elements
DRAWN = 1 << 18  # random numbers of which large arrays are made by repetition; drawing each would take minutes


# --- Samples large enough -------------------------------------------------------------------------------------------


class LargeDraw(testing.Draw):
    """Draws arrays whose axes, but for those of 0 and 1, are `factor` times as long as was asked for: so they go on fitting each other."""

    factor = 1

    def _large(self, drawn: Callable[..., np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        if self.factor == 1:
            return drawn(*shape)
        longer = scaled(shape, self.factor)
        count = int(np.prod(longer))
        return np.resize(drawn(min(count, DRAWN)), longer)

    def normal(self, *shape: int) -> np.ndarray:
        return self._large(super().normal, shape)

    def uniform(self, low: float, high: float, *shape: int) -> np.ndarray:
        return self._large(lambda *s: testing.Draw.uniform(self, low, high, *s), shape)

    def positive(self, *shape: int) -> np.ndarray:
        return self.uniform(0.2, 3.0, *shape)

    def apart(self, *shape: int, gap: float = 0.1) -> np.ndarray:
        """Of both signs and distinct in small samples, normal in large ones: a million distinct values 0.1 apart would all be huge."""
        return super().apart(*shape, gap=gap) if self.factor == 1 else self.normal(*shape)

    def integers(self, low: int, high: int, *shape: int) -> np.ndarray:
        return self._large(lambda *s: testing.Draw.integers(self, low, high, *s), shape)

    def booleans(self, *shape: int) -> np.ndarray:
        return self._large(super().booleans, shape)

    def probabilities(self, *shape: int) -> np.ndarray:
        drawn = self.uniform(0.1, 1.0, *shape)
        return drawn / drawn.sum(-1, keepdims=True)


def scaled(sizes: Any, factor: int) -> Any:
    """Lengths times a factor; 0, 1 and -1 say something else than a length."""
    if isinstance(sizes, (tuple, list)):
        return tuple(scaled(n, factor) for n in sizes)
    return sizes * factor if isinstance(sizes, int) and sizes > 1 else sizes


def drawn(op: Any, index: int, factor: int, dtype: Any) -> testing.Sample:
    """The op's sample of this index, each axis `factor` times as long; random numbers, which have no real argument, of this dtype."""
    from gpuprop.tape import is_floating

    draw = LargeDraw(zlib.crc32(op.name.encode()))
    samples = iter(op.samples(draw))
    for _ in range(index):
        next(samples)
    draw.factor = factor
    sample = next(samples)
    sample.options = {k: scaled(v, factor) if k in SIZES else v for k, v in sample.options.items()}
    if is_floating(sample.options.get("dtype", np.dtype(int))) and not any(
        is_floating(a.dtype) for a in arrays(sample)
    ):
        sample.options["dtype"] = dtype
    return sample


def arrays(sample: testing.Sample) -> list[np.ndarray]:
    return [v for v in sample.inputs if isinstance(v, np.ndarray)]


def described(op: Any, sample: testing.Sample) -> str:
    """Shapes and numbers, and the options that are not the defaults: "2048x5120, 5120, axis=0"."""
    inputs = ["x".join(map(str, v.shape)) or "scalar" if isinstance(v, np.ndarray) else str(v) for v in sample.inputs]
    unusual = [f"{k}={v}" for k, v in sample.options.items() if v != op.defaults.get(k)]
    return ", ".join([*inputs, *unusual])


def typical(op: Any) -> list[int]:
    """The indices of the op's samples, those first that are most like what networks do: matrices, all inputs, no unusual options."""

    def rank(sample: testing.Sample) -> tuple:
        given = arrays(sample)
        unusual = sum(op.defaults.get(k) != v for k, v in sample.options.items())
        return (max(a.ndim for a in given) != 2, unusual, -len(given), -max(a.size for a in given))

    samples = list(enumerate(op.samples(testing.Draw(zlib.crc32(op.name.encode())))))
    usable = [(i, s) for i, s in samples if all(a.size for a in arrays(s))]
    return [i for i, s in sorted(usable, key=lambda pair: rank(pair[1]))]


class NotEnlarged(Exception):
    """An op none of whose samples takes longer axes."""


def enlarged(op: Any, device: Any, dtype: Any, elements: int) -> tuple[testing.Sample, int]:
    """A sample of the op with about so many elements in its arguments and results, and by how much its axes are longer.

    Axes are doubled until the next doubling would exceed the number, or take longer than `SLOW`. Raises: NotEnlarged.
    """
    reasons = []
    for index in typical(op):
        factor, sizes, seconds, reason = 1, [], [], ""
        try:
            while True:
                trial = Case(op, drawn(op, index, factor, dtype), device, dtype)
                trial.forward()  # may compile
                seconds.append(min(trial.seconds() for _ in range(2)))
                sizes.append(trial.elements)
                growth = sizes[-1] / sizes[-2] if len(sizes) > 1 else 4
                if len(sizes) > 1 and growth < 1.5:
                    raise NotEnlarged("longer axes do not make it larger")
                slower = max(seconds[-1] / seconds[-2], growth) if len(sizes) > 2 else growth
                if sizes[-1] * growth > elements or (seconds[-1] > SLOW / 4 and seconds[-1] * slower > SLOW):
                    break
                factor *= 2
        except (
            Exception
        ) as error:  # an option does not fit longer axes: of any kind, since rules run on what was never meant for them
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if len(sizes) > 1 and sizes[-1] >= min(elements, 1 << 10) / 64 and not reason:
            return drawn(op, index, factor, dtype), factor
        reasons.append(reason or "a call takes long at once")
    raise NotEnlarged(reasons[0] if reasons else "it has no sample with elements")


# --- One op ---------------------------------------------------------------------------------------------------------


def differentiable(op: Any, inputs: Sequence[Any]) -> list[int]:
    """The positions of the real arrays that have a gradient rule."""
    from gpuprop.tape import is_floating

    ruled = {target for rule in op.gradients for target in rule.targets}
    names = [op.inputs[min(i, len(op.inputs) - 1)] for i in range(len(inputs))]
    return [i for i, v in enumerate(inputs) if hasattr(v, "dtype") and is_floating(v.dtype) and names[i] in ruled]


def owner(array: Any) -> Any:
    """What holds an array's memory: equal for an array and its views."""
    if not isinstance(array, np.ndarray):
        return array.data.mem  # CuPy's block
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def nbytes(arrays: Sequence[Any]) -> int:
    """Bytes of arrays, each piece of memory once."""
    largest: dict[int, int] = {}
    for array in arrays:
        key = id(owner(array))
        largest[key] = max(largest.get(key, 0), array.nbytes)
    return sum(largest.values())


class Case:
    """An op with arguments on a device: its forward call, as it is recorded, and its gradients for a random cotangent."""

    def __init__(self, op: Any, sample: testing.Sample, device: Any, dtype: Any):
        from gpuprop._tensor import Tensor
        from gpuprop.device import copy_to
        from gpuprop.tape import is_floating

        def placed(value: Any) -> Any:
            if not isinstance(value, np.ndarray):
                return value
            return Tensor(copy_to(value.astype(dtype) if is_floating(value.dtype) else value, device))

        self.op, self.device, self.sample = op, device, sample
        self.options = {k: str(device) if v == "cpu" else v for k, v in sample.options.items()}
        self.inputs = [placed(v) for v in sample.inputs]
        self.tensors = [t for t in self.inputs if isinstance(t, Tensor)]
        self.wanted = [self.inputs[i].requires_grad_() for i in differentiable(op, self.inputs)] if op.smooth else []
        self.results: tuple = ()

    def forward(self) -> Any:
        """Calls the op, as users do."""
        results = self.op(*self.inputs, **self.options)
        self.results = results if isinstance(results, tuple) else (results,)

    def seconds(self) -> float:
        """What a call takes until its results are there."""
        import gpuprop as gp

        gp.synchronize()
        start = time.perf_counter()
        self.forward()
        gp.synchronize()
        return time.perf_counter() - start

    @property
    def elements(self) -> int:
        return sum(t.size for t in [*self.tensors, *self.results])

    def _kept(self) -> list[Any]:
        """What the tape keeps of the last call for its gradients."""
        from gpuprop._tensor import Tensor
        from gpuprop.device import is_array

        nodes = [t._node for t in self.results if t._node is not None]
        kept = [k for node in nodes[:1] for k in getattr(node, "record", node).kept or ()]
        flat = [k for item in kept for k in (item if isinstance(item, tuple) else (item,))]
        arrays = [k._data if isinstance(k, Tensor) else k for k in flat]
        return [a for a in arrays if is_array(a)]

    def forward_bytes(self) -> int:
        """Of the arguments, of the results and of what was made for the gradients; none where the results are views."""
        given, made = [t._data for t in self.tensors], [t._data for t in self.results] + self._kept()
        owners = {id(owner(a)) for a in given}
        new = [a for a in made if id(owner(a)) not in owners]
        return nbytes([*given, *new]) if new else 0

    def gradient(self, rounded_to: Any = None) -> Callable[[], list[Any]] | None:
        """The gradients of the last call's results with respect to all real arguments; None where there are none.

        rounded_to: a dtype that the numbers of the cotangents are to be exact in.
        """
        from gpuprop.device import copy_to
        from gpuprop.tape import walk

        roots = [t for t in self.results if t.requires_grad and t._node is not None]
        if not roots or not self.wanted:
            return None
        rng = np.random.default_rng(7)
        self.cotangents = []
        for t in roots:
            block = np.asarray(rng.standard_normal(min(max(t.size, 1), DRAWN)))
            block = block if rounded_to is None else block.astype(rounded_to)
            self.cotangents.append(copy_to(np.resize(block, t.shape).astype(t.dtype), self.device))
        pairs, nodes = list(zip(roots, self.cotangents, strict=True)), [t._node for t in self.wanted]

        def run() -> list[Any]:
            found = walk(pairs, wanted=nodes, retain_graph=True)
            return [found[node] for node in nodes if node in found]

        return run

    def gradient_bytes(self, gradients: Sequence[Any]) -> int:
        """Of the cotangents, of what was kept, and of the gradients; none where the gradients are views."""
        given, made = [*self.cotangents, *self._kept()], [g for g in gradients if hasattr(g, "nbytes") and g.ndim]
        owners = {id(owner(a)) for a in given}
        new = [a for a in made if id(owner(a)) not in owners]
        return nbytes([*given, *new]) if new else 0


@contextlib.contextmanager
def by_rule(op: Any, device: Any) -> Iterator[None]:
    """Calls of the op run its generic rule while the context lasts."""
    from gpuprop.device import backend_for

    kind = backend_for(device).array_type
    bound = op.bound.get(kind) or op.bind_to(kind)
    op.bound[kind] = bound[-1] or bound
    try:
        yield
    finally:
        op.bound[kind] = bound


def has_implementation(op: Any, device: Any) -> bool:
    from gpuprop.device import backend_for

    backend = backend_for(device)
    return backend.uses_implementations and getattr(op, backend.name).implementation is not None


@dataclass
class Row:
    """What one op does in one direction: seconds per call and bytes, by its rule and by its implementation (None: it has none)."""

    op: str
    what: str
    arguments: str
    rule_seconds: float
    implementation_seconds: float | None
    rule_bytes: int
    implementation_bytes: int | None

    @property
    def seconds(self) -> float:
        return self.rule_seconds if self.implementation_seconds is None else self.implementation_seconds

    @property
    def bytes_per_second(self) -> float | None:
        """Of the implementation, or of the rule where there is none; None where nothing moves."""
        moved = self.rule_bytes if self.implementation_bytes is None else self.implementation_bytes
        return moved / self.seconds if moved else None


def measured(op: Any, device: Any, dtype: Any, elements: int, smoke: bool) -> list[Row]:
    """Times an op's two directions. Raises: NotEnlarged."""
    from .clock import clock_of
    from .harness import interleave

    sample, _ = enlarged(op, device, dtype, elements)
    case = Case(op, sample, device, dtype)
    turns: dict[str, dict[str, Callable[[], object]]] = {"forward": {}, "gradient": {}}
    moved: dict[tuple[str, str], int] = {}
    for who in ["rule", *(["implementation"] if has_implementation(op, device) else [])]:
        way = (lambda: by_rule(op, device)) if who == "rule" else contextlib.nullcontext

        def forward(way: Callable = way) -> None:
            with way():
                case.forward()

        forward()
        turns["forward"][who], moved["forward", who] = forward, case.forward_bytes()
        gradient = case.gradient()
        if gradient is not None:
            turns["gradient"][who], moved["gradient", who] = gradient, case.gradient_bytes(gradient())
    rows = []
    for what, contestants in turns.items():
        if contestants:
            timings = interleave(
                contestants, rounds=2 if smoke else 5, seconds=0 if smoke else 0.02, clock=clock_of(device)
            )
            by = {who: timing.median for who, timing in timings.items()}
            rows.append(
                Row(
                    op.name,
                    what,
                    described(op, sample),
                    by["rule"],
                    by.get("implementation"),
                    moved[what, "rule"],
                    moved.get((what, "implementation")),
                )
            )
    return rows


# --- The command ----------------------------------------------------------------------------------------------------


def chosen(only: str) -> list[Any]:
    """The ops of these names, by commas; all for "". Raises: OptionError."""
    from gpuprop._op import REGISTRY
    from gpuprop.errors import OptionError, did_you_mean

    ops = {name: op for name, op in REGISTRY.items() if op.__module__.startswith("gpuprop.")}
    names = [name.strip() for name in only.split(",") if name.strip()] or list(ops)
    for name in names:
        if name not in ops:
            raise OptionError(f"--only: there is no op {name!r}; {did_you_mean(name, ops)}")
    return [ops[name] for name in names]


def unit_of(seconds: float) -> str:
    """A time in the unit that suits it."""
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def main(
    only: Annotated[str, typer.Option(help="Ops by name, with commas between them; all, if left out.")] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1; the default device, if left out.")] = "",
    dtype: Annotated[
        str, typer.Option(help="float16, bfloat16, float32 or float64: of all real arguments.")
    ] = "float32",
    elements: Annotated[
        int,
        typer.Option(
            min=0, help="In an op's arguments and results together; 0: as many as the device's caches do not hold."
        ),
    ] = 0,
    smoke: Annotated[bool, typer.Option(help="Small arrays, to see that it runs; the figures mean nothing.")] = False,
    out: Annotated[Path, typer.Option(help="The JSON file that the figures go to.")] = Path("runs/ops.json"),
) -> None:
    """Time the forward and the gradient of every op, by its rule and by its implementation, and how near to a copy they come.

    After Ctrl-C, what was finished is printed and written.
    """
    import gpuprop as gp
    from gpuprop.device import device_scope, require
    from gpuprop.errors import OptionError

    from .limits import measure, numpy_dtype

    ops, place, kind = chosen(only), require(device or gp.default_device()), numpy_dtype(dtype)
    if out.is_dir():
        raise OptionError(f"--out: expected a file, got the folder {out}")
    out.parent.mkdir(parents=True, exist_ok=True)
    count = elements or (1 << 12 if smoke else ELEMENTS[place.type])
    limits = measure(str(place), smoke=smoke)
    rows, left_out, interrupted = [], {}, False
    with device_scope(place), np.errstate(all="ignore"):
        for op in ops:
            try:
                rows += measured(op, place, kind, count, smoke)
            except NotEnlarged as reason:
                left_out[op.name] = str(reason)
            except MemoryError as error:
                left_out[op.name] = f"out of memory: {error}"
            except KeyboardInterrupt:
                typer.echo("stopped; what was not finished is left out", err=True)
                interrupted = True
                break
    found = {
        "device": str(place),
        "dtype": dtype,
        "smoke": smoke,
        "elements": count,
        "versions": {k: gp.device_report()[k] for k in ("numpy", "cupy")} | {"gpuprop": gp.__version__},
        "copy_bytes_per_second": limits.copy_bytes_per_second,
        "rows": [asdict(row) | {"bytes_per_second": row.bytes_per_second} for row in rows],
        "left_out": left_out,
    }
    out.write_text(json.dumps(found, indent=1) + "\n")
    _print(rows, left_out, limits, str(place), dtype)
    typer.echo(f"written to {out}")
    if interrupted:
        raise typer.Exit(130)


def _print(rows: list[Row], left_out: dict[str, str], limits: Any, device: str, dtype: str) -> None:
    from rich.console import Console
    from rich.table import Table

    copy = limits.copy_bytes_per_second
    table = Table("op", "what", "arguments", title=f"{dtype} on {device}; a copy moves {copy / 1e9:.3g} GB/s")
    for column in ("rule", "implementation", "faster", "GB/s", "of a copy"):
        table.add_column(column, justify="right")
    for row in rows:
        rate, own = row.bytes_per_second, row.implementation_seconds
        table.add_row(
            row.op if row.what == "forward" else "",
            row.what,
            row.arguments if row.what == "forward" else "",
            unit_of(row.rule_seconds),
            "" if own is None else unit_of(own),
            "" if own is None else f"{row.rule_seconds / own:.2f}x",
            "a view" if rate is None else f"{rate / 1e9:.3g}",
            "" if rate is None else f"{rate / copy:.0%}",
        )
    console = Console(width=None if Console().is_terminal else 150)
    console.print(table)
    for name, reason in left_out.items():
        console.print(f"not measured: {name}: {reason}")


if __name__ == "__main__":
    from .command import run

    run(main, "benchmarks.ops")
