"""The command line: the main job from end to end, and one clear sentence for everything that a user can get wrong."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import gpuprop as gp
from gpuprop import device
from gpuprop.cli import app

ROOT = Path(gp.__file__).parent.parent
QUICK = ["--epochs", "2", "--hidden", "8", "--device", "cpu"]
FILES = ["checkpoint.safetensors", "config.json", "curves.png", "metrics.jsonl", "model.safetensors", "summary.json"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Every test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="gpuprop")


def succeed(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output + str(result.exception)
    return result.stdout


def refuse(*arguments):
    """Runs what is to be refused; returns what is said, and makes sure that nothing else happened."""
    before = files()
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert files() == before
    assert result.stderr.startswith("gpuprop: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def files():
    return {p.as_posix(): p.read_bytes() for p in Path().rglob("*") if p.is_file()}


def write(name, rows, header="size,color,y"):
    Path(name).write_text(header + "\n" + "\n".join(",".join(map(str, row)) for row in rows) + "\n")
    return name


def predictions(name):
    return list(csv.DictReader(Path(name).read_text().splitlines()))


@pytest.fixture
def flowers():
    """Two classes that a size and a colour tell apart."""
    rng = np.random.default_rng(0)
    rows = [
        (f"{rng.normal(3 * (i % 2)):.4f}", "red" if i % 2 else "blue", "rose" if i % 2 else "iris") for i in range(60)
    ]
    rows[3] = ("", "red", "rose")
    return write("flowers.csv", rows)


@pytest.fixture
def houses():
    """A price that follows from two numbers."""
    rng = np.random.default_rng(0)
    x = rng.uniform(50, 200, (400, 2))
    return write(
        "houses.csv", [(f"{a:.3f}", f"{b:.3f}", f"{1000 * a + 300 * b:.2f}") for a, b in x], "size,garden,price"
    )


# --- The main job ---------------------------------------------------------------------------------------------------


def test_digits_with_their_defaults():
    output = succeed("train", "digits")
    assert "test     accuracy 9" in output
    assert "device" in output
    folder = Path("runs/digits-1")
    assert sorted(p.name for p in folder.iterdir()) == FILES
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test_accuracy"] >= 0.97
    assert summary["epochs"] == len((folder / "metrics.jsonl").read_text().splitlines())
    assert {"test_loss", "seconds", "samples_per_second", "device", "seed"} <= summary.keys()
    model = gp.nn.MLP(**json.loads((folder / "config.json").read_text())["network"])
    model.load_state_dict(gp.load(folder / "model.safetensors"))


def test_classes_from_a_table_and_predictions(flowers):
    output = succeed("train", flowers, "--target", "y", "--out", "run", "--epochs", 30)
    assert "'size': 1 missing value replaced by the median" in output
    assert json.loads(Path("run/summary.json").read_text())["test_accuracy"] == 1
    write("new.csv", [("red", 3.1), ("blue", -0.2), ("green", "")], "color,size")
    succeed("predict", "run", "new.csv", "--out", "p.csv")
    rows = predictions("p.csv")
    assert [row["class"] for row in rows[:2]] == ["rose", "iris"]
    assert all(float(r["probability_rose"]) + float(r["probability_iris"]) == pytest.approx(1, abs=1e-6) for r in rows)
    assert succeed("predict", "run", "new.csv") == Path("p.csv").read_text()


def test_a_quantity_from_a_table_and_predictions(houses):
    output = succeed(
        "train", houses, "--target", "price", "--out", "run", "--epochs", 60, "--norm", "none", "--dropout", 0
    )
    assert "R² 0.9" in output
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["task"] == "regression"
    assert summary["test_r2"] > 0.97
    write("new.csv", [(100, 100), (60, 180)], "size,garden")
    succeed("predict", "run", "new.csv", "--out", "p.csv")
    values = [float(row["value"]) for row in predictions("p.csv")]
    np.testing.assert_allclose(values, [130_000, 114_000], rtol=0.1)


def test_archive_and_parquet():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 2, 2))
    y = (x.sum((1, 2)) > 0).astype(np.uint8)
    np.savez("t.npz", X=x, y=y)
    succeed("train", "t.npz", *QUICK, "--out", "a")
    succeed("predict", "a", "t.npz", "--out", "p.csv")
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {f"X_{i}": x.reshape(50, 4)[:, i] for i in range(4)}
    parquet.write_table(arrow.table({**columns, "y": y}), "t.parquet")
    succeed("train", "t.parquet", *QUICK, "--out", "b")
    assert Path("a/model.safetensors").read_bytes() == Path("b/model.safetensors").read_bytes()


def test_same_seed_same_bytes_another_seed_others(flowers):
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        succeed("train", flowers, *QUICK, "--seed", seed, "--out", out)
    a, b, c = (Path(out, "model.safetensors").read_bytes() for out in "abc")
    assert a == b != c


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "rmsprop", "adagrad"])
def test_every_optimizer(flowers, optimizer):
    succeed("train", flowers, *QUICK, "--optimizer", optimizer, "--schedule", "constant", "--out", "a")


@pytest.mark.parametrize("schedule", ["cosine", "constant", "step", "onecycle", "plateau"])
def test_every_schedule(flowers, schedule):
    succeed("train", flowers, *QUICK, "--schedule", schedule, "--optimizer", "adagrad", "--out", "a")


@pytest.mark.parametrize(
    "activation", ["relu", "gelu", "silu", "tanh", "sigmoid", "elu", "selu", "leaky_relu", "softplus", "mish"]
)
def test_every_activation(flowers, activation):
    succeed("train", flowers, *QUICK, "--activation", activation, "--norm", "layer", "--out", "a")


def test_patience(houses):
    succeed("train", houses, "--target", "price", *QUICK, "--epochs", 200, "--lr", 0.3, "--patience", 3, "--out", "a")
    assert json.loads(Path("a/summary.json").read_text())["epochs"] < 200


def test_config_file_and_command_line(flowers):
    Path("c.toml").write_text(
        f'data = "{flowers}"\nepochs = 5\nhidden = [4]\nbatch-size = 16\nout = "a"\ndevice = "cpu"\n'
    )
    succeed("train", "--config", "c.toml", "--epochs", 3)
    options = json.loads(Path("a/config.json").read_text())["options"]
    assert (options["epochs"], options["hidden"], options["batch_size"]) == (3, [4], 16)


def test_folders_are_numbered(flowers):
    for number in (1, 2):
        assert f"runs{os.sep}flowers-{number}" in succeed("train", flowers, *QUICK)


# --- Stopping and continuing ----------------------------------------------------------------------------------------


def without_timings(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "samples_per_second")} for row in rows]


def start(*arguments):
    command = [sys.executable, "-m", "gpuprop", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def epochs_in(folder):
    return (
        len(folder.joinpath("metrics.jsonl").read_text().splitlines())
        if folder.joinpath("metrics.jsonl").exists()
        else 0
    )


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for a single process")
def test_interrupted_and_resumed_it_ends_with_the_same_bytes(flowers):
    options = ["train", flowers, "--hidden", "64", "--epochs", 150, "--device", "cpu", "--patience", 140]
    with start(*options, "--out", "stopped") as process:
        while epochs_in(Path("stopped")) < 3:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "gpuprop train --resume stopped" in said
    assert "Traceback" not in said
    assert 3 <= epochs_in(Path("stopped")) < 150
    assert not Path("stopped/model.safetensors").exists()
    assert "has no trained model yet" in refuse("predict", "stopped", flowers)

    with start("train", "--resume", "stopped") as process:
        process.communicate(timeout=120)
    assert process.returncode == 0
    with start(*options, "--out", "whole") as process:
        process.communicate(timeout=120)
    for name in ("model.safetensors",):
        assert Path("stopped", name).read_bytes() == Path("whole", name).read_bytes()
    assert without_timings(Path("stopped/metrics.jsonl")) == without_timings(Path("whole/metrics.jsonl"))
    timings = ("seconds", "samples_per_second")
    summaries = [json.loads(Path(out, "summary.json").read_text()) for out in ("stopped", "whole")]
    first, second = ({k: v for k, v in summary.items() if k not in timings} for summary in summaries)
    assert first == second


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for a single process")
def test_interrupted_twice_it_stops_at_once_and_keeps_its_checkpoint():
    # An epoch of 629 steps over a wide network takes seconds: long enough to be cut, once training has begun.
    options = ["train", "digits", "--hidden", "1024,1024", "--batch-size", 2, "--device", "cpu", "--out", "run"]
    with start(*options) as process:
        while epochs_in(Path("run")) < 1:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        while "press Ctrl-C again" not in (line := process.stderr.readline()):
            assert line or process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "gpuprop train --resume run" in said
    assert "Traceback" not in said
    # An epoch's line is written before its checkpoint.
    assert epochs_in(Path("run")) - gp.load("run/checkpoint.safetensors")["epoch"] in (0, 1)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_killed_at_once_it_can_be_resumed(flowers):
    options = ["train", flowers, "--hidden", "64", "--epochs", 150, "--device", "cpu"]
    with start(*options, "--out", "killed") as process:
        while epochs_in(Path("killed")) < 2:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.kill()
    succeed("train", "--resume", "killed")
    succeed(*options, "--out", "whole")
    assert Path("killed/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()
    assert without_timings(Path("killed/metrics.jsonl")) == without_timings(Path("whole/metrics.jsonl"))


def test_complete_run_is_not_resumed(flowers):
    succeed("train", flowers, *QUICK, "--out", "a")
    before = files()
    assert "is complete" in succeed("train", "--resume", "a")
    assert files() == before


@pytest.fixture
def interrupted(flowers):
    """A run without its results, as an interruption leaves it."""
    succeed("train", flowers, *QUICK, "--out", "run")
    for name in ("summary.json", "model.safetensors", "curves.png"):
        Path("run", name).unlink()
    return "run"


def test_resume_what_lacks_only_its_results(interrupted):
    succeed("train", "--resume", interrupted)
    assert sorted(p.name for p in Path(interrupted).iterdir()) == FILES


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda: Path("run/checkpoint.safetensors").write_bytes(b"x" * 100),
            "checkpoint.safetensors: cannot be continued",
        ),
        (lambda: Path("run/checkpoint.safetensors").unlink(), "checkpoint.safetensors: cannot be continued"),
        (lambda: Path("run/metrics.jsonl").unlink(), "metrics.jsonl"),
        (lambda: Path("run/metrics.jsonl").write_text("1\n2\n"), "metrics.jsonl: expected a line for each"),
        (lambda: Path("run/config.json").write_text("{"), "config.json: cannot be read"),
        (lambda: Path("run/config.json").write_text("{}"), "config.json: is not the configuration of a run"),
        (lambda: Path("flowers.csv").write_text("size,color,y\n" + "1,red,a\n2,blue,b\n" * 20), "has changed since"),
        (lambda: Path("flowers.csv").unlink(), "no such file"),
    ],
)
def test_run_that_cannot_be_resumed(interrupted, damage, message):
    damage()
    assert message in refuse("train", "--resume", interrupted)


def test_resume_takes_no_other_option(interrupted):
    assert "leave out 'lr'" in refuse("train", "--resume", interrupted, "--lr", 0.1)


# --- What is refused ------------------------------------------------------------------------------------------------

GOOD = [(i, "red", i % 2) for i in range(10)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("size,color,y\n", "has no rows"),
        ("size,color,y\n1,red,0\n2,red\n", "line 3 has 2 values"),
        ("size,color,y\n" + "1,red,0\n" * 10, "one class only"),
        ("size,color,y\n" + "1,red,0\n2,red,1\n", "at least 5 rows"),
        (
            "size,color,y\n" + "1,red,0\n2,red,1\n" * 5 + "two,red,1\n",
            "column 'size' holds numbers, but 'two' in line 12",
        ),
        ("size,color,y\n" + "1,red,0\n2,red,1\n" * 5 + "inf,red,1\n", "column 'size' is infinite in line 12"),
        ("size,color,y\n" + "1,red,0\n2,red,1\n" * 5 + "2,red,nan\n", "missing or not finite in line 12"),
        ("size,color,y\n" + "1,red,0\n2,red,1\n" * 5 + "2,red,inf\n", "missing or not finite in line 12"),
        ("y\n" + "0\n1\n" * 5, "no column beside the target"),
        ("\x00\x01\xff", "UTF-8"),
    ],
)
def test_data_that_cannot_be_used(text, message):
    Path("t.csv").write_bytes(text.encode("latin-1"))
    assert message in refuse("train", "t.csv", "--target", "y")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.csv"], "none.csv: no such file"),
        (["digit"], "expected a file ending in"),
        (["t.csv", "--target", "colour"], "no column 'colour'; did you mean 'color'"),
        (["t.csv", "--target", "color", "--task", "regression"], "is text"),
        (["t.csv", "--lr", "-1"], "--lr: expected a number above 0"),
        (["t.csv", "--batch-size", "0"], "--batch-size: expected at least 1"),
        (["t.csv", "--batch-size", "1"], "--batch-size: expected at least 2 for batch normalisation"),
        (["t.csv", "--epochs", "0"], "--epochs"),
        (["t.csv", "--epochs", "1.5"], "--epochs: expected a whole number, got '1.5'"),
        (["t.csv", "--lr", "fast"], "--lr: expected a number, got 'fast'"),
        (["t.csv", "--hidden", "8,0"], "--hidden: expected layer sizes from 1 to 1,048,576, got 8,0"),
        (["t.csv", "--hidden", "9" * 30], "--hidden: expected layer sizes"),
        (["t.csv", "--hidden", "1000000,1000000,1000000"], "not enough memory"),
        (["t.csv", "--target", ""], "--target: expected text"),
        (["t.csv", "--out", ""], "--out: expected text"),
        (["t.csv", "--lr"], "--lr"),
        (["t.csv", "--nothing"], "--nothing (see gpuprop train --help)"),
        (["t.csv", "more"], "more"),
        ([""], "expected data to train on"),
        (["t.csv", "--hidden", "a,b"], "--hidden"),
        (["t.csv", "--dropout", "1"], "--dropout"),
        (["t.csv", "--activation", "geluu"], "did you mean 'gelu'"),
        (["t.csv", "--device", "gpu"], "'cpu', 'cuda'"),
        (["t.csv", "--device", "cuda:77"], "cuda:77"),
        (["t.csv", "--out", "full"], "full: exists already"),
        (["t.csv", "--config", "none.toml"], "none.toml: no such file"),
        (["t.csv", "--config", "t.csv"], "cannot be read as TOML"),
        (["t.csv", "--config", "full"], "full: cannot be read: Is a directory"),
        (["--config", "typo.toml"], "'lerning-rate' is no option"),
        (["--epochs", "3"], "expected data to train on"),
        (["--resume", "none"], "no such run folder"),
        (["--resume", "full"], "is not a run folder"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, message):
    write("t.csv", GOOD)
    Path("full").mkdir()
    Path("full/precious").write_text("kept")
    Path("typo.toml").write_text("lerning-rate = 1\n")
    assert message in refuse("train", *arguments)


def test_table_without_a_usual_target(houses):
    assert "--target: expected the column of houses.csv to predict; there are: size, garden, price" in refuse(
        "train", houses
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "No such command 'nothing' (see gpuprop --help)"),
        (["--nothing"], "No such option: --nothing (see gpuprop --help)"),
        (["predict", "run"], "(see gpuprop predict --help)"),
        (["doctor", "more"], "(see gpuprop doctor --help)"),
    ],
)
def test_usage_errors_of_the_command_line(arguments, message):
    assert message in refuse(*arguments)


@pytest.mark.parametrize("command", [[], ["train"], ["predict"]])
def test_command_alone_shows_its_help(command):
    assert "--help" in run(*command).output


def test_predictions_that_cannot_be_made(flowers, here, monkeypatch):
    succeed("train", flowers, *QUICK, "--target", "y", "--out", "run")
    write("short.csv", [("red",)], "color")
    write("wrong.csv", [("x", "red")], "size,color")
    assert "short.csv: has no column 'size'" in refuse("predict", "run", "short.csv")
    assert "expected numbers in column 'size', got 'x' in line 2" in refuse("predict", "run", "wrong.csv")
    assert "no such run folder" in refuse("predict", "none", flowers)
    assert "no such file" in refuse("predict", "run", "none.csv")
    assert "is the data itself" in refuse("predict", "run", flowers, "--out", flowers)
    assert "there is no folder" in refuse("predict", "run", flowers, "--out", "none/p.csv")
    assert "run is a folder" in refuse("predict", "run", flowers, "--out", "run")
    assert "belongs to a run" in refuse("predict", "run", flowers, "--out", "run/model.safetensors")
    monkeypatch.setattr(device, "_default", None)
    monkeypatch.setenv("GPUPROP_DEVICE", "gpu")
    assert refuse("predict", "run", flowers).startswith("gpuprop: device: expected 'cpu', 'cuda'")
    monkeypatch.undo()
    monkeypatch.chdir(here)
    Path("run/model.safetensors").write_bytes(b"damaged")
    assert "no model that can be read" in refuse("predict", "run", flowers)


def test_diverging_training_says_so(houses):
    result = run("train", houses, "--target", "price", *QUICK, "--optimizer", "sgd", "--norm", "none", "--lr", 1e30)
    assert result.exit_code == 1
    assert "try a learning rate below" in result.stderr


# --- The rest -------------------------------------------------------------------------------------------------------


def test_doctor():
    output = succeed("doctor")
    assert f"gpuprop      {gp.__version__}" in output
    assert "self-test    cpu: passed" in output


def test_version_and_help():
    assert succeed("--version") == f"gpuprop {gp.__version__}\n"
    for command in ([], ["train"], ["predict"], ["doctor"]):
        assert "--help" in succeed(*command, "--help")


def test_importing_the_command_line_loads_nothing_slow():
    code = "import sys, gpuprop.cli; print([m for m in ('matplotlib', 'pyarrow', 'rich.progress') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert said == "[]\n"
