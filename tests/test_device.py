"""Devices: what is chosen and why, in processes of their own where the choice is made once."""

import os
import subprocess
import sys

import numpy as np
import pytest

import gpuprop as gp
from gpuprop.device import Device, as_device, device_of
from gpuprop.errors import DeviceError


def python(code, **environment):
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=env, capture_output=True, text=True)


def test_names():
    assert as_device("cuda") == Device("cuda", 0) == "cuda:0" == as_device("cuda:0")
    assert str(Device("cuda", 1)) == "cuda:1" and Device("cpu") == "cpu" and repr(Device("cpu")) == "device('cpu')"
    assert len({Device("cpu"), as_device("cpu")}) == 1
    assert as_device("cpu") is as_device(Device("cpu")) is device_of(np.ones(1)), "dictionaries find it without a call"
    assert as_device(Device("cpu", 1)) == "cpu"
    for wrong in ("gpu", "cuda:x", "cuda:", "cuda:²", "cuda:٣", "cpu:0:1", 3):
        with pytest.raises(DeviceError, match="expected 'cpu', 'cuda'"):
            as_device(wrong)


def test_the_report_says_what_and_why():
    report = gp.device_report()
    found = {"default", "reason", "cuda", "cuda_reason", "cublaslt", "cublaslt_reason", "numpy", "cupy"}
    assert set(report) == found
    assert bool(report["cuda"]) == gp.is_available() != bool(report["cuda_reason"])
    assert bool(report["cublaslt"]) != bool(report["cublaslt_reason"])
    assert report["reason"] and report["numpy"] == np.__version__


def test_the_environment_decides():
    done = python(
        "import gpuprop as gp; print(gp.default_device(), gp.device_report()['reason'])", GPUPROP_DEVICE="cpu"
    )
    assert done.stdout == "cpu GPUPROP_DEVICE=cpu\n", done.stderr


def test_who_asks_for_cuda_never_gets_a_cpu():
    if gp.is_available():
        pytest.skip("there is a CUDA device")
    done = python("import gpuprop as gp; gp.zeros(2)", GPUPROP_DEVICE="cuda")
    assert "DeviceError: device: 'cuda:0' was asked for and cannot be had" in done.stderr
    with pytest.raises(DeviceError, match="cannot be had"):
        gp.set_default_device("cuda")


def test_a_missing_cupy_is_named():
    code = """
import sys
sys.modules["cupy"] = None
import gpuprop as gp
print(gp.default_device(), "|", gp.device_report()["cuda_reason"])
"""
    done = python(code, GPUPROP_DEVICE="")
    assert done.stdout.startswith("cpu | cupy "), done.stderr


def test_importing_gpuprop_does_not_import_what_may_not_be_needed():
    code = "import sys, gpuprop; print([m for m in ('cupy', 'matplotlib', 'rich', 'typer') if m in sys.modules])"
    assert python(code).stdout == "[]\n"


@pytest.mark.cuda
def test_copies_between_devices(device):
    if device != "cuda":
        pytest.skip("the CUDA side")
    x = gp.tensor(np.arange(6.0).reshape(2, 3).T, device=device)
    assert x.device == "cuda:0" and x.is_cuda
    np.testing.assert_array_equal(x.cpu().numpy(), np.arange(6.0).reshape(2, 3).T)
    np.testing.assert_array_equal(x.cpu().to(device).numpy(), x.numpy())


@pytest.mark.cuda
def test_a_cupy_array_stays_where_it_is(device):
    if device != "cuda":
        pytest.skip("the CUDA side")
    cupy = pytest.importorskip("cupy")
    a = cupy.arange(3.0)
    assert gp.asarray(a).data is a and gp.tensor(a).device == "cuda:0"
    np.testing.assert_array_equal((gp.tensor(a) * 2).numpy(), [0, 2, 4])
    assert isinstance(gp.numpy.exp(a), cupy.ndarray)
