"""The picture of a training: loss, and accuracy or R2, in training and in validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .trainer import Row

TRAINING, VALIDATION, TEST = "#8a94a6", "#1769aa", "#c2410c"  # told apart by lightness too
LABELS = {"loss": "Loss", "accuracy": "Accuracy", "r2": "R²"}


def draw_curves(path: Path, rows: list[Row], *, title: str, test: dict[str, float]) -> None:
    """Draws one panel for the loss and one for the metric, over the epochs, with the test's result beside each.

    rows: figures by epoch, as the trainer gives them. test: figures of the test rows: "loss", "accuracy" or "r2".
    """
    # Slow to import; and the object-oriented interface leaves a caller's pyplot figures and backend alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

    metric = "accuracy" if "accuracy" in test else "r2"
    figure = Figure(figsize=(10, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12, x=0.012, ha="left", color="#1f2937")
    for axes, name in zip(figure.subplots(1, 2), ("loss", metric), strict=True):
        epochs = [row["epoch"] for row in rows]
        for kind, color in (("train", TRAINING), ("validation", VALIDATION)):
            label = "training" if kind == "train" else kind
            marker = "o" if len(rows) == 1 else None  # one epoch makes no line
            axes.plot(epochs, [row[f"{kind}_{name}"] for row in rows], color=color, lw=2, marker=marker, label=label)
        value = f"{test[name]:.2%}" if name == "accuracy" else f"{test[name]:.4g}"
        axes.axhline(test[name], color=TEST, lw=1.2, ls=(0, (4, 3)), label=f"test: {value}")
        _style(axes, LABELS[name])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if name == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        elif name == "loss" and _spans_decades(axes):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        elif name == "r2":
            axes.set_ylim(bottom=max(axes.get_ylim()[0], -0.5), top=1.02)  # a bad first epoch would flatten the rest
    figure.savefig(path, facecolor="white", metadata={"Software": "gpuprop"})


def _style(axes: Any, label: str) -> None:
    axes.set_title(label, loc="left", fontsize=11, color="#1f2937")
    axes.set_xlabel("epoch", color="#4b5563")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9ca3af")
    axes.tick_params(colors="#4b5563")
    axes.grid(axis="y", color="#e5e7eb", lw=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, labelcolor="#374151")


def _spans_decades(axes: Any) -> bool:
    values = [value for line in axes.lines for value in line.get_ydata()]
    return min(values) > 0 and max(values) > 30 * min(values)
