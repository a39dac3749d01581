"""Comparisons and logic on tensors. What all ops share is in `test_every_op.py`."""

import operator

import numpy as np
import pytest

import gpuprop as gp
from gpuprop import numpy as gnp


@pytest.mark.parametrize("f", [operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne])
def test_comparisons_from_both_sides(f):
    a, b = np.array([1.0, 2.0, np.nan]), np.array([1.0, 3.0, np.nan])
    for left, right in [(gp.tensor(a), gp.tensor(b)), (gp.tensor(a), b), (a, gp.tensor(b))]:
        result = f(left, right)
        assert isinstance(result, gp.Tensor) and result.dtype == np.bool_
        np.testing.assert_array_equal(result.numpy(), f(a, b))
    np.testing.assert_array_equal(f(gp.tensor(a), 2).numpy(), f(a, 2))
    np.testing.assert_array_equal(f(2, gp.tensor(a)).numpy(), f(2, a))


def test_the_tape_ends_at_a_comparison():
    x = gp.tensor([1.0, -2.0], requires_grad=True)
    for result in (x > 0, x == x, gnp.isfinite(x), gnp.isclose(x, 1.0), gnp.logical_not(x), gnp.argmax(x)):
        assert not result.requires_grad and result.is_leaf


def test_truth_of_a_mask():
    mask = gp.tensor([1.0, np.inf]).isfinite()
    assert mask.any() and not mask.all()
    assert (~mask & True).sum().item() == 1
    assert gp.tensor([2.0]) == 2.0 and 2.0 in gp.tensor([1.0, 2.0])
