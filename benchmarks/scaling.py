"""How time and memory of a training step grow with width, depth, batch size, and number of parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .problem import Problem
from .results import Result, Run

BASE = Problem((128, 256, 256, 10), 128)
SMOKE = Problem((8, 16, 16, 4), 16)


@dataclass(frozen=True)
class Series:
    """Problems that differ in one thing. `of`: how large that is in a problem."""

    name: str
    make: Callable[[Problem, int], Problem]
    of: Callable[[Problem], int]
    values: tuple[int, ...]
    smoke: tuple[int, ...]


def _deeper(base: Problem, depth: int) -> Problem:
    return replace(base, sizes=(base.sizes[0], *[base.sizes[1]] * depth, base.sizes[-1]))


def _wider(base: Problem, width: int) -> Problem:
    return replace(base, sizes=(base.sizes[0], *[width] * (len(base.sizes) - 2), base.sizes[-1]))


def _as_many(base: Problem, width: int) -> Problem:
    """A network whose parameters all grow with the square of a width."""
    return replace(base, sizes=(width, width, width, width))


SERIES = (
    Series("width", _wider, lambda p: p.sizes[1], (64, 128, 256, 512, 1024, 2048), (8, 32)),
    Series("depth", _deeper, lambda p: len(p.sizes) - 2, (1, 2, 4, 8, 16, 32), (1, 4)),
    Series("batch", lambda base, n: replace(base, batch=n), lambda p: p.batch, (8, 32, 128, 512, 2048), (4, 16)),
    Series("parameters", _as_many, lambda p: p.parameters, (32, 64, 128, 256, 512, 1024), (8, 32)),
)


@dataclass(frozen=True)
class Fit:
    """y = factor * x ** exponent, by least squares of the logarithms; `tail` is the exponent of the upper half of the points."""

    exponent: float
    factor: float
    tail: float


def fit(x: Sequence[float], y: Sequence[float]) -> Fit:
    logs = np.log(np.asarray(x, float)), np.log(np.maximum(np.asarray(y, float), 1e-12))
    exponent, constant = np.polyfit(*logs, 1)
    half = len(x) // 2
    tail = np.polyfit(logs[0][half:], logs[1][half:], 1)[0] if len(x) - half > 1 else exponent
    return Fit(float(exponent), float(np.exp(constant)), float(tail))


def fits(run: Run) -> list[dict[str, Any]]:
    """Of each series and provider, of time and of memory."""
    found = []
    for series in SERIES:
        for provider in dict.fromkeys(r.provider for r in run.results):
            own = points(run, series, provider)
            if len(own) < 2:
                continue
            x = [series.of(r.problem) for r in own]
            for what, y in (("time", [r.median for r in own]), ("memory", [r.peak_bytes for r in own])):
                fitted = fit(x, y)
                row = {"series": series.name, "provider": provider, "what": what, "x": x, "y": y}
                found.append({**row, "exponent": fitted.exponent, "factor": fitted.factor, "tail": fitted.tail})
    return found


def points(run: Run, series: Series, provider: str) -> list[Result]:
    own = [r for r in run.results if r.series == series.name and r.provider == provider]
    return sorted(own, key=lambda r: series.of(r.problem))


def draw(run: Run, rows: list[dict[str, Any]], path: Path) -> None:
    """A column for each series: time above, memory below, with the fitted lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from .report import INK, OURS, PEERS, _log, _style, _title

    names = list(dict.fromkeys(row["series"] for row in rows))
    figure = Figure(figsize=(3.2 * len(names), 5.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    _title(figure, "How a training step grows", run)
    panels = figure.subplots(2, len(names), squeeze=False, sharex="col")
    providers = list(dict.fromkeys(row["provider"] for row in rows))
    colors = {name: OURS.get(name, PEERS[i % len(PEERS)]) for i, name in enumerate(providers)}
    for row in rows:
        below = row["what"] == "memory"
        axes = panels[int(below), names.index(row["series"])]
        scale = 1e-6 if below else 1e3
        x, color = np.asarray(row["x"], float), colors[row["provider"]]
        label = f"{row['provider']}: {row['exponent']:.2f}"
        axes.loglog(x, np.asarray(row["y"]) * scale, "o", ms=4, color=color, label=label)
        axes.loglog(x, row["factor"] * x ** row["exponent"] * scale, lw=1, color=color)
        _style(axes, f"{'Memory, MB,' if below else 'Time per step, ms,'} against {row['series']}")
        axes.legend(frameon=False, fontsize=7, labelcolor=INK, title="exponent", title_fontsize=7)
    for axes in panels.flat:
        _log(axes.xaxis)
        _log(axes.yaxis)
    figure.savefig(path, facecolor="white", metadata={"Software": "gpuprop"})
