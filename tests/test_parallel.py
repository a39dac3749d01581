"""Work on a CPU in blocks that threads share."""

import os
import threading

import numpy as np
import pytest

from gpuprop import _parallel
from gpuprop._parallel import BLOCK, LEAST, in_blocks, share


def test_every_part_is_done_at_once():
    here, barrier = [], threading.Barrier(3, timeout=20)

    def work(part):
        barrier.wait()
        here.append((part, threading.get_ident()))

    for _ in range(3):
        here.clear()
        share(work, [1, 2, 3])
        assert sorted(part for part, _ in here) == [1, 2, 3]
        assert len({thread for _, thread in here}) == 3


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_errors_of_any_part_are_raised_and_the_next_work_goes_on(bad):
    done = []

    def work(part):
        if part == bad:
            raise ZeroDivisionError(part)
        done.append(part)

    with pytest.raises(ZeroDivisionError):
        share(work, [0, 1, 2])
    assert sorted(done) == sorted({0, 1, 2} - {bad})
    share(done.append, [7, 8])
    assert sorted(done[-2:]) == [7, 8]


@pytest.mark.parametrize("size", [0, 1, BLOCK, BLOCK + 1, LEAST, 3 * LEAST + 5])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_blocks_cover_arrays_once(size, count, monkeypatch):
    monkeypatch.setattr(_parallel, "threads", lambda: count)
    x, y = np.arange(size, dtype=np.float32), np.zeros(size, np.float32)

    def work(x, y, scratch):
        np.multiply(x, 2, scratch)
        y += scratch

    in_blocks(work, x, y, scratch=1)
    np.testing.assert_array_equal(y, 2 * x)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking with threads, which is what is tested
def test_a_forked_process_has_threads_of_its_own():
    share(lambda part: None, [1, 2])
    child = os.fork()
    if not child:
        share(lambda part: None, [1, 2])
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
