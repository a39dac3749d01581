"""A run folder: the files of one training, and the rules by which they are written and read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from ..errors import DataError

RUNS = Path("runs")


class RunFolder:
    """The folder of one run.

    config.json          options, data, network and preprocessing: all that is needed to use the model or to continue
    checkpoint.safetensors  the trainer's state after the last epoch
    metrics.jsonl        one line per epoch
    model.safetensors    the trained weights; it and the two below are written when the training is over
    summary.json, curves.png
    """

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.json"
        self.checkpoint = path / "checkpoint.safetensors"
        self.metrics = path / "metrics.jsonl"
        self.model = path / "model.safetensors"
        self.summary = path / "summary.json"
        self.curves = path / "curves.png"

    @classmethod
    def check_free(cls, out: str | None) -> None:
        """Raises: DataError where `create` would have to write over something."""
        if out is None:
            return
        path = Path(out)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise DataError(
                f"{out}: exists already and is kept as it is; choose another --out, or continue it with --resume {out}"
            )

    @classmethod
    def create(cls, out: str | None, name: str) -> RunFolder:
        """A new folder: `out`, or the first runs/<name>-<number> that does not exist."""
        cls.check_free(out)
        if out is not None:
            Path(out).mkdir(parents=True, exist_ok=True)
            return cls(Path(out))
        RUNS.mkdir(exist_ok=True)
        number = 1
        while True:
            try:
                (RUNS / f"{name}-{number}").mkdir()
                return cls(RUNS / f"{name}-{number}")
            except FileExistsError:  # asked of the file system, so that two runs that start at once get two folders
                number += 1

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """A folder that holds a run. Raises: DataError."""
        run = cls(Path(path))
        if not run.path.is_dir():
            raise DataError(f"{run.path}: no such run folder")
        if not run.config.is_file():
            raise DataError(f"{run.path}: is not a run folder: it has no config.json")
        return run

    def owns(self, path: Path) -> bool:
        """Whether a file in this folder is one of the run's own."""
        files = (self.config, self.checkpoint, self.metrics, self.model, self.summary, self.curves)
        return self.config.is_file() and path.name in [file.name for file in files]

    def discard(self) -> None:
        """Removes the folder of a run that could not start."""
        shutil.rmtree(self.path, ignore_errors=True)

    # --- files --------------------------------------------------------------------------------------------------

    def write_json(self, path: Path, content: dict[str, Any]) -> None:
        write_whole(path, json.dumps(content, indent=2) + "\n")

    def read_json(self, path: Path) -> dict[str, Any]:
        """Raises: DataError for a file that is missing or is not a JSON object."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise DataError(f"{path}: expected a JSON object, got {type(content).__name__}")
        return content

    def rows(self, epochs: int) -> list[dict[str, Any]]:
        """The figures of the first `epochs` epochs. Raises: DataError where the log does not hold them."""
        try:
            lines = self.metrics.read_text(encoding="utf-8").splitlines()[:epochs] if epochs else []
            rows = [json.loads(line) for line in lines]
        except (OSError, ValueError) as error:
            raise DataError(f"{self.metrics}: cannot be read: {error}") from error
        if [isinstance(row, dict) and row.get("epoch") for row in rows] != list(range(1, epochs + 1)):
            raise DataError(f"{self.metrics}: expected a line for each of {epochs} epochs; the run cannot be continued")
        return rows

    def keep_rows(self, epochs: int) -> None:
        """Cuts the log to the checkpoint's epochs: a crash between the two leaves a line too many, or half of one."""
        rows = self.rows(epochs)
        write_whole(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is never seen half written: beside its place, flushed to disk, then moved there."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
