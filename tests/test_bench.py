"""`gpuprop bench`: what it measures, what it writes, what it refuses, and that a provider which computes something else is left out."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import gpuprop as gp
from benchmarks import compare, memory, report, results, scaling, stage, throughput, work
from benchmarks.problem import NETWORKS, RATES, Problem
from benchmarks.providers import PROVIDERS, Provider, in_turns
from benchmarks.providers.by_hand import ACTIVATIONS, training_step
from benchmarks.workers import Failed, Worker
from gpuprop.cli import app

ROOT = Path(__file__).parent.parent
TINY = Problem((6, 8, 4), 5)
QUICK = ["--sizes", "6,8,4", "--batch", "5", "--threads", "1", "--rounds", "3", "--seconds", "0.002", "--smoke"]
OURS_AND_NUMPY = ["--providers", "gpuprop-captured,gpuprop-eager,numpy"]


def bench(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)], prog_name="gpuprop")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- A run ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One run, in which much goes wrong; its output and its folder."""
    folder = tmp_path_factory.mktemp("bench") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROVIDERS, "wrong", Provider("wrong", "wrong_provider", "numpy"))
        patch.setitem(PROVIDERS, "absent", Provider("absent", ".absent", "a_package_that_is_not_there"))
        providers = "gpuprop-captured,numpy,wrong,absent,pytorch"
        result = bench(
            *QUICK,
            "--networks",
            "enormous",
            "--device",
            "cpu,cuda:99",
            "--providers",
            providers,
            "--batches",
            "2",
            "--out",
            folder,
        )
    assert result.exit_code == 0, result.output + str(result.exception)
    return result, folder


def test_a_run_says_what_it_left_out_and_goes_on(run):
    result, folder = run
    lines = [line.removeprefix("left out: ") for line in result.stderr.splitlines() if line.startswith("left out: ")]
    content = json.loads((folder / "results.json").read_text())
    assert sorted(set(lines)) == sorted(set(content["left_out"]))
    (wrong,) = {line for line in lines if line.startswith("wrong at 6-8-4, batch 5")}
    loss, right = (
        float(part.split()[-1].rstrip(","))
        for part in wrong.split("loss at step ")[1].split(" is ")[1].split(", where float64 gives")
    )
    assert abs(loss - right) > 1e-4
    assert any(line.startswith("pytorch: there is no such provider; did you mean 'torch") for line in lines)
    assert "absent: a_package_that_is_not_there is not installed" in lines
    assert any(line.startswith("enormous: there is no such network") for line in lines)
    assert any("'cuda:99' was asked for" in line for line in lines)


def test_a_run_prints_a_table_with_ratios_to_the_fastest_peer(run):
    output = run[0].stdout
    rows = {line.split("│")[1].strip(): line.split("│") for line in output.splitlines() if line.startswith("│")}
    assert rows.keys() == {"gpuprop-captured", "numpy"}
    assert rows["numpy"][9].strip() == "1.00"  # the only peer
    assert "limits of cpu:" in output and "products of 64 x 64" in output


def test_results_hold_all_that_was_measured(run):
    _, folder = run
    content = json.loads((folder / "results.json").read_text())
    assert content.keys() == {"format", "machine", "settings", "limits", "products", "results", "left_out"}
    assert {"processor", "cores", "system", "python", "gpuprop", "gpus"} == content["machine"].keys()
    assert content["settings"]["threads"] == 1 and content["settings"]["rounds"] == 3
    assert content["limits"]["cpu"]["copy_bytes_per_second"] > 0 and content["limits"]["cpu"]["flops_per_second"] > 0
    found = [(r["provider"], r["problem"]["batch"], r["series"]) for r in content["results"]]
    assert sorted(found) == [
        (name, n, series) for name in ("gpuprop-captured", "numpy") for n, series in ((2, "batch"), (5, ""))
    ]
    for result in content["results"]:
        seconds = result["seconds"]
        assert len(seconds) == len(result["host_seconds"]) == 3 and min(seconds) > 0
        assert result["p10_seconds"] <= result["median_seconds"] <= result["p90_seconds"]
        assert result["median_seconds"] == np.median(seconds)
        assert result["steps_per_second"] == pytest.approx(1 / np.median(seconds))
        assert result["samples_per_second"] == pytest.approx(result["problem"]["batch"] / np.median(seconds))
        assert result["share_of_limit"] == pytest.approx(result["limit_seconds"] / np.median(seconds))
        assert result["first_step_seconds"] > 0 and result["peak_bytes"] >= 0
        assert len(result["losses"]) == stage.STEPS and result["version"]
        assert all(pool["num_threads"] == 1 for pool in result["thread_pools"])


