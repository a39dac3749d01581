"""The main job: from a table to a trained network in a run folder, its continuation, and predictions with it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from threadpoolctl import threadpool_limits

from .._random import Generator, default_generator, manual_seed
from .._tensor import asarray
from ..data.digits import BRIGHTEST, TARGET, digits_table
from ..data.loader import DataLoader, TensorDataset
from ..data.preprocessing import Preprocessing, class_numbers, classes_of, find_task
from ..data.split import split_rows
from ..data.table import Table, read_table
from ..device import Device, default_device, require
from ..errors import DataError, Error, OptionError, did_you_mean
from ..nn import MLP, Module
from ..nn import functional as F
from ..serialization import load, save
from ..tape import no_grad
from .callbacks import Checkpoint, EarlyStopping, EpochLog, finite
from .metrics import Accuracy, Metric, RegressionFit
from .options import OPTIMIZERS, SCHEDULES, Options
from .report import draw_curves
from .run import RunFolder
from .trainer import Callback, Trainer

DIGITS = "digits"
FEWEST_ROWS = 5
EVALUATION_BATCH = 4096
# Operations per training step below which matrix products get one thread: the threads of a small product spin while they wait for
# each other, and on a busy machine they wait for the scheduler. The digits (1e7 per step) on 2 cores: 2.7 s with one thread and 2.6 s
# with two when idle, 4 s and 12 to 50 s beside other work.
THREADS_PAY_FROM = 2e8


@dataclass
class Job:
    """A training made ready: its data on the device, its network, its trainer. Nothing is written yet."""

    options: Options
    source: dict[str, Any]  # name, path and fingerprint of the data
    preprocessing: Preprocessing
    network: dict[str, Any]  # the arguments of MLP
    device: Device
    trainer: Trainer
    train: DataLoader
    validation: DataLoader
    test: DataLoader

    @property
    def rows(self) -> dict[str, int]:
        """How many rows each part has."""
        loaders = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: len(loader.dataset) for name, loader in loaders.items()}

    @property
    def parameters(self) -> int:
        """How many numbers the network learns."""
        return sum(p.size for p in self.trainer.model.parameters())

    @property
    def threads(self) -> int | None:
        """To how many threads matrix products on a CPU are limited; None for no limit."""
        operations = 6 * self.train.batch_size * self.parameters  # a product forward, two backward; multiply and add
        return 1 if operations < THREADS_PAY_FROM else None

    @property
    def title(self) -> str:
        """The network in a few words."""
        return f"{'-'.join(map(str, self.network['sizes']))}, {self.options.activation}, {self.options.optimizer}"

    def config(self) -> dict[str, Any]:
        """What is stored with the model: enough to predict with it, and to train it again."""
        return {
            "data": self.source,
            "options": self.options.to_json(),
            "device": str(self.device),
            "rows": self.rows,
            "network": self.network,
            "preprocessing": self.preprocessing.to_json(),
        }


def prepare(data: str, options: Options) -> Job:
    """Reads and checks all that a training needs, and builds its network.

    data: "digits", or the path of a .csv, .npz or .parquet file. Equal data and options give an equal run.
    Raises: DataError, OptionError, DeviceError: one sentence for the user.
    """
    device = require(options.device) if options.device is not None else default_device()
    table, source = _read(data)
    target = _target(table, options)
    task = find_task(table, target, options.task)
    if len(table) < FEWEST_ROWS:
        raise DataError(f"{table.name}: expected at least {FEWEST_ROWS} rows, got {len(table)}")
    labels = class_numbers(table, target, classes_of(table, target)) if task == "classification" else None
    split = split_rows(len(table), generator=Generator("cpu", options.seed), classes=labels)
    pixels = (
        (0.0, float(BRIGHTEST)) if data == DIGITS else None
    )  # a pixel's scale is known; its spread at the edge is noise
    preprocessing = Preprocessing.fit(table, target, task, split.train, scale=pixels)
    options = options.resolved(target=target, task=task, rows=len(split.train))
    if options.norm == "batch" and options.batch_size == 1:
        raise OptionError("--batch-size: expected at least 2 for batch normalisation, got 1; or use --norm layer")
    network: dict[str, Any] = {
        "sizes": [preprocessing.inputs, *options.hidden, preprocessing.outputs],
        "activation": options.activation,
        "dropout": options.dropout,
        "norm": None if options.norm == "none" else options.norm,
    }

    manual_seed(options.seed)
    arrays = (preprocessing.transform(table), preprocessing.targets(table))
    train, validation, test = (TensorDataset(*(asarray(a[rows], device=device) for a in arrays)) for rows in split)
    # Full batches only: one of a single row has no spread to normalise by. The next epoch's order brings the rest.
    loader = DataLoader(train, batch_size=cast(int, options.batch_size), shuffle=True, drop_last=True)
    trainer = _trainer(MLP(**network, seed=options.seed, device=device), options, preprocessing, steps=len(loader))
    return Job(
        options,
        source,
        preprocessing,
        network,
        device,
        trainer,
        loader,
        validation=DataLoader(validation, batch_size=EVALUATION_BATCH),
        test=DataLoader(test, batch_size=EVALUATION_BATCH),
    )


def start(job: Job, folder: RunFolder) -> None:
    """Makes a new folder one that `load_run` can continue from, before the first epoch."""
    folder.write_json(folder.config, job.config())
    save(folder.checkpoint, job.trainer.state_dict())


def load_run(folder: RunFolder) -> Job:
    """The job of an interrupted run, at the epoch of its checkpoint. Nothing in the folder is changed.

    Raises: DataError where the folder, its checkpoint or its data is missing, damaged or has changed since.
    """
    config = folder.read_json(folder.config)
    try:
        source, options = config["data"], Options.read(config["options"] | {"device": config["device"]})
        path, fingerprint = source["path"], source["sha256"]
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder.config}: is not the configuration of a run: {error} is missing") from error
    job = prepare(path, options)
    if job.source["sha256"] != fingerprint:
        raise DataError(f"{path}: has changed since the run began; a resumed run would not be the same")
    try:
        job.trainer.load_state_dict(load(folder.checkpoint))
    except (Error, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder.checkpoint}: cannot be continued from: {error}") from error
    folder.rows(job.trainer.epoch)
    return job


def finish(job: Job, folder: RunFolder, callbacks: Iterable[Callback] = ()) -> dict[str, Any] | None:
    """Trains from where the job stands to the end, and writes the model, the summary and the curves.

    Returns the summary, or None where `job.trainer.interrupt()` ended it after an epoch.
    """
    trainer = job.trainer
    folder.keep_rows(trainer.epoch)
    trainer.callbacks += [EpochLog(folder.metrics), Checkpoint(folder.checkpoint), *callbacks]
    with threadpool_limits(job.threads, user_api="blas"):
        if not trainer.fit(job.train, job.validation, epochs=job.options.epochs):
            return None
        figures = trainer.evaluate(job.test)
    summary = {
        **{f"test_{name}": value for name, value in figures.items()},
        "epochs": trainer.epoch,
        "seconds": trainer.seconds,
        "samples_per_second": trainer.samples / trainer.step_seconds,
        "device": str(job.device),
        "captured": trainer.capture_refusal is None,
        "seed": job.options.seed,
        "task": job.preprocessing.task,
        "parameters": job.parameters,
    }
    save(folder.model, trainer.model.state_dict())
    draw_curves(folder.curves, folder.rows(trainer.epoch), title=f"{job.source['name']}: {job.title}", test=figures)
    folder.write_json(folder.summary, finite(summary))  # last: it says that the run is complete
    return summary


def predict(folder: RunFolder, table: Table) -> tuple[list[str], list[list[Any]]]:
    """Predictions for each row of a table, with the names of their columns.

    Classification: the class and each class's probability; regression: the value.
    Raises: DataError where the run has no model yet, or the table lacks columns that it was trained on.
    """
    config = folder.read_json(folder.config)
    if not folder.model.is_file():
        raise DataError(
            f"{folder.path}: has no trained model yet; finish it with: gpuprop train --resume {folder.path}"
        )
    device = default_device()
    try:
        preprocessing = Preprocessing.from_json(config["preprocessing"])
        model = MLP(**config["network"], device=device)
        model.load_state_dict(load(folder.model))
    except (Error, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder.path}: holds no model that can be read: {error}") from error
    outputs = _outputs(model.eval(), preprocessing.transform(table))
    if preprocessing.task == "regression":
        return ["value"], [[value] for value in preprocessing.values(outputs).tolist()]
    probabilities = F.softmax(asarray(outputs), dim=-1).numpy()
    best = probabilities.argmax(axis=1)
    names = ["class", *(f"probability_{label}" for label in preprocessing.classes)]
    return names, [
        [preprocessing.classes[i], *row] for i, row in zip(best.tolist(), probabilities.tolist(), strict=True)
    ]


# --- Steps ----------------------------------------------------------------------------------------------------------


def _read(data: str) -> tuple[Table, dict[str, Any]]:
    if data == DIGITS:
        return digits_table(), {"name": DIGITS, "path": DIGITS, "sha256": None}
    table = read_table(data)
    path = Path(data).resolve()
    return table, {"name": path.stem, "path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _target(table: Table, options: Options) -> str:
    usual = TARGET if table.name == DIGITS else "y"
    if options.target is None and usual not in table.columns:
        raise OptionError(
            f"--target: expected the column of {table.name} to predict; {did_you_mean('', table.columns)}"
        )
    target = options.target or usual
    table[target]  # raises where there is no such column
    return target


def _trainer(model: Module, options: Options, preprocessing: Preprocessing, steps: int) -> Trainer:
    """steps: in one epoch."""
    choice, schedule = OPTIMIZERS[options.optimizer], SCHEDULES[options.schedule]
    optimizer = choice.kind(model.parameters(), lr=options.lr, weight_decay=options.weight_decay, **choice.others)
    classifies = preprocessing.task == "classification"
    metric: Metric = Accuracy() if classifies else RegressionFit(preprocessing.scale)
    return Trainer(
        model,
        optimizer,
        F.cross_entropy if classifies else F.mse_loss,
        metrics=[metric],
        callbacks=[EarlyStopping(options.patience)] if options.patience is not None else [],
        scheduler=schedule.make(optimizer, options, options.epochs * steps),
        schedule_every=schedule.every,
        generator=default_generator(next(model.parameters()).device),
        capture=options.capture == "on",
    )


def _outputs(model: Module, features: np.ndarray) -> np.ndarray:
    """The network's outputs for any number of rows, in batches: (N, C)."""
    device = next(iter(model.parameters())).device
    parts = []
    with no_grad():
        for first in range(0, len(features), EVALUATION_BATCH):
            parts.append(model(asarray(features[first : first + EVALUATION_BATCH], device=device)).numpy())
    return np.concatenate(parts)
