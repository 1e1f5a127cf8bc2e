"""Trials run as DVC experiments, one after the other; what is finished is never run again."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from relinv.errors import UserError
from relinv.logged import failure, run_logged
from relinv.report.revisions import SCORES
from relinv.study.plan import Trial

LOGS = ".scratch/study"  # git-ignored


def run_pending(root: Path, planned: Sequence[Trial]) -> dict[str, str]:
    """Run every trial that is not finished, a bar showing share done and time left; return {name: commit}.

    An experiment runs in a copy of the checkout (`--temp`) and its stages share DVC's run cache, so a study
    that was killed goes on with the stage it was in, and arms that differ in one method share the others.
    Raises UserError, with the log to read, where one fails.
    """
    from tqdm import tqdm

    with _alone(root) as lock:
        found = finished(root, planned)
        pending = [trial for trial in planned if trial.name not in found]
        print(f"{len(planned)} experiments, {len(found)} of them finished before.", file=sys.stderr)
        # weighted by inversions: an arm that runs fewer methods takes less of the time
        with tqdm(total=sum(trial.work for trial in pending), unit="inversion", disable=not pending) as bar:
            for trial in pending:
                bar.set_description(f"{trial.arm}, seed {trial.seed}")
                _run(root, trial, lock)
                bar.update(trial.work)
        return finished(root, planned)


def finished(root: Path, planned: Sequence[Trial]) -> dict[str, str]:
    """Return {name: commit} of the trials whose experiment exists and holds scores."""
    lines = _git(root, "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps").splitlines()
    commits = {name.rsplit("/", 1)[1]: commit for commit, name in (line.split(" ", 1) for line in lines)}
    return {
        trial.name: commits[trial.name]
        for trial in planned
        if trial.name in commits and _git(root, "ls-tree", "--name-only", commits[trial.name], SCORES)
    }


@contextmanager
def _alone(root: Path) -> Iterator[int]:
    """Yield the descriptor of a lock that no other study on this checkout holds; wait for it where one does.

    Experiments inherit the lock: one that outlives a killed study is waited for, not started a second time.
    """
    path = root / LOGS / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for an experiment that another study started to end.", file=sys.stderr)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream.fileno()


def _run(root: Path, trial: Trial, lock: int) -> None:
    log = root / LOGS / f"{trial.name}.log"
    command = [sys.executable, "-m", "dvc", "exp", "run", "--temp", "--name", trial.name]
    for name, value in trial.overrides.items():
        command += ["--set-param", f"{name}={as_override(value)}"]
    run_logged(f"The experiment '{trial.name}'", command, log, root, pass_fds=[lock])
    if trial.name not in finished(root, [trial]):
        raise failure(f"The experiment '{trial.name}'", log, root)


def as_override(value: Any) -> str:
    """Return a parameter's value as `dvc exp run --set-param` reads it: null, true, [a,b], numbers, words."""
    if isinstance(value, list):
        return f"[{','.join(map(as_override, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"A study needs its git repository at {root}: {done.stderr.strip()}")
    return done.stdout
