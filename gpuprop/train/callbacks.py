"""Early stopping, the log of epochs, and checkpoints, as callbacks of the trainer."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from ..serialization import save
from .trainer import Callback, Row, Trainer


class EarlyStopping(Callback):
    """Ends the training after `patience` epochs without a lower validation loss; restores the best epoch's weights."""

    def __init__(self, patience: int):
        self.patience = patience
        self.best_epoch = 0
        self.best_loss = math.inf
        self.best_state: dict[str, Any] = {}

    def on_epoch(self, trainer: Trainer, row: Row) -> None:
        if row["validation_loss"] < self.best_loss:
            self.best_epoch, self.best_loss = row["epoch"], row["validation_loss"]
            self.best_state = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        elif row["epoch"] - self.best_epoch >= self.patience:
            trainer.finish()

    def on_end(self, trainer: Trainer) -> None:
        trainer.model.load_state_dict(self.best_state)

    def state_dict(self) -> dict[str, Any]:
        return {"best_epoch": self.best_epoch, "best_loss": self.best_loss, "best_state": self.best_state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_epoch, self.best_loss, self.best_state = state["best_epoch"], state["best_loss"], state["best_state"]


class EpochLog(Callback):
    """Appends each epoch's figures to a file, one JSON object a line, on disk before the next epoch begins."""

    def __init__(self, path: Path):
        self.path = path

    def on_epoch(self, trainer: Trainer, row: Row) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(row)) + "\n")
            file.flush()
            os.fsync(file.fileno())


class Checkpoint(Callback):
    """Saves the trainer's state after each epoch, in one move: a crash leaves the state of the epoch before."""

    def __init__(self, path: Path):
        self.path = path

    def on_epoch(self, trainer: Trainer, row: Row) -> None:
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        save(self.path, trainer.state_dict())


def finite(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures as JSON can hold them: null for what is not a number."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}
