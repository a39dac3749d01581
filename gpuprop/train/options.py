"""What a training run is asked for: the options of `gpuprop train`, their defaults and their limits, stated once."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .. import optim
from ..data.preprocessing import TASKS
from ..errors import DataError, OptionError, did_you_mean
from ..optim import lr_scheduler as schedules

ACTIVATIONS = ("relu", "gelu", "silu", "tanh", "sigmoid", "elu", "selu", "leaky_relu", "softplus", "mish")
WIDEST = 2**20  # units of a hidden layer
NORMS = ("batch", "layer", "rms", "none")


class OptimizerChoice(NamedTuple):
    """An optimizer with the learning rate and weight decay that it starts from, and its options beyond."""

    kind: Callable[..., Any]
    lr: float
    weight_decay: float = 0.0
    others: dict[str, Any] = {}  # noqa: RUF012 (never changed)


OPTIMIZERS = {
    "adamw": OptimizerChoice(optim.AdamW, lr=1e-3, weight_decay=0.01),
    "adam": OptimizerChoice(optim.Adam, lr=1e-3),
    "sgd": OptimizerChoice(optim.SGD, lr=0.05, others={"momentum": 0.9, "nesterov": True}),
    "rmsprop": OptimizerChoice(optim.RMSprop, lr=1e-3),
    "adagrad": OptimizerChoice(optim.Adagrad, lr=0.02),
}


class ScheduleChoice(NamedTuple):
    """How a schedule is made, from (optimizer, options, steps in all), and after what it advances."""

    make: Callable[[Any, Any, int], Any]
    every: str = "step"


SCHEDULES = {
    "cosine": ScheduleChoice(lambda optimizer, options, steps: schedules.CosineAnnealingLR(optimizer, steps)),
    "constant": ScheduleChoice(lambda optimizer, options, steps: None),
    "step": ScheduleChoice(
        lambda optimizer, options, steps: schedules.StepLR(optimizer, max(1, options.epochs // 3)), "epoch"
    ),
    "onecycle": ScheduleChoice(
        lambda optimizer, options, steps: schedules.OneCycleLR(optimizer, options.lr, steps, cycle_momentum=False)
    ),
    "plateau": ScheduleChoice(
        lambda optimizer, options, steps: schedules.ReduceLROnPlateau(optimizer, patience=5), "epoch"
    ),
}


@dataclass(frozen=True)
class Options:
    """The options of one run. Each field is an option of the command line and a key of a --config file.

    Raises: OptionError for a value that is not allowed, naming the option.
    """

    target: str | None = None
    task: str = "auto"
    hidden: tuple[int, ...] = (256, 128)
    activation: str = "gelu"
    dropout: float = 0.2
    norm: str = "batch"
    optimizer: str = "adamw"
    lr: float | None = None  # by the optimizer
    weight_decay: float | None = None  # by the optimizer
    batch_size: int | None = None  # by the number of rows
    epochs: int = 40
    schedule: str = "cosine"
    patience: int | None = None
    seed: int = 0
    device: str | None = None
    capture: str = "on"
    out: str | None = None

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise OptionError(f"--{name}: there is no {value!r}; {did_you_mean(str(value), choices)}")
        for name, (allowed, expected) in LIMITS.items():
            value = getattr(self, name)
            if value is not None and not allowed(value):
                shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
                raise OptionError(f"--{name.replace('_', '-')}: expected {expected}, got {shown}")

    @classmethod
    def read(cls, *sources: dict[str, Any]) -> Options:
        """Options from mappings by name, of which later ones win; texts and TOML values become each field's type."""
        merged: dict[str, Any] = {}
        for source in sources:
            merged.update({name: _convert(name, value) for name, value in source.items()})
        return cls(**merged)

    def resolved(self, *, target: str, task: str, rows: int) -> Options:
        """The options with a value for each: what was left open follows from the data and the optimizer.

        rows: of training. The batch size is the power of two below a 32nd of them, from 32 to 1024, at most all.
        """
        choice = OPTIMIZERS[self.optimizer]
        fitting = 2 ** min(10, max(5, (rows // 32).bit_length() - 1))
        return dataclasses.replace(
            self,
            target=target,
            task=task,
            lr=choice.lr if self.lr is None else self.lr,
            weight_decay=choice.weight_decay if self.weight_decay is None else self.weight_decay,
            batch_size=min(rows, fitting if self.batch_size is None else self.batch_size),
        )

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"hidden": list(self.hidden)}


CHOICES = {
    "task": TASKS,
    "activation": ACTIVATIONS,
    "norm": NORMS,
    "optimizer": tuple(OPTIMIZERS),
    "schedule": tuple(SCHEDULES),
    "capture": ("on", "off"),
}

LIMITS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "hidden": (lambda sizes: all(1 <= n <= WIDEST for n in sizes), f"layer sizes from 1 to {WIDEST:,}"),
    "dropout": (lambda p: 0 <= p < 1, "a number from 0 to below 1"),
    "lr": (lambda lr: 0 < lr < math.inf, "a number above 0"),
    "weight_decay": (lambda w: 0 <= w < math.inf, "a number of at least 0"),
    "batch_size": (lambda n: n >= 1, "at least 1"),
    "epochs": (lambda n: n >= 1, "at least 1"),
    "patience": (lambda n: n >= 1, "at least 1"),
    "seed": (lambda n: 0 <= n < 2**64, "a whole number from 0 to 2**64 - 1"),
}


def sizes(text: str) -> tuple[int, ...]:
    """The sizes of hidden layers from "256,128"; "" is a linear model. Raises: ValueError."""
    return tuple(int(part) for part in text.split(",")) if text.strip() else ()


def _whole(value: Any) -> int:
    if isinstance(value, (bool, float)):
        raise ValueError
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def _hidden(value: Any) -> tuple[int, ...]:
    return sizes(value) if isinstance(value, str) else tuple(_whole(n) for n in value)


_KINDS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "hidden": (_hidden, "whole numbers such as 256,128"),
    **dict.fromkeys(("dropout", "lr", "weight_decay"), (_number, "a number")),
    **dict.fromkeys(("batch_size", "epochs", "patience", "seed"), (_whole, "a whole number")),
}


def _convert(name: str, value: Any) -> Any:
    if value is None:
        return None
    convert, expected = _KINDS.get(name, (_text, "text"))
    try:
        return convert(value)
    except (ValueError, TypeError):
        raise OptionError(f"--{name.replace('_', '-')}: expected {expected}, got {value!r}") from None


def read_config(path: str | Path) -> dict[str, Any]:
    """The options in a TOML file, by field name; `data` may name the table too.

    Raises: DataError for a file that cannot be read, OptionError for a key that is no option.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        stored = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected a configuration in TOML") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{path}: cannot be read as TOML: {error}") from None
    known = ["data", *(field.name for field in dataclasses.fields(Options))]
    found = {}
    for key, value in stored.items():
        name = key.replace("-", "_")
        if name not in known:
            raise OptionError(f"{path}: {key!r} is no option; {did_you_mean(name, known)}")
        if name in found:
            raise OptionError(f"{path}: {key!r} is given twice")
        found[name] = value
    return found
