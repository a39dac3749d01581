"""The command line: `gpuprop train`, `predict`, `bench` and `doctor`.

What a user can get wrong ends in one sentence on stderr and exit code 2. What is slow to import is imported where it
is used.
"""

from __future__ import annotations

import csv
import importlib
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from . import __version__
from .errors import CheckpointError, DataError, DeviceError, DivergenceError, OptionError
from .train.options import CHOICES, OPTIMIZERS, Options, read_config

if TYPE_CHECKING:
    from .train.job import Job
    from .train.run import RunFolder
    from .train.trainer import Trainer

WRONG_INPUT, INTERRUPTED = 2, 130
UsageError: Any = typer.BadParameter.__base__  # of click, or of the copy of it in newer versions of typer


class Commands(TyperGroup):
    """Says in one sentence what is wrong with the input. Any other error is ours, and keeps its traceback."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        with _said_in_one_sentence():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        with _said_in_one_sentence(), warnings.catch_warnings():
            # Every command that uses a device says so, and why, itself.
            warnings.filterwarnings("ignore", message="gpuprop runs on the CPU")
            return super().invoke(ctx)


@contextmanager
def _said_in_one_sentence() -> Iterator[None]:
    try:
        yield
        return
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
            raise
        command = error.ctx.command_path if error.ctx else "gpuprop"
        message, code = f"{error.format_message().rstrip('.')} (see {command} --help)", WRONG_INPUT
    except (DataError, OptionError, DeviceError, CheckpointError) as error:
        message, code = str(error), WRONG_INPUT
    except DivergenceError as error:
        message, code = str(error), 1
    except MemoryError as error:
        message, code = f"not enough memory: {error}; use a smaller --hidden or --batch-size", WRONG_INPUT
    except BrokenPipeError:  # whoever read the output has seen enough
        raise
    except OSError as error:  # no permission, no space left
        message, code = f"{error.filename or 'output'}: {error.strerror or error}", WRONG_INPUT
    typer.echo(f"gpuprop: {message}", err=True)
    raise typer.Exit(code)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The entry point of the command `gpuprop`."""
    try:
        app(prog_name="gpuprop")
    finally:  # on the way out there is nothing left to interrupt
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gpuprop {__version__}")
        raise typer.Exit


