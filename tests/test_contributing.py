"""The example of CONTRIBUTING.md is code that runs, and is short."""

import re
from pathlib import Path

import numpy as np
import pytest

import gpuprop as gp
from gpuprop._op import REGISTRY
from gpuprop.testing import Draw, check_gradients

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def swish():
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    declared = [line for line in block.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(declared) <= 25
    before = set(REGISTRY)
    scope: dict = {"__name__": "contributed"}
    exec(compile(block, "CONTRIBUTING.md", "exec"), scope)
    yield scope["swish"]
    for name in set(REGISTRY) - before:
        del REGISTRY[name]


def test_the_example_declares_an_op_that_passes_the_generic_checks(swish, device):
    for sample in swish.samples(Draw(3)):
        x, beta = sample.inputs
        expected = x / (1 + np.exp(-beta * x))
        check_gradients(swish, x, beta, order=2)
        y = gp.numpy.swish(gp.tensor(x, device=device), gp.tensor(beta, device=device))
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-12)
