"""What a run has measured: the figures of each provider at each problem, and the file that holds them."""

from __future__ import annotations

import json
import os
import platform
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .harness import spread
from .problem import Problem

FORMAT = 1  # of results.json


@dataclass
class Result:
    """One provider at one problem. seconds, host_seconds: per step, one entry a round."""

    problem: Problem
    provider: str
    role: str
    first_step_seconds: float
    peak_bytes: int
    version: str
    thread_pools: list[dict[str, Any]]
    losses: list[float]
    series: str = ""  # the picture's second panel, or a series of `gpuprop bench scaling`, that it belongs to
    seconds: list[float] = field(default_factory=list)
    host_seconds: list[float] = field(default_factory=list)
    flops: int = 0
    nbytes: int = 0
    limit_seconds: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        return spread(self.seconds)

    def to_json(self) -> dict[str, Any]:
        low, high = self.spread
        figures = {
            "median_seconds": self.median,
            "p10_seconds": low,
            "p90_seconds": high,
            "median_host_seconds": statistics.median(self.host_seconds),
            "steps_per_second": 1 / self.median,
            "samples_per_second": self.problem.batch / self.median,
            "share_of_limit": self.limit_seconds / self.median,
        }
        losses = [loss if loss == loss else None for loss in self.losses]  # JSON has no NaN
        return {**asdict(self), "parameters": self.problem.parameters, **figures, "losses": losses}


@dataclass
class Product:
    """What a library's matrix products reach: seconds of one of n x n float32 matrices, an entry a round."""

    device: str
    provider: str
    n: int
    seconds: list[float] = field(default_factory=list)

    @property
    def flops_per_second(self) -> float:
        return 2 * self.n**3 / statistics.median(self.seconds)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "flops_per_second": self.flops_per_second}


@dataclass
class Run:
    """All that one call of the command has found out."""

    settings: dict[str, Any]
    machine: dict[str, Any] = field(default_factory=lambda: machine())
    limits: dict[str, dict[str, float]] = field(default_factory=dict)  # by device
    products: list[Product] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def problems(self) -> list[Problem]:
        """Those of the table, in order."""
        return list(dict.fromkeys(result.problem for result in self.results if not result.series))

    def of(self, problem: Problem, series: str = "") -> list[Result]:
        return [result for result in self.results if result.problem == problem and result.series == series]

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "machine": self.machine,
            "settings": self.settings,
            "limits": self.limits,
            "products": [product.to_json() for product in self.products],
            "results": [result.to_json() for result in self.results],
            "left_out": self.left_out,
        }

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def fastest_peer(results: list[Result]) -> Result | None:
    """Of those that are not gpuprop's."""
    return min((r for r in results if r.role == "peer"), key=lambda r: r.median, default=None)


def machine() -> dict[str, Any]:
    """What was measured on."""
    import gpuprop as gp
    from gpuprop.device import device_report

    found = device_report()
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "gpuprop": gp.__version__,
        "gpus": [
            {"name": row["name"], "capability": ".".join(map(str, row["capability"])), "memory": row["memory"]}
            for row in found["cuda"]
        ],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
