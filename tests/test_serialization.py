"""Files of saved state: what goes in comes out, as equal bytes everywhere, and whole whatever happens."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import gpuprop as gp
from gpuprop import optim, serialization
from gpuprop.errors import ArgumentError, CheckpointError
from gpuprop.nn import Module, Parameter


class Small(Module):
    def __init__(self):
        self.weight = Parameter(np.arange(6, dtype=np.float32).reshape(2, 3))
        self.register_buffer("mean", gp.tensor([0.5], dtype="float64"))


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert set(a) == set(b) and {type(k) for k in a} == {type(k) for k in b}
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_same(x, y)
    elif isinstance(a, (gp.Tensor, np.ndarray)):
        x, y = (a.numpy(), b.numpy()) if isinstance(a, gp.Tensor) else (a, b)
        assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
    else:
        assert a == b or (a != a and b != b)


STATE = {
    "epoch": 3,
    "big": 2**80,
    "name": "Größe \u2028",
    "rate": 0.1 + 0.2,
    "best": float("inf"),
    "worst": float("nan"),
    "flags": [True, False, None],
    "shape": (2, (3,), []),
    "state": {0: {"step": 1}, 10: {}, 2: "two"},
    "": {"": 1},
}


def tensors():
    return {
        "a": gp.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
        "a.b": gp.tensor(7),
        "flipped": gp.tensor(np.arange(12.0).reshape(3, 4).T[::-1]),
        "nested": {"b": [np.arange(3, dtype=np.uint8), gp.zeros(0, 2)], "__metadata__": gp.tensor(True)},
        "__metadata__": np.float16(0.5).reshape(1),
        "doubles": (gp.tensor(np.pi, dtype="float64"), np.array(5, np.int32)),
    }


def test_round_trip(tmp_path):
    state = {**STATE, **tensors(), "scalar": np.float32(0.1)}
    gp.save(tmp_path / "x.safetensors", state)
    loaded = gp.load(str(tmp_path / "x.safetensors"))
    assert loaded.pop("scalar") == float(np.float32(0.1))
    state.pop("scalar")
    assert_same(state, loaded)
    assert os.listdir(tmp_path) == ["x.safetensors"]
    loaded["a"] += 1.0  # its own memory


@pytest.mark.parametrize("value", [5, "text", None, [], gp.Tensor(np.ones(3)), {"a": {"b": {}}}])
def test_anything_at_the_top(tmp_path, value):
    gp.save(tmp_path / "x", value)
    assert_same(value, gp.load(tmp_path / "x"))


def test_arguments_in_another_order(tmp_path):
    with pytest.raises(ArgumentError, match=r"save: expected a path and what to save, in this order, got dict first"):
        gp.save({"a": 1}, tmp_path / "a.safetensors")


def test_devices(tmp_path, device):
    gp.save(tmp_path / "x", {"t": gp.tensor([1.0, 2.0], device=device)})
    assert gp.load(tmp_path / "x")["t"].device == "cpu"
    back = gp.load(tmp_path / "x", device=device)["t"]
    assert back.device == device and back.tolist() == [1.0, 2.0]


def test_modules_and_optimizers(tmp_path):
    model = Small()
    optimizer = optim.Adam(model.parameters())
    model.weight.sum().backward()
    optimizer.step()
    gp.save(tmp_path / "model", model)
    gp.save(
        tmp_path / "both", {"model": model, "optimizer": optimizer, "schedule": optim.lr_scheduler.StepLR(optimizer, 3)}
    )
    other = Small()
    other.load_state_dict(gp.load(tmp_path / "model"))
    assert other.weight.tolist() == model.weight.tolist()
    both = gp.load(tmp_path / "both")
    again = optim.Adam(other.parameters())
    again.load_state_dict(both["optimizer"])
    assert_same(again.state_dict(), optimizer.state_dict())
    assert both["schedule"]["last_epoch"] == 0


def test_other_programs_read_it_and_we_read_theirs(tmp_path):
    gp.save(tmp_path / "ours", {"model": Small()})
    theirs = load_file(tmp_path / "ours")
    assert set(theirs) == {"model.weight", "model.mean"}
    with safe_open(tmp_path / "ours", framework="np") as file:
        assert list(file.metadata()) == ["gpuprop"] and json.loads(file.metadata()["gpuprop"])["format"] == 1
    save_file({"a.b": np.ones(2, np.float32)}, tmp_path / "theirs", metadata={"format": "pt"})
    loaded = gp.load(tmp_path / "theirs")
    assert list(loaded) == ["a.b"] and loaded["a.b"].tolist() == [1.0, 1.0]


def test_equal_state_gives_equal_bytes(tmp_path):
    forward = {**STATE, **tensors()}
    backward = dict(reversed(list(forward.items())))
    gp.save(tmp_path / "a", forward)
    gp.save(tmp_path / "b", backward)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


SCRIPT = """
import os, sys
import numpy as np
import gpuprop as gp
path, moment = sys.argv[1:]
state = {"names": {k: i for i, k in enumerate({"x", "y", "z"})}, "t": {k: gp.tensor([1.0], device="cpu") for k in {"p", "q", "r", "s"}}}
state["names"] = dict.fromkeys(state["names"], 1)
if moment:
    real = getattr(os, moment)
    setattr(os, moment, lambda *args: os._exit(9))
