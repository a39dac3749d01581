"""What a run looks like: a table in the terminal or in Markdown, and a picture."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .problem import Problem
from .providers import PROVIDERS
from .results import Result, Run, fastest_peer

COLUMNS = "steps/s", "samples/s", "time per step", "10 % to 90 %", "host", "memory", "first step", "x peer", "of limit"
UNITS = ((1e-6, "us"), (1e-3, "ms"), (1.0, "s"))
# Our own stand out; peers keep their colour from panel to panel.
OURS = {"gpuprop-captured": "#1769aa", "gpuprop-eager": "#7fb2d9"}
PEERS = (
    "#c2410c",
    "#a16207",
    "#4d7c0f",
    "#0f766e",
    "#6d28d9",
    "#be185d",
    "#78716c",
    "#f59e0b",
    "#94a3b8",
    "#22c55e",
    "#e879f9",
)
INK, PALE = "#374151", "#9ca3af"


def time_text(seconds: float, like: float | None = None) -> str:
    """With a unit that suits it, or that suits another one."""
    scale, unit = max((u for u in UNITS if u[0] <= (like or seconds)), default=UNITS[0])
    return f"{figure(seconds / scale)} {unit}"


def figure(value: float) -> str:
    """Three digits, or as many as are before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def rows(results: list[Result]) -> Iterator[tuple[str, ...]]:
    """Of the providers at one problem, the fastest first."""
    peer = fastest_peer(results)
    for result in sorted(results, key=lambda r: (r.role == "floor", r.median)):
        low, high = result.spread
        yield (
            result.provider,
            figure(1 / result.median),
            f"{result.problem.batch / result.median:,.0f}",
            time_text(result.median),
            f"{time_text(low, result.median).split()[0]} to {time_text(high, result.median)}",
            time_text(statistics.median(result.host_seconds)),
            f"{result.peak_bytes / 1e6:,.1f} MB",
            time_text(result.first_step_seconds),
            f"{result.median / peer.median:.2f}" if peer is not None else "",
            f"{figure(100 * result.limit_seconds / result.median)} %",
        )


def tables(run: Run) -> Iterator[Any]:
    """A table of `rich` for each problem."""
    from rich.table import Table

    for problem in run.problems():
        results = run.of(problem)
        table = Table(title=f"{problem} (limit: {time_text(results[0].limit_seconds)})", title_justify="left")
        table.add_column("provider", no_wrap=True)
        for name in COLUMNS:
            table.add_column(name, justify="right")
        for name, *figures in rows(results):
            style = "bold" if PROVIDERS.get(name) and PROVIDERS[name].role == "ours" else None
            table.add_row(name, *figures, style=style)
        yield table


def markdown(run: Run) -> str:
    """All tables as one, for a README, with what was measured on and with what."""
    lines = [*(f"- {line}" for line in notes(run)), ""]
    header = ("network", "provider", *COLUMNS)
    lines += [f"| {' | '.join(header)} |", "|---|---|" + "---:|" * len(COLUMNS)]
    for problem in run.problems():
        said = f"{problem}"
        for row in rows(run.of(problem)):
            lines.append(f"| {' | '.join((said, *row))} |")
            said = ""
    return "\n".join(lines)


def notes(run: Run) -> list[str]:
    """Machine, settings, limits and products, a line each."""
    machine, settings = run.machine, run.settings
    versions = {r.provider: r.version for r in run.results if PROVIDERS.get(r.provider) and r.role == "peer"}
    packages = {PROVIDERS[name].package: version for name, version in versions.items()}
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}, gpuprop {machine['gpuprop']}",
        *(f"{gpu['name']}, compute capability {gpu['capability']}" for gpu in machine["gpus"]),
        ", ".join(f"{package} {version}" for package, version in packages.items()),
        f"{settings['threads']} threads, {settings['rounds']} rounds of {settings['seconds']:g} s"
        + (", smoke size: the figures mean nothing" if settings["smoke"] else ""),
    ]
    for device, limit in run.limits.items():
        lines.append(
            f"limits of {device}: {limit['copy_bytes_per_second'] / 1e9:.1f} GB/s copied, "
            f"{limit['flops_per_second'] / 1e9:,.0f} GFLOP/s multiplied"
        )
        products = [product for product in run.products if product.device == device]
        if products:
            said = ", ".join(f"{p.provider} {p.flops_per_second / 1e9:,.0f}" for p in products)
            lines.append(f"products of {products[0].n} x {products[0].n} float32 matrices, GFLOP/s: {said}")
    return [line for line in lines if line]


# --- The picture ----------------------------------------------------------------------------------------------------


