"""What users may choose about matrix products on a GPU; what it does there is tested in cuda/test_gemm.py."""

import numpy as np
import pytest

import gpuprop as gp
from gpuprop.errors import OptionError


def test_precision():
    assert gp.get_float32_matmul_precision() == "highest"
    x = np.random.default_rng(0).standard_normal((5, 30), dtype=np.float32)
    exact = gp.numpy.matmul(x, x.T)
    try:
        gp.set_float32_matmul_precision("high")
        assert gp.get_float32_matmul_precision() == "high"
        np.testing.assert_array_equal(gp.numpy.matmul(x, x.T), exact)  # no effect on the CPU
    finally:
        gp.set_float32_matmul_precision("highest")
    with pytest.raises(OptionError, match="set_float32_matmul_precision: expected 'highest' or 'high', got 'low'"):
        gp.set_float32_matmul_precision("low")


def test_choices_go_in_and_out():
    chosen = {"a product": 3}
    try:
        gp.set_matmul_choices(chosen)
        assert gp.get_matmul_choices() == chosen and gp.get_matmul_choices() is not chosen
    finally:
        gp.set_matmul_choices({})
    assert gp.get_matmul_choices() == {} and chosen == {"a product": 3}


@pytest.mark.parametrize("wrong", [{"a": "b"}, {1: 0}, {"a": -1}, {"a": True}, ["a"], None], ids=str)
def test_choices_that_are_none(wrong):
    with pytest.raises(OptionError, match="set_matmul_choices: expected what get_matmul_choices returned"):
        gp.set_matmul_choices(wrong)
