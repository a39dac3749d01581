"""What all tests share: the devices they run on."""

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
