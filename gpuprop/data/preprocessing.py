"""From a table to arrays for a network, and back: fitted on the training rows, stored as JSON, applied anywhere.

Numbers are imputed (median) and standardised; text becomes one column per category that was seen (one-hot). A category
that was not seen, or is missing, becomes zeros in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..errors import DataError, OptionError
from .table import Table

MAX_CATEGORIES = 100  # a text column with more, or mostly with values of their own, names its rows: it teaches nothing
MAX_INTEGER_CLASSES = 20  # an integer target with more distinct values is a quantity
TASKS = ("auto", "classification", "regression")


@dataclass(frozen=True)
class Numeric:
    """x -> (x - mean) / scale, with `fill` where x is missing."""

    name: str
    fill: float
    mean: float
    scale: float


@dataclass(frozen=True)
class Categorical:
    """x -> one column per category, 1 where x is that category."""

    name: str
    categories: tuple[str, ...]


@dataclass
class Preprocessing:
    """How a table's columns become features (N, D) float32 and its target becomes labels or standardised values.

    classes: the labels, in order, for classification. mean, scale: of the target, for regression.
    notes: what a user should know about the data: columns left out, numbers that were missing.
    """

    task: str
    target: str
    features: list[Numeric | Categorical]
    classes: list[Any] = field(default_factory=list)
    mean: float = 0.0
    scale: float = 1.0
    notes: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> int:
        """D, the number of features."""
        return sum(len(f.categories) if isinstance(f, Categorical) else 1 for f in self.features)

    @property
    def outputs(self) -> int:
        """C, the number of outputs of a network: one per class, or one value."""
        return len(self.classes) if self.task == "classification" else 1

    @classmethod
    def fit(
        cls, table: Table, target: str, task: str, rows: np.ndarray, *, scale: tuple[float, float] | None = None
    ) -> Preprocessing:
        """Learns what is needed to prepare any rows, from the training rows alone; only the classes are all rows'.

        task: "classification" or "regression" (see `find_task`). rows: int array, the training rows.
        scale: a (mean, scale) for all numbers, known beforehand, in place of each column's own.
        Raises: DataError where the table cannot be used, naming column and line.
        """
        made = cls(task, target, [])
        if task == "classification":
            made.classes = classes_of(table, target)
        else:
            values = _target_numbers(table, target)[rows]
            made.mean, made.scale = float(values.mean()), _spread(values)
        others = [name for name in table.columns if name != target]
        for name in others:
            if _numbers_rows(table, name) and len(others) > 1:
                made.notes.append(f"{name!r} was left out: it only numbers the rows")
            elif is_numeric(table, name):
                made._fit_numbers(table, name, rows, scale)
            else:
                made._fit_categories(table, name, rows)
        if not made.features:
            raise DataError(
                f"{table.name}: no column beside the target {target!r} can be learned from; {'; '.join(made.notes)}"
            )
        return made

    def _fit_numbers(self, table: Table, name: str, rows: np.ndarray, scale: tuple[float, float] | None) -> None:
        column = numbers(table, name)
        values = column[rows]
        known = values[~np.isnan(values)]
        if not known.size:
            self.notes.append(f"{name!r} was left out: it has no value in the training rows")
            return
        missing = int(np.isnan(column).sum())
        fill = float(np.median(known))
        if missing:
            self.notes.append(
                f"{name!r}: {missing} missing value{'s' * (missing > 1)} replaced by the median, {fill:.6g}"
            )
        values = np.where(np.isnan(values), fill, values)
        mean, spread = scale or (float(values.mean()), _spread(values))
        self.features.append(Numeric(name, fill, mean, spread))

    def _fit_categories(self, table: Table, name: str, rows: np.ndarray) -> None:
        values = [str(v) for v in table[name][rows] if v is not None]
        categories = tuple(sorted(set(values)))
        if not categories:
            self.notes.append(f"{name!r} was left out: it has no value in the training rows")
        elif len(categories) > MAX_CATEGORIES or len(categories) > max(10, len(values) // 2):
            self.notes.append(
                f"{name!r} was left out: {len(categories)} different texts in {len(values)} rows look like names"
            )
        else:
            self.features.append(Categorical(name, categories))

    # --- applying it --------------------------------------------------------------------------------------------

    def transform(self, table: Table) -> np.ndarray:
        """The features of every row: (N, D) float32, finite.

        Raises: DataError for a column that is missing, or holds text where numbers were learned from.
        """
        parts = []
        for feature in self.features:
            if isinstance(feature, Numeric):
                values = numbers(table, feature.name)
                parts.append(
                    ((np.where(np.isnan(values), feature.fill, values) - feature.mean) / feature.scale)[:, None]
                )
            else:
                parts.append(_one_hot(table[feature.name], feature.categories))
        # Float32 holds less than float64: a value beyond it would become infinite only here.
        return np.ascontiguousarray(np.clip(np.concatenate(parts, axis=1), -1e30, 1e30), dtype=np.float32)

    def targets(self, table: Table) -> np.ndarray:
        """The target of every row: (N,) int64 class numbers, or (N, 1) float32 standardised values."""
        if self.task == "regression":
            return ((_target_numbers(table, self.target) - self.mean) / self.scale).astype(np.float32)[:, None]
        return class_numbers(table, self.target, self.classes)

    def values(self, outputs: np.ndarray) -> np.ndarray:
        """Outputs of the network for a regression, (N, 1), in the target's own units: (N,) float64."""
        return outputs[:, 0].astype(np.float64) * self.scale + self.mean

    # --- storing it ---------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """The same as plain lists, numbers and texts."""
        kinds = {Numeric: "numeric", Categorical: "categorical"}
        return {**asdict(self), "features": [{"kind": kinds[type(f)], **asdict(f)} for f in self.features]}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Preprocessing:
        """What `to_json` gave, as an object again."""
        features: list[Numeric | Categorical] = []
        for entry in stored["features"]:
            fields = {k: v for k, v in entry.items() if k != "kind"}
            if entry["kind"] == "categorical":
                features.append(Categorical(fields["name"], tuple(fields["categories"])))
            else:
                features.append(Numeric(**fields))
        return cls(**{**stored, "features": features})


