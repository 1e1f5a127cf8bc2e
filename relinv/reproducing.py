"""The pipeline with several stages at a time: small models leave a second core idle, stages do not need each other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from relinv.errors import UserError
from relinv.logged import run_logged

GROUPS = ("fetch", "validate", "invert", "generate", "score")  # each needs the one before it; report comes last
LOGS = ".scratch/reproduce"  # git-ignored
DVC = (sys.executable, "-m", "dvc")
SINGLY = (*DVC, "--wait-for-lock", "repro", "--single-item")


def reproduce(root: Path, slots: int) -> None:
    """Reproduce the pipeline, `slots` stages of a group at a time, then the rest as `dvc repro` does.

    Stopped at any moment and run again, it goes on where it was. Raises UserError, with the log to read, where a
    stage fails; stages beside it go on to their end.
    """
    for group in GROUPS:
        if stale := stale_stages(root, group):
            _reproduce_group(root, group, stale, slots)
    if subprocess.run([*DVC, "repro"], cwd=root, check=False).returncode:
        raise UserError("`dvc repro` failed, as it says above: put that right and run the same command again.")


def stale_stages(root: Path, group: str) -> list[str]:
    """Return the stages of a group, such as "fetch@inside", whose results are not those of today's inputs."""
    command = [*DVC, "--wait-for-lock", "status", "--json", group]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"DVC cannot tell what has changed in '{group}'. It says:\n{done.stderr.strip()}")
    return list(json.loads(done.stdout))


def _reproduce_group(root: Path, group: str, stages: Sequence[str], slots: int) -> None:
    """Reproduce the stages of one group, each slot its share of them in one process: starting DVC takes seconds."""
    from tqdm import tqdm

    shares = [stages[slot::slots] for slot in range(min(slots, len(stages)))]
    logs = [root / LOGS / f"{group}-{slot}.log" for slot in range(len(shares))]
    for log in logs:
        log.unlink(missing_ok=True)
    with ThreadPoolExecutor(len(shares)) as pool, tqdm(total=len(stages), desc=group, unit="stage") as bar:
        running = [
            pool.submit(run_logged, f"A stage of '{group}'", [*SINGLY, *share], log, root)
            for share, log in zip(shares, logs, strict=True)
        ]
        while wait(running, timeout=1).not_done:
            bar.update(_ended(logs) - bar.n)
        for share in running:
            share.result()
        bar.update(len(stages) - bar.n)


def _ended(logs: Sequence[Path]) -> int:
    """Return how many stages have ended by the logs of the processes that run them one after the other."""
    begun = [log.read_text("utf-8", "replace").count("Running stage '") for log in logs if log.exists()]
    return sum(max(count - 1, 0) for count in begun)
