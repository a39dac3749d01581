"""What became slower since an earlier run.

Slower is a step whose 10th percentile now lies above its 90th percentile then: of all rounds of both runs, the middle 80 % do not
touch. What both runs have measured at the same problem with the same settings is compared.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .results import FORMAT, Run

KEY = "sizes", "batch", "activation", "optimizer", "precision", "device"
LEAST_ROUNDS = 3  # fewer have no spread


@dataclass
class Comparison:
    """Lines, each about one result. `notes` are about what could not be compared."""

    slower: list[str] = field(default_factory=list)
    faster: list[str] = field(default_factory=list)
    same: int = 0
    notes: list[str] = field(default_factory=list)


def read(path: str) -> dict[str, Any]:
    """An earlier run's file. Raises: DataError."""
    from gpuprop.errors import DataError

    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"--compare: {path} cannot be read: {why}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"--compare: expected the results.json of a run of gpuprop bench, got {path}")
    try:
        _compare(content, content)  # whatever is wrong with it shows before anything is measured
    except KeyError as error:
        raise DataError(f"--compare: {path} lacks {error}") from error
    except (AttributeError, TypeError, ValueError, ArithmeticError) as error:
        raise DataError(f"--compare: {path} is not as gpuprop bench wrote it: {error}") from error
    return content


def compare(old: dict[str, Any], run: Run) -> Comparison:
    return _compare(old, run.to_json())


def _compare(old: dict[str, Any], new: dict[str, Any]) -> Comparison:
    found = Comparison()
    for part, names in (("machine", ("processor", "cores")), ("settings", ("threads", "smoke"))):
        for name in names:
            before, now = old[part].get(name), new[part].get(name)
            if before != now:
                found.notes.append(f"{name} was {before} and is {now}: times differ for that reason, too")
    before, now = _by_key(old), _by_key(new)
    for key in [*before, *(key for key in now if key not in before)]:
        title = _title(key)
        if key not in now:
            found.notes.append(f"{title}: not in this run")
        elif key not in before:
            found.notes.append(f"{title}: not in the earlier run")
        elif min(len(before[key]["seconds"]), len(now[key]["seconds"])) < LEAST_ROUNDS:
            found.notes.append(f"{title}: fewer than {LEAST_ROUNDS} rounds say nothing")
        else:
            _judge(found, title, before[key], now[key])
    return found


def _judge(found: Comparison, title: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    ratio = now["median_seconds"] / before["median_seconds"]
    ranges = " against ".join(f"{r['p10_seconds'] * 1e3:.4g} to {r['p90_seconds'] * 1e3:.4g} ms" for r in (now, before))
    line = f"{title}: {ratio:.2f} x the time ({ranges})"
    if now["p10_seconds"] > before["p90_seconds"]:
        found.slower.append(line)
    elif now["p90_seconds"] < before["p10_seconds"]:
        found.faster.append(line)
    else:
        found.same += 1


def _by_key(content: dict[str, Any]) -> dict[tuple, dict[str, Any]]:
    found = {}
    for result in content["results"]:
        problem = result["problem"]
        for name in ("seconds", "median_seconds", "p10_seconds", "p90_seconds"):
            result[name]
        key = (result["provider"], *(str(_plain(problem[name])) for name in KEY), result["series"])
        found[key] = result
    return found


def _plain(value: Any) -> Any:
    return "-".join(map(str, value)) if isinstance(value, (list, tuple)) else value


def _title(key: tuple) -> str:
    provider, sizes, batch, *settings, series = key
    return f"{provider} at {sizes}, batch {batch}, {', '.join(settings)}{series and f' (series {series})'}"