def find_task(table: Table, target: str, task: str = "auto") -> str:
    """ "classification" or "regression": as asked for, else by what the target holds.

    Text and truth values are classes. Integers are classes where there are two of them, or at most 20 and on average
    5 rows or more for each. Other numbers are quantities.
    """
    if task not in TASKS:
        raise OptionError(f"task: expected {', '.join(TASKS)}, got {task!r}")
    if task != "auto":
        return task
    values = table[target]
    if values.dtype == object:
        _check_not_mixed(table, target)
        return "classification"
    if values.dtype == bool:
        return "classification"
    known = values[np.isfinite(values)]
    distinct = len(np.unique(known))
    whole = bool((known == np.round(known)).all())
    few = distinct <= 2 or (distinct <= MAX_INTEGER_CLASSES and 5 * distinct <= known.size)
    return "classification" if whole and few else "regression"


# --- Columns --------------------------------------------------------------------------------------------------------


def is_numeric(table: Table, name: str) -> bool:
    """Whether a column holds numbers. Raises: DataError for numbers with some text among them, which is a mistake."""
    if table[name].dtype == object:
        _check_not_mixed(table, name)
        return False
    return True


def _check_not_mixed(table: Table, name: str) -> None:
    text = [(row, value) for row, value in enumerate(table[name]) if value is not None and not _is_number(value)]
    filled = sum(value is not None for value in table[name])
    if text and 2 * len(text) < filled:
        row, value = text[0]
        raise DataError(
            f"{table.name}: column {name!r} holds numbers, but {_shown(value)} in {table.place(row)}; "
            "correct it, or leave it empty where the number is not known"
        )


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def numbers(table: Table, name: str) -> np.ndarray:
    """A column as float64 (N,), NaN where it is missing. Raises: DataError for text and for infinite values."""
    values = table[name]
    if values.dtype == object:
        for row, value in enumerate(values):
            if value is not None and not _is_number(value):
                raise DataError(
                    f"{table.name}: expected numbers in column {name!r}, got {_shown(value)} in {table.place(row)}"
                )
        values = np.array([np.nan if v is None else float(v) for v in values])
    values = values.astype(np.float64)
    infinite = np.flatnonzero(np.isinf(values))
    if infinite.size:
        raise DataError(
            f"{table.name}: column {name!r} is infinite in {table.place(infinite[0])}; expected finite numbers"
        )
    return values


