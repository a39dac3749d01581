"""The benchmark of ops, and the limits that benchmarks are held against: at tiny sizes, and without a look at the times."""

import json

import numpy as np
import pytest
from conftest import CUDA

import gpuprop as gp
from benchmarks import ops
from benchmarks.command import run
from benchmarks.limits import Limits, measure
from gpuprop._op import REGISTRY, Op
from gpuprop.device import CPU, require
from gpuprop.errors import DeviceError, OptionError

OPS = [op for op in REGISTRY.values() if op.__module__.startswith("gpuprop.")]


@pytest.fixture(params=["cpu", CUDA])
def place(request):
    if request.param == "cuda" and not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])
    return require(request.param)


# --- Limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_limits_are_measured(place, dtype):
    limits = measure(str(place), "high", smoke=True, dtype=dtype)
    assert limits.copy_bytes_per_second > 0 and limits.flops_per_second > 0
    assert gp.get_float32_matmul_precision() == "highest"


def test_the_least_time_is_that_of_the_slower_of_two():
    limits = Limits(copy_bytes_per_second=100.0, flops_per_second=1000.0)
    assert limits.seconds(flops=500, nbytes=10) == 0.5
    assert limits.seconds(flops=500, nbytes=100) == 1.0


def test_limits_of_what_is_not_there():
    with pytest.raises(OptionError, match="dtype: expected float16, bfloat16, float32, float64, got 'int8'"):
        measure("cpu", smoke=True, dtype="int8")
    with pytest.raises(DeviceError, match="'gpu'"):
        measure("gpu", smoke=True)


# --- Samples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_op_has_a_sample_that_can_be_enlarged(op):
    with np.errstate(all="ignore"):
        sample, factor = ops.enlarged(op, CPU, np.dtype(np.float32), 1 << 12)
        case = ops.Case(op, sample, CPU, np.dtype(np.float32))
        case.forward()
    assert factor > 1
    assert 1 << 6 <= case.elements <= 1 << 14


def test_a_large_sample_has_the_shapes_of_the_small_one():
    op = REGISTRY["linear"]
    for index in ops.typical(op):
        small, large = (ops.drawn(op, index, factor, np.float32) for factor in (1, 8))
        for a, b in zip(small.inputs, large.inputs, strict=True):
            assert b is None if a is None else b.shape == tuple(8 * n for n in a.shape)


def test_an_op_without_a_sample_that_can_be_enlarged_says_why():
    def three(xp, x):
        if x.shape != (3,):
            raise ValueError("three elements, no more")
        return x + x

    def samples(draw):
        yield gp.testing.Sample(draw.normal(3))

    op = Op(three, samples=samples, errors=None, name="three", view=False, smooth=True)
    with pytest.raises(ops.NotEnlarged, match="three elements, no more"):
        ops.enlarged(op, CPU, np.dtype(np.float32), 1 << 12)


# --- Bytes ----------------------------------------------------------------------------------------------------------


def case_of(name, *inputs, device=CPU, **options):
    case = ops.Case(REGISTRY[name], gp.testing.Sample(*inputs, **options), device, np.dtype(np.float32))
    case.forward()
    return case


def test_bytes_are_those_of_the_arrays_that_pass(place):
    case = case_of("relu", np.ones((8, 16)), device=place)
    assert case.forward_bytes() == 2 * 4 * 8 * 16  # x and y
    gradients = case.gradient()()
    assert case.gradient_bytes(gradients) == 3 * 4 * 8 * 16  # dy, y or x, dx


def test_views_move_nothing(place):
    case = case_of("transpose", np.ones((8, 16)), device=place)
    assert case.forward_bytes() == 0
    assert case.gradient_bytes(case.gradient()()) == 0


def test_the_same_memory_counts_once():
    x = np.ones((8, 16), np.float32)
    assert ops.nbytes([x, x.T, x[2:], np.ones(3)]) == x.nbytes + 24


def test_rule_and_implementation_are_told_apart(monkeypatch):
    op, called = REGISTRY["relu"], []
    implementation = op.cpu.implementation.forward
    with monkeypatch.context() as patch:
        patch.setattr(op.cpu.implementation, "forward", lambda *a, **k: called.append(1) or implementation(*a, **k))
        op._forget_plans()
        case = case_of("relu", np.ones(3))
        assert called == [1]
        with ops.by_rule(op, CPU):
            case.forward()
        assert called == [1]
        case.forward()
        assert called == [1, 1]
    op._forget_plans()


# --- The command ----------------------------------------------------------------------------------------------------


def test_the_table_and_the_file(place, tmp_path, capsys):
    out = tmp_path / "new" / "ops.json"
    ops.main(only="relu,reshape,argmax", device=str(place), dtype="float32", elements=0, smoke=True, out=out)
    found = json.loads(out.read_text())
    rows = {(row["op"], row["what"]): row for row in found["rows"]}
    assert rows.keys() >= {("relu", "forward"), ("relu", "gradient"), ("reshape", "forward"), ("argmax", "forward")}
    assert ("argmax", "gradient") not in rows
    assert rows["relu", "forward"]["implementation_seconds"] > 0 and rows["relu", "forward"]["bytes_per_second"] > 0
    assert rows["argmax", "forward"]["implementation_seconds"] is None
    assert rows["reshape", "forward"]["bytes_per_second"] is None
    assert found["left_out"] == {} and found["device"] == str(place) and found["copy_bytes_per_second"] > 0
    printed = capsys.readouterr().out
    assert "relu" in printed and "a view" in printed and "argmax" in printed


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"only": "relo"}, "--only: there is no op 'relo'; did you mean 'relu'?"),
        ({"dtype": "int8"}, "dtype: expected float16, bfloat16, float32, float64, got 'int8'"),
        ({"device": "gpu"}, "device: expected 'cpu', 'cuda' or 'cuda:<index>', got 'gpu'"),
        ({"out": "."}, "--out: expected a file, got the folder ."),
    ],
)
def test_a_wrong_input_ends_in_one_line(arguments, said, capsys, monkeypatch, tmp_path):
    options = [f"--{name}={value}" for name, value in arguments.items()]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["ops", "--smoke", *options])
    with pytest.raises(SystemExit) as left:
        run(ops.main, "benchmarks.ops")
    assert left.value.code == 2
    assert capsys.readouterr().err == f"gpuprop: {said}\n"
    assert not any(tmp_path.iterdir())


def test_ctrl_c_keeps_what_was_finished(capsys, monkeypatch, tmp_path):
    measured = ops.measured

    def interrupted(op, *others):
        if op.name == "sum":
            raise KeyboardInterrupt
        return measured(op, *others)

    monkeypatch.setattr(ops, "measured", interrupted)
    monkeypatch.setattr(
        "sys.argv", ["ops", "--smoke", "--device=cpu", "--only=relu,sum,exp", f"--out={tmp_path}/x.json"]
    )
    with pytest.raises(SystemExit) as left:
        run(ops.main, "benchmarks.ops")
    assert left.value.code == 130 and capsys.readouterr().err == "stopped; what was not finished is left out\n"
    assert {row["op"] for row in json.loads((tmp_path / "x.json").read_text())["rows"]} == {"relu"}
