"""What streaming kernels and captured steps move through memory, counted by a simulated GPU: next to nothing beyond what they need."""

import shutil

import pytest

import gpuprop as gp
from benchmarks.traffic import SIMULATOR, profile

pytestmark = pytest.mark.cuda


@pytest.fixture
def profiled():
    """What kernels, or steps, move on the simulated GPU."""
    if not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])
    if not gp.device_report()["cuda"][0]["name"].startswith("cudasim"):
        pytest.skip("a real GPU does not count what single kernels move")
    if shutil.which(SIMULATOR) is None:
        pytest.skip(f"{SIMULATOR} is not here to profile with; the variable CUDASIM names the simulator's command")
    return lambda what: profile(SIMULATOR, what)


def test_kernels_move_what_they_must_and_no_more(profiled):
    """1.05 times the least, in whole sectors: coalescing 0.95."""
    found = profiled("kernels")
    assert len(found) > 30
    assert not {t.name: f"{t.excess:.3f}" for t in found if t.excess > 1.05}
    assert not {t.name: f"{t.coalescing:.3f}" for t in found if t.coalescing < 0.95}
    assert not {t.name: t.launches for t in found if len(t.launches) != 1}


def test_captured_steps_move_what_they_must_and_no_more(profiled):
    """Of 3 layers: 5 L - 1 nodes that move within 5 % of the sum of what each has to, or 3 L + 1."""
    found = profiled("steps")
    assert [len(t.launches) for t in found] == [14, 10]
    assert not {t.name: f"{t.excess:.3f}" for t in found if not 1 <= t.excess <= 1.05}
    assert not {t.name: f"{t.coalescing:.3f}" for t in found if t.coalescing < 0.95}
