"""Dividing rows into training, validation and test, the same for the same seed everywhere."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .._random import randperm


class Split(NamedTuple):
    """Row numbers, each in one part only, in order."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_rows(
    count: int, *, test: float = 0.2, validation: float = 0.1, generator: Any, classes: np.ndarray | None = None
) -> Split:
    """Draws a test and a validation part of `count` rows; every part gets at least one row.

    test, validation: fractions of all rows. classes: class numbers (N,), to be shared out in proportion.
    """
    order = randperm(count, generator=generator, device="cpu").numpy()
    if classes is not None:
        order = order[np.argsort(classes[order], kind="stable")]
    sizes = [max(1, round(fraction * count)) for fraction in (test, validation)]
    # Rows at even distances in the order of classes hold each class in proportion.
    taken = _spaced(len(order), sizes[0])
    test_rows, rest = order[taken], np.delete(order, taken)
    taken = _spaced(len(rest), sizes[1])
    return Split(np.sort(np.delete(rest, taken)), np.sort(rest[taken]), np.sort(test_rows))


def _spaced(count: int, wanted: int) -> np.ndarray:
    return ((np.arange(wanted) + 0.5) * count / wanted).astype(np.int64)
