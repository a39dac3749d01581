"""How a training shows itself while it runs: a bar on a terminal, a few lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .trainer import Callback, Row, Trainer

LINES = 20  # at most, where the output is no terminal
REDRAW = 0.1  # seconds


@contextmanager
def progress(epochs: int, steps: int) -> Iterator[Callback]:
    """A callback that shows the progress of `epochs` epochs of `steps` steps, while the context lasts."""
    console = Console(file=sys.stdout)
    if not console.is_terminal:
        yield Lines(console, epochs)
        return
    columns = (
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        yield Bar(bar, epochs, steps)


class Lines(Callback):
    """A line for an epoch now and then, and for the last."""

    def __init__(self, console: Console, epochs: int):
        self.console, self.epochs = console, epochs
        self.every = -(-epochs // LINES)

    def on_epoch(self, trainer: Trainer, row: Row) -> None:
        if row["epoch"] % self.every == 0 or row["epoch"] == self.epochs or trainer.finished:
            self.console.print(
                f"epoch {row['epoch']:>{len(str(self.epochs))}}/{self.epochs}  {describe(row)}",
                soft_wrap=True,
                highlight=False,
            )


class Bar(Callback):
    """A bar that counts epochs and moves with the steps, beside it the figures of the last epoch."""

    def __init__(self, bar: Progress, epochs: int, steps: int):
        self.bar, self.steps = bar, steps
        self.task = bar.add_task("epoch", total=epochs, figures="")
        self.done = 0  # steps of this epoch
        self.drawn = 0.0

    def on_step(self, trainer: Trainer) -> None:
        self.done += 1
        now = time.perf_counter()
        if now - self.drawn > REDRAW:  # a redraw costs more than a small step
            self.drawn = now
            self.bar.update(self.task, completed=trainer.epoch + self.done / self.steps)

    def on_epoch(self, trainer: Trainer, row: Row) -> None:
        self.done = 0
        self.bar.update(self.task, completed=row["epoch"], figures=describe(row))


def describe(row: Row) -> str:
    """The figures of an epoch that matter while one watches: of validation, and the speed."""
    parts = [f"loss {row['validation_loss']:.4f}"]
    if "validation_accuracy" in row:
        parts.append(f"accuracy {row['validation_accuracy']:.1%}")
    else:
        parts.append(f"R² {row['validation_r2']:.4f}")
    return "  ".join([*parts, f"{row['samples_per_second']:,.0f} samples/s"])
