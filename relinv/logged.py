"""Commands run out of sight: what they say goes to a log, and what went wrong into one sentence."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from relinv.errors import UserError


def run_logged(what: str, command: Sequence[str], log: Path, cwd: Path) -> None:
    """Run `command` in `cwd` with all it prints in `log`; UserError with its last words where it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as stream:
        code = subprocess.run(command, cwd=cwd, stdout=stream, stderr=subprocess.STDOUT, check=False).returncode
    if not code:
        return
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    lines = [line for line in lines if line.strip()]
    said = lines[-1].strip() if lines else "no word"
    log, here = log.resolve(), Path.cwd()
    shown = log.relative_to(here) if log.is_relative_to(here) else log
    raise UserError(f"{what} failed, saying: {said} See {shown}; run the same command again to go on from there.")
