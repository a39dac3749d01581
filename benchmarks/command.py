"""A benchmark as a command of its own: what a user can get wrong ends in one sentence and exit code 2, as with `gpuprop`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import typer


def run(main: Callable, name: str) -> None:
    """Runs `main` with the arguments of the command line."""
    from gpuprop.cli import _said_in_one_sentence

    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command()(main)
    try:
        with _said_in_one_sentence(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="gpuprop runs on the CPU")  # each command says where it runs
            code = app(prog_name=f"python -m {name}", standalone_mode=False)
    except typer.Exit as leaving:
        code = leaving.exit_code
    sys.exit(code)