@pytest.mark.parametrize(("busy_for", "ends_at"), [(0.115, 0.13), (0.0, 0.01), (math.inf, 1.0)])
def test_a_turn_ends_when_all_threads_are_at_rest(monkeypatch, busy_for, ends_at):
    """Threads of a library that wait busily take a processor from whoever comes next."""
    now = 0.0

    def sleep(seconds):
        nonlocal now
        now += seconds

    monkeypatch.setattr(stage.time, "sleep", sleep)
    monkeypatch.setattr(stage.time, "perf_counter", lambda: now)
    monkeypatch.setattr(stage.time, "process_time", lambda: min(now, busy_for))
    stage.come_to_rest()
    assert now == pytest.approx(ends_at)


def test_the_picture_is_one(run):
    assert (run[1] / "throughput.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_is_never_written_over(run):
    refused = bench(*QUICK, "--out", run[1])
    assert refused.exit_code == 2 and "exists already" in refused.stderr


def test_slower_than_an_earlier_run_is_exit_code_1(run, here):
    earlier = json.loads((run[1] / "results.json").read_text())
    for result in earlier["results"]:
        factor = 1e-3 if result["provider"] == "numpy" else 1e3
        for name in ("seconds", "host_seconds"):
            result[name] = [s * factor for s in result[name]]
        for name in ("median_seconds", "p10_seconds", "p90_seconds"):
            result[name] *= factor
    Path("earlier.json").write_text(json.dumps(earlier))
    providers = ["--providers", "gpuprop-captured,numpy"]
    result = bench(*QUICK, *providers, "--device", "cpu", "--batches", "", "--markdown", "--compare", "earlier.json")
    assert result.exit_code == 1, result.output
    assert "slower: numpy at 6-8-4, batch 5" in result.stdout and "faster: gpuprop-captured at 6-8-4" in result.stdout
    assert (
        "not compared: numpy at 6-8-4, batch 2, relu, adam, highest, cpu (series batch): not in this run"
        in result.stdout
    )
    assert "\n1 slower, 1 faster, 0 the same" in result.stdout
    assert "| 6-8-4, batch 5 | " in result.stdout
    assert Path("runs/bench-1/results.json").is_file()


# --- What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--sizes", "abc"], "--sizes: expected 2 or more whole numbers"),
        (["--sizes", "784"], "--sizes: expected 2 or more whole numbers"),
        (["--sizes", "8,0,4"], "--sizes: expected 2 or more whole numbers"),
        (["--batches", "8,many"], "--batches: expected 1 or more whole numbers"),
        (["--batch", "0"], "--batch: expected"),
        (["--optimizer", "lion"], "--optimizer: there is no 'lion'"),
        (["--activation", "geluu"], "did you mean 'gelu'?"),
        (["--precision", "low"], "--precision: there is no 'low'"),
        (["--rounds", "0"], "above 0"),
        (["--threads", "-1"], "above 0"),
        (["--seconds", "nan"], "above 0"),
        (["--device", "tpu"], "expected 'cpu', 'cuda' or 'cuda:<index>', got 'tpu'"),
        (["--device", "cuda:99"], "'cuda:99' was asked for"),
        (["--providers", "none"], "nothing is left to measure"),
        (["--networks", "none"], "nothing is left to measure"),
        (["--compare", "absent.json"], "--compare: absent.json cannot be read"),
        (["--compare", "no.json"], "--compare: no.json cannot be read"),
        (["--compare", "other.json"], "expected the results.json of a run"),
        (["--compare", "half.json"], "half.json lacks 'machine'"),
        (["--compare", "foreign.json"], "foreign.json is not as gpuprop bench wrote it"),
        (["--smoke", "scaling"], "put it after 'scaling'"),
        (["scaling", "--providers", "none"], "nothing is left to measure"),
        (["scaling", "--device", "cpu,cpu"], "--device: expected one device, got 'cpu,cpu'"),
    ],
)
def test_wrong_inputs_are_said_in_a_sentence(here, arguments, said):
    Path("no.json").write_text("{")
    Path("other.json").write_text("[1]")
    Path("foreign.json").write_text(
        json.dumps({"format": results.FORMAT, "results": [], "settings": [], "machine": {}})
    )
    Path("half.json").write_text(json.dumps({"format": results.FORMAT, "results": [{"provider": "numpy"}]}))
    result = bench(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("gpuprop: ") and said in last
    assert not Path("runs").exists()


def test_help_helps():
    text = bench("--help").stdout
    for word in ("Examples", "--compare", "scaling", "ops", "gpuprop[bench]"):
        assert word in text


def test_a_problem_without_room_is_left_out():
    run = results.Run({}, {}, {"cpu": {"copy_bytes_per_second": 1e9, "flops_per_second": 1e9}})
    large = Problem((10, 2_000_000, 2_000_000, 10), 1)
    assert throughput.least_memory(large) > memory.available()
    throughput.compare_steps(run, large, [PROVIDERS["numpy"]], throughput.Effort(1), throughput.Watcher())
    (line,) = run.left_out
    assert line.startswith("10-2000000-2000000-10, batch 1: out of memory: it needs ")
    assert not run.results


# --- Losses ---------------------------------------------------------------------------------------------------------


def losses(problem, dtype=np.float32):
    batches = [(x.astype(dtype), labels) for x, labels in problem.batches()]
    step = in_turns(batches, training_step(np, problem, dtype))
    return [float(step()) for _ in range(stage.STEPS)]


@pytest.mark.parametrize("optimizer", RATES)
def test_losses_tell_right_from_wrong(optimizer):
    problem = replace(NETWORKS["small"], optimizer=optimizer).rehearsal()
    expected = stage.reference(problem)
    throughput.check_losses(losses(problem), expected, "highest")
    others = {name for name in RATES if name != optimizer}
    wrong = [replace(problem, optimizer=name) for name in sorted(others)]
    wrong += [replace(problem, rate=1.1 * problem.rate), replace(problem, activation="tanh"), replace(problem, seed=3)]
    for other in wrong:
        with pytest.raises(Failed, match="computes something else: its loss at step"):
            throughput.check_losses(losses(other), expected, "highest")
    with pytest.raises(Failed, match="is nan"):
        throughput.check_losses([*expected[:-1], float("nan")], expected, "high")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_by_hand_agrees_with_the_engine(activation):
    from benchmarks.providers import gpuprop

    problem = replace(TINY, activation=activation).rehearsal()
    ours = gpuprop.make(problem, "eager")
    found = [ours.value(ours.step()) for _ in range(stage.STEPS)]
    np.testing.assert_allclose(found, losses(problem, np.float64), rtol=1e-5)


def test_work_is_that_of_the_arrays():
    """Products of all layers, forward and backward, without the first layer's input gradient, and sums over the batch by products."""
    (n, m, k), batch = TINY.sizes, TINY.batch
    products = 2 * batch * (3 * (n * m + m * k) - n * m)
    found = work.count(TINY)
    assert products <= found.flops <= products + 2 * batch * (m + k) + 4 * batch * k
    adam = 4 * (4 + 4)  # reads and writes p, g, m, v
    inputs = 4 * batch * n + 8 * batch
    assert adam * TINY.parameters + inputs <= found.nbytes <= adam * (TINY.parameters + 128) + inputs + 1024
    assert work.count(replace(TINY, optimizer="sgd")).nbytes < found.nbytes


# --- Comparisons ----------------------------------------------------------------------------------------------------


def made_up(**seconds):
    """A run with these providers' seconds."""
    run = results.Run({"threads": 1, "smoke": False}, {"processor": "p", "cores": 1})
    for provider, values in seconds.items():
        values = list(values)
        run.results.append(
            results.Result(TINY, provider, "peer", 0.1, 1, "1", [], [1.0], seconds=values, host_seconds=values)
        )
    return run


def test_only_what_is_beyond_the_noise_of_both_is_slower():
    steady, wide = np.linspace(1.0, 1.02, 11), np.linspace(0.8, 1.3, 11)
    old = made_up(same=steady, slower=steady, faster=steady, noisy_then=wide, noisy_now=steady, gone=steady, few=[1.0])
    new = made_up(
        same=steady * 1.01,
        slower=steady * 1.1,
        faster=steady / 1.1,
        noisy_then=steady * 1.1,
        noisy_now=wide * 1.1,
        fresh=steady,
        few=[9.0],
    )
    found = compare.compare(json.loads(json.dumps(old.to_json())), new)
    assert [line.split()[0] for line in found.slower] == ["slower"] and "1.10 x the time" in found.slower[0]
    assert [line.split()[0] for line in found.faster] == ["faster"]
    assert found.same == 3
    assert [line.split()[0] for line in found.notes] == ["gone", "few", "fresh"]


def test_another_machine_is_said():
    old, new = made_up(a=[1.0, 1.1, 1.2]), made_up(a=[1.0, 1.1, 1.2])
    old.machine["processor"] = "q"
    found = compare.compare(json.loads(json.dumps(old.to_json())), new)
    assert found.notes == ["processor was q and is p: times differ for that reason, too"]


@pytest.mark.parametrize(
    "low, high, ticks",
    [(2.0, 2.1, "1 2 5"), (0.03, 0.7, "0.05 0.1 0.2 0.5"), (0.5, 3e6, "1 10 100 1,000 10,000 100,000 1,000,000")],
)
def test_a_logarithmic_axis_has_figures_at_any_length(low, high, ticks):
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots()
    axes.loglog([1, 2], [low, high])
    report._log(axes.yaxis)
    figure.canvas.draw()
    (bottom, top), shown = axes.get_ylim(), axes.get_yticklabels()
    assert " ".join(t.get_text() for t in shown if bottom <= t.get_position()[1] <= top) == ticks
    assert top >= 9.99 * bottom


def test_a_picture_says_what_computed():
    from matplotlib.figure import Figure

    run, figure = made_up(a=[1.0]), Figure()
    run.machine["gpus"] = [{"name": "GPU X"}] * 2
    report._title(figure, "A step", run)
    assert figure.get_suptitle() == "A step: p, 1 threads"
    run.results[0].problem = replace(TINY, device="cuda:0")
    report._title(figure, "A step", run)
    assert figure.get_suptitle() == "A step: GPU X"


def test_fits_find_exponents():
    x = np.array([1, 2, 4, 8])
    fitted = scaling.fit(x, 3.0 * x**1.5)
    assert (fitted.exponent, fitted.factor, fitted.tail) == pytest.approx((1.5, 3.0, 1.5))
    bent = scaling.fit(x, np.array([1, 1, 1, 2]))
    assert 0 < bent.exponent < bent.tail == pytest.approx(1)


@pytest.mark.parametrize("series", scaling.SERIES, ids=lambda series: series.name)
def test_series_change_one_thing(series):
    grown = [series.make(scaling.BASE, value) for value in series.values]
    sizes = [series.of(problem) for problem in grown]
    assert sizes == sorted(set(sizes))
    if series.name != "parameters":
        assert sizes == list(series.values)


# --- Processes ------------------------------------------------------------------------------------------------------


def test_a_worker_answers_fails_and_dies_in_one_line():
    with Worker(1) as worker:
        assert worker.call(os.getenv, "OPENBLAS_NUM_THREADS") == "1"
        with pytest.raises(Failed, match="^ValueError: math domain error|^ValueError: expected a nonnegative input"):
            worker.call(__import__("math").sqrt, -1)
        with pytest.raises(Failed, match="^out of memory"):
            worker.call(np.empty, 1 << 62, np.uint8)
        with pytest.raises(Failed, match=r"its process was ended by SIGKILL \(out of memory\?\)"):
            worker.call(os.abort if sys.platform == "win32" else signal.raise_signal, signal.SIGKILL)
    with Worker(1) as worker, pytest.raises(Failed, match="no answer within 0.05 s"):
        worker.call(time.sleep, 30, patience=0.05)
    assert not worker._process.is_alive()


@pytest.mark.skipif(sys.platform == "win32", reason="interrupts a process group")
def test_ctrl_c_ends_all_processes(here):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "benchmarks", *QUICK, *OURS_AND_NUMPY, "--device", "cpu", "--rounds", "1000000"]
    process = subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    for line in process.stderr:
        if line.startswith("products"):
            break
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert said == "stopped; what was not finished is left out\n"
    with pytest.raises(ProcessLookupError):  # nobody is left of its group
        for _ in range(50):
            os.killpg(process.pid, 0)
            time.sleep(0.1)
    assert not Path("runs").exists()


