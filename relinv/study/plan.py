"""What a study runs: its arms times its seeds, each a set of parameter overrides and an experiment's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from relinv.checking import parse
from relinv.errors import UserError, unknown, within
from relinv.files import is_visible, read_yaml, sha256_file, sha256_files, sha256_json
from relinv.overrides import require_edits_take_effect
from relinv.params import MAIN, OF_ALL_METHODS, Params, flatten
from relinv.plugins import find_plugin
from relinv.preflight import check_params
from relinv.report.rows import READINGS
from relinv.report.tables import HEADLINE
from relinv.settings import Distinct, Name, Names, Seed, Settings

METHOD = "${item.method}"  # in dvc.yaml: each of the run's methods


class Contrast(Settings):
    """A paired difference, left − right; either side is "arm/method"."""

    title: str
    left: Annotated[str, Field(pattern=r"^\w+/\w+$")]
    right: Annotated[str, Field(pattern=r"^\w+/\w+$")]


class Plan(Settings):
    """A study: each arm's overrides of parameters, run once per seed, with the seed put into `seeded`.

    common: overrides that every arm starts from. metrics: what is told of each arm; the verdicts are about the first.
    reports: arms whose report.html (of their first seed) is kept, each with the relations whose grid of pictures is
    kept beside it.
    """

    common: dict[str, Any]
    seeds: Distinct[Seed]
    seeded: Annotated[list[str], Field(min_length=1)]
    arms: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)]
    contrasts: list[Contrast]
    metrics: Names = Field(default_factory=lambda: list(HEADLINE))
    reports: dict[Name, list[Name]] = Field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One experiment of a study: an arm under one seed. `name` changes with anything that decides its scores."""

    arm: str
    seed: int
    overrides: dict[str, Any]
    name: str
    work: int  # inversions to make; a trial's time is roughly proportional to it
    judge: str  # what scores


def load_plan(path: Path) -> Plan:
    """Return the plan in a YAML file.

    Raises UserError if it is missing, names an unknown arm or metric, has two contrasts of one title, or sets what is
    seeded.
    """
    plan = parse(Plan, read_yaml(path, "study plan", "write it, or correct its name"), "", path)
    titles = [contrast.title for contrast in plan.contrasts]
    for contrast in plan.contrasts:
        if titles.count(contrast.title) > 1:
            raise UserError(f"Two contrasts of {path} are titled '{contrast.title}': rename one.")
        for side in (contrast.left, contrast.right):
            arm = side.split("/")[0]
            if arm not in plan.arms:
                raise unknown("arm", arm, plan.arms, f"contrast '{contrast.title}' of {path}")
    places = {"common": plan.common} | {f"arms.{arm}": changes for arm, changes in plan.arms.items()}
    for place, overrides in places.items():
        if seeded := flatten(overrides).keys() & {*plan.seeded}:
            raise UserError(
                f"'{min(seeded)}' in '{place}' of {path} would be overwritten by each seed: take it out there, or out "
                "of 'seeded'."
            )
    for arm in plan.reports:
        if arm not in plan.arms:
            raise unknown("arm", arm, plan.arms, f"reports of {path}")
    for metric in plan.metrics:
        if metric not in READINGS:
            raise unknown("metric", metric, READINGS, str(path))
    return plan


def trials(root: Path, plan: Plan) -> list[Trial]:
    """Return the plan's trials, arms in the plan's order, seeds within each.

    Raises UserError for a parameter that does not exist or that changes nothing, because a preset decides, and for a
    contrast's method or a report's relation that is not in its arm.
    """
    values, dependencies = read_yaml(root / MAIN, "parameter file"), _Dependencies(root)
    planned = []
    for arm, changes in plan.arms.items():
        with within(f"Arm '{arm}' of the study"):
            for seed in plan.seeds:
                overrides = plan.common | changes | dict.fromkeys(plan.seeded, seed)
                planned.append(_trial(arm, seed, overrides, values, dependencies))
    _require_known(plan, values)
    return planned


def check_trials(root: Path, planned: Sequence[Trial]) -> None:
    """Raise UserError, which names the arm, if a trial's parameters are not such as `reproduce` runs."""
    values = read_yaml(root / MAIN, "parameter file")
    for trial in planned:
        with within(f"Arm '{trial.arm}' of the study"):
            params = Params(overridden(values, trial.overrides), root / MAIN)
            check_params(params)
            require_edits_take_effect(params, params.methods())