gp.save(path, state)
"""


def save_in_another_process(path, moment="", seed="0"):
    environment = {
        **os.environ,
        "PYTHONHASHSEED": seed,
        "GPUPROP_DEVICE": "cpu",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    return subprocess.run([sys.executable, "-c", SCRIPT, str(path), moment], env=environment, check=False).returncode


def test_equal_bytes_in_every_process(tmp_path):
    for seed in "123":
        assert save_in_another_process(tmp_path / seed, seed=seed) == 0
    assert len({(tmp_path / seed).read_bytes() for seed in "123"}) == 1


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_crash_leaves_the_old_file(tmp_path, moment):
    path = tmp_path / "model.safetensors"
    gp.save(path, {"old": True})
    before = path.read_bytes()
    assert save_in_another_process(path, moment) == 9
    assert path.read_bytes() == before and gp.load(path) == {"old": True}
    gp.save(path, {"new": True})
    assert gp.load(path) == {"new": True}


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "x"
    gp.save(path, {"old": True})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(serialization.os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"save: expected a file that can be written, got .*x: .*No space left"):
        gp.save(path, {"new": True})
    assert gp.load(path) == {"old": True} and os.listdir(tmp_path) == ["x"]


def test_the_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    events = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(serialization.os, name, lambda *a, name=name, real=real: (events.append(name), real(*a))[1])
    gp.save(tmp_path / "x", 1)
    assert events == (["fsync", "replace"] if os.name == "nt" else ["fsync", "replace", "fsync"])


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "does not exist"),
        (b"", "expected a safetensors file"),
        (b"\x10" + b"\0" * 7 + b"not json at all!", "expected a safetensors file"),
        (b"PK\x03\x04" + b"x" * 100, "expected a safetensors file"),
    ],
)
def test_files_that_are_none(tmp_path, content, match):
    if content is not None:
        (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"load: .*{match}"):
        gp.load(tmp_path / "x")


def test_damaged_files(tmp_path):
    path = tmp_path / "x"
    gp.save(path, tensors())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="it is damaged"):
        gp.load(path)
    for state in ('{"tensor": "gone"}', '{"odd": 1}', "{}", ""):
        save_file({"a": np.ones(2)}, path, metadata={"gpuprop": f'{{"format": 1, "state": {state}}}'})
        with pytest.raises(CheckpointError, match="layout under 'gpuprop'"):
            gp.load(path)
    save_file({"a": np.ones(2)}, path, metadata={"gpuprop": '{"format": 99, "state": null}'})
    with pytest.raises(CheckpointError, match="expected format 1, got 99"):
        gp.load(path)
    with pytest.raises(CheckpointError, match="which is a folder"):
        gp.load(tmp_path)
    with pytest.raises(CheckpointError, match="expected a file that can be written"):
        gp.save(tmp_path / "missing" / "x", 1)


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        ({"a": [object()]}, TypeError, "got object at 'a.0'"),
        ({"a": {1.5: 2}}, TypeError, "strings or integers as keys, got 1.5 at 'a'"),
        ({True: 2}, TypeError, "got True"),
        ({"a": np.array(["x"])}, TypeError, "got dtype <U1 at 'a'"),
        (np.ones(2, complex), TypeError, "complex128"),
        (b"bytes", TypeError, "got bytes"),
    ],
)
def test_what_cannot_be_saved(tmp_path, value, error, match):
    with pytest.raises(error, match=f"save: .*{match}"):
        gp.save(tmp_path / "x", value)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_a_file_may_be_read_by_whom_the_umask_lets(tmp_path):
    (tmp_path / "other").touch()
    gp.save(tmp_path / "state", {"a": gp.ones(2)})
    assert (tmp_path / "state").stat().st_mode == (tmp_path / "other").stat().st_mode
