"""What a training step consists of may not grow unseen: launches, nodes, allocations and bytes on a simulated GPU, calls of Python.

Nothing is timed here: each number is counted, is the same in every run, and stands in `step_structure.json`. A change that raises one
fails, and so does one that lowers it, until the lower number is written down: then it cannot creep up again. Write with

    STEP_STRUCTURE=write python -m pytest tests/test_step_structure.py       (-m cuda on a simulated GPU, -m "not cuda" elsewhere)
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import gpuprop as gp
import gpuprop.nn.functional as F
from benchmarks.traffic import SIMULATOR
from gpuprop import nn
from gpuprop.nn import parameter

BUDGETS = Path(__file__).with_suffix("").with_name("step_structure.json")
BATCH, FEATURES, CLASSES = 32, 64, 12
PACKAGE = str(Path(gp.__file__).parent)
MODES = ["eager", "captured"]


# --- The steps ------------------------------------------------------------------------------------------------------


def perceptron(activation):
    return lambda: nn.MLP([FEATURES, 96, 80, CLASSES], activation=activation, seed=1)


def normalised():
    """With everything in it that people put into an MLP."""
    gp.manual_seed(0)
    hidden = [nn.Linear(FEATURES, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*hidden, nn.Linear(96, 80), nn.LayerNorm(80), nn.GELU(), nn.Linear(80, CLASSES))


STEPS = {  # name -> model, loss, optimizer
    "silu, Adam": (perceptron("silu"), F.cross_entropy, lambda p: gp.optim.Adam(p, lr=1e-3)),
    "relu, Adam": (perceptron("relu"), F.cross_entropy, lambda p: gp.optim.Adam(p, lr=1e-3)),
    "tanh, clipped momentum": (
        perceptron("tanh"),
        F.cross_entropy,
        lambda p: gp.optim.SGD(p, lr=1e-2, momentum=0.9, max_grad_norm=1.0),
    ),
    "regression, RMSprop": (perceptron("gelu"), F.mse_loss, lambda p: gp.optim.RMSprop(p, lr=1e-3)),
    "normalised, AdamW": (normalised, F.cross_entropy, lambda p: gp.optim.AdamW(p, lr=1e-3, ema_decay=0.99)),
}


def made(name, device, captured):
    """A step that takes no arguments, warm: everything that happens once has happened."""
    model, loss_of, optimizer_of = STEPS[name]
    parameter._open.chunks.clear()  # or the model goes where models of earlier tests left room, perhaps in two places: an update more
    model = model().to(device)
    optimizer = optimizer_of(model.parameters())
    rng = np.random.default_rng(0)
    x = gp.tensor(rng.standard_normal((BATCH, FEATURES), np.float32), device=device)
    target = rng.integers(0, CLASSES, BATCH)
    if loss_of is F.mse_loss:
        target = rng.standard_normal((BATCH, CLASSES), np.float32)
    target = gp.tensor(target, device=device)

    def step(x, target):
        optimizer.zero_grad()
        loss = loss_of(model(x), target)
        loss.backward()
        optimizer.step()
        return loss

    wrapped = gp.capture(step) if captured else step
    for _ in range(3):
        wrapped(x, target)
    return (lambda: wrapped(x, target)), (wrapped.recording if captured else None)


# --- What is counted ------------------------------------------------------------------------------------------------


def python_calls(work):
    """Calls of gpuprop's functions. Comprehensions, which newer versions of Python do not call, and other anonymous code do not count."""
    calls = 0

    def on_event(frame, event, argument):
        nonlocal calls
        code = frame.f_code
        calls += event == "call" and code.co_filename.startswith(PACKAGE) and not code.co_name.startswith("<")

    before = sys.getprofile()
    sys.setprofile(on_event)
    try:
        work()
    finally:
        sys.setprofile(before)
    return calls


def pool_allocations(work):
    """Arrays that CuPy's pool was asked for."""
    from cupy.cuda import memory_hook

    class Hook(memory_hook.MemoryHook):
        asked = 0

        def malloc_preprocess(self, **details):
            Hook.asked += 1

    with Hook():
        work()
    return Hook.asked


def compare(name, device, mode, measured):
    """Holds counts against the budget, or writes them."""
    budgets = json.loads(BUDGETS.read_text())
    if os.environ.get("STEP_STRUCTURE") == "write":
        budgets.setdefault(name, {}).setdefault(device, {}).setdefault(mode, {}).update(measured)
        BUDGETS.write_text(json.dumps(budgets, indent=2, sort_keys=True) + "\n")
    budget = budgets[name][device][mode]
    # Compilers differ in which values they load twice, by little; everything else is counted exactly.
    slack = {"bytes": 0.01}
    raised, lowered = [], []
    for what, number in measured.items():
        if abs(number - budget[what]) > slack.get(what, 0) * budget[what]:
            (raised if number > budget[what] else lowered).append(f"{what}: {number}, the budget is {budget[what]}")
    step = f"a step of {name!r}, {mode} on {device}"
    assert not raised, f"{step}, has more than its budget in step_structure.json: {'; '.join(raised)}"
    assert not lowered, (
        f"{step}, has less than its budget: {'; '.join(lowered)}; keep it: STEP_STRUCTURE=write (see above)"
    )


