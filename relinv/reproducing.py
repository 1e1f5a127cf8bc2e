"""The pipeline with several stages at a time: small models leave a second core idle, stages do not need each other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from relinv.errors import UserError
from relinv.logged import run_logged

GROUPS = ("fetch", "validate", "invert", "generate", "score")  # each needs the one before it; report comes last
LOGS = ".scratch/reproduce"  # git-ignored
DVC = (sys.executable, "-m", "dvc")


def reproduce(root: Path, slots: int) -> None:
    """Reproduce the pipeline, `slots` stages of a group at a time, then the rest as `dvc repro` does.

    Stopped at any moment and run again, it goes on where it was. Raises UserError, with the log to read, where a
    stage fails; stages that had been started end first.
    """
    from tqdm import tqdm

    for group in GROUPS:
        stale = stale_stages(root, group)
        with (
            ThreadPoolExecutor(slots) as pool,
            tqdm(total=len(stale), desc=group, unit="stage", disable=not stale) as bar,
        ):
            running = [pool.submit(_reproduce_stage, root, stage) for stage in stale]
            try:
                for stage in running:
                    stage.result()
                    bar.update()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    if subprocess.run([*DVC, "repro"], cwd=root, check=False).returncode:
        raise UserError("`dvc repro` failed, as it says above: put that right and run the same command again.")


def stale_stages(root: Path, group: str) -> list[str]:
    """Return the stages of a group, such as "fetch@inside", whose results are not those of today's inputs."""
    done = subprocess.run(
        [*DVC, "--wait-for-lock", "status", "--json", group], cwd=root, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"DVC cannot tell what has changed: {_last_line(done.stderr)}")
    return list(json.loads(done.stdout))


def _reproduce_stage(root: Path, stage: str) -> None:
    command = [*DVC, "--wait-for-lock", "repro", "--single-item", stage]
    run_logged(f"The stage '{stage}'", command, root / LOGS / f"{stage}.log", root)


def _last_line(text: str) -> str:
    lines: Sequence[str] = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no word"
