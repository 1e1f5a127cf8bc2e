"""Trials run as DVC experiments, one after the other; a finished one is never run again."""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from relinv.overrides import as_override
from relinv.params import MAIN
from relinv.study.checkout import experiments, open_checkout, run_experiment
from relinv.study.plan import Trial

LOGS = ".scratch/study"  # git-ignored


def run_pending(root: Path, planned: Sequence[Trial], slots: int | None, lock: int) -> dict[str, str]:
    """Run every trial that is not finished, `slots` of its stages at a time (None: as fits); return {name: commit}.

    They run in a separate checkout that shares DVC's run cache: a killed study resumes with the stages it was in, and
    arms that differ in one method share the others. Files edited meanwhile change no trial. lock: what `alone` yields;
    plan the trials in its block. Raises UserError if one fails, and starts no other.
    """
    found = finished(root, planned)
    pending = [trial for trial in planned if trial.name not in found]
    print(f"{len(planned)} experiments, {len(found)} of them finished before.", file=sys.stderr)
    if pending:
        checkout = open_checkout(root, root / LOGS / "checkout")
        parameters = (checkout / MAIN).read_bytes()
    for number, trial in enumerate(pending, start=1):
        print(f"[{number}/{len(pending)}] {trial.name}: {trial.work} inversions", file=sys.stderr)
        (checkout / MAIN).write_bytes(parameters)
        overrides = [as_override(name, value) for name, value in trial.overrides.items()]
        run_experiment(root, checkout, trial.name, overrides, slots, root / LOGS / f"{trial.name}.log", lock)
    return finished(root, planned)


def finished(root: Path, planned: Sequence[Trial]) -> dict[str, str]:
    """Return {name: commit} of the trials whose experiment exists: it is saved only once the pipeline has succeeded."""
    commits = {ref.rsplit("/", 1)[1]: commit for ref, commit in experiments(root).items()}
    return {trial.name: commits[trial.name] for trial in planned if trial.name in commits}


@contextmanager
def alone(root: Path) -> Iterator[int]:
    """Yield the descriptor of a lock that no other study on this checkout holds; wait if one does.

    Plan the trials inside the block: the wait may be long, and a trial's name says of which files it was made.
    Experiments inherit the lock: those that outlive a killed study are waited for, not started a second time.
    """
    path = root / LOGS / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for the experiments that another study started to end.", file=sys.stderr)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream.fileno()
