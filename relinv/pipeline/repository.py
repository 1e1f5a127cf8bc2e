"""git and DVC, run in a checkout."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from relinv.errors import UserError

DVC = (sys.executable, "-m", "dvc")
# a diff as `git apply` reads it, whatever the user's git settings
PLAIN_DIFF = ("-c", "diff.noprefix=false", "-c", "diff.mnemonicPrefix=false", "diff", "--binary", "--no-ext-diff",
              "--no-textconv", "--no-color", "--unified=3")  # fmt: skip


def git(root: Path, *words: str, given: str = "") -> str:
    """Return what a git command run in `root` prints, to the byte; UserError if it fails."""
    return _output(["git", *words], root, given)


def dvc(root: Path, *words: str) -> str:
    """Return what a DVC command run in `root` prints; UserError if it fails."""
    return _output([*DVC, *words], root)


def _output(command: Sequence[str], root: Path, given: str = "") -> str:
    # not text=True: a diff's lines may end in CRLF, and hold what is not UTF-8
    given_bytes = given.encode("utf-8", "surrogateescape")
    done = subprocess.run(command, cwd=root, input=given_bytes, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()
        called = " ".join(command[len(DVC) - 1 :] if tuple(command[: len(DVC)]) == DVC else command)
        raise UserError(f"`{called}` failed in {root.resolve()}: {said}")
    return done.stdout.decode("utf-8", "surrogateescape")
