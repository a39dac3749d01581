"""What streaming kernels move through memory, counted by a simulated GPU: next to nothing beyond what their task needs."""

import shutil

import pytest

import gpuprop as gp
from benchmarks.traffic import SIMULATOR, profile


@pytest.mark.cuda
def test_kernels_move_what_they_must_and_no_more():
    """1.05 times the least, in whole sectors: coalescing 0.95."""
    if not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])
    if not gp.device_report()["cuda"][0]["name"].startswith("cudasim"):
        pytest.skip("a real GPU does not count what single kernels move")
    if shutil.which(SIMULATOR) is None:
        pytest.skip(f"{SIMULATOR} is not here to profile with; the variable CUDASIM names the simulator's command")
    found = profile(SIMULATOR)
    assert len(found) > 30
    assert not {t.name: f"{t.excess:.3f}" for t in found if t.excess > 1.05}
    assert not {t.name: f"{t.coalescing:.3f}" for t in found if t.coalescing < 0.95}
    assert not {t.name: t.launches for t in found if len(t.launches) != 1}
