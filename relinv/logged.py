"""Commands run out of sight: what they say goes to a log, and what went wrong into one sentence."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from relinv.errors import UserError


def run_logged(what: str, command: Sequence[str], log: Path, cwd: Path, pass_fds: Sequence[int] = ()) -> None:
    """Run `command` in `cwd` with all it prints in `log`; UserError with its last words where it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as stream:
        options = {"cwd": cwd, "stdout": stream, "stderr": subprocess.STDOUT, "pass_fds": pass_fds}
        code = subprocess.run(command, check=False, **options).returncode
    if code:
        raise failure(what, log)


def failure(what: str, log: Path) -> UserError:
    """Return the error that says what failed, its last words, where to read more and what to do."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    lines = [line for line in lines if line.strip()]
    said = lines[-1].strip() if lines else "no word"
    log, here = log.resolve(), Path.cwd()
    shown = log.relative_to(here) if log.is_relative_to(here) else log
    return UserError(f"{what} failed, saying: {said} See {shown}; run the same command again to go on from there.")
