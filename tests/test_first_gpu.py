"""The command for the first hour on a GPU: that it runs, says what it finds, and goes on when something fails."""

import json
import math
import sys
import time

import numpy as np
import pytest

import gpuprop as gp
from benchmarks import first_gpu, gpu_checks
from benchmarks.command import run
from benchmarks.gpu_checks import Check, Effort, finding, ulp_errors


def command(monkeypatch, *arguments):
    """Runs the command; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["first_gpu", *arguments])
    with pytest.raises(SystemExit) as left:
        run(first_gpu.main, "benchmarks.first_gpu")
    return left.value.code or 0


# --- Without a GPU --------------------------------------------------------------------------------------------------


def test_no_gpu_is_one_line_and_exit_code_2(monkeypatch, capsys, tmp_path):
    if gp.is_available():
        pytest.skip("there is a GPU")
    assert command(monkeypatch, "--out", str(tmp_path / "x.json")) == 2
    said = capsys.readouterr().err
    assert said.startswith("gpuprop: device: 'cuda:0' was asked for and cannot be had: ") and said.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--device", "cpu"), "--device: expected a GPU, such as cuda or cuda:1, got 'cpu'"),
        (("--device", "gpu"), "device: expected 'cpu', 'cuda' or 'cuda:<index>', got 'gpu'"),
    ],
)
def test_a_wrong_input_ends_in_one_line(arguments, said, monkeypatch, capsys):
    assert command(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err == f"gpuprop: {said}\n"


def test_checks_are_chosen_by_name():
    assert first_gpu._chosen("", "") == list(first_gpu.CHECKS)
    assert first_gpu._chosen("steps,device", "steps") == ["device"]
    with pytest.raises(gp.errors.OptionError, match="--skip: there is no check 'test'; did you mean 'tests'?"):
        first_gpu._chosen("", "test")
    with pytest.raises(gp.errors.OptionError, match="got none"):
        first_gpu._chosen("device", "device")


def fails(effort):
    """One finding, and then an error."""
    yield finding("one", "right")
    raise ValueError("the second is wrong")


def lingers(effort):
    """Findings without end."""
    while True:
        time.sleep(0.01)
        yield finding("one", "right")


@pytest.mark.parametrize(
    "check, error, stopped", [(fails, "ValueError: the second is wrong", False), (lingers, "", True)]
)
def test_what_a_check_has_found_counts(check, error, stopped, monkeypatch, tmp_path):
    monkeypatch.setitem(first_gpu.CHECKS, "it", Check(check, 0.05))
    monkeypatch.setattr(gp, "set_default_device", lambda device: None)
    lines = tmp_path / "lines"
    if error:
        with pytest.raises(ValueError):
            first_gpu.check_here("it", lines, 0.05, True, "cpu")
    else:
        first_gpu.check_here("it", lines, 0.05, True, "cpu")
    outcome = first_gpu.gathered(lines.read_text(), "", 1.0)
    assert outcome.findings[0] == {"what": "one", "said": "right", "bad": False}
    assert (outcome.error, outcome.stopped, outcome.passed) == (error, stopped, not error)


def test_a_line_that_was_cut_off_is_left_out():
    outcome = first_gpu.gathered('{"what": "one", "said": "right", "bad": true}\n{"what": "tw', "no end after 3 s", 3.0)
    assert [f["what"] for f in outcome.wrong] == ["one"]
    assert outcome.error == "no end after 3 s"


SAID = """
tests/test_a.py::test_one[a b-c] PASSED                        [  1%]
tests/test_a.py::test_two SKIPPED (no such device)             [  2%]
tests/test_a.py::test_three[x] FAILED                          [  3%]
[gw1] [  4%] PASSED tests/test_b.py::test_four[a - b]
[gw0] [  5%] FAILED tests/test_b.py::test_five
FAILED tests/test_a.py::test_three[x] - AssertionError: no
tests/test_b.py::test_seve"""


def test_results_of_tests_are_read_as_far_as_they_came():
    results, reasons = gpu_checks.results_in(SAID)
    assert results == {
        "tests/test_a.py::test_one[a b-c]": "PASSED",
        "tests/test_a.py::test_two": "SKIPPED",
        "tests/test_a.py::test_three[x]": "FAILED",
        "tests/test_b.py::test_four[a - b]": "PASSED",
        "tests/test_b.py::test_five": "FAILED",
    }
    assert reasons == {"tests/test_a.py::test_three[x]": "AssertionError: no"}


# --- Errors in units of the last place ------------------------------------------------------------------------------


def test_errors_are_counted_in_units_of_the_last_place():
    exact = np.array([1.0, 3.0, 1000.0])
    for dtype in (np.float16, np.float32, np.float64):
        value = exact.astype(dtype)
        assert ulp_errors(value, exact) == {"ulp": 0.0, "of_largest": 0.0}
        value[0] += 3 * np.spacing(dtype(1))
        assert ulp_errors(value, exact)["ulp"] == 3
        assert ulp_errors(value, exact)["of_largest"] == 3 / 512
    small = np.array([1e-3])  # below 1, where terms of about 1 may have cancelled
    off = small.astype(np.float32) + np.spacing(np.float32(1))
    assert ulp_errors(off, small.astype(np.float32))["of_largest"] == pytest.approx(1)


@pytest.mark.parametrize(
    "actual, expected",
    [
        (np.ones((1,), np.float32), np.ones(())),
        (np.array([np.nan], np.float32), np.ones(1)),
        (np.ones(1, np.float32), np.array([np.nan])),
        (np.array([np.inf], np.float32), np.ones(1)),
        (np.array([2]), np.array([1])),
    ],
)
def test_what_is_no_rounding_error_is_infinite(actual, expected):
    assert ulp_errors(actual, expected) == {"ulp": math.inf, "of_largest": math.inf}


def test_a_finer_result_is_no_more_precise_than_what_it_was_computed_in():
    off, exact = np.array([1 + 2.0**-7], np.float32), np.ones(1)
    assert ulp_errors(off, exact)["ulp"] == 2**16
    assert ulp_errors(off, exact, "bfloat16")["ulp"] == 1


def test_what_the_format_cannot_hold_is_not_compared():
    assert ulp_errors(np.array([np.inf, 1], np.float16), np.array([1e6, 1.0])) == {"ulp": 0.0, "of_largest": 0.0}


def test_a_step_has_its_products():
    products = gpu_checks.step_products([5, 7, 3], 4)
    assert [str(p) for p in products] == ["4x5 @ 5x7T", "4x7 @ 7x3T", "7x4T @ 4x5", "3x4T @ 4x7", "4x3 @ 3x7"]
    assert products[0].flops == 2 * 4 * 5 * 7


# --- On a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.cuda
def test_it_runs(monkeypatch, capsys, tmp_path):
    """All but the tests, which run this one, and the steps beside others, which import these."""
    if not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])
    out = tmp_path / "new" / "found.json"
    code = command(monkeypatch, "--smoke", "--only", "device,precision,replay,nodes,products", "--out", str(out))
    printed = capsys.readouterr().out
    assert code == 0, printed
    found = json.loads(out.read_text())
    checks = found["checks"]
    assert list(checks) == ["device", "precision", "replay", "nodes", "products"] and found["smoke"]
    assert all(check["passed"] and not check["error"] and check["findings"] for check in checks.values())
    assert all(f["differ"] == 0 and f["arrays"] > 4 for f in checks["replay"]["findings"])
    assert all(f["kernels"] == 2 and f["products"] == 5 for f in checks["nodes"]["findings"])  # epilogues
    assert any(f["dtype"] == "float32" and 0 < f["ulp"] < 100 for f in checks["precision"]["findings"])
    assert "[5/5] products" in printed and "replay" in printed and str(out) in printed


@pytest.mark.cuda
def test_a_wrong_kernel_is_found(monkeypatch):
    if not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])
    from gpuprop._op import REGISTRY

    op = REGISTRY["relu"]
    forward = op.cuda.implementation.forward
    monkeypatch.setattr(
        op.cuda.implementation, "forward", lambda x, **options: forward(x, **options) * x.dtype.type(1.00001)
    )
    op._forget_plans()
    try:
        found = [f for f in gpu_checks.precision(Effort(True, time.monotonic() + 100)) if f.get("op") == "relu"]
    finally:
        monkeypatch.undo()
        op._forget_plans()
    assert [f["bad"] for f in found if f["dtype"] == "float32"] == [True]


@pytest.mark.cuda
def test_steps_beside_others(monkeypatch):
    if not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])
    monkeypatch.setattr(gpu_checks, "PEERS", ("gpuprop-captured", "gpuprop-eager"))
    found = list(gpu_checks.steps(Effort(True, time.monotonic() + 100)))
    assert not [f for f in found if f["bad"]]
    assert {(f["provider"], f["problem"]) for f in found if f["seconds"] > 0} == {
        (name, str(problem)) for name in gpu_checks.PEERS for problem in gpu_checks.problems(True)
    }