def _require_known(plan: Plan, values: Mapping[str, Any]) -> None:
    """Raise UserError for a contrast's method or a report's relation that is not in its arm."""
    arms = {arm: overridden(values, plan.common | changes) for arm, changes in plan.arms.items()}
    for contrast in plan.contrasts:
        for side in (contrast.left, contrast.right):
            arm, method = side.split("/")
            if method not in (methods := arms[arm]["methods"]):
                with within(f"Arm '{arm}' of the study"):
                    for name in methods:
                        find_plugin("relinv.methods", name)  # one misspelt there would be the cause
                raise unknown("method", method, methods, f"arm '{arm}', which contrast '{contrast.title}' names")
    for arm, pictured in plan.reports.items():
        for relation in pictured:
            if relation not in (relations := arms[arm]["relations"]):
                raise unknown("relation", relation, relations, f"reports of arm '{arm}'")


def overridden(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested parameters with `overrides`, {NAME: value}, applied.

    As DVC does it, a section's new values are added to those it has. Raises UserError for a parameter that does not
    exist.
    """
    changed = deepcopy(dict(values))
    for name, value in overrides.items():
        *path, last = name.split(".")
        node: Any = changed
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            raise UserError(f"The study overrides '{name}', which {MAIN} does not have: correct its name.")
        node[last] = _merged(node[last], deepcopy(value))
    return changed


def _merged(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {name: _merged(old.get(name), value) for name, value in new.items()}
    return new


def _trial(
    arm: str, seed: int, overrides: dict[str, Any], values: Mapping[str, Any], dependencies: _Dependencies
) -> Trial:
    changed = overridden(values, overrides)
    params = Params(changed, Path(MAIN))
    params.require_effect(flatten(overrides))
    relations, methods = params.relations(), params.methods()
    facts = [_deciding(changed, params), dependencies.of(methods)]
    digest = sha256_json(facts, default=str)  # for a date, which `check_trials` refuses
    name = f"study-{arm.replace('_', '-')}-seed{seed}-{digest[:8]}"
    return Trial(arm, seed, overrides, name, len(relations) * len(methods), params.judge().name)


def _deciding(values: Mapping[str, Any], params: Params) -> dict[str, Any]:
    """Return the parameters that decide scores: without other bases, other methods, and the report's intervals."""
    kept, base = (*OF_ALL_METHODS, *params.methods()), params.base()
    deciding = {name: value for name, value in values.items() if name != "report"}
    deciding["bases"] = {base: values["bases"][base]}
    for section in ("invert", "presets"):
        of_methods = params.section(section, dict[str, Any])
        deciding[section] = {name: value for name, value in of_methods.items() if name in kept}
    return deciding


class _Dependencies:
    """What decides a trial's scores besides parameters, as dvc.yaml says: its stages up to the scores."""

    def __init__(self, root: Path) -> None:
        stages = read_yaml(root / "dvc.yaml")["stages"]
        self._root = root
        self._stages = {name: stage for name, stage in stages.items() if name not in ("judge", "report")}
        made = {_path(out) for stage in self._stages.values() for out in stage["outs"]}
        self._paths = {path for stage in self._stages.values() for path in stage["deps"]} - made
        self._known: dict[str, str] = {}  # hashes by path

    def of(self, methods: Sequence[str]) -> list[Any]:
        """Return the stages, and the hash of each file and folder they depend on with these methods."""
        paths = {path.replace(METHOD, method) for path in self._paths for method in methods}
        for path in paths - self._known.keys():
            if (self._root / path).exists():
                self._known[path] = self._hash(self._root / path)
        hashes = {path: self._known[path] for path in paths & self._known.keys()}
        return [self._stages, hashes]

    def _hash(self, path: Path) -> str:
        """Return a hash of a file, or of a folder without hidden files and what Python compiles."""
        if path.is_file():
            return sha256_file(path)
        names = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
        kept = [name.as_posix() for name in names if all(is_visible(part) for part in name.parts)]
        return sha256_files(path, sorted(name for name in kept if "__pycache__" not in name))


def _path(out: str | Mapping[str, Any]) -> str:
    return out if isinstance(out, str) else next(iter(out))
