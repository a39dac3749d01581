"""All that a first hour on a GPU should answer, in one command: `python -m benchmarks.first_gpu`. Less than 8 minutes, no network.

Each check runs in a process of its own with a time budget, so that one that hangs, crashes or loses the GPU's context takes no other with
it; what it had found until then counts. A short table comes last, everything in detail stands in a JSON file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from .gpu_checks import CHECKS, Check, Effort, Finding, finding, in_short

SECONDS = 465.0  # for all: 8 minutes, less what it takes to start and to write
GRACE = 15.0  # seconds for a check that is in the middle of something when its time is up
SHOWN = 12  # wrong findings in the terminal; all are in the file


@dataclass
class Outcome:
    """What a check has found. error: why it did not come to its end, or ""."""

    findings: list[Finding] = field(default_factory=list)
    error: str = ""
    seconds: float = 0.0
    stopped: bool = False  # for its time was up

    @property
    def wrong(self) -> list[Finding]:
        return [f for f in self.findings if f["bad"]]

    @property
    def passed(self) -> bool:
        return not self.error and not self.wrong


# --- One check: in a process of its own -----------------------------------------------------------------------------


def look(check: Check, smoke: bool, device: str) -> Outcome:
    """Runs a check in a process, and collects what it finds."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "findings.jsonl"
        lines.touch()
        command = [sys.executable, "-m", "benchmarks.first_gpu", "--check", check.name, "--lines", str(lines)]
        command += ["--seconds", str(check.seconds), "--device", device, *(["--smoke"] if smoke else [])]
        process = subprocess.Popen(
            command,
            cwd=Path(__file__).parent.parent,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        error = ""
        try:
            said = process.communicate(timeout=check.seconds + GRACE)[1]
        except subprocess.TimeoutExpired:
            error = f"no end after {check.seconds + GRACE:.0f} s"
        except BaseException:  # Ctrl-C above all
            _end(process)
            raise
        if error:
            _end(process)
        elif process.returncode:
            last = [line for line in said.splitlines() if line.strip()][-1:] or ["it said nothing"]
            error = f"exit code {process.returncode}: {last[0].strip()}"
        return gathered(lines.read_text(), error, time.monotonic() - begin)


def gathered(lines: str, error: str, seconds: float) -> Outcome:
    """The outcome from what a check wrote; its last line may have been cut off."""
    found = [json.loads(line) for line in lines.splitlines(keepends=True) if line.endswith("\n")]
    special = {f["what"]: f["said"] for f in found if f["what"] in ("stopped", "error")}
    found = [f for f in found if f["what"] not in special]
    return Outcome(found, special.get("error", error), seconds, "stopped" in special)


def _end(process: subprocess.Popen) -> None:
    """Ends the process and all that it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def check_here(name: str, lines: Path, seconds: float, smoke: bool, device: str) -> None:
    """The check itself: writes a line for each finding as soon as there is one, and stops when its time is up."""
    import gpuprop as gp

    gp.set_default_device(device)
    effort = Effort(smoke, time.monotonic() + seconds, device)
    with lines.open("a") as file:

        def write(found: Finding) -> None:
            file.write(json.dumps(found, default=str) + "\n")
            file.flush()

        try:
            findings = CHECKS[name].run(effort)
            for found in findings:
                write(found)
                if effort.left < 0 and name != "tests":
                    write(finding("stopped", "its time was up"))
                    findings.close()  # type: ignore[attr-defined]
                    break
        except Exception as error:  # whatever it is, the other checks go on
            write(finding("error", in_short(error)))
            raise


# --- What is said of them -------------------------------------------------------------------------------------------


def _of_device(findings: Sequence[Finding]) -> str:
    said = {f["what"]: f["said"] for f in findings}
    names = ("GPU", "a large copy", "products in float32", "products in TF32")
    return "; ".join(f"{name.removeprefix('a large ')} {said[name]}" for name in names if name in said)


def _of_precision(findings: Sequence[Finding]) -> str:
    errors = [f for f in findings if "ulp" in f]
    worst = []
    for dtype in dict.fromkeys(f["dtype"] for f in errors):
        most = max((f for f in errors if f["dtype"] == dtype), key=lambda f: f["of_largest"])
        worst.append(f"{dtype} {most['of_largest']:.3g} ({most['op']})")
    ops = len({f["op"] for f in errors})
    return f"{ops} ops; most ulp of the largest value: {', '.join(worst)}" if worst else "nothing compared"


def _of_replay(findings: Sequence[Finding]) -> str:
    return f"{sum(not f['bad'] for f in findings)} of {len(findings)} trainings have equal bits"


def _of_nodes(findings: Sequence[Finding]) -> str:
    counts = [
        f"{f['nodes']} ({f['library']} of the library for {f['products']} products)" for f in findings if "nodes" in f
    ]
    return f"nodes per step: {', '.join(counts)}" if counts else "no graph"


def _of_shares(findings: Sequence[Finding], of: str) -> str:
    shares = sorted((f["share"], f["what"]) for f in findings if "share" in f)
    if not shares:
        return "nothing measured"
    middle = shares[len(shares) // 2][0]
    return f"{len(shares)}: {shares[0][0]:.0%} ({shares[0][1]}) to {shares[-1][0]:.0%} of {of}, median {middle:.0%}"


def _of_steps(findings: Sequence[Finding]) -> str:
    problems = list(dict.fromkeys(f["problem"] for f in findings if "seconds" in f))
    return f"{len(problems)} networks, see below"


def _of_tests(findings: Sequence[Finding]) -> str:
    return findings[-1]["said"] if findings else "nothing"


SUMMARIES: dict[str, Callable[[Sequence[Finding]], str]] = {
    "device": _of_device,
    "precision": _of_precision,
    "replay": _of_replay,
    "nodes": _of_nodes,
    "products": lambda findings: _of_shares(findings, "the peak"),
    "kernels": lambda findings: _of_shares(findings, "a copy"),
    "steps": _of_steps,
    "tests": _of_tests,
}


def in_one_line(name: str, outcome: Outcome) -> str:
    """The result of a check for the table and the progress line."""
    said = SUMMARIES[name](outcome.findings)
    if outcome.wrong:
        said += f"; {len(outcome.wrong)} wrong"
    if outcome.stopped:
        said += "; stopped when its time was up"
    return f"{said}; failed: {outcome.error}" if outcome.error else said


def _print(outcomes: dict[str, Outcome]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 140, highlight=False)
    steps = [f for f in outcomes["steps"].findings if "seconds" in f] if "steps" in outcomes else []
    if steps:
        providers = list(dict.fromkeys(f["provider"] for f in steps))
        table = Table("time per step", *providers)
        for problem in dict.fromkeys(f["problem"] for f in steps):
            taken = {f["provider"]: f["said"] for f in steps if f["problem"] == problem}
            table.add_row(problem, *(taken.get(name, "") for name in providers))
        console.print(table)
    for name, outcome in outcomes.items():
        for found in outcome.wrong[:SHOWN]:
            console.print(f"{name}: {escape(found['what'])}: {escape(found['said'])}")
        if len(outcome.wrong) > SHOWN:
            console.print(f"{name}: {len(outcome.wrong) - SHOWN} more")
    table = Table("check", "", "seconds", "result")
    for name, outcome in outcomes.items():
        verdict = "ok" if outcome.passed else "failed" if outcome.error else "wrong"
        table.add_row(name, verdict, f"{outcome.seconds:.0f}", escape(in_one_line(name, outcome)))
    console.print(table)


# --- The command ----------------------------------------------------------------------------------------------------


def _chosen(only: str, skip: str) -> list[str]:
    """The names of the checks to run, in their order. Raises: OptionError."""
    from gpuprop.errors import OptionError, did_you_mean

    asked = {
        option: [n.strip() for n in names.split(",") if n.strip()] for option, names in (("only", only), ("skip", skip))
    }
    for option, names in asked.items():
        for name in names:
            if name not in CHECKS:
                raise OptionError(f"--{option}: there is no check {name!r}; {did_you_mean(name, CHECKS)}")
    chosen = [name for name in CHECKS if name in (asked["only"] or CHECKS) and name not in asked["skip"]]
    if not chosen:
        raise OptionError("--skip: expected a check that is left, got none")
    return chosen


LISTED = ", ".join(CHECKS)


def main(
    out: Annotated[Path, typer.Option(help="The JSON file for everything that is found.")] = Path(
        "runs/first_gpu.json"
    ),
    only: Annotated[str, typer.Option(help=f"Checks by name, with commas between them: {LISTED}.")] = "",
    skip: Annotated[str, typer.Option(help="Checks to leave out, likewise.")] = "",
    device: Annotated[str, typer.Option(help="The GPU: cuda, or cuda:1.")] = "cuda",
    smoke: Annotated[
        bool, typer.Option(help="Small sizes, to see that everything runs; the figures mean nothing.")
    ] = False,
    check: Annotated[str, typer.Option(hidden=True)] = "",
    lines: Annotated[Path, typer.Option(hidden=True)] = Path(),
    seconds: Annotated[float, typer.Option(hidden=True)] = SECONDS,
) -> None:
    """Find out what a GPU makes of gpuprop: whether it computes right, and how fast, in less than 8 minutes and without network.

    Checks: the device and its limits; each kernel against its rule in float64; replays against eager steps; what the graph of a step
    consists of; products against the peak; streaming kernels against a copy; steps beside PyTorch and JAX where these are installed;
    the tests marked cuda. Exit code 1 where something is wrong, 2 where there is no GPU.
    """
    from gpuprop.device import require
    from gpuprop.errors import OptionError

    place = require(device)
    if place.type != "cuda":
        raise OptionError(f"--device: expected a GPU, such as cuda or cuda:1, got {device!r}")
    if check:
        check_here(check, lines, seconds, smoke, str(place))
        return
    if out.is_dir():
        raise OptionError(f"--out: expected a file, got the folder {out}")
    out.parent.mkdir(parents=True, exist_ok=True)
    names, begin, outcomes = _chosen(only, skip), time.monotonic(), dict[str, Outcome]()
    for place_of, name in enumerate(names, 1):
        left = begin + SECONDS - time.monotonic() - GRACE
        typer.echo(f"[{place_of}/{len(names)}] {name}: {CHECKS[name].says}")
        try:
            outcomes[name] = outcome = look(CHECKS[name].within(max(left, 5)), smoke, str(place))
        except KeyboardInterrupt:
            typer.echo("stopped; what was found until now:", err=True)
            break
        typer.echo(f"      {outcome.seconds:.0f} s: {in_one_line(name, outcome)}")
        out.write_text(json.dumps(_as_json(outcomes, smoke, time.monotonic() - begin), indent=1) + "\n")
    _print(outcomes)
    typer.echo(f"{time.monotonic() - begin:.0f} s; written to {out}")
    if not all(outcome.passed for outcome in outcomes.values()):
        raise typer.Exit(1)


def _as_json(outcomes: dict[str, Outcome], smoke: bool, seconds: float) -> dict[str, Any]:
    import gpuprop as gp

    checks = {
        name: {
            "passed": outcome.passed,
            "summary": in_one_line(name, outcome),
            "error": outcome.error,
            "stopped": outcome.stopped,
            "seconds": round(outcome.seconds, 1),
            "findings": outcome.findings,
        }
        for name, outcome in outcomes.items()
    }
    return {"gpuprop": gp.__version__, "smoke": smoke, "seconds": round(seconds, 1), "checks": checks}


if __name__ == "__main__":
    from .command import run

    run(main, "benchmarks.first_gpu")
