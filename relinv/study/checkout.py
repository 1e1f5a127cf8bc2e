"""A checkout beside the user's, where experiments run while the user's files stay as they are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from relinv.errors import UserError
from relinv.files import atomic_folder, atomic_write_bytes, is_visible
from relinv.pipeline.repository import PLAIN_DIFF, dvc, git
from relinv.pipeline.restoring import RESULTS

EXEMPLARS, MANIFESTS = "data/exemplars", "data/manifests"
DOWNLOADS = ".scratch/downloads"  # where relinv/fetching/downloads.py keeps them; git-ignored
CODE = ("relinv", "stages", "data/benchmark")  # where a file may be new, so that git does not have it yet


def open_checkout(root: Path, folder: Path) -> Path:
    """Return `folder`, a clone of the checkout at `root` as it is now: its HEAD, all changes, and new files of `CODE`.

    What the last run wrote stays as committed. The user's own exemplars, which git ignores, and manifests are copied
    too. The clone shares git's objects, DVC's cache and downloads with `root`, so nothing is computed or downloaded
    twice.
    """
    if not folder.exists():
        with atomic_folder(folder) as clone:
            git(root, "clone", "--quiet", "--shared", "--no-checkout", ".", str(clone.resolve()))
            for name in ("user.name", "user.email"):
                if value := git(root, "config", "--default", "", name).strip():
                    git(clone, "config", name, value)
    # `root` may have been moved since, and with it the objects that the clone shares
    objects = (root / git(root, "rev-parse", "--git-path", "objects").strip()).resolve()
    alternates = folder / ".git/objects/info/alternates"
    atomic_write_bytes(alternates, os.fsencode(f"{objects}\n"))
    git(folder, "reset", "--quiet", "--hard", git(root, "rev-parse", "HEAD").strip())
    # saving an experiment leaves files that git was to add; checksums of what a study fetched are to stay
    git(folder, "clean", "--quiet", "--force", "-d", f"--exclude={MANIFESTS}")
    cache = os.path.relpath(dvc(root, "cache", "dir").strip(), folder)  # DVC writes no path with letters beyond ASCII
    dvc(folder, "config", "--quiet", "--local", "cache.dir", cache)
    # without what an experiment writes: DVC saves no output that git was told to remove
    if changes := git(root, *PLAIN_DIFF, "HEAD", "--", *(f":!{path}" for path in RESULTS)):
        git(folder, "apply", "--index", "--whitespace=nowarn", "-", given=changes)
    for name in new_files(root, *CODE, MANIFESTS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, folder / name)
    if (root / EXEMPLARS).is_dir():
        hidden = shutil.ignore_patterns(".*")  # what is still being written
        with atomic_folder(folder / EXEMPLARS) as new:
            shutil.copytree(root / EXEMPLARS, new, dirs_exist_ok=True, ignore=hidden, ignore_dangling_symlinks=True)
    _share_downloads(root, folder)
    return folder


def _share_downloads(root: Path, folder: Path) -> None:
    """Let the checkout in `folder` download to where that at `root` does; whoever fetches there locks it."""
    shared, link = root / DOWNLOADS, folder / DOWNLOADS
    shared.mkdir(parents=True, exist_ok=True)
    link.parent.mkdir(exist_ok=True)
    if link.is_symlink():
        link.unlink()  # `root` may have been moved
    elif link.exists():
        shutil.rmtree(link)  # checkouts once had downloads of their own
    link.symlink_to(shared.resolve())


def run_experiment(
    root: Path, checkout: Path, name: str, overrides: Sequence[str], slots: int | None, log: Path, lock: int
) -> None:
    """Override parameters in `checkout`, reproduce its pipeline, and save it in `root` as the experiment `name`.

    overrides: as `dvc exp run --set-param` reads them. It runs `slots` stages at a time (None: as `reproduce` chooses)
    with its progress bars on stderr and its other output in `log`, and inherits the descriptor `lock`. Raises
    UserError if it fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    changes = [word for override in overrides for word in ("--set-param", override)]
    command = [sys.executable, "-m", "stages.reproduce", *changes, *(["--slots", str(slots)] if slots else [])]
    with log.open("w", encoding="utf-8") as stream:
        code = subprocess.run(command, cwd=checkout, stdout=stream, pass_fds=[lock], check=False).returncode
    if code:
        raise UserError(
            f"The experiment '{name}' failed, as said above; run the same command again to go on from there."
        )
    if new := new_files(checkout, *CODE):
        git(checkout, "add", "--", *new)  # each time: saving an experiment takes them out of the index
    dvc(checkout, "exp", "save", "--force", "--name", name, "report")
    for ref in experiments(checkout):
        if ref.endswith(f"/{name}"):
            git(root, "fetch", "--quiet", "--no-write-fetch-head", str(checkout.resolve()), f"+{ref}:{ref}")


def new_files(root: Path, *places: str) -> list[str]:
    """Return the files in some folders of a checkout that git neither has nor ignores; hidden ones are editors'."""
    found = git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *places).split("\0")
    return [name for name in found if all(map(is_visible, Path(name).parts)) and (root / name).is_file()]


def experiments(root: Path) -> dict[str, str]:
    """Return {ref: commit} of the experiments in a checkout."""
    lines = git(root, "for-each-ref", "--format=%(refname) %(objectname)", "refs/exps").splitlines()
    return dict(line.rsplit(" ", 1) for line in lines)