def _target_numbers(table: Table, target: str) -> np.ndarray:
    if table[target].dtype == object and not any(v is not None and _is_number(v) for v in table[target]):
        raise DataError(
            f"{table.name}: the target {target!r} is text, which regression cannot predict; use --task classification"
        )
    values = numbers(table, target)
    missing = np.flatnonzero(np.isnan(values))
    if missing.size:
        raise _missing_target(table, target, missing)
    if (values == values[0]).all():
        raise DataError(
            f"{table.name}: the target {target!r} is {values[0]:.6g} in every row; there is nothing to learn"
        )
    return values


def _missing_target(table: Table, target: str, rows: np.ndarray) -> DataError:
    where = f"{table.place(rows[0])}" + (f" and {rows.size - 1} more" if rows.size > 1 else "")
    return DataError(f"{table.name}: the target {target!r} is missing or not finite in {where}; leave such rows out")


def _labels(table: Table, target: str) -> list[Any]:
    """The target's labels as text, truth values or numbers; whole numbers as integers."""
    values = table[target]
    absent = [v is None for v in values] if values.dtype == object else ~np.isfinite(values)
    if (missing := np.flatnonzero(absent)).size:
        raise _missing_target(table, target, missing)
    if values.dtype == np.float64:
        return [int(v) if v.is_integer() else v for v in values.tolist()]
    return values.tolist()


def class_numbers(table: Table, target: str, classes: list[Any]) -> np.ndarray:
    """The place of each row's label among the classes: (N,) int64."""
    number = {label: i for i, label in enumerate(classes)}
    return np.array([number[label] for label in _labels(table, target)], dtype=np.int64)


def classes_of(table: Table, target: str) -> list[Any]:
    """The different labels in a target, in order. Raises: DataError where there is one, or almost one per row."""
    labels = _labels(table, target)
    classes = sorted(set(labels))
    if len(classes) == 1:
        raise DataError(
            f"{table.name}: the target {target!r} has one class only, {classes[0]!r}; at least two are needed"
        )
    if len(classes) > max(MAX_CATEGORIES, 2) and 2 * len(classes) > len(labels):
        raise DataError(
            f"{table.name}: the target {target!r} has {len(classes)} classes in {len(labels)} rows; "
            "use --task regression, or another target"
        )
    return classes


def _numbers_rows(table: Table, name: str) -> bool:
    """Whether a column is the rows' own number, as tools write it first: 0, 1, 2, ... under a name that says so."""
    says_so = name.lower() in ("column_1", "id", "index", "unnamed: 0", "row", "rownames")
    values = table[name]
    return says_so and values.dtype != object and bool((np.diff(values) == 1).all())


def _one_hot(values: np.ndarray, categories: Sequence[str]) -> np.ndarray:
    number = {category: i for i, category in enumerate(categories)}
    found = np.array([-1 if v is None else number.get(_category(v), -1) for v in values.tolist()])
    return (found[:, None] == np.arange(len(categories))).astype(np.float64)


def _category(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _spread(values: np.ndarray) -> float:
    """The standard deviation, or 1 for a constant column, whose deviation is rounding that a division would blow up."""
    spread = float(values.std())
    return spread if spread > 1e-9 * max(1.0, float(np.abs(values).max())) else 1.0


def _shown(value: str) -> str:
    return repr(value if len(value) <= 30 else value[:27] + "...")
