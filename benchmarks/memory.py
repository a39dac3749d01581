"""The memory of this process: what is resident, and the most that was."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def resident() -> int:
    """Bytes that are resident now; where the system does not say, the most that were."""
    return _status("VmRSS") if STATUS.exists() else _most()


def peak() -> int:
    """The most bytes that were resident, since `reset_peak` where the system can forget what was before."""
    return _status("VmHWM") if STATUS.exists() else _most()


def reset_peak() -> None:
    with contextlib.suppress(OSError):  # not Linux, or not allowed: the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def available() -> int | None:
    """Bytes that new processes may use; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _status(name: str) -> int:
    return next(int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith(name))


def _most() -> int:
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
