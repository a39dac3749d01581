"""What ends in matrix products: products of vectors and tensors for the CUDA namespace, and linear maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cupy
import numpy as np

from ..ops.linalg import check_linear, einsum_labels, rows
from . import launch
from .gemm import fused_product, offers, product


def dot(a: Any, b: Any) -> Any:
    """The last axis of a times the last but one of b, or its only one, summed; a plain product with a 0-d array."""
    if not a.ndim or not b.ndim:
        return cupy.multiply(a, b)
    return product(a, b) if b.ndim <= 2 else tensordot(a, b, ((-1,), (-2,)))


def inner(a: Any, b: Any) -> Any:
    """The last axes of both multiplied and summed."""
    return tensordot(a, b, ((-1,), (-1,))) if a.ndim and b.ndim else cupy.multiply(a, b)


def vdot(a: Any, b: Any) -> Any:
    """The sum of the products of all elements."""
    return product(cupy.ravel(a), cupy.ravel(b))


def tensordot(a: Any, b: Any, axes: int | Sequence[Any] = 2) -> Any:
    """Axes of both multiplied and summed: the last `axes` of a with the first of b, or two tuples of axes that pair up."""
    if isinstance(axes, int):
        axes = range(a.ndim - axes, a.ndim), range(axes)
    of_a, of_b = ([i % x.ndim for i in side] for x, side in zip((a, b), axes))
    if [a.shape[i] for i in of_a] != [b.shape[i] for i in of_b]:
        raise ValueError(f"expected axes of equal lengths, got {of_a} of a and {of_b} of b")
    free_a, free_b = ([i for i in range(x.ndim) if i not in used] for x, used in ((a, of_a), (b, of_b)))
    y = product(_grouped(a, free_a, of_a), _grouped(b, of_b, free_b))
    return y.reshape([a.shape[i] for i in free_a] + [b.shape[i] for i in free_b])


def _grouped(x: Any, *groups: Sequence[int]) -> Any:
    """The axes of each group as one; a view where that is possible."""
    lengths = [math.prod(x.shape[i] for i in group) for group in groups]
    return x.transpose([i for group in groups for i in group]).reshape(lengths)


def einsum(subscripts: str, *operands: Any, optimize: bool = True) -> Any:
    """Products of elements, summed over the letters that the result does not have, two operands at a time."""
    if len(operands) == 1:
        return cupy.einsum(subscripts, *operands)  # a sum, a diagonal or a view
    labels, result = einsum_labels(subscripts, [x.ndim for x in operands])
    terms = list(zip(labels, operands))
    for places in _order(f"{','.join(labels)}->{result}", operands):
        chosen = [terms.pop(i) for i in sorted(places, reverse=True)]
        rest = result + "".join(letters for letters, _ in terms)
        while len(chosen) > 1:
            a, b = chosen.pop(), chosen.pop()
            chosen.append(_contracted(*a, *b, rest + "".join(letters for letters, _ in chosen)))
        terms += chosen
    letters, y = terms[0]
    return y if letters == result else cupy.einsum(f"{letters}->{result}", y)


def _order(subscripts: str, operands: Sequence[Any]) -> Sequence[tuple[int, ...]]:
    """Which operands go together, by their places in what is left; each result goes to the end."""
    if len(operands) == 2:
        return [(0, 1)]
    shapes = [np.broadcast_to(np.float32(0), x.shape) for x in operands]
    return np.einsum_path(subscripts, *shapes, optimize="greedy")[0][1:]


def _contracted(a_letters: str, a: Any, b_letters: str, b: Any, rest: str) -> tuple[str, Any]:
    """The product of two operands with the letters that the rest needs; one matrix product for each value of those in both."""
    a_letters, a, b_letters, b = (
        *_reduced(a_letters, a, b_letters, b, rest),
        *_reduced(b_letters, b, a_letters, a, rest),
    )
    both = [c for c in a_letters if c in b_letters and c in rest]
    summed = [c for c in a_letters if c in b_letters and c not in rest]
    free_a, free_b = ([c for c in letters if c not in both + summed] for letters in (a_letters, b_letters))
    left = _grouped(a, *([a_letters.index(c) for c in group] for group in (both, free_a, summed)))
    right = _grouped(b, *([b_letters.index(c) for c in group] for group in (both, summed, free_b)))
    lengths = dict(zip(a_letters + b_letters, a.shape + b.shape))
    letters = "".join(both + free_a + free_b)
    y = product(left, right) if summed else left * right
    return letters, y.reshape([lengths[c] for c in letters])


def _reduced(letters: str, x: Any, others: str, other: Any, rest: str) -> tuple[str, Any]:
    """x with each letter once, without those that only it has, and without axes of length 1 that the other one spreads."""
    longer = dict(zip(others, other.shape))
    stays = [c for c, n in zip(letters, x.shape) if (c in rest or c in others) and not (n == 1 < longer.get(c, 1))]
    kept = "".join(dict.fromkeys(stays))
    return kept, x if kept == letters else cupy.einsum(f"{letters}->{kept}", x)


def linear(x: Any, weight: Any, bias: Any, out: Any) -> Any:
    """x @ weight.T + bias."""
    if x.dtype != weight.dtype or (bias is not None and bias.dtype != x.dtype):
        return NotImplemented
    check_linear(x, weight, bias)
    if bias is None:
        return product(x, weight.T, out=out)
    given = rows(cupy, x), weight.T
    if not offers("BIAS", *given):
        y = product(x, weight.T, out=out)
        y += bias
        return y
    y = fused_product("BIAS", *given, bias=launch.packed(bias))
    return launch.finished(y.reshape(*x.shape[:-1], len(weight)), out)
