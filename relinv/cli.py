"""How a stage becomes a command: user mistakes end in one sentence on stderr, real bugs in a traceback."""

from __future__ import annotations

import errno
import sys

import typer

from relinv.errors import UserError, is_out_of_memory
from relinv.forking import run_forked


def stage_app() -> typer.Typer:
    """Return the Typer application a stage registers its one command with."""
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def run(app: typer.Typer) -> None:
    """Run a stage's command line; exit with 1 and one sentence on stderr for what a person can put right."""
    status = run_forked()
    if status is not None:
        sys.exit(status)
    try:
        app()
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise  # a bug: its traceback is what helps
        print(f"Error: {sentence}", file=sys.stderr)
        sys.exit(1)


def explain(error: Exception) -> str | None:
    """Return what to tell the person at the keyboard, or None where `error` is a bug of ours."""
    if isinstance(error, UserError):
        return str(error)
    if is_disk_full(error):
        place = f" while writing '{error.filename}'" if getattr(error, "filename", None) else ""
        return f"The disk is full{place}: free some space and run the same command again."
    if is_out_of_memory(error):  # where no batch is known that would say more
        return (
            "The memory ran out: in params.yaml set bases.NAME.model.precision to bf16, lower its resolution or the "
            "batch_size of what ran (bases.NAME.sampling, invert.METHOD, score), or set the device to cpu."
        )
    return None


def is_disk_full(error: Exception) -> bool:
    """Return whether `error` says that no space is left, also where a library hides the error number."""
    return getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error)