@app.callback()
def gpuprop(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train neural networks on tables of data, on a GPU where there is one and on the CPU where there is none.

    Start with: gpuprop train digits
    """


# --- train ----------------------------------------------------------------------------------------------------------


def _given(panel: str, metavar: str, help: str, default: object = None) -> Any:
    """An option whose absence can be told: its default is stated in `Options`, and only shown here."""
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    shown = "" if default is None else f" [dim]\\[{default}][/dim]"
    return typer.Option(help=help + shown, rich_help_panel=panel, metavar=metavar, show_default=False)


def _choice(panel: str, help: str, name: str) -> Any:
    return _given(panel, "NAME", f"{help}: {', '.join(CHOICES[name])}.", getattr(Options, name))


_RATES = "by optimizer: " + ", ".join(f"{name} {choice.lr:g}" for name, choice in OPTIMIZERS.items())
_DECAYS = f"{OPTIMIZERS['adamw'].weight_decay:g} with adamw, else 0"
_D, _N, _T, _R = "Data", "Network", "Training", "Run"


@app.command(no_args_is_help=True)
def train(
    context: typer.Context,
    data: Annotated[
        str | None, typer.Argument(help="'digits', or a .csv, .npz or .parquet file.", show_default=False)
    ] = None,
    target: Annotated[str | None, _given(_D, "COLUMN", "Column to predict.", "y")] = None,
    task: Annotated[str | None, _choice(_D, "What the target is", "task")] = None,
    hidden: Annotated[
        str | None, _given(_N, "SIZES", "Sizes of the hidden layers; '' for none.", Options.hidden)
    ] = None,
    activation: Annotated[str | None, _choice(_N, "Activation of the hidden layers", "activation")] = None,
    norm: Annotated[str | None, _choice(_N, "Normalisation of the hidden layers", "norm")] = None,
    dropout: Annotated[str | None, _given(_N, "P", "Share of hidden units dropped.", Options.dropout)] = None,
    optimizer: Annotated[str | None, _choice(_T, "Optimizer", "optimizer")] = None,
    lr: Annotated[str | None, _given(_T, "RATE", "Learning rate.", _RATES)] = None,
    weight_decay: Annotated[str | None, _given(_T, "RATE", "Weight decay.", _DECAYS)] = None,
    batch_size: Annotated[str | None, _given(_T, "N", "Samples per step.", "32 to 1024, by the number of rows")] = None,
    epochs: Annotated[str | None, _given(_T, "N", "Passes over the training rows.", Options.epochs)] = None,
    schedule: Annotated[str | None, _choice(_T, "How the learning rate changes", "schedule")] = None,
    patience: Annotated[
        str | None,
        _given(_T, "N", "Stop after N epochs without a lower validation loss; keep the best weights.", "off"),
    ] = None,
    seed: Annotated[str | None, _given(_R, "N", "Decides every random number.", Options.seed)] = None,
    device: Annotated[str | None, _given(_R, "NAME", "cpu, cuda, cuda:1, ...", "cuda, or else cpu")] = None,
    capture: Annotated[
        str | None, _choice(_R, "Record a step once and repeat it without its Python", "capture")
    ] = None,
    out: Annotated[str | None, _given(_R, "FOLDER", "New folder for the results.", "runs/<data>-<number>")] = None,
    config: Annotated[
        str | None, _given(_R, "FILE", "TOML file with these options as keys, and `data`; the command line wins.")
    ] = None,
    resume: Annotated[str | None, _given(_R, "RUN", "Continue an interrupted run, with its own options.")] = None,
) -> None:
    """Train a network on a table and write a run folder.

    A fifth of the rows tests, a tenth validates, the rest is learned from.
    Text becomes one-hot, missing numbers the median, numbers are standardised;
    all of it is stored with the model. Ctrl-C stops after the epoch.

    Examples:

        gpuprop train digits

        gpuprop train houses.csv --target price --hidden 128,64 --patience 10

        gpuprop train --config experiment.toml --seed 3

        gpuprop train --resume runs/digits-1
    """
    given = {name: value for name, value in context.params.items() if value is not None}
    if resume is not None:
        if extra := [name for name in given if name != "resume"]:
            name = extra[0].replace("_", "-")
            raise OptionError(f"--resume: a run continues with its own options; leave out {name!r}")
        _resume(resume)
    else:
        given.pop("config", None)
        _start(given, read_config(config) if config is not None else {})


def _start(given: dict[str, Any], stored: dict[str, Any]) -> None:
    from .train.job import prepare, start
    from .train.run import RunFolder

    data = {"data": None, **stored, **given}["data"]
    stored.pop("data", None)
    given.pop("data", None)
    if not isinstance(data, str) or not data:
        raise OptionError("train: expected data to train on: 'digits', or a .csv, .npz or .parquet file")
    options = Options.read(stored, given)
    RunFolder.check_free(options.out)
    job = prepare(data, options)
    folder = RunFolder.create(options.out, job.source["name"])
    with _discarded_unless_started(folder):
        start(job, folder)
    _run(job, folder)


def _resume(path: str) -> None:
    from .train.job import load_run
    from .train.run import RunFolder

    folder = RunFolder.open(path)
    if folder.summary.is_file():
        typer.echo(f"{path} is complete: there is nothing to continue")
        return
    _run(load_run(folder), folder)


@contextmanager
def _discarded_unless_started(folder: RunFolder) -> Iterator[None]:
    try:
        yield
    except BaseException:
        folder.discard()
        raise


def _describe(job: Job) -> None:
    from .device import device_report

    prepared = job.preprocessing
    predicted = f"{len(prepared.classes)} classes" if prepared.task == "classification" else "regression"
    rows = ", ".join(
        f"{count:,} to {part}" for part, count in zip(("train", "validate", "test"), job.rows.values(), strict=True)
    )
    typer.echo(f"data     {job.source['name']}: {prepared.inputs} features, {predicted}; rows: {rows}")
    for note in prepared.notes:
        typer.echo(f"         {note}")
    typer.echo(f"network  {job.title}; {job.parameters:,} parameters, batches of {job.options.batch_size}")
    reason = "asked for" if job.options.device else device_report()["reason"]
    typer.echo(f"device   {job.device}: {reason}")
    if job.trainer.epoch:
        typer.echo(f"resumed  after epoch {job.trainer.epoch} of {job.options.epochs}")


def _run(job: Job, folder: RunFolder) -> None:
    """Trains to the end, or until Ctrl-C, and says how it went."""
    from .train.job import finish
    from .train.progress import progress

    try:
        with _interrupts(job.trainer):
            _describe(job)
            with progress(job.options.epochs, len(job.train)) as shown:
                summary = finish(job, folder, [shown])
    except KeyboardInterrupt:
        summary = None
    if summary is None:
        typer.echo(f"stopped; continue with: gpuprop train --resume {folder.path}", err=True)
        raise typer.Exit(INTERRUPTED)
    if "test_accuracy" in summary:
        result = f"accuracy {summary['test_accuracy']:.2%}"
    else:
        result = f"R² {summary['test_r2']:.4f}, RMSE {summary['test_rmse']:.6g}"
    typer.echo(
        f"test     {result}, loss {summary['test_loss']:.4f}; {summary['epochs']} epochs in "
        f"{summary['seconds']:.1f} s, {summary['samples_per_second']:,.0f} samples/s"
        f"{', captured steps' if summary['captured'] else ''}"
    )
    if not summary["captured"] and job.options.capture == "on":
        typer.echo(f"note     steps were not captured: {job.trainer.capture_refusal}")
    files = ", ".join(path.name for path in (folder.model, folder.summary, folder.curves))
    typer.echo(f"written  {folder.path}{os.sep}: {files}")


@contextmanager
def _interrupts(trainer: Trainer) -> Iterator[None]:
    """The first Ctrl-C lets the epoch finish; the second stops at once, and the last checkpoint stays."""

    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield
        return

    def on_interrupt(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        trainer.interrupt()
        typer.echo("\nstopping after this epoch; press Ctrl-C again to stop at once", err=True)

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# --- predict --------------------------------------------------------------------------------------------------------


@app.command(no_args_is_help=True)
def predict(
    run: Annotated[str, typer.Argument(help="Folder of a finished run.")],
    data: Annotated[str, typer.Argument(help="Table with the columns trained on: .csv, .npz or .parquet.")],
    out: Annotated[str | None, typer.Option(help="CSV file to write; stdout if not given.", metavar="FILE")] = None,
) -> None:
    """Predict each row of a table with the model of a run.

    Writes a CSV file with a line per row, in the table's order: the class and
    the probability of each class, or the value. Categories that were not seen
    in training count as none.

    Example:

        gpuprop predict runs/houses-1 new.csv --out predictions.csv
    """
    from .data.table import read_table
    from .train import job
    from .train.run import RunFolder, write_whole

    folder = RunFolder.open(run)
    table = read_table(data)
    if out is not None:
        _check_writable(Path(out), Path(data))
    names, rows = job.predict(folder, table)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([names, *rows])
    if out is None:
        typer.echo(text.getvalue(), nl=False)
    else:
        write_whole(Path(out), text.getvalue())
        typer.echo(f"{len(rows):,} predictions written to {out}")


def _check_writable(out: Path, data: Path) -> None:
    """Raises: DataError where predictions have no place, or would take the place of what they are made from."""
    from .train.run import RunFolder

    if not out.parent.is_dir():
        raise DataError(f"--out: there is no folder {out.parent} to write {out.name} to")
    if out.is_dir():
        raise DataError(f"--out: {out} is a folder; name a new file")
    if out.exists() and out.samefile(data):
        raise DataError(f"--out: {out} is the data itself; name a new file")
    if RunFolder(out.parent).owns(out):
        raise DataError(f"--out: {out} belongs to a run, which is kept as it is; name a new file")


# --- bench ----------------------------------------------------------------------------------------------------------


def _benchmarks() -> Any:
    """The folder benchmarks/: in the wheel within the package, in a checkout beside it."""
    package = Path(__file__).parent
    if (package / "benchmarks").is_dir():
        return importlib.import_module("gpuprop.benchmarks.cli")
    sys.path.insert(0, str(package.parent))  # before whatever else is installed under that name
    return importlib.import_module("benchmarks.cli")


app.add_typer(_benchmarks().app, name="bench")


# --- doctor ---------------------------------------------------------------------------------------------------------


@app.command()
def doctor() -> None:
    """Say what was found on this machine, which device is used and why, and test each device in seconds."""
    from .doctor import examine

    if not examine(typer.echo):
        raise typer.Exit(1)
