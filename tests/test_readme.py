"""The README's Python blocks run as they stand there."""

import re
from pathlib import Path

import pytest

import gpuprop as gp
from gpuprop._op import REGISTRY
from gpuprop.cuda.source import Kernel
from gpuprop.device import device_scope, require

TEXT = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)


def run(block):
    before = set(REGISTRY)
    try:
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    finally:
        for name in set(REGISTRY) - before:
            del REGISTRY[name]


@pytest.mark.parametrize("block", BLOCKS, ids=[block.splitlines()[-1][:40] for block in BLOCKS])
def test_block(block, capsys):
    run(block)
    for epoch, loss in re.findall(r"^(\d+) ([\d.]+)$", capsys.readouterr().out, re.M):
        assert float(loss) < 2.5 / (1 + int(epoch)) ** 0.5  # it learns


@pytest.mark.cuda
def test_the_kernel_of_ones_own_is_launched(monkeypatch):
    if not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])
    launched, launch = [], Kernel.__call__
    monkeypatch.setattr(Kernel, "__call__", lambda self, *a: (launched.append(self.name), launch(self, *a))[1])
    (block,) = [block for block in BLOCKS if "gp.cuda.elementwise" in block]
    with device_scope(require("cuda")):
        run(block)
    assert [name for name in launched if name.endswith("float32_int")] == re.findall(r"softcap_\w+_int", block)
