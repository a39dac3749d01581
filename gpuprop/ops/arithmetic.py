"""Elementwise arithmetic, comparisons and logic, under their NumPy names."""

from __future__ import annotations

import numpy as np

from .._op import op
from ..testing import real_line, real_pairs


@op(samples=real_pairs, operator="add", method=True)
def add(xp, a, b):
    """Sum: y = a + b. Shapes: a, b broadcast."""
    return xp.add(a, b)


@add.grad("a")
def _(xp, dy):
    return dy


@add.grad("b")
def _(xp, dy):
    return dy


add.cpu = np.add


@op(samples=real_pairs, operator="mul", method=True)
def multiply(xp, a, b):
    """Product: y = a * b. Shapes: a, b broadcast."""
    return xp.multiply(a, b)


@multiply.grad("a")
def _(xp, dy, b):
    return dy * b


@multiply.grad("b")
def _(xp, dy, a):
    return dy * a


multiply.cpu = np.multiply
