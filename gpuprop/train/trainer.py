"""The training loop: epochs of steps that never wait for the device, and a state to continue from to the bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .. import _capture
from .._matmul import get_matmul_choices, set_matmul_choices
from .._tensor import Tensor
from ..errors import ArgumentError, CaptureError, DivergenceError, OptionError
from ..optim.lr_scheduler import ReduceLROnPlateau
from ..tape import no_grad
from .metrics import Metric, Totals, measure

Row = dict[str, Any]  # what is known of one epoch: "epoch", "train_loss", "validation_loss", "lr", "seconds", ...


class Callback:
    """Something that happens along a training; every method may be left out. Its state is saved with the trainer's."""

    def on_step(self, trainer: Trainer) -> None:
        """After each step. Reading a value here would make every step wait for the device."""

    def on_epoch(self, trainer: Trainer, row: Row) -> None:
        """After each epoch, with its figures."""

    def on_end(self, trainer: Trainer) -> None:
        """When the training is over; not when it was interrupted."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Trainer:
    """Trains a model.

    model: a Module; loss: (outputs, targets) -> mean loss; optimizer: one of gp.optim over the model's parameters.
    metrics: measured in training and validation. callbacks: called in their order.
    scheduler: one of gp.optim.lr_scheduler; schedule_every: "step" or "epoch"; one that takes the validation loss
    (`ReduceLROnPlateau`) is given it.
    generator: the random generator that the run draws from; its state is saved with the trainer.
    capture: repeats steps without their Python (`gp.capture`); where a model cannot be captured, its steps run as usual, and
    `capture_refusal` says why.
    Raises: OptionError for another schedule_every.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        metrics: Iterable[Metric] = (),
        callbacks: Iterable[Callback] = (),
        scheduler: Any = None,
        schedule_every: str = "epoch",
        generator: Any = None,
        capture: bool = True,
    ):
        if schedule_every not in ("step", "epoch"):
            raise OptionError(f"Trainer: expected schedule_every 'step' or 'epoch', got {schedule_every!r}")
        if not hasattr(optimizer, "param_groups") or not callable(loss):
            got = f"{type(optimizer).__name__} and {type(loss).__name__} for the latter two"
            raise ArgumentError(f"Trainer: expected a model, its optimizer and a loss, in this order, got {got}")
        self.model = model
        self.optimizer = optimizer
        self.loss = loss
        self.metrics = tuple(metrics)
        self.callbacks = list(callbacks)
        self.scheduler = scheduler
        self.schedule_every = schedule_every
        self.generator = generator
        self.epoch = 0  # epochs that are done
        self.samples = 0  # trained on in them
        self.seconds = 0.0  # spent in them, in all
        self.step_seconds = 0.0  # spent in their steps
        self.finished = False  # no further epoch is wanted
        self._interrupted = False
        self.capture_refusal: str | None = None if capture else "not wanted"
        self._step = _capture.capture(self._measured_step)
        self._evaluation = _capture.capture(self._measured_evaluation)

    def fit(self, train: Any, validation: Any = None, *, epochs: int) -> bool:
        """Trains until `epochs` epochs are done in all, counting those before a resumption.

        train, validation: DataLoaders of (inputs, targets).
        Returns whether the training is over; False after `interrupt()`.
        Raises: DivergenceError where the loss is no longer finite.
        """
        while self.epoch < epochs and not self.finished and not self._interrupted:
            row = self._run_epoch(train, validation)
            for callback in self.callbacks:
                callback.on_epoch(self, row)
        self._interrupted = False
        over = self.finished or self.epoch >= epochs
        if over:
            for callback in self.callbacks:
                callback.on_end(self)
        return over

    def interrupt(self) -> None:
        """Ends `fit` once the epoch that is running is done; safe to call from a signal handler."""
        self._interrupted = True

    def finish(self) -> None:
        """Says that no further epoch is wanted."""
        self.finished = True

    def step(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """One update of the parameters: forward, backward, optimizer. Returns the loss and the outputs."""
        self.optimizer.zero_grad()
        outputs = self.model(inputs)
        loss = self.loss(outputs, targets)
        loss.backward()
        self.optimizer.step()
        return loss.detach(), outputs.detach()

    def evaluate(self, data: Any) -> dict[str, float]:
        """The mean loss and the metrics over a DataLoader, in evaluation mode."""
        self.model.eval()
        totals = Totals(self.metrics)
        with no_grad():
            for inputs, targets in data:
                totals.add(self._captured(self._evaluation, inputs, targets), len(targets))
        return totals.read()

    def state_dict(self) -> dict[str, Any]:
        """All that the next epoch depends on: loading it into an equal trainer continues with the same bits."""
        return {
            "epoch": self.epoch,
            "finished": self.finished,
            "samples": self.samples,
            "seconds": self.seconds,
            "step_seconds": self.step_seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler is not None else None,
            "generator": self.generator.get_state() if self.generator is not None else None,
            "matmul_choices": get_matmul_choices(),
            "callbacks": {type(c).__name__: state for c in self.callbacks if (state := c.state_dict())},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where the trainer stood that `state_dict` was taken from.

        So do matrix products on a GPU, in the whole process: with the algorithms that autotuning had chosen by then, or with none chosen.
        """
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        if self.generator is not None:
            self.generator.set_state(state["generator"])
        set_matmul_choices(state.get("matmul_choices", {}))
        for callback in self.callbacks:
            if (own := state["callbacks"].get(type(callback).__name__)) is not None:
                callback.load_state_dict(own)
        for name in ("epoch", "finished", "samples", "seconds", "step_seconds"):
            setattr(self, name, state[name])

    # --- one step ---------------------------------------------------------------------------------------------------

    def _measured_step(self, inputs: Tensor, targets: Tensor) -> list[Any]:
        loss, outputs = self.step(inputs, targets)
        with no_grad():
            return measure(self.metrics, loss, outputs, targets)

    def _measured_evaluation(self, inputs: Tensor, targets: Tensor) -> list[Any]:
        outputs = self.model(inputs)
        return measure(self.metrics, self.loss(outputs, targets), outputs, targets)

    def _captured(self, function: Any, inputs: Tensor, targets: Tensor) -> list[Any]:
        """Calls a captured function, or for good the function itself once it was refused."""
        if self.capture_refusal is None:
            try:
                return function(inputs, targets)
            except CaptureError as refusal:  # which has changed nothing
                self.capture_refusal = str(refusal)
        return function.eager(inputs, targets)

    # --- one epoch ----------------------------------------------------------------------------------------------

    def _run_epoch(self, train: Any, validation: Any) -> Row:
        begin = time.perf_counter()
        lr = float(self.optimizer.param_groups[0]["lr"])
        with np.errstate(over="ignore", invalid="ignore"):  # a loss that is not finite is reported below
            totals = self._train(train)
        figures = totals.read()  # waits for the device: the time before it is that of the steps
        step_seconds = time.perf_counter() - begin
        self.epoch += 1
        if not math.isfinite(figures["loss"]):
            raise DivergenceError(
                f"the loss became {figures['loss']} in epoch {self.epoch}; try a learning rate below {lr:g}"
            )
        row: Row = {"epoch": self.epoch} | {f"train_{name}": value for name, value in figures.items()}
        if validation is not None:
            row |= {f"validation_{name}": value for name, value in self.evaluate(validation).items()}
        if self.scheduler is not None and self.schedule_every == "epoch":
            self._schedule(row)
        self.samples += totals.count
        self.step_seconds += step_seconds
        self.seconds += time.perf_counter() - begin
        return row | {"lr": lr, "seconds": self.seconds, "samples_per_second": totals.count / step_seconds}

    def _train(self, data: Any) -> Totals:
        self.model.train()
        totals = Totals(self.metrics)
        for inputs, targets in data:
            sums = self._captured(self._step, inputs, targets)
            with no_grad():
                totals.add(sums, len(targets))
            if self.scheduler is not None and self.schedule_every == "step":
                self.scheduler.step()
            for callback in self.callbacks:
                callback.on_step(self)
        return totals

    def _schedule(self, row: Row) -> None:
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(row.get("validation_loss", row["train_loss"]))
        else:
            self.scheduler.step()
