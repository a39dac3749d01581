"""Operands as a BLAS takes them, on the host: NumPy reads the memory as it is told."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from gpuprop.cuda.stacks import problem


def of(array):
    return array.shape, tuple(s // array.itemsize for s in array.strides)


def told(stack, count, array, packed):
    """The matrices that a library finds where it is told to look."""
    if packed is not None:
        array = np.ascontiguousarray(np.broadcast_to(array.reshape(array.shape or (1,)), packed))
    down, across = (1, stack.leading) if stack.transposed else (stack.leading, 1)
    strides = [s * array.itemsize for s in (stack.step, down, across)]
    return as_strided(array, (count, stack.rows, stack.columns), strides)


def layouts(*shape):
    values = np.random.default_rng(0).standard_normal([2 * n for n in shape])
    every_second = values[tuple(slice(None, None, 2) for _ in shape)]
    first = values[tuple(slice(n) for n in shape)]
    yield np.ascontiguousarray(first)
    yield np.ascontiguousarray(first.swapaxes(-1, -2)).swapaxes(-1, -2)
    yield first
    yield np.asfortranarray(first)
    yield every_second
    yield first[..., ::-1, :]
    yield np.broadcast_to(first[..., :1, :], shape)
    yield np.moveaxis(np.ascontiguousarray(np.moveaxis(first, 0, -1)), -1, 0)


@pytest.mark.parametrize(
    "of_a, of_b",
    [
        ((4, 3), (3, 5)),
        ((1, 3), (3, 5)),
        ((4, 1), (1, 5)),
        ((4, 3), (3, 1)),
        ((6, 4, 3), (3, 5)),
        ((4, 3), (6, 3, 5)),
        ((2, 3, 4, 6), (2, 3, 6, 5)),
        ((2, 1, 4, 6), (3, 6, 5)),
        ((1, 1, 4, 6), (6, 5)),
        ((2, 1, 1, 6), (6, 5)),
    ],
    ids=str,
)
def test_the_library_finds_the_matrices(of_a, of_b):
    for a, b in itertools.product(layouts(*of_a), layouts(*of_b)):
        p = problem(*of(a), *of(b))
        y = told(p.a, p.count, a, p.pack_a) @ told(p.b, p.count, b, p.pack_b)
        np.testing.assert_allclose(y.reshape(p.shape), a @ b, rtol=1e-13, atol=1e-13)
        if p.pack_a is None and min(a.strides) > 0:
            reach = (sum((n - 1) * s for n, s in zip(*of(a))) + 1) if a.size else 0
            assert p.a.extent(p.count) == reach


@pytest.mark.parametrize("a, b", [((3,), (3,)), ((4, 3), (3,)), ((3,), (2, 3, 5)), ((7, 4, 3), (3,))], ids=str)
def test_vectors(a, b):
    p = problem(*of(np.zeros(a)), *of(np.zeros(b)))
    assert p.shape == np.matmul(np.zeros(a), np.zeros(b)).shape and p.pack_a is p.pack_b is None


def test_matrices_in_rows_or_columns_are_not_packed():
    for a in itertools.islice(layouts(4, 3), 4):
        assert problem(*of(a), *of(a.T)).pack_a is None is problem(*of(a), *of(a.T)).pack_b


def test_rows_of_a_batch_are_one_product():
    x, weight = np.zeros((2, 5, 3)), np.zeros((4, 3))
    p = problem(*of(x), *of(weight.T))
    assert (p.count, p.a.rows, p.shape) == (1, 10, (2, 5, 4)) and not p.a.transposed and p.b.transposed


@pytest.mark.parametrize("a, b", [((0, 3), (3, 2)), ((2, 0), (0, 3)), ((2, 3), (3, 0)), ((0, 2, 3), (3, 4))], ids=str)
def test_empty(a, b):
    p = problem(*of(np.zeros(a)), *of(np.zeros(b)))
    assert p.empty and p.shape == (np.zeros(a) @ np.zeros(b)).shape


@pytest.mark.parametrize("a, b", [((2, 3), (2, 3)), ((), (3,)), ((2, 2, 3), (3, 3, 2)), ((3,), (4,))], ids=str)
def test_shapes_that_do_not_fit(a, b):
    with pytest.raises(ValueError, match="expected"):
        problem(*of(np.zeros(a)), *of(np.zeros(b)))
