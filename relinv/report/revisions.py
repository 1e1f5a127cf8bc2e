"""Files of another revision (a commit, a branch or a DVC experiment), read without checking it out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from relinv.checking import parse
from relinv.errors import UserError
from relinv.files import parse_yaml
from relinv.params import MAIN, Presets, flatten, preset_in_use
from relinv.report.rows import parse_rows, with_leakage

WORKSPACE = "workspace"  # the name for the files as they are here now
SCORES = "reports/scores.csv"


def read_at(root: Path, revision: str, path: str) -> bytes:
    """Return the content of `path` in a revision of the repository at `root`.

    Raises UserError if the revision is unknown or does not hold the file.
    """
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import SCMError
    from dvc_data.index.index import DataIndexDirError
    from scmrepo.exceptions import SCMError as GitError

    unknown = UserError(
        f"There is no revision '{revision}': name a commit, a branch, an experiment that `dvc exp list` shows, or "
        f"{WORKSPACE}."
    )
    if not revision:
        raise unknown  # DVC would read the workspace
    rev = None if revision == WORKSPACE else revision
    try:
        return DVCFileSystem(str(root), rev=rev).read_bytes(path)
    except (FileNotFoundError, DataIndexDirError):
        raise UserError(
            f"Revision '{revision}' holds no {path}: run `dvc repro` there and commit what it wrote."
        ) from None
    except (SCMError, GitError, DvcException, AttributeError):  # the last if it names a tree or a file
        raise unknown from None


def scores_at(root: Path, revision: str) -> pd.DataFrame:
    """Return the report's score rows of a revision, with leakage as it is measured now, whatever stands there."""
    return with_leakage(parse_rows(read_at(root, revision, SCORES), f"{SCORES} of {revision}"))


def params_at(root: Path, revision: str) -> dict[str, Any]:
    """Return the parameters of a revision, {dotted name: value}, of presets only the one in use, of its methods."""
    where = f"{MAIN} of {revision}"
    values = parse(dict[str, Any], parse_yaml(read_at(root, revision, MAIN).decode(), where), "", where)
    preset, presets = preset_in_use(values), parse(Presets, values.pop("presets", {}), "presets", where)
    methods = parse(list[str], values.get("methods"), "methods", where)
    used = {name: {preset: presets[name][preset]} for name in methods if preset in presets.get(name, {})}
    return flatten(values) | flatten(used, "presets.")
