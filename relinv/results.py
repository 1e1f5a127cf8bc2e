"""Where stages leave what they make, which command makes it if it is missing, and the benchmark they work on.

Also what stages find out about a relation's exemplars, as later ones read it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from relinv.benchmark import Benchmark, load_benchmark, unknown_relation
from relinv.checking import parse
from relinv.errors import UserError, told_as, unknown
from relinv.files import read_json
from relinv.params import Params, load_params
from relinv.plugins import plugin_names

FOLDERS = {
    "fetch": Path("data/relations"),
    "validate": Path("data/verdicts"),
    "invert": Path("data/concepts"),
    "generate": Path("data/images"),
    "score": Path("data/scores"),
    "judge": Path("data/judged"),
}
SCRATCH = Path(".scratch")  # git-ignored: what an unfinished stage left, and what is not to be fetched again

T = TypeVar("T")


@dataclass
class Verdict:
    """What validation found in a folder: errors stop the run, warnings go to the report."""

    relation: str
    images: int
    captions: int
    errors: list[str]
    warnings: list[str]

    @property
    def valid(self) -> bool:
        """Whether the folder may be learned from."""
        return not self.errors

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as plain values, `valid` among them."""
        return {**asdict(self), "valid": self.valid}


@dataclass(frozen=True)
class Judged:
    """In how many of a relation's exemplars a judge, and its vision-language model, find the relation they show."""

    pictures: int  # how many it was shown
    right: int  # how many of these are more like their caption in the relation's words than in any other's
    choices: int  # how many relations of the benchmark compete
    unread: int  # how many it was not shown, because it cannot read their caption whole
    vqa_right: int | None  # for how many VQAScore is highest with that caption; None: the judge names no model for it
    judge: str  # its fingerprint


def read_verdict(path: Path, remedy: str) -> Verdict:
    """Return the verdict that validation left; UserError, which says `remedy`, if it is missing or damaged."""
    return _read(Verdict, path, "verdict", remedy)


def read_judged(path: Path, remedy: str) -> Judged:
    """Return how well the judge reads a relation's exemplars; UserError as `read_verdict` raises it."""
    return _read(Judged, path, "judge's reading", remedy)


def _read(kind: type[T], path: Path, what: str, remedy: str) -> T:
    content = read_json(path, what, remedy)
    with told_as(f"The {what} '{path}' is damaged: delete it, and {remedy}."):
        return parse(kind, content, "", path)


def find_benchmark(params: Params, relation: str) -> Benchmark:
    """Return the benchmark of the base in use, and `relation` in it too if it is the user's own.

    Raises UserError if there is no such relation, before anything slow is done for it.
    """
    benchmark = load_benchmark(params.benchmark(), FOLDERS["fetch"] / relation)
    benchmark.relation(relation)
    return benchmark


def find_result(stage: str, relation: str, method: str) -> Path:
    """Return the folder that a stage left for a relation and method, below the working directory.

    Raises UserError if it is missing, with the closest relation's or method's name, or the command that makes it. An
    imported concept is stored as a method's would be, under a name of its own.
    """
    folder = FOLDERS[stage] / relation / method
    found = _folders_in(FOLDERS[stage] / relation)
    if method in found:  # a name with a slash is in no folder, while a path with it may well exist
        return folder
    benchmark = load_benchmark(load_params().benchmark(), FOLDERS["fetch"] / relation)
    if relation not in (relations := {*benchmark.relations, *_folders_in(FOLDERS[stage])}):
        raise unknown_relation(relation, relations)
    if method not in (methods := {*plugin_names("relinv.methods"), *found, *_folders_in(FOLDERS["invert"] / relation)}):
        raise unknown("method", method, methods)
    raise UserError(f"There is no '{folder}' yet: make it with `python -m stages.{stage} {relation} {method}`.")


def _folders_in(folder: Path) -> set[str]:
    """Return the names of the folders in a folder, none if it is missing; hidden ones are skipped."""
    return {path.name for path in folder.glob("[!.]*") if path.is_dir()}
