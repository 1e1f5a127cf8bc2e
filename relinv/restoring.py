"""Bringing the committed parameters and results back, which an experiment replaces in the workspace."""

from __future__ import annotations

from pathlib import Path

from relinv.files import atomic_write_bytes
from relinv.repository import PLAIN_DIFF, dvc, git

PARAMETERS = ("params.yaml", "presets.yaml")
KEPT = Path(".scratch/replaced_parameters.diff")  # git-ignored
MINIATURE = "data/miniature"


def restore(root: Path) -> Path | None:
    """Bring the committed parameters and results of the checkout at `root` back, from git and from DVC's cache.

    Returns the file, as `git apply` reads it, that keeps how the parameters differed; None if they did not. Raises
    UserError if git or DVC refuses.
    """
    results = ["dvc.lock", "reports"]
    if not git(root, "status", "--porcelain", "--", MINIATURE, f":!{MINIATURE}/dvc.lock"):
        # DVC writes the present code into it as what the weights were trained with, when it saves an experiment
        results.append(f"{MINIATURE}/dvc.lock")
    kept = root / KEPT
    if changes := git(root, *PLAIN_DIFF, "HEAD", "--", *PARAMETERS):
        atomic_write_bytes(kept, changes.encode("utf-8", "surrogateescape"))
    git(root, "checkout", "--quiet", "HEAD", "--", *PARAMETERS, *results)
    git(root, "clean", "--quiet", "--force", "reports/grids")  # pictures of relations that the committed run lacks
    dvc(root, "checkout", "--quiet")
    return kept if changes else None
