"""Dividing rows: nothing lost, nothing twice, classes in proportion, the same for the same seed."""

import numpy as np
import pytest

import gpuprop as gp
from gpuprop.data.split import split_rows


@pytest.mark.parametrize("count", [5, 6, 17, 100, 1797])
@pytest.mark.parametrize("stratified", [False, True])
def test_every_row_is_in_one_part(count, stratified):
    classes = np.arange(count) % 3 if stratified else None
    parts = split_rows(count, generator=gp.Generator("cpu", 0), classes=classes)
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))
    assert len(parts.test) == max(1, round(0.2 * count))
    assert len(parts.validation) == max(1, round(0.1 * count))


def test_classes_keep_their_shares():
    classes = np.repeat([0, 1, 2], [500, 300, 200])
    for seed in range(5):
        parts = split_rows(1000, generator=gp.Generator("cpu", seed), classes=classes)
        for rows, size in zip(parts, (700, 100, 200), strict=True):
            shares = np.bincount(classes[rows], minlength=3) / size
            np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=1.5 / size)


def test_rows_follow_the_seed():
    first, again, other = (split_rows(100, generator=gp.Generator("cpu", seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first.test, other.test)
