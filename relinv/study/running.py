"""Trials run as DVC experiments, several at a time; what is finished is never run again."""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from relinv.logged import failure
from relinv.study.plan import Trial
from relinv.study.slots import experiments, open_slot, run_experiment

LOGS = ".scratch/study"  # git-ignored


def run_pending(root: Path, planned: Sequence[Trial], slots: int) -> dict[str, str]:
    """Run every trial that is not finished, `slots` at a time, with a bar; return {name: commit}.

    Each slot is a checkout of its own, and stages share DVC's run cache: a study that was killed goes on with
    the stages it was in, and arms that differ in one method share the others. Raises UserError, with the log
    to read, where one fails; those beside it go on to their end, no other is begun.
    """
    from tqdm import tqdm

    with _alone(root) as lock:
        found = finished(root, planned)
        pending = [trial for trial in planned if trial.name not in found]
        print(f"{len(planned)} experiments, {len(found)} of them finished before.", file=sys.stderr)
        if not pending:
            return found
        free = [open_slot(root, root / LOGS / f"slot-{number}") for number in range(min(slots, len(pending)))]
        running: dict[Future[Trial], Path] = {}
        work = sum(trial.work for trial in pending)  # an arm that runs fewer methods takes less of the time
        with ThreadPoolExecutor(len(free)) as pool, tqdm(total=work, unit="inversion") as bar:
            while pending or running:
                while pending and free:
                    slot = free.pop()
                    running[pool.submit(_run, root, slot, pending.pop(0), lock)] = slot
                for trial in wait(running, return_when=FIRST_COMPLETED).done:
                    free.append(running.pop(trial))
                    bar.update(trial.result().work)
        return finished(root, planned)


def finished(root: Path, planned: Sequence[Trial]) -> dict[str, str]:
    """Return {name: commit} of the trials whose experiment exists: DVC makes it when the pipeline has ended well."""
    commits = {ref.rsplit("/", 1)[1]: commit for ref, commit in experiments(root).items()}
    return {trial.name: commits[trial.name] for trial in planned if trial.name in commits}


@contextmanager
def _alone(root: Path) -> Iterator[int]:
    """Yield the descriptor of a lock that no other study on this checkout holds; wait for it where one does.

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


def _run(root: Path, slot: Path, trial: Trial, lock: int) -> Trial:
    log = root / LOGS / f"{trial.name}.log"
    overrides = [f"{name}={as_override(value)}" for name, value in trial.overrides.items()]
    run_experiment(root, slot, trial.name, overrides, log, lock)
    if not finished(root, [trial]):
        raise failure(f"The experiment '{trial.name}'", log)
    return trial


def as_override(value: Any) -> str:
    """Return a parameter's value as `dvc exp run --set-param` reads it: null, true, [a,b], numbers, words."""
    if isinstance(value, list):
        return f"[{','.join(map(as_override, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
