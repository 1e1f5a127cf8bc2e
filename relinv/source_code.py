"""The project's code while a stage runs: DVC records its result as that of the code it finds afterwards."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from relinv.files import is_visible, sha256_file

PACKAGE = Path(__file__).parent
DATA = ".yaml"  # the suffix of files that modules read when they are imported


@cache
def code_at_start() -> Mapping[Path, str]:
    """Return the SHA-256 of each file of the project's code, as it is when this is first called."""
    stages = PACKAGE.parent / "stages"
    found = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob(f"*{DATA}"), *stages.glob("*.py")]
    return {path: sha256_file(path) for path in sorted(found) if is_visible(path.name)}


def changed_code() -> list[str]:
    """Return the files of code that this process has loaded and that have changed since `code_at_start`, sorted."""
    loaded = {Path(file) for module in tuple(sys.modules.values()) if (file := getattr(module, "__file__", None))}
    used = {path: before for path, before in code_at_start().items() if path in loaded or path.suffix == DATA}
    changed = [path for path, before in used.items() if not path.is_file() or sha256_file(path) != before]
    return [path.relative_to(PACKAGE.parent).as_posix() for path in changed]
