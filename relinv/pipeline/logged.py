"""Commands run with their output in a log; a failure becomes one sentence."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from relinv.errors import UserError

ERROR = "Error: "  # starts the last thing that a failed command says
FAILED = "Failed "  # starts the line that comes right after a failed command's output


def run_logged(what: str, command: Sequence[str], log: Path, cwd: Path, environment: Mapping[str, str]) -> None:
    """Run `command` in `cwd` with its output in `log`; UserError with its last words if it fails.

    environment: variables added to this process's own.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as stream:
        env = {**os.environ, **environment}
        done = subprocess.run(command, cwd=cwd, env=env, stdout=stream, stderr=subprocess.STDOUT, check=False)
    if not done.returncode:
        return
    said = last_words(log.read_text(encoding="utf-8", errors="replace")).rstrip(".")
    log, here = log.resolve(), Path.cwd()
    shown = log.relative_to(here) if log.is_relative_to(here) else log
    raise UserError(f"{what} failed, saying: {said}. See {shown}; run the same command again to go on from there.")


def last_words(text: str) -> str:
    """Return the last line of a log, preceded by the cause if a line of the log starts with `FAILED`.

    The cause is the last error before the last such line, which may have several lines; if a command gave no error
    sentence, as with a bug, it is the command's last line.
    """
    lines = [line.rstrip() for line in text.split("\n") if line.strip()]
    if not lines:
        return "no word"
    said = [lines[-1].strip().removeprefix(ERROR)]
    ends = [number for number, line in enumerate(lines) if line.startswith(FAILED)]
    if ends and (before := lines[: ends[-1]]):
        errors = [number for number, line in enumerate(before) if line.startswith(ERROR)]
        cause = "\n".join(before[errors[-1] if errors else -1 :])
        said.insert(0, cause.strip().removeprefix(ERROR))
    return " ".join(said)
