"""What all tests share: the devices they run on."""

import ctypes

import guard  # noqa: F401  (registers its backend)
import pytest

import gpuprop as gp
from gpuprop.device import device_scope, require

CUDA = pytest.param("cuda", marks=pytest.mark.cuda)

# On a machine with a GPU, the tests that ask for no device run on the CPU too.
gp.set_default_device("cpu")


@pytest.fixture(params=["cpu", "guard", CUDA])
def device(request):
    """Each device in turn; new tensors of the test go there."""
    if request.param == "cuda" and not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])
    with device_scope(require(request.param)) as current:
        yield str(current)


@pytest.fixture(params=["cpu", CUDA])
def place(request):
    """Each device that functions are captured on, in turn; tensors of the test are sent there by name."""
    if request.param == "cuda" and not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])
    return request.param


@pytest.fixture
def reference_path():
    """Matrix products take over nothing: biases, activations and their gradients are kernels of our own."""
    gp.set_matmul_epilogues(False)
    yield
    gp.set_matmul_epilogues(True)


class Counters(ctypes.Structure):
    """What the simulated device has counted."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "kernel_launches graph_launches graph_nodes gemm_calls blas_calls "
            "host_to_device host_to_device_bytes device_to_host device_to_host_bytes "
            "device_to_device device_to_device_bytes memsets "
            "mallocs frees bytes_in_use peak_bytes synchronizations captures compiles"
        ).split()
    ]


@pytest.fixture
def count():
    """A function that runs something on the simulated GPU and returns what it added to the counters."""
    if not gp.is_available():
        pytest.skip(f"no CUDA device: {gp.device_report()['cuda_reason']}")
    try:
        read = ctypes.CDLL("libcuda.so.1").cudasim_counters
    except (OSError, AttributeError):
        pytest.skip("copies and synchronisations are counted by the simulated GPU only")
    read.restype = ctypes.POINTER(Counters)

    def run(work):
        names = [name for name, _ in Counters._fields_]
        before = [getattr(read().contents, name) for name in names]
        work()
        return {name: getattr(read().contents, name) - b for name, b in zip(names, before)}

    return run
