"""Work on a CPU in blocks."""

import numpy as np
import pytest

from gpuprop._blocks import BLOCK, in_blocks


@pytest.mark.parametrize("size", [0, 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_blocks_cover_arrays_once(size):
    x, y = np.arange(size, dtype=np.float32), np.zeros(size, np.float32)

    def work(x, y, scratch):
        np.multiply(x, 2, scratch)
        y += scratch

    in_blocks(work, x, y, scratch=1)
    np.testing.assert_array_equal(y, 2 * x)
