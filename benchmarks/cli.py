"""The command line of the benchmarks: `gpuprop bench`, which is `python -m benchmarks`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import ops
from .problem import ACTIVATIONS, NETWORKS, PRECISIONS, RATES, Problem

if TYPE_CHECKING:
    from .results import Run
    from .throughput import Effort, Watcher

INTERRUPTED = 130
GIANT = NETWORKS["giant"].sizes  # 2.8e12 operations a step: on a CPU only if it is asked for
BATCH_SIZES, SMOKE_BATCH_SIZES = "8,32,128,512,2048", "4,8"
app = typer.Typer(rich_markup_mode="rich", context_settings={"help_option_names": ["-h", "--help"]})

_P, _M, _O = "What is timed", "How it is measured", "What comes out"
Activation = Annotated[
    str | None, typer.Option(help=f"{', '.join(ACTIVATIONS)}; the network's if not given.", rich_help_panel=_P)
]
Optimizer = Annotated[str, typer.Option(help=f"{', '.join(RATES)}.", rich_help_panel=_P)]
Precision = Annotated[
    str, typer.Option(help="Of float32 products: highest, or high (TF32 on a GPU).", rich_help_panel=_P)
]
Devices = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1; several by commas.", rich_help_panel=_P)
]
Threads = Annotated[
    int | None, typer.Option(help="Of every provider; all processors if not given.", rich_help_panel=_M)
]
Rounds = Annotated[int | None, typer.Option(help="Turns of every provider; 11, or 3.", rich_help_panel=_M)]
Seconds = Annotated[
    float | None, typer.Option(help="Steps in a turn last about so long; 0.1, or 0.01.", rich_help_panel=_M)
]
Smoke = Annotated[bool, typer.Option("--smoke", help="As small as can be, to see that it runs.", rich_help_panel=_M)]
Out = Annotated[str | None, typer.Option(help="New folder for the results; runs/bench-<number>.", rich_help_panel=_O)]


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    networks: Annotated[
        str | None,
        typer.Option(help=f"By commas: {', '.join(NETWORKS)}; all, giant only on a GPU.", rich_help_panel=_P),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(help="A network of your own: 784,1024,10 are inputs, hidden units, classes.", rich_help_panel=_P),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Of every network; 128 with --sizes.", rich_help_panel=_P)] = None,
    activation: Activation = None,
    optimizer: Optimizer = "adam",
    precision: Precision = "highest",
    device: Devices = None,
    providers: Annotated[
        str | None, typer.Option(help="By commas; all that are installed if not given.", rich_help_panel=_P)
    ] = None,
    batches: Annotated[
        str | None,
        typer.Option(
            help=f"Batch sizes for the second panel of the picture: {BATCH_SIZES}; '' for none.", rich_help_panel=_P
        ),
    ] = None,
    threads: Threads = None,
    rounds: Rounds = None,
    seconds: Seconds = None,
    smoke: Smoke = False,
    out: Out = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table in Markdown.", rich_help_panel=_O)
    ] = False,
    compare: Annotated[
        str | None,
        typer.Option(
            help="An earlier results.json: say what became slower; exit code 1 if anything did.", rich_help_panel=_O
        ),
    ] = None,
) -> None:
    """Time a training step of gpuprop beside other libraries, and against what this machine can do.

    Every provider has a process of its own; they take turns, with equal
    threads, from the same weights on the same batches. Writes results.json
    and throughput.png. Peers are installed with pip install 'gpuprop\\[bench]'.

    Examples:

        gpuprop bench

        gpuprop bench --networks small,wide --providers gpuprop-captured,torch,jax

        gpuprop bench --sizes 784,1024,10 --batch 512 --activation gelu

        gpuprop bench --compare runs/bench-1/results.json
    """
    if context.invoked_subcommand is not None:
        given = [name for name in context.params if context.get_parameter_source(name).name != "DEFAULT"]
        if given:
            raise typer.BadParameter(f"--{given[0]}: put it after {context.invoked_subcommand!r}")
        return
    from . import compare as comparing
    from . import report, throughput
    from .workers import Failed

    with _session(threads, rounds, seconds, smoke, out) as (session, effort):
        earlier = comparing.read(compare) if compare else None
        devices = _devices(device, session)
        common = _common(optimizer, precision)
        names = None if networks is None and sizes is not None else networks
        problems = [] if networks is None and sizes is not None else _named(names, smoke, session)
        if sizes is not None:
            problems.append(Problem(_numbers("--sizes", sizes), 128))
        changes = {name: value for name, value in (("batch", batch), ("activation", activation)) if value is not None}
        problems = [_checked(replace(p, **common, **changes)) for p in problems]
        chosen = throughput.choose(_names(providers), devices, session.left_out)
        given_batches = (SMOKE_BATCH_SIZES if smoke else BATCH_SIZES) if batches is None else batches
        several = _numbers("--batches", given_batches, 1) if given_batches else ()
        session.ready(bool(problems and chosen))
        for place in devices:
            here = [
                replace(p, device=place) for p in problems if networks or sizes or place != "cpu" or p.sizes != GIANT
            ]
            try:
                throughput.measure_limits(session.run, place, precision, effort)
                throughput.measure_products(session.run, here[0], chosen, effort, session)
            except Failed as failed:
                session.left_out(f"{place}: {failed}")
                continue
            for problem in here:
                throughput.compare_steps(session.run, problem, chosen, effort, session)
            swept = here[1] if len(here) > 1 else here[0]
            for n in several:
                quick = [p for p in chosen if p.quick]
                throughput.compare_steps(session.run, replace(swept, batch=n), quick, effort, session, "batch")
    run = session.run
    run.write(session.folder / "results.json")
    report.draw(run, session.folder / "throughput.png")
    if markdown:
        typer.echo(report.markdown(run))
    else:
        session.show(*report.tables(run), *report.notes(run))
    session.written("results.json", "throughput.png")
    if session.interrupted:
        raise typer.Exit(INTERRUPTED)
    if earlier is not None:
        found = comparing.compare(earlier, run)
        for title, lines in (("slower", found.slower), ("faster", found.faster), ("not compared", found.notes)):
            for line in lines:
                typer.echo(f"{title}: {line}")
        typer.echo(
            f"{len(found.slower)} slower, {len(found.faster)} faster, {found.same} the same within the noise of both"
        )
        if found.slower:
            raise typer.Exit(1)


@app.command()
def scaling(
    providers: Annotated[str, typer.Option(help="By commas.", rich_help_panel=_P)] = "gpuprop-captured",
    activation: Activation = None,
    optimizer: Optimizer = "adam",
    precision: Precision = "highest",
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1.", rich_help_panel=_P)] = None,
    threads: Threads = None,
    rounds: Rounds = None,
    seconds: Seconds = None,
    smoke: Smoke = False,
    out: Out = None,
) -> None:
    """Time and memory against width, depth, batch size and number of parameters.

    Fits a power of each, over all points and over the upper half of them.
    Writes results.json and scaling.png.
    """
    from rich.table import Table

    from gpuprop.errors import OptionError

    from . import report, throughput
    from . import scaling as growth
    from .workers import Failed

    with _session(threads, rounds, seconds, smoke, out) as (session, effort):
        place, *others = _devices(device, session)
        if others:
            raise OptionError(f"--device: expected one device, got {device!r}")
        chosen = throughput.choose(_names(providers), [place], session.left_out)
        changes = {"activation": activation} if activation is not None else {}
        base = growth.SMOKE if smoke else growth.BASE
        base = _checked(replace(base, device=place, **_common(optimizer, precision), **changes))
        session.ready(bool(chosen))
        try:
            throughput.measure_limits(session.run, place, precision, effort)
        except Failed as failed:
            raise OptionError(f"bench: the limits of {place} cannot be measured: {failed}") from failed
        for series in growth.SERIES:
            for value in series.smoke if smoke else series.values:
                problem = series.make(base, value)
                throughput.compare_steps(session.run, problem, chosen, effort, session, series.name)
    rows = growth.fits(session.run)
    table = Table("against", "provider", "what", "from", "to", "exponent", "of the upper half")
    for row in rows:
        text = report.time_text if row["what"] == "time" else lambda value: f"{value / 1e6:.1f} MB"
        ends = [f"{text(y)} at {x:,}" for x, y in (list(zip(row["x"], row["y"], strict=True))[k] for k in (0, -1))]
        exponents = [f"{round(row[name], 2) + 0.0:.2f}" for name in ("exponent", "tail")]  # not -0.00
        table.add_row(row["series"], row["provider"], row["what"], *ends, *exponents)
    session.run.settings["fits"] = rows
    session.run.write(session.folder / "results.json")
    if rows:
        growth.draw(session.run, rows, session.folder / "scaling.png")
    session.show(table, *report.notes(session.run))
    session.written("results.json", *["scaling.png"] * bool(rows))
    if session.interrupted:
        raise typer.Exit(INTERRUPTED)


app.command("ops")(ops.main)


# --- What the commands share ----------------------------------------------------------------------------------------


class Session:
    """The run, what is shown of it, and the folder that it is written to. It is a `Watcher`."""

    def __init__(self, run: Run, out: str | None):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.run, self.out, self.interrupted = run, out, False
        self.console, self.aside = Console(), Console(stderr=True, highlight=False)
        if not self.console.is_terminal:
            self.console = Console(width=140)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[doing]}"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=self.aside, transient=True, disable=not self.aside.is_terminal)
        self.folder: Path | None = None
        self.new: list[Path] = []  # the folders that were made for it, the inner ones first
        self.task: Any = None

    def ready(self, something: bool) -> None:
        """Makes the folder. Raises: OptionError, where there is nothing to measure; DataError, where it cannot be written to."""
        from gpuprop.errors import DataError, OptionError
        from gpuprop.train.run import RUNS, RunFolder

        if not something:
            raise OptionError("bench: nothing is left to measure")
        place = RUNS / "bench" if self.out is None else Path(self.out)
        there = [path for path in (place, *place.parents) if path.exists()]
        self.folder = RunFolder.create(self.out, "bench").path
        self.new = [path for path in (self.folder, *self.folder.parents) if path not in there]
        if not os.access(self.folder, os.W_OK):
            raise DataError(f"{self.folder}: cannot be written to; choose another --out")

    def discard(self) -> None:
        """Leaves no folder behind that nothing was written to."""
        with contextlib.suppress(OSError):
            for path in self.new:
                path.rmdir()

    def left_out(self, line: str) -> None:
        if line not in self.run.left_out:
            self.run.left_out.append(line)
        self.aside.print(f"left out: {line}", style="yellow", markup=False, soft_wrap=True)

    def begins(self, what: str, parts: int) -> None:
        if self.task is not None:
            self.bar.remove_task(self.task)
        self.task = self.bar.add_task(what, total=parts, doing="")
        if self.bar.disable:
            self.aside.print(what, markup=False, soft_wrap=True)

    def does(self, what: str) -> None:
        self.bar.update(self.task, doing=what)

    def done(self) -> None:
        self.bar.advance(self.task)

    def show(self, *parts: Any) -> None:
        for part in parts:
            self.console.print(part, highlight=False, soft_wrap=isinstance(part, str))

    def written(self, *files: str) -> None:
        self.aside.print(f"written: {self.folder}{os.sep}: {', '.join(files)}", markup=False, soft_wrap=True)


@contextlib.contextmanager
def _session(
    threads: int | None, rounds: int | None, seconds: float | None, smoke: bool, out: str | None
) -> Iterator[tuple[Session, Effort]]:
    """While it lasts, Ctrl-C ends the measuring, and what was finished is kept. Raises: Exit, where that is nothing."""
    from gpuprop.errors import DataError, OptionError

    from .results import Run, machine
    from .throughput import Effort

    if out is not None and Path(out).exists() and (not Path(out).is_dir() or any(Path(out).iterdir())):
        raise DataError(f"{out}: exists already and is kept as it is; choose another --out")
    about = machine()
    effort = Effort(
        about["cores"] if threads is None else threads,
        (3 if smoke else Effort.rounds) if rounds is None else rounds,
        (0.01 if smoke else Effort.seconds) if seconds is None else seconds,
        smoke,
    )
    if effort.threads < 1 or effort.rounds < 1 or not 0 < effort.seconds < float("inf"):
        raise OptionError("bench: expected --threads, --rounds and --seconds above 0")
    session = Session(Run(asdict(effort), about), out)
    try:
        with session.bar:
            yield session, effort
    except KeyboardInterrupt:
        session.interrupted = True
    finally:
        if not session.run.results:
            session.discard()
    if session.interrupted:
        session.aside.print("stopped; what was not finished is left out")
    elif not session.run.results:
        session.aside.print("nothing was measured")
    if not session.run.results:
        raise typer.Exit(INTERRUPTED if session.interrupted else 1)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _numbers(option: str, text: str, least: int = 2) -> tuple[int, ...]:
    from gpuprop.errors import OptionError

    numbers = tuple(int(part) if part.strip().isdigit() else 0 for part in text.split(","))
    if len(numbers) < least or min(numbers) < 1:
        raise OptionError(f"{option}: expected {least} or more whole numbers above 0 by commas, got {text!r}")
    return numbers


def _common(optimizer: str, precision: str) -> dict[str, Any]:
    from gpuprop.errors import OptionError, did_you_mean

    for option, value, known in (("--optimizer", optimizer, RATES), ("--precision", precision, PRECISIONS)):
        if value not in known:
            raise OptionError(f"{option}: there is no {value!r}; {did_you_mean(value, known)}")
    return {"optimizer": optimizer, "precision": precision}


def _checked(problem: Problem) -> Problem:
    from gpuprop.errors import OptionError, did_you_mean

    if problem.activation not in ACTIVATIONS:
        raise OptionError(
            f"--activation: there is no {problem.activation!r}; {did_you_mean(problem.activation, ACTIVATIONS)}"
        )
    if problem.batch < 1:
        raise OptionError(f"--batch: expected a whole number above 0, got {problem.batch}")
    return problem


def _named(networks: str | None, smoke: bool, watcher: Watcher) -> list[Problem]:
    from gpuprop.errors import did_you_mean

    problems = []
    for name in _names(networks) or (["small"] if smoke else NETWORKS):
        if name in NETWORKS:
            problems.append(NETWORKS[name])
        else:
            watcher.left_out(f"{name}: there is no such network; {did_you_mean(name, NETWORKS)}")
    return problems


def _devices(text: str | None, watcher: Watcher) -> list[str]:
    """Those that are there. Raises: DeviceError, where none is."""
    from gpuprop.device import default_device, require
    from gpuprop.errors import DeviceError

    found, refused = [], []
    for name in _names(text) or [str(default_device())]:
        try:
            found.append(str(require(name)))
        except DeviceError as error:
            refused.append(error)
    if not found:
        raise refused[0]
    for error in refused:
        watcher.left_out(str(error))
    return found
