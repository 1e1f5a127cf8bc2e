"""Running a stage as a command: a user's mistake ends in one sentence on stderr, a bug in a traceback.

Also, how many cores it may use, and a quick end.
"""

from __future__ import annotations

import atexit
import gc
import io
import math
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from relinv.errors import UserError, explain
from relinv.forking import run_forked

Relation = Annotated[str, typer.Argument(help="A relation's name, such as inside.")]
Method = Annotated[str, typer.Argument(help="A method, such as reversion, or the name that a token was imported by.")]
# A container's limit, such as docker's --cpus sets: microseconds of CPU time, and in how many. The first file has both
# in today's control groups, the others have one each in the former ones, still those of Red Hat 8.
CPU_LIMIT = tuple(Path("/sys/fs/cgroup", name) for name in ("cpu.max", "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
# After how many new objects Python looks for garbage. At its own 700, that takes a tenth or more of a short stage. No
# tensor waits for it, since a training step leaves none in need of it (tests/test_methods_contract.py).
GARBAGE = 50_000


def stage_app() -> typer.Typer:
    """Return the Typer application that a stage, or `relinv`, registers its commands with."""
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def path(text: str) -> Path:
    """Return the path that an argument names; UserError if it is empty, which pathlib takes for the current folder."""
    if not text:
        raise UserError("A path is empty, as that of a shell variable without a value: name a file or folder.")
    return Path(text)


def cores() -> int:
    """Return how many cores this process may use, or as many as its container may keep busy if those are fewer."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        limit = "".join(file.read_text() for file in CPU_LIMIT if file.is_file()).split()
    except OSError:  # not for this user to read
        return bound
    match limit:
        case [quota, period] if quota.isdecimal():  # neither "max" nor -1, which are no limit
            return min(bound, math.ceil(int(quota) / int(period)))
    return bound


def run(app: typer.Typer) -> NoReturn:
    """Run a stage's command line and end this process, with its exit status."""
    gc.set_threshold(GARBAGE)
    status = exit_status(app)
    with suppress(OSError):  # what cannot be written, Python tells when it ends by itself
        _leave(status)
    sys.exit(status)


def _leave(status: int) -> NoReturn:
    """End this process as Python does, but without first deleting every object, which would take a second or two."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for its threads
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    os._exit(status)


def exit_status(app: typer.Typer) -> int:
    """Run a command line; return its exit status: 1, with one sentence on stderr, if the user can mend the error."""
    status = run_forked()
    if status is not None:
        return status
    if isinstance(sys.stdout, io.TextIOWrapper):  # None if closed, and a notebook has its own
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a Windows pipe has no code for ↑ or −
    try:
        app()
    except SystemExit as end:  # as Typer ends
        return int(end.code or 0)
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise  # a bug: its traceback helps most
        print(f"Error: {sentence}", file=sys.stderr)
        return 1
    return 0
