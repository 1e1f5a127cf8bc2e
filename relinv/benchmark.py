"""The benchmark: relations, each with a grid of scenarios, which are phrases "HEAD words TAIL" to draw."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from relinv.checking import parse
from relinv.errors import UserError, unknown
from relinv.files import read_yaml
from relinv.settings import Distinct, Name, Pairs, Seed, Settings

ENTRY = "relation.yaml"  # beside the pictures of a user's own relation: its entry, as in a benchmark file


def _single_spaced(text: str) -> str:
    return " ".join(text.split())


# what tokenizers do not tell apart must not be two: one phrase would compete with itself when images are scored
Words = Annotated[str, AfterValidator(_single_spaced)]


class Split(Settings):
    """A share of all (head, relation, tail) triplets, picked by a seeded hash."""

    fraction: Annotated[float, Field(ge=0, le=1)]
    seed: Seed

    def holds(self, head: str, relation: str, tail: str) -> bool:
        """Return whether the triplet belongs to the share; every machine gives the same answer.

        The order of the two entities does not matter: a share contains both orders of a pair or neither.
        """
        first, second = sorted((head, tail))
        digest = hashlib.sha256(f"{self.seed}|{relation}|{first}|{second}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.fraction * 2**64


class _RelationEntry(Settings):
    words: Annotated[Words, StringConstraints(strip_whitespace=True, min_length=1)]
    asymmetric: bool
    heads: Distinct[Words]
    tails: Distinct[Words]


class _BenchmarkFile(Settings):
    name: str
    held_out: Split | None
    validation: Split
    relations: dict[Name, _RelationEntry]


@dataclass(frozen=True)
class Relation:
    """A relation: its name in files, its plain words in prompts, and the entities on either side."""

    name: str
    words: str
    asymmetric: bool  # "cat inside box" is not "box inside cat", while "cat hugging dog" is "dog hugging cat"
    heads: tuple[str, ...]
    tails: tuple[str, ...]
    own: bool = False  # added by the user; it is unknown whether the base has seen it

    def has_words_of(self, other: Relation) -> bool:
        """Return whether both say the same to a judge, which folds case."""
        return self.words.casefold() == other.words.casefold()

    def phrase(self, head: str, tail: str) -> str:
        """Return the plain words of a scene, as in "cat inside box"."""
        return f"{head} {self.words} {tail}".strip()


@dataclass(frozen=True)
class Scenario:
    """One cell of a relation's grid.

    held_out: whether the base was trained without it; None if the base's training set is not known.
    validation: whether settings may be chosen on it; results are then reported on the others.
    """

    relation: str
    index: int
    head: str
    tail: str
    held_out: bool | None
    validation: bool


@dataclass(frozen=True)
class Benchmark:
    """All relations of a benchmark file, by name and in its order."""

    name: str
    relations: dict[str, Relation]
    held_out: Split | None
    validation: Split

    def relation(self, name: str) -> Relation:
        """Return one relation; UserError with the closest name if there is none of that name."""
        if name not in self.relations:
            raise unknown_relation(name, self.relations)
        return self.relations[name]

    def is_held_out(self, head: str, relation: str, tail: str) -> bool:
        """Return whether the base is known to have been trained without the triplet."""
        return self.held_out is not None and self.held_out.holds(head, relation, tail)

    def scenarios(self, relation_name: str, pairs: Pairs = "all") -> list[Scenario]:
        """Return a relation's grid, or a part of it, row by row: the first head with every tail, then the next head."""
        relation = self.relation(relation_name)
        cells = [(head, tail) for head in relation.heads for tail in relation.tails]
        held_out = None if relation.own else self.held_out
        grid = [
            Scenario(
                relation_name, index, head, tail,
                held_out=None if held_out is None else held_out.holds(head, relation_name, tail),
                validation=self.validation.holds(head, relation_name, tail),
            )
            for index, (head, tail) in enumerate(cells)
        ]  # fmt: skip
        return [cell for cell in grid if pairs == "all" or cell.validation == (pairs == "validation")]


def unknown_relation(name: str, available: Iterable[str]) -> UserError:
    """Return the error for a relation that is not among `available`."""
    told = unknown("relation", name, available)
    return UserError(f"{told} For one of your own: `relinv new {name} PICTURES`, `python -m stages.fetch {name}`.")


def load_benchmark(path: Path | str, *folders: Path) -> Benchmark:
    """Return the benchmark in a YAML file, plus the user's own relations among `folders` of exemplars.

    A folder is a user's own relation if it holds a relation.yaml. Raises UserError if a file is missing or malformed,
    or if the benchmark itself has a relation of that name.
    """
    content = parse(_BenchmarkFile, read_yaml(Path(path), "benchmark", "restore it, or correct params.yaml"), "", path)
    relations = {name: _relation(name, entry) for name, entry in content.relations.items()}
    for file in (folder / ENTRY for folder in folders):
        if not file.is_file():
            continue
        name = file.parent.name
        if name in relations:
            raise UserError(f"'{name}' stands both in {path} and in {file}: remove it from one of them.")
        relations[name] = read_own_relation(file)
    return Benchmark(content.name, relations, content.held_out, content.validation)


def read_own_relation(file: Path) -> Relation:
    """Return the relation in a relation.yaml, named after its folder; UserError if the file is malformed."""
    return _relation(file.parent.name, parse(_RelationEntry, read_yaml(file, "relation") or {}, "", file), own=True)


def _relation(name: str, entry: _RelationEntry, own: bool = False) -> Relation:
    return Relation(name, entry.words, entry.asymmetric, tuple(entry.heads), tuple(entry.tails), own)
