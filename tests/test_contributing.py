"""The example of CONTRIBUTING.md, an activation with its kernel, is code that runs, is short, and passes the generic tests."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import test_every_op as every_op

import gpuprop as gp
from gpuprop._op import REGISTRY
from gpuprop.cuda import source
from gpuprop.ops import activations
from gpuprop.testing import Draw

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")


def block(language):
    (found,) = re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)
    return found


@pytest.fixture
def contributed(tmp_path, monkeypatch):
    """The op, declared as if its block stood in `ops/activations.py`, and its functor in a copy of `kernels/activations.cu`."""
    kernels = shutil.copytree(source.folder(), tmp_path / "kernels")
    functors = kernels / "activations.cu"
    functors.write_text(functors.read_text().replace("#undef MATHS", block("cuda") + "#undef MATHS"))
    monkeypatch.setattr(source, "folder", lambda: kernels)
    monkeypatch.setattr(source, "_makers", list(source._makers))
    source.text.cache_clear()
    before = set(REGISTRY)
    exec(compile(block("python"), "CONTRIBUTING.md", "exec"), dict(vars(activations)))
    (name,) = set(REGISTRY) - before
    yield REGISTRY[name]
    del REGISTRY[name]
    source.text.cache_clear()


def test_the_example_is_short():
    assert len([line for line in (block("python") + block("cuda")).splitlines() if line.strip()]) <= 25


def test_the_op_passes_the_generic_tests(contributed, device):
    every_op.test_an_op_says_what_it_computes(contributed)
    for sample in contributed.samples(Draw(3)):
        if device == "cpu":
            every_op.test_derivatives_are_those_of_finite_differences(contributed, sample)
        for dtype in (np.float32, np.float64):
            every_op.test_devices_agree(contributed, sample, device, dtype)
        every_op.test_layout_in_memory_does_not_matter(contributed, sample, device)
        every_op.test_gradients_add_up_where_they_live(contributed, sample, device)


@pytest.mark.cuda
def test_the_kernel_passes_the_generic_tests(contributed, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent / "cuda")
    import test_elementwise_kernels as every_kernel

    if not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])
    assert contributed in every_kernel.bound_ops()
    every_kernel.test_values_are_right_to_the_last_places(contributed, {})
    every_kernel.test_gradients_are_right_to_the_last_places(contributed, {})
    for dtype in every_kernel.DTYPES:
        every_kernel.test_every_size(contributed, {}, dtype)
        every_kernel.test_what_is_no_number_passes_as_in_the_rule(contributed, {}, dtype)
