"""Every kernel that can be launched, through NVIDIA's compiler for every architecture, and what is read from its machine code."""

import functools

import pytest

from benchmarks.kernels import ARCHITECTURES, Compiler, Unavailable, faults, inspect, inspect_all, occupancy
from gpuprop.cuda.source import Kernel, all_kernels

KERNELS = all_kernels()
FILES = sorted({kernel.file for kernel in KERNELS})


@functools.cache
def compiler():
    try:
        return Compiler()
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("file", FILES)
def test_kernels_compile_to_what_was_meant(file, architecture):
    """No warning, no spill, no local memory, no float64 beside float64, packs of 16 bytes, at least half of the warps on sm_90."""
    kernels = {kernel: streaming for kernel, streaming in KERNELS.items() if kernel.file == file}
    found = inspect_all(kernels, architecture, compiler())
    assert not found.complaints
    assert found.compiled.keys() == kernels.keys()
    assert not found.faults


BAD = {
    "float64": "y[threadIdx.x] = x[threadIdx.x] * 0.1;",
    "local memory": "float a[64]; for (int k = 0; k < 64; ++k) a[int(x[k]) % 64] = x[k]; y[0] = a[int(x[0]) % 64];",
    "no 128-bit": "y[threadIdx.x] = x[threadIdx.x];",
    "occupancy": "__shared__ float a[12288]; a[threadIdx.x] = x[threadIdx.x]; __syncthreads(); y[0] = a[int(x[0])];",
}


@pytest.mark.parametrize("fault", BAD)
def test_faults_are_found(fault):
    kernel = Kernel("common.cuh", "bad", "const float* x, float* y", BAD[fault], ("float32",), bounds=128)
    compiled, complaints = inspect(compiler(), [kernel], 90)
    assert not complaints
    assert any(found.startswith(fault) for found in faults(kernel, compiled[kernel], True, 90))


def test_complaints_are_found():
    def complaints(body):
        return inspect(compiler(), [Kernel("common.cuh", "bad", "float* y", body, ("float32",))], 90)[1]

    assert complaints("y[0] = 1;") == ""
    assert "never referenced" in complaints("int unused = 1; y[0] = 1;")
    assert "undefined" in complaints("y[0] = missing;")


def test_occupancy_is_that_of_nvidias_tables():
    """CUDA C++ Programming Guide, technical specifications of compute capability 9.0: 64 warps, 65,536 registers, 228 KiB."""
    kernel = Kernel("common.cuh", "plain", "float* y", "y[threadIdx.x] = 1;", ())
    (compiled,) = inspect(compiler(), [kernel], 90)[0].values()

    def with_(**changes):
        return type(compiled)(**{**vars(compiled), **changes})

    assert occupancy(with_(registers=32), 256) == 1
    assert occupancy(with_(registers=33), 256) == 48 / 64
    assert occupancy(with_(registers=255), 256) == 8 / 64
    assert occupancy(with_(registers=16, shared=48 * 1024), 256) == 4 * 8 / 64
    assert occupancy(with_(registers=16), 32) == 32 / 64
