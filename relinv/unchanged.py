"""Whether code and parameters are still those a stage began with: DVC records those at its end as the result's."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from relinv.errors import UserError
from relinv.files import read_yaml, sha256_file
from relinv.params import Params

PACKAGE = Path(__file__).parent
DATA = ".yaml"  # the suffix of files that modules read when they are imported


def _hash(path: Path) -> str | None:
    """Return the SHA-256 of a file, or None if it cannot be read, as a link of an editor's or what was removed."""
    try:
        return sha256_file(path)
    except OSError:
        return None


def code_in(package: Path) -> Mapping[Path, str | None]:
    """Return the hash of each file of code in a package."""
    return {path: _hash(path) for path in sorted(package.rglob("*")) if path.suffix in {".py", DATA}}


AT_START = code_in(PACKAGE)  # as this process imports it


def require_unchanged(params: Params, stage: str, method: str = "") -> None:
    """Raise UserError if what a stage read of its parameters, or the code it has loaded, has changed meanwhile.

    A stage's last act, because DVC then records the result as that of the parameters and the code it finds. Code on
    which dvc.yaml does not let the stage depend may change.
    """
    params.require_unchanged()
    pipeline = read_yaml(PACKAGE.parent / "dvc.yaml", "pipeline")
    named = {PACKAGE.parent / dep.replace("${item.method}", method) for dep in pipeline["stages"][stage]["deps"]}
    loaded = {getattr(module, "__file__", None) for module in tuple(sys.modules.values())}
    used = [path for path in AT_START if named & {path, *path.parents} and (str(path) in loaded or path.suffix == DATA)]
    if changed := [path.relative_to(PACKAGE.parent).as_posix() for path in used if _hash(path) != AT_START[path]]:
        raise UserError(
            f"Code was changed while this ran, so the result is not that of what is there now: {', '.join(changed)}. "
            "Put it back, or leave it, and run the same command again."
        )