def draw(run: Run, path: Path) -> None:
    """Time per step of all providers at all networks, and of some against the batch size; with the limit in both."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    series = [result for result in run.results if result.series]
    figure = Figure(figsize=(13 if series else 9, 5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    _title(figure, "A training step", run)
    names = list(dict.fromkeys(r.provider for r in run.results if r.role != "floor"))
    names.sort(key=lambda name: list(PROVIDERS).index(name) if name in PROVIDERS else len(PROVIDERS))
    peers = [name for name in names if name not in OURS]
    colors = {**OURS, **{name: PEERS[i % len(PEERS)] for i, name in enumerate(peers)}}
    panels = figure.subplots(1, 2, width_ratios=(3, 2), squeeze=False)[0] if series else [figure.subplots()]
    _bars(panels[0], run, names, colors)
    if series:
        _lines(panels[1], series, colors)
    figure.savefig(path, facecolor="white", metadata={"Software": "gpuprop"})


def _bars(axes: Any, run: Run, names: list[str], colors: dict[str, str]) -> None:
    problems = run.problems()
    width = 0.84 / max(1, len(names))
    for k, name in enumerate(names):
        found = [(i, r) for i, p in enumerate(problems) for r in run.of(p) if r.provider == name]
        if not found:
            continue
        x = [i - 0.42 + width * (k + 0.5) for i, _ in found]
        medians = [r.median * 1e3 for _, r in found]
        below = [(r.median - r.spread[0]) * 1e3 for _, r in found]
        above = [(r.spread[1] - r.median) * 1e3 for _, r in found]
        error = {"lw": 0.8, "ecolor": INK}
        axes.bar(x, medians, width * 0.92, color=colors[name], label=name, yerr=[below, above], error_kw=error)
    for i, problem in enumerate(problems):
        limit = run.of(problem)[0].limit_seconds * 1e3
        axes.hlines(
            limit, i - 0.46, i + 0.46, color="black", lw=1.4, ls=(0, (3, 2)), label="" if i else "measured limit"
        )
    axes.set_yscale("log")
    axes.set_xticks(range(len(problems)), [label(p) for p in problems], fontsize=7)
    axes.set_ylim(top=axes.get_ylim()[1] * 12)  # room for the legend
    _log(axes.yaxis)
    _style(axes, "Time per step, ms (10th to 90th percentile)")
    axes.legend(frameon=False, fontsize=7, ncols=4, labelcolor=INK, loc="upper left")


def label(problem: Problem) -> str:
    """In two lines, equal layers counted: 784-2048x3-10, batch 1024."""
    groups = ((size, len(list(equal))) for size, equal in itertools.groupby(problem.sizes))
    sizes = "-".join(f"{size}x{count}" if count > 1 else str(size) for size, count in groups)
    return f"{sizes},\n{str(problem).partition(', ')[2]}"


def _lines(axes: Any, series: list[Result], colors: dict[str, str]) -> None:
    for name in dict.fromkeys(r.provider for r in series):
        own = sorted((r for r in series if r.provider == name), key=lambda r: r.problem.batch)
        batches = [r.problem.batch for r in own]
        low, high = zip(*(r.spread for r in own), strict=True)
        axes.plot(batches, [r.median * 1e3 for r in own], "o-", ms=3, lw=1.5, color=colors[name], label=name)
        axes.fill_between(batches, [1e3 * s for s in low], [1e3 * s for s in high], color=colors[name], alpha=0.2, lw=0)
    limits = sorted({(r.problem.batch, r.limit_seconds * 1e3) for r in series})
    axes.plot(*zip(*limits, strict=True), color="black", lw=1.4, ls=(0, (3, 2)), label="measured limit")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([batch for batch, _ in limits], [str(batch) for batch, _ in limits], fontsize=8)
    axes.minorticks_off()
    _log(axes.yaxis)
    axes.set_xlabel("batch size", color=INK, fontsize=9)
    _style(axes, f"{'-'.join(map(str, series[0].problem.sizes))}: ms against the batch size")
    axes.legend(frameon=False, fontsize=7, labelcolor=INK)


def _title(figure: Any, what: str, run: Run) -> None:
    """What the picture shows, and what it was measured on."""
    kinds = {result.problem.device.partition(":")[0] for result in run.results}
    places = [f"{run.machine['processor']}, {run.settings['threads']} threads"] if "cpu" in kinds else []
    places += dict.fromkeys(gpu["name"] for gpu in run.machine["gpus"]) if "cuda" in kinds else []
    figure.suptitle(f"{what}: {'; '.join(places)}", fontsize=11, x=0.012, ha="left", color=INK)


def _log(axis: Any) -> None:
    """Figures instead of powers of ten on a logarithmic axis, some of them also where it is short; it is made 10 long at least."""
    from matplotlib.ticker import LogLocator, NullLocator

    low, high = axis.get_view_interval()
    longer = max(1.0, (10 * low / high) ** 0.5)
    axis.set_view_interval(low / longer, high * longer, ignore=True)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,)))
    axis.set_major_formatter("{x:,.10g}")
    axis.set_minor_locator(NullLocator())


def _style(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=9, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(colors=INK, labelsize=8)
    axes.grid(axis="y", color="#e5e7eb", lw=0.7)
    axes.set_axisbelow(True)
