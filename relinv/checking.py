"""Values checked by pydantic; error sentences name the parameter, its value, the file, and what pydantic says of it."""

from __future__ import annotations

import datetime
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from relinv.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import TypeForm

T = TypeVar("T")
UNKNOWN = "unknown_name"  # the kind of a problem whose context holds such a name, see `Settings`
SECTION = "it must be a section of named values"
# By kind of problem, in place of pydantic's words that name Python's classes.
WORDS = {"dataclass_type": SECTION, "dict_type": SECTION, "model_type": SECTION,
         "bool_type": "it must be true or false", "path_type": "it must be a path",
         "unexpected_keyword_argument": "no such name is known"}  # fmt: skip
SUBJECT = re.compile("^(Input|String|List|Dictionary)")  # what pydantic's sentences are about


class _AsYaml(reprlib.Repr):
    """Writes a value on one line as YAML does, cut short where it would fill the screen."""

    def __init__(self) -> None:
        super().__init__()
        self.maxdict = self.maxlist = 20
        self.maxstring = self.maxother = 200

    def repr_NoneType(self, value: None, level: int) -> str:  # noqa: N802  # reprlib asks for it by the type's name
        """Return YAML's null."""
        return "null"

    def repr_bool(self, value: bool, level: int) -> str:
        """Return true or false."""
        return str(value).lower()

    def repr_date(self, value: datetime.date, level: int) -> str:
        """Return a day as 2026-01-31."""
        return str(value)


def parse(kind: TypeForm[T], values: Any, where: str, file: Path | str = "params.yaml") -> T:
    """Return `values` checked as a `kind` (a pydantic model or any annotated type).

    `where` is the dotted name of the values in `file`, "" for the whole file. Raises UserError with one
    sentence per problem: dotted name, value, file, what is wrong.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise UserError("\n".join(_sentence(problem, where, file) for problem in error.errors())) from None


def _sentence(problem: Mapping[str, Any], where: str, file: Path | str) -> str:
    """Return one pydantic problem as one sentence."""
    place = where, *problem["loc"], problem.get("ctx", {}).get(UNKNOWN, "")
    name = ".".join(str(part) for part in place if part not in ("", "[key]"))
    if problem["type"] == UNKNOWN:
        return f"{problem['msg']} It stands in {file} as '{name}'."
    if problem["type"] == "missing":
        return f"Parameter '{name}' is missing from {file}: add it."
    if problem["loc"][-1:] == ("[key]",):
        return f"The name of '{name}' in {file} is not allowed: {_words(problem)}."
    subject = f"Parameter '{name}'" if name else "The content"
    return f"{subject} is {_AsYaml().repr(problem['input'])} in {file}: {_words(problem)}."


def _words(problem: Mapping[str, Any]) -> str:
    """Return what is wrong with a value, to stand within a sentence."""
    if problem["type"] == "value_error":  # of a validator of ours
        return str(problem["ctx"]["error"])
    own = SUBJECT.sub("it", problem["msg"]).replace("should", "must").replace(" after validation", "")
    return WORDS.get(problem["type"], own)