# --- On a CPU -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", STEPS)
def test_a_step_calls_no_more_python(name, mode):
    step, recording = made(name, "cpu", mode == "captured")
    measured = {"python calls": python_calls(step)}
    assert python_calls(step) == measured["python calls"], "the count is the same for every step"
    if recording is not None:
        report = recording.report()
        measured |= {"nodes": report["nodes"], "nodes that allocate": sum(report["allocating"].values())}
        measured["arena bytes"] = report["arena_bytes"]
    compare(name, "cpu", mode, measured)


# --- On a simulated GPU ---------------------------------------------------------------------------------------------

COUNTERS = {
    "kernel_launches": "launches",
    "gemm_calls": "products",
    "graph_launches": "graph launches",
    "graph_nodes": "nodes",
    "memsets": "fills",
    "device_to_device": "copies",
    "host_to_device": "copies from the host",
    "device_to_host": "copies to the host",
    "synchronizations": "synchronizations",
    "mallocs": "allocations of the device's",
}


@pytest.mark.cuda
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", STEPS)
def test_a_step_sends_no_more_to_the_gpu(count, name, mode):
    step, _ = made(name, "cuda", mode == "captured")
    counted = count(step)
    measured = {words: counted[counter] for counter, words in COUNTERS.items()}
    measured["allocations of arrays"] = pool_allocations(step)
    measured["python calls"] = python_calls(step)
    compare(name, "cuda", mode, measured)


PROFILED = [
    (name, mode) for name in ("silu, Adam", "relu, Adam") for mode in MODES
]  # each more kernel takes seconds to compile


def profiled():
    """Runs steps between launches of a kernel that marks where each begins and ends."""
    import cupy

    mark = cupy.RawKernel('extern "C" __global__ void mark() {}', "mark")
    for name, mode in PROFILED:
        step, _ = made(name, "cuda", mode == "captured")
        mark((1,), (1,), ())
        step()
        mark((1,), (1,), ())


@pytest.mark.cuda
def test_a_step_moves_no_more_bytes(count):
    """Sectors of all kernels, operands of products, copies and fills."""
    if shutil.which(SIMULATOR) is None:
        pytest.skip(f"{SIMULATOR} is not here to profile with; the variable CUDASIM names the simulator's command")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "profile.jsonl"
        here = Path(__file__)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent.parent), str(here.parent)])}
        code = f"import {here.stem}; {here.stem}.profiled()"
        command = [SIMULATOR, "run", "--profile", str(log), "--", sys.executable, "-c", code]
        subprocess.run(command, check=True, cwd=here.parent.parent, env=environment)
        records = [json.loads(line) for line in log.read_text().splitlines()]
    marks = [i for i, record in enumerate(records) if record["name"] == "mark"]
    failures = []
    for (name, mode), begin, end in zip(PROFILED, marks[::2], marks[1::2], strict=True):
        moved = sum(
            32 * (r["loads"]["sectors"] + r["stores"]["sectors"]) if r["kind"] == "kernel" else r["bytes"]
            for r in records[begin + 1 : end]
        )
        try:
            compare(name, "cuda", mode, {"bytes": moved})
        except AssertionError as error:
            failures.append(str(error).splitlines()[0])
    assert not failures, "\n".join(failures)


# --- The formulas ---------------------------------------------------------------------------------------------------


def test_the_budgets_are_those_of_the_design():
    """5 L - 1 nodes in one launch, of which 3 L - 1 are products; where the library offers epilogues for an activation, 3 L + 1."""
    layers = 3
    budgets = json.loads(BUDGETS.read_text())
    silu = budgets["silu, Adam"]["cuda"]
    assert silu["captured"]["nodes"] == 5 * layers - 1
    assert silu["captured"]["products"] == silu["eager"]["products"] == 3 * layers - 1
    assert budgets["relu, Adam"]["cuda"]["captured"]["nodes"] in (5 * layers - 1, 3 * layers + 1)
    for name, of_devices in budgets.items():
        eager, captured = of_devices["cuda"]["eager"], of_devices["cuda"]["captured"]
        assert captured["graph launches"] == 1 and captured["allocations of arrays"] == 0, name
        for what in ("copies from the host", "copies to the host", "synchronizations", "allocations of the device's"):
            assert eager[what] == captured[what] == 0, (name, what)
