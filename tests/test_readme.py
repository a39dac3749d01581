"""The README's Python blocks run as they stand there."""

import re
from pathlib import Path

import pytest

from gpuprop._op import REGISTRY

TEXT = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=[block.splitlines()[-1][:40] for block in BLOCKS])
def test_block(block, capsys):
    before = set(REGISTRY)
    try:
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    finally:
        for name in set(REGISTRY) - before:
            del REGISTRY[name]
    for epoch, loss in re.findall(r"^(\d+) ([\d.]+)$", capsys.readouterr().out, re.M):
        assert float(loss) < 2.5 / (1 + int(epoch)) ** 0.5  # it learns