def test_where_nothing_could_be_measured_nothing_stays(here, monkeypatch):
    monkeypatch.setattr(throughput, "measure_limits", fails)
    result = bench(*QUICK, *OURS_AND_NUMPY, "--device", "cpu", "--out", "a/b")
    assert result.exit_code == 1 and result.stderr == "left out: cpu: it broke\nnothing was measured\n"
    Path("mine").mkdir()
    result = bench("scaling", "--device", "cpu", "--out", "mine")
    assert result.exit_code == 2
    assert result.stderr == "gpuprop: bench: the limits of cpu cannot be measured: it broke\n"
    assert [path.name for path in here.iterdir()] == ["mine"]


def fails(*_):
    raise Failed("it broke")


# --- On a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.cuda
def test_a_run_on_a_gpu(here):
    if not gp.is_available():
        pytest.skip(gp.device_report()["cuda_reason"])
    result = bench(
        *QUICK,
        "--providers",
        "gpuprop-captured,gpuprop-eager,cupy",
        "--device",
        "cuda",
        "--batches",
        "",
        "--out",
        "out",
    )
    assert result.exit_code == 0, result.output + str(result.exception)
    content = json.loads(Path("out/results.json").read_text())
    assert content["left_out"] == []
    assert [r["provider"] for r in content["results"]] == ["gpuprop-captured", "gpuprop-eager", "cupy"]
    assert all(r["peak_bytes"] > 0 and min(r["seconds"]) > 0 for r in content["results"])
    assert content["machine"]["gpus"]


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_floor_stands_beside_every_network_on_a_cpu(activation):
    suited = throughput.suited(Problem((6, 5, 3), 4, activation), PROVIDERS.values())
    assert [p.name for p in suited if p.role == "floor"] == ["floor"]
