"""Checkpoints: a scratch folder from which a stopped training resumes, with byte-identical results."""

from __future__ import annotations

import pickle
import shutil
import sys
import time
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relinv.files import atomic_file, atomic_write_bytes, sha256_json

STATE = "state.pt"
INTERVAL = 5.0  # seconds between two saves
DAMAGE = (OSError, RuntimeError, EOFError, ValueError, LookupError,
          pickle.UnpicklingError, zipfile.BadZipFile, zlib.error)  # fmt: skip
SHARE = 0.05  # of a training's time that saving may take: saving a whole UNet takes far longer than saving one row


class Checkpoints:
    """A folder below `scratch`, named by a hash of `identity`, which is everything that determines the result.

    DVC deletes a stage's outputs before each run, so this folder is kept elsewhere; if any parameter, the base, an
    exemplar or the code changes, so does the folder. Files are written whole or not at all. A second process with the
    same identity may write here at the same time: it writes the same content, and each process keeps in memory what it
    needs to finish.
    """

    def __init__(self, scratch: Path, name: str, identity: Mapping[str, Any], interval: float = INTERVAL) -> None:
        self.scratch = Path(scratch)
        self.folder = self.scratch / f"{name}-{sha256_json(identity)[:16]}"
        self._interval = self._wait = interval
        self._saved: float | None = None  # time of the last save or of the first `is_due`: setup may take minutes

    def is_due(self) -> bool:
        """Return whether it is time to save again; call this after each step."""
        now = time.monotonic()
        if self._saved is None:
            self._saved = now
        return now - self._saved >= self._wait

    def save(self, state: Mapping[str, Any]) -> None:
        """Write `state`: tensors and plain values in dicts and lists."""
        begin = time.monotonic()
        save_state(self.folder / STATE, dict(state))
        self._saved = time.monotonic()
        if self._interval:  # 0 means a save after each step
            self._wait = max(self._interval, (self._saved - begin) / SHARE)

    def load(self) -> dict[str, Any] | None:
        """Return the last saved state, on the CPU, or None if there is none; say so of one that cannot be read."""
        state = load_state(self.folder / STATE)
        if state is None and (self.folder / STATE).exists():
            self.tell_unreadable(STATE)
        return state

    def tell_unreadable(self, name: str) -> None:
        """Say on stderr that a file which is needed to resume cannot be read."""
        print(f"'{self.folder / name}' cannot be read: the training starts again.", file=sys.stderr)

    def write_file(self, name: str, data: bytes) -> None:
        """Store a finished file next to the state."""
        atomic_write_bytes(self.folder / name, data)

    def read_file(self, name: str) -> bytes | None:
        """Return a stored file, or None if it is gone."""
        path = self.folder / name
        return path.read_bytes() if path.is_file() else None

    def remove(self) -> None:
        """Delete the folder; call this once the result is written."""
        shutil.rmtree(self.folder, ignore_errors=True)


def save_state(path: Path, state: Any) -> None:
    """Write tensors and plain values in dicts and lists to `path`, whole or not at all."""
    import torch

    with atomic_file(path) as stream:
        torch.save(state, stream)


def load_state(path: Path) -> Any:
    """Return what `save_state` wrote, on the CPU, or None if there is nothing that can be read."""
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():  # torch itself does not compare the checksums it wrote
                return None
        return torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGE:
        return None  # none yet, or damaged by a failing disk: start again
