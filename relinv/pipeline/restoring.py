"""Bringing the committed parameters and results back, which an experiment replaces in the workspace."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from textwrap import shorten

from relinv.errors import UserError, told_as
from relinv.files import atomic_write_bytes, read_json
from relinv.params import MAIN
from relinv.pipeline.repository import PLAIN_DIFF, dvc, git
from relinv.results import FOLDERS

GRIDS = "reports/grids"
RESULTS = ("dvc.lock", GRIDS, "reports/metrics.json", "reports/report.html", "reports/report.md",
           "reports/scores.csv")  # fmt: skip
KEPT = Path(".scratch/replaced_parameters")  # git-ignored
MINIATURE = "data/miniature"
CLOCK = 5.0  # seconds by which a process may seem to have started later than it did, as the clock is set


@dataclass(frozen=True)
class Restored:
    """What `restore` kept, and could not bring back.

    kept: files, as `git apply` reads them, of how the parameters differed, as they were and as staged. lacking: results
    that DVC could not bring back, most often because they were never made in this clone.
    """

    kept: list[Path]
    lacking: list[str]


def restore(root: Path) -> Restored:
    """Bring the committed parameters and results of the pipeline at `root` back, from git and from DVC's cache.

    Only what an experiment writes is replaced. Raises UserError if `root` is no pipeline or one that is running, or if
    git or DVC refuses.
    """
    if not (root / "dvc.yaml").is_file():
        raise UserError(f"There is no dvc.yaml in '{root.resolve()}': run this in the pipeline's own folder.")
    _require_idle(root)
    results = [*RESULTS]
    if not git(root, "status", "--porcelain", "--", MINIATURE, f":!{MINIATURE}/dvc.lock"):
        # DVC writes the present code into it as what the weights were trained with, when it saves an experiment
        results.append(f"{MINIATURE}/dvc.lock")
    kept = _keep_parameters(root)
    git(root, "checkout", "--quiet", "HEAD", "--", MAIN, *results)
    _remove_grids(root)
    try:
        dvc(root, "checkout")
    except UserError as error:
        if lacking := _lacking(str(error)):
            return Restored(kept, lacking)
        how = f", and how they differed is kept in {' and '.join(map(str, kept))}" if kept else ""
        remedy = "Correct this"
        if "unsaved files" in str(error):  # made without DVC, or by a run that was stopped
            remedy = "DVC has no copy of these files: copy those that you want to keep, run `dvc checkout --force`"
        raise UserError(f"{error}\nThe parameters are back{how}. {remedy} and run `relinv restore` again.") from None
    return Restored(kept, [])


def _require_idle(root: Path) -> None:
    """Raise UserError if a stage runs at `root`: its parameters would change under it, and its results be lost."""
    file = root / ".dvc/tmp/rwlock"  # who reads or writes what; killed processes stay in it
    with told_as(f"DVC's list of locks, '{file}', is damaged: run this again, or if no stage runs here, remove it."):
        locks = read_json(file) if file.is_file() else {}
    infos = [*locks.get("write", {}).values(), *chain(*locks.get("read", {}).values())]
    for pid, command in {info["pid"]: info["cmd"] for info in infos}.items():
        if _runs_since(pid, file.stat().st_mtime):
            raise UserError(
                f"A stage is running here, by process {pid} ({shorten(command, 80, placeholder=' …')}): wait until it "
                "has ended, or stop it, and run `relinv restore` then."
            )


def _runs_since(pid: int, time: float) -> bool:
    """Return whether a process runs that was there at a time; one started later has the number of one that is gone."""
    import psutil

    try:
        return psutil.Process(pid).create_time() < time + CLOCK
    except psutil.NoSuchProcess:
        return False


def _lacking(said: str) -> list[str]:
    """Return the results that DVC could not bring back, from what `dvc checkout` said once it had done all others."""
    _, lacking, rest = said.partition("Checkout failed for following targets:\n")
    return rest.partition("\nIs your cache up to date?")[0].splitlines() if lacking else []


def branches_left(root: Path) -> list[str]:
    """Return the branches at the commit that is checked out if git is on none, else nothing.

    DVC leaves the branch while it runs an experiment, and does not come back to it if it is killed.
    """
    if git(root, "branch", "--show-current").strip():
        return []
    return git(root, "for-each-ref", "--points-at=HEAD", "--format=%(refname:short)", "refs/heads").split() or ["main"]


def _remove_grids(root: Path) -> None:
    """Remove the pictures of relations that the committed run lacks, by the names that a report gives them."""
    relations = {folder.name for folder in (root / FOLDERS["fetch"]).glob("*")}
    for name in git(root, "ls-files", "--others", "--exclude-standard", GRIDS).splitlines():
        picture = root / name
        relation, _, _ = picture.stem.partition("-")  # RELATION.png, RELATION-METHOD.png
        if picture.parent == root / GRIDS and picture.suffix == ".png" and relation in relations:
            picture.unlink()


def _keep_parameters(root: Path) -> list[Path]:
    """Write how the parameters, and how those staged, differ from the committed ones, each to a file of its own."""
    kept = []
    for kind in ([], ["--cached"]):
        if changes := git(root, *PLAIN_DIFF, *kind, "HEAD", "--", MAIN):
            data = changes.encode("utf-8", "surrogateescape")
            kept.append(root / KEPT / f"{hashlib.sha256(data).hexdigest()[:8]}.diff")
            atomic_write_bytes(kept[-1], data)
    return list(dict.fromkeys(kept))
