"""The pipeline, several stages at a time: small models leave a second core idle, and many stages are independent."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from relinv.errors import UserError, explain, reason
from relinv.params import Params
from relinv.pipeline.logged import FAILED, run_logged
from relinv.pipeline.repository import DVC

GROUPS = ("fetch", "validate", "judge", "invert", "generate", "score")  # in an order that works; report comes last
LOGS = ".scratch/reproduce"  # git-ignored
ENDED = "Ended "  # starts a line in a share's log
WRITE_EVERY = 60  # seconds


def reproduce(root: Path, slots: int, gpus: Sequence[str] = ()) -> None:
    """Reproduce the pipeline, `slots` stages of a group at a time, then the rest as `dvc repro` does.

    gpus: names as in CUDA_VISIBLE_DEVICES; each slot sees only one of them, as its "cuda". If empty, each sees all.

    If stopped at any moment and run again, it resumes. Raises UserError, naming the log to read, if a stage fails; the
    other slots still finish their stages.
    """
    _require_locks(root)
    for group in GROUPS:
        if stale := stale_stages(root, group):
            _reproduce_group(root, group, stale, slots, gpus)
    if subprocess.run([*DVC, "repro"], cwd=root, check=False).returncode:
        raise UserError("`dvc repro` failed, as it says above: put that right and run the same command again.")


def _require_locks(root: Path) -> None:
    """Raise UserError if the file system of `root` has no file locks: DVC would wait for ever, saying nothing."""
    with tempfile.TemporaryFile(dir=root) as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"Files cannot be locked in '{root.resolve()}' ({reason(error)}): keep the checkout on a file system "
                "that has flock, or ask for it to be mounted so."
            ) from error


def stale_stages(root: Path, group: str) -> list[str]:
    """Return the stages of a group, such as "fetch@inside", whose results are out of date."""
    command = [*DVC, "--wait-for-lock", "status", "--json", group]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"DVC cannot tell what has changed in '{group}'. It says:\n{done.stderr.strip()}")
    return list(json.loads(done.stdout))


def due_relations(root: Path, params: Params, method: str) -> tuple[list[str], list[str]]:
    """Return the parameters' relations that a method still has to learn, and those it has learned, according to DVC.

    If the method is not listed in the parameters, all are due: DVC has no stage for it.
    """
    every = params.relations()
    if method not in params.methods():
        return every, []
    stale = stale_stages(root, "invert")
    due = [relation for relation in every if f"invert@{relation}-{method}" in stale]
    return due, [relation for relation in every if relation not in due]


def reproduce_share(root: Path, stages: Sequence[str]) -> None:
    """Reproduce independent stages one after the other, like `dvc repro --single-item`.

    Unlike that, this does not write `dvc.lock` after each stage: DVC would parse and rewrite the whole file, which
    takes seconds with a hundred stages. If the process is killed, what is not yet written is in DVC's run cache, and
    the next run takes it from there. Raises UserError if a stage fails.
    """
    from dvc.repo import Repo, lock_repo
    from dvc.stage.exceptions import StageCmdFailedError

    with Repo(str(root), _wait_for_lock=True) as repo, lock_repo(repo), repo.scm_context():
        found = {stage.addressing: stage for stage in repo.index.stages}  # parses dvc.lock once, not for each stage
        made: list[Any] = []
        written = time.monotonic()
        try:
            for name in stages:
                try:
                    made += filter(None, [found[name].reproduce()])
                except Exception as error:  # of any kind: from DVC, a missing file, a full disk
                    if isinstance(error, StageCmdFailedError):
                        print(f"{FAILED}{name}", flush=True)
                    raise UserError(f"'{name}' could not be reproduced: {explain(error) or reason(error)}") from error
                print(f"{ENDED}{name}", flush=True)
                if time.monotonic() - written > WRITE_EVERY:
                    _write(made)
                    written = time.monotonic()
        finally:
            _write(made)


def _write(made: list[Any]) -> None:
    """Write the reproduced stages into dvc.lock, and empty the list."""
    if made:
        with _not_stopped():
            made[0].dvcfile.dump_stages(made, update_pipeline=False)
        made.clear()


@contextmanager
def _not_stopped() -> Iterator[None]:
    """Put off Ctrl-C, `kill` and a closed terminal until the block ends: DVC empties dvc.lock, then fills it slowly."""
    came: list[int] = []
    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    former = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in stops}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        for stop in came:
            signal.raise_signal(stop)


def _reproduce_group(root: Path, group: str, stages: Sequence[str], slots: int, gpus: Sequence[str]) -> None:
    """Reproduce one group's stages; each slot runs its share in one process, because starting DVC takes seconds."""
    shares = _shares(stages, slots)
    logs = [root / LOGS / f"{group}-{slot}.log" for slot in range(len(shares))]
    for log in logs:
        log.unlink(missing_ok=True)
    seen = [{"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {} for slot in range(len(shares))]
    with ThreadPoolExecutor(len(shares)) as pool, tqdm(total=len(stages), desc=group, unit="stage") as bar:
        running = [
            pool.submit(run_logged, f"A stage of '{group}'", [sys.executable, "-m", __name__, *share], log, root, gpu)
            for share, log, gpu in zip(shares, logs, seen, strict=True)
        ]
        while wait(running, timeout=1).not_done:
            bar.update(_ended(logs) - bar.n)
        for share in running:
            share.result()
        bar.update(len(stages) - bar.n)


def _shares(stages: Sequence[str], slots: int) -> list[list[str]]:
    """Return the stages split into one share per slot, each with about as many stages of every method.

    Methods differ by minutes in how long they take; relations hardly differ.
    """
    by_method = sorted(stages, key=lambda stage: stage.rpartition("-")[2])  # invert@inside-reversion; else in any order
    return [by_method[slot::slots] for slot in range(min(slots, len(stages)))]


def _ended(logs: Sequence[Path]) -> int:
    """Return how many stages have ended, according to the logs of the processes that run them."""
    texts = [log.read_text("utf-8", "replace") for log in logs if log.exists()]
    return sum(line.startswith(ENDED) for text in texts for line in text.splitlines())


def _end_with(parent: int) -> None:
    """Make the command that a share runs, and so the share itself, end soon after `parent`, however `parent` ended."""
    import psutil

    def watch() -> None:
        """Wait until this process has another parent, then kill its descendants, and any it starts afterwards."""
        while os.getppid() == parent:
            time.sleep(1)
        while True:
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    _end_with(os.getppid())
    try:
        reproduce_share(Path.cwd(), sys.argv[1:])
    except UserError as error:
        sys.exit(f"Error: {error}")
