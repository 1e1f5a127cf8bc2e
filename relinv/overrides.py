"""Changes of parameters, as `dvc exp run --set-param` takes them: [FILE:]NAME=VALUE, written and applied."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from relinv.errors import UserError, reason
from relinv.files import read_yaml


def as_override(name: str, value: Any) -> str:
    """Return a change of the parameter `name`, [FILE:]NAME, as `dvc exp run --set-param` reads it.

    With ++, because hydra would refuse names that a section does not have yet.
    """
    file, colon, dotted = name.rpartition(":")
    return f"{file}{colon}++{dotted}={_as_value(value)}"


def _as_value(value: Any) -> str:
    """Return a value as hydra reads it: null, true, numbers, 'text', [a,b], {k:v}."""
    from hydra.core.override_parser.types import Quote, QuotedString

    match value:
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case str():
            return QuotedString(value, Quote.single).with_quotes()
        case list():
            return f"[{','.join(map(_as_value, value))}]"
        case dict():
            return f"{{{','.join(f'{key}:{_as_value(each)}' for key, each in value.items())}}}"
    return str(value)


@contextmanager
def changed_params(root: Path, changes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Change parameters of the checkout at `root`, and change them back if the block raises an error.

    Yields what was changed, {FILE:NAME: value}. changes: as `dvc exp run --set-param` takes them, [FILE:]NAME=VALUE.
    Raises UserError for one that cannot be made.
    """
    from dvc.exceptions import DvcException
    from dvc.utils.cli_parse import to_path_overrides
    from dvc.utils.hydra import apply_overrides, to_hydra_overrides
    from omegaconf.errors import OmegaConfBaseException
    from ruamel.yaml import YAMLError

    by_file: dict[Path, list[str]] = {}
    for name, of_file in to_path_overrides(changes).items():
        by_file.setdefault(root / name, []).extend(of_file)
    former = {file: file.read_bytes() for file in by_file if file.is_file()}
    made: dict[str, Any] = {}
    try:
        for file, of_file in by_file.items():
            read_yaml(file, "parameter file")
            try:
                apply_overrides(file, of_file)
                place = os.path.relpath(file, root)
                made |= {f"{place}:{each.key_or_group}": each.value() for each in to_hydra_overrides(of_file)}
            except (DvcException, OmegaConfBaseException, YAMLError) as error:
                told = reason(error.__cause__ if isinstance(error.__cause__, Exception) else error)
                raise UserError(f"Parameters cannot be changed in '{file}': {told}") from error
        yield made
    except BaseException:
        for file, content in former.items():
            file.write_bytes(content)
        raise
