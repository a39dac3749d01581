"""Processes that compute by turns: each provider has one, so that no library's threads, settings or memory are another's."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NPROC",
)  # the last is XLA's


class Failed(Exception):
    """What a worker was asked for cannot be had; the message says why, in one line."""


class Worker:
    """A process that calls functions for us, one at a time, and sleeps in between. Its module-level state stays from call to call."""

    def __init__(self, threads: int):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, threads), daemon=True)
        with _environment({name: str(threads) for name in THREADS}), _deaf_to_interrupts():
            self._process.start()
        theirs.close()

    def call(self, function: Callable[..., Any], *args: Any, patience: float = 600) -> Any:
        """What the function returns there. Raises: Failed, also where there is no answer within `patience` seconds."""
        try:
            self._connection.send((function, args))
            if not self._connection.poll(patience):
                raise Failed(f"no answer within {patience:g} s")
            answer, reason = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(10)
            raise Failed(_death(self._process.exitcode)) from error
        if reason:
            raise Failed(reason)
        return answer

    def close(self) -> None:
        self._connection.close()
        if self._process.is_alive():
            self._process.terminate()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"its process was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"its process ended with exit code {code}"


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """What is started here ignores Ctrl-C from its first instruction on: its parent hears it and ends it."""
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# --- In the process -------------------------------------------------------------------------------------------------


def _serve(connection: Any, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _settle(threads)
    while True:
        try:
            function, args = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer = function(*args), ""
        except Exception as error:
            answer = None, reason(error)
        connection.send(answer)


def _settle(threads: int) -> None:
    """Keeps to as many processors as threads, whatever a library thinks; and is the first to go where memory runs out."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def reason(error: BaseException) -> str:
    """An error in one line."""
    from .providers import Unsupported

    said = str(error).strip().splitlines()[0] if str(error).strip() else ""
    name = type(error).__name__
    if isinstance(error, Unsupported):
        return said
    memory = ("OutOfMemory", "RESOURCE_EXHAUSTED", "allocate memory", "out of memory")
    if isinstance(error, MemoryError) or any(word in name + said for word in memory):
        return f"out of memory ({said or name})"
    return f"{name}: {said}" if said else name
