"""Checkouts beside the user's, one a slot: DVC runs one experiment of a checkout at a time."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from relinv.errors import UserError
from relinv.files import atomic_folder
from relinv.logged import run_logged
from relinv.reproducing import DVC


def open_slot(root: Path, folder: Path) -> Path:
    """Return `folder`, a clone of the checkout at `root` as it is now: its HEAD, and what git says has changed since.

    It shares git's objects and DVC's cache with `root`: what one slot computed no other computes again.
    """
    if not folder.exists():
        with atomic_folder(folder) as clone:
            git(root, "clone", "--quiet", "--shared", "--no-checkout", ".", str(clone.resolve()))
            for name in ("user.name", "user.email"):
                if value := git(root, "config", "--default", "", name).strip():
                    git(clone, "config", name, value)
    git(folder, "reset", "--quiet", "--hard", git(root, "rev-parse", "HEAD").strip())
    cache = _output([*DVC, "cache", "dir"], root).strip()
    _output([*DVC, "config", "--quiet", "--local", "cache.dir", cache], folder)
    if changes := git(root, "diff", "--binary", "HEAD"):
        git(folder, "apply", "--index", "--whitespace=nowarn", "-", given=changes)
    return folder


def run_experiment(root: Path, slot: Path, name: str, overrides: Sequence[str], log: Path, lock: int) -> None:
    """Run the pipeline in a slot as the experiment `name`, which `root` then has; it inherits the descriptor `lock`.

    Raises UserError, with the log to read, where it fails.
    """
    command = [*DVC, "exp", "run", "--temp", "--name", name]
    for override in overrides:
        command += ["--set-param", override]
    run_logged(f"The experiment '{name}'", command, log, slot, pass_fds=[lock])
    for ref in experiments(slot):
        if ref.endswith(f"/{name}"):
            git(root, "fetch", "--quiet", "--no-write-fetch-head", str(slot.resolve()), f"+{ref}:{ref}")


def experiments(root: Path) -> dict[str, str]:
    """Return {ref: commit} of the experiments in a checkout."""
    lines = git(root, "for-each-ref", "--format=%(refname) %(objectname)", "refs/exps").splitlines()
    return dict(line.rsplit(" ", 1) for line in lines)


def git(root: Path, *words: str, given: str = "") -> str:
    """Return what a git command run in `root` prints; UserError where it fails."""
    return _output(["git", *words], root, given)


def _output(command: Sequence[str], root: Path, given: str = "") -> str:
    done = subprocess.run(command, cwd=root, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"A study needs its git and DVC repository at {root.resolve()}: {done.stderr.strip()}")
    return done.stdout
