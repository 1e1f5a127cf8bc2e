"""Changes of parameters, as `dvc exp run --set-param` takes them: NAME=VALUE, written and applied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from relinv.checking import parse
from relinv.errors import UserError, reason
from relinv.files import parse_yaml, read_yaml
from relinv.params import ABSENT, MAIN, Params, flatten
from relinv.pipeline.repository import git


def as_override(name: str, value: Any) -> str:
    """Return a change of the parameter `name` as `dvc exp run --set-param` reads it.

    With ++, because hydra would refuse names that a section does not have yet.
    """
    return f"++{name}={_as_value(value)}"


def _as_value(value: Any) -> str:
    """Return a value as hydra reads it: null, true, numbers, "text", [a,b], {k:v}."""
    from hydra.core.override_parser.types import Quote, QuotedString

    match value:
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case str():
            return QuotedString(value.replace("${", r"\${"), Quote.double).with_quotes()  # no reference to a parameter
        case list():
            return f"[{','.join(map(_as_value, value))}]"
        case dict():
            return f"{{{','.join(f'{key}:{_as_value(each)}' for key, each in value.items())}}}"
    return str(value)


@contextmanager
def changed_params(root: Path, changes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Change parameters of the checkout at `root`, and change them back if the block raises an error.

    Yields what was changed, {NAME: value}. changes: as `dvc exp run --set-param` takes them, but of params.yaml alone.
    Raises UserError for one that cannot be made.
    """
    if not changes:
        yield {}
        return
    file = root / MAIN
    read_yaml(file, "parameter file")
    former = file.read_bytes()
    try:
        yield _change(file, changes)
    except BaseException:
        file.write_bytes(former)
        raise


def _change(file: Path, changes: Sequence[str]) -> dict[str, Any]:
    """Change parameters in `file`; return what was changed, {NAME: value}."""
    from dvc.exceptions import DvcException
    from dvc.utils.cli_parse import to_path_overrides
    from dvc.utils.hydra import apply_overrides, to_hydra_overrides
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from ruamel.yaml import YAMLError

    overrides = []
    for named, of_file in to_path_overrides(changes).items():
        if Path(named) != Path(file.name):
            raise UserError(f"'{named}:{of_file[0]}' names another file than {file.name}: write NAME=VALUE.")
        overrides += of_file
    try:
        parsed = to_hydra_overrides(overrides)
        if several := [each.input_line for each in parsed if each.is_sweep_override()]:
            raise UserError(
                f"'{several[0]}' gives several values: write a list in brackets, as in relations=[inside,on]."
            )
        apply_overrides(file, overrides)
        return {each.key_or_group: each.value() for each in parsed}
    except (DvcException, HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        told = reason(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        raise UserError(f"Parameters cannot be changed in '{file}': {told}") from error


def require_edits_take_effect(params: Params, methods: Iterable[str]) -> None:
    """Raise UserError if a parameter of `methods` was changed since the last commit and the preset in use sets it too.

    For example, `dvc exp run -S invert.reversion.steer_weight=0.1` with sd15 would learn the same again. Without git or
    a commit, no change is known.
    """
    if params.preset() is None:
        return
    where = f"{params.file.name} of the last commit"
    try:
        text = git(params.file.parent, "show", f"HEAD:./{params.file.name}")
        before = flatten(parse(dict[str, Any], parse_yaml(text, where), "", where))
    except (UserError, OSError):
        return
    sections = tuple(f"invert.{method}." for method in methods)
    now = flatten(read_yaml(params.file)).items()
    changed = [name for name, value in now if name.startswith(sections) and before.get(name, ABSENT) != value]
    try:
        params.require_effect(changed)
    except UserError as error:
        raise UserError(f"{error} If the change is meant for runs without this preset, commit it first.") from None
