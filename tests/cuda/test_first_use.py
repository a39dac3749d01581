"""The first use of a kernel compiles it and nothing else; later processes load it."""

import os
import subprocess
import sys

import pytest

USE = """
import sys
sys.path.insert(0, "tests")
from conftest import Counters
import ctypes, gpuprop as gp
read = ctypes.CDLL("libcuda.so.1").cudasim_counters
read.restype = ctypes.POINTER(Counters)
x = gp.ones(3, 5, device="cuda", requires_grad=True)
gp.numpy.relu(x)  # CuPy looks at the compiler once per process
before = read().contents.compiles
y = gp.numpy.gelu(x)
print(read().contents.compiles - before)
before = read().contents.compiles
gp.numpy.gelu(x)
print(read().contents.compiles - before)
"""


@pytest.mark.cuda
def test_one_kernel_is_compiled_once(count, tmp_path):
    environment = {**os.environ, "CUPY_CACHE_DIR": str(tmp_path)}
    uses = [
        subprocess.run([sys.executable, "-c", USE], env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert [use.split() for use in uses] == [["1", "0"], ["0", "0"]]
