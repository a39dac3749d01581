"""The bundled data set: handwritten digits, read without a network.

Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning Repository,
https://doi.org/10.24432/C50P49, CC BY 4.0; the test set of 1,797 images, as shipped by scikit-learn.
"""

from __future__ import annotations

from importlib.resources import files

import numpy as np

from .table import Table

SIDE = 8  # pixels
BRIGHTEST = 16  # the largest value of a pixel
TARGET = "digit"


def _read() -> tuple[np.ndarray, np.ndarray]:
    with (files(__package__) / "digits.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return arrays["images"], arrays["labels"]


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """The handwritten digits: 1,797 images of 8 x 8 pixels in 10 classes.

    Shapes: images (1797, 64) float32 between 0 and 1, row after row; labels (1797,) int64, 0 to 9.
    Source: Alpaydin and Kaynak 1998, https://doi.org/10.24432/C50P49, CC BY 4.0.
    """
    images, labels = _read()
    return images.astype(np.float32) / np.float32(BRIGHTEST), labels.astype(np.int64)


def digits_table() -> Table:
    """The digits with a column for each pixel (`pixel_<row>_<column>`, 0 to 16) and one named `digit`."""
    images, labels = _read()
    columns = {f"pixel_{i // SIDE}_{i % SIDE}": images[:, i].astype(np.float64) for i in range(SIDE * SIDE)}
    return Table({**columns, TARGET: labels.astype(np.int64)}, name="digits")
