"""The report's data, read from the stages' results for the relations and methods in params."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import Field

from relinv.benchmark import Benchmark, load_benchmark
from relinv.checking import parse
from relinv.diffusion.concept import read_metadata
from relinv.errors import UserError, unknown
from relinv.exemplars import ExemplarSet, read_exemplars
from relinv.files import read_json
from relinv.fingerprint import judge_fingerprint
from relinv.params import OF_ALL_METHODS, Params, Presets
from relinv.plugins import plugin_names
from relinv.report.rows import read_arms, with_exemplar_pairs
from relinv.results import FOLDERS, Judged, read_judged, read_verdict
from relinv.scoring import JUDGE
from relinv.settings import BaseSettings, JudgeSettings, ReportSettings

SECTIONS = ("exemplars", "validate", "invert", "generate", "score")  # printed beside the base, relations and methods
MAKE = "run `dvc repro` to make it"

Arm = tuple[str, str]  # relation, method
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]  # a judge's accuracy, or a number of scenes


@dataclass(frozen=True)
class Run:
    """The results of one run, in the order of params: score rows, and what each arm came from."""

    relations: list[str]
    methods: list[str]
    benchmark: Benchmark
    settings: ReportSettings
    parameters: dict[str, Any]  # every section that determines the numbers, nested as in params.yaml
    rows: pd.DataFrame
    exemplars: dict[str, ExemplarSet]
    warnings: dict[str, list[str]]
    concepts: dict[Arm, Mapping[str, Any]]
    losses: dict[Arm, pd.DataFrame]  # arms that trained: step, then one column per loss term
    images: Path
    judge: dict[str, Any]  # name, vqa (the model for VQAScore, or None), fingerprint, scenes, accuracy ({} if unknown)
    judged: dict[str, Judged]  # how well it reads each relation's exemplars

    @property
    def subject(self) -> str:
        """Return the method whose lead over each other method is told."""
        return self.settings.subject if self.settings.subject in self.methods else self.methods[-1]


def collect(root: Path, params: Params) -> Run:
    """Return the run whose results lie below `root`; UserError names what is missing."""
    folders = {stage: Path(root) / folder for stage, folder in FOLDERS.items()}
    relations, methods, settings = params.relations(), params.methods(), params.section("report", ReportSettings)
    if settings.subject not in (known := plugin_names("relinv.methods")):
        raise unknown("method", settings.subject, known)
    arms = [(relation, method) for relation in relations for method in methods]
    concepts = {arm: folders["invert"] / arm[0] / arm[1] for arm in arms}
    base = params.section(f"bases.{params.base()}", BaseSettings)
    sets = {relation: read_exemplars(folders["fetch"] / relation) for relation in relations}
    judge, rows = judge_facts(Path(root), base.judge), read_arms(folders["score"], relations, methods)
    judged = {name: read_judged(folders["judge"] / f"{name}.json", MAKE) for name in relations}
    _require_scored_by(judge, rows, judged)
    return Run(
        relations=relations,
        methods=methods,
        benchmark=load_benchmark(Path(root) / base.benchmark, *(folders["fetch"] / relation for relation in relations)),
        settings=settings,
        parameters=used_parameters(params),
        rows=with_exemplar_pairs(rows, sets),
        exemplars=sets,
        warnings={name: read_verdict(folders["validate"] / f"{name}.json", MAKE).warnings for name in relations},
        concepts={arm: read_metadata(folder, MAKE) for arm, folder in concepts.items()},
        losses={
            arm: read_losses(folder / "losses.csv")
            for arm, folder in concepts.items()
            if (folder / "losses.csv").is_file()
        },
        images=folders["generate"],
        judge=judge,
        judged=judged,
    )


def used_parameters(params: Params) -> dict[str, Any]:
    """Return the parameters that determine the numbers, of the base and the methods in use only.

    A method's are those in force, including what a preset changes.
    """
    base = params.base()
    entry = params.section(f"bases.{base}", dict[str, Any])
    used: dict[str, Any] = {
        "base": base,
        "bases": {base: entry},
        "relations": params.relations(),
        "methods": params.methods(),
    }
    used |= {name: params.section(name, dict[str, Any]) for name in SECTIONS}
    invert, presets, preset = used["invert"], params.section("presets", Presets), params.preset() or ""
    used["invert"] = {key: value for key, value in invert.items() if key in OF_ALL_METHODS} | {
        method: (invert.get(method) or {}) | presets.get(method, {}).get(preset, {}) for method in used["methods"]
    }
    return used | {"report": params.section("report", dict[str, Any])}


def read_losses(path: Path) -> pd.DataFrame:
    """Return the loss curve of an inversion: `step`, then one column per term; UserError if it is damaged."""
    try:
        losses = pd.read_csv(path).astype(float)
    except ValueError as error:
        raise UserError(f"The losses '{path}' are damaged ({error}): delete them and run `dvc repro`.") from None
    if "step" not in losses.columns or losses.empty:
        raise UserError(f"The losses '{path}' hold no steps: delete them and run `dvc repro`.")
    return losses


def judge_facts(root: Path, settings: JudgeSettings) -> dict[str, Any]:
    """Return which judge scored, and, if its folder says, its accuracy on held-out real scenes and their number."""
    file = root / settings.model / "accuracy.json"
    accuracy = parse(dict[str, NonNegative], read_json(file, "judge's accuracy"), "", file) if file.is_file() else {}
    return {
        "name": settings.name,
        "vqa": settings.vqa and settings.vqa.model,
        "fingerprint": judge_fingerprint(settings, root),
        "scenes": int(accuracy.pop("scenes", 0)) or None,
        "accuracy": accuracy,
    }


def _require_scored_by(judge: Mapping[str, Any], rows: pd.DataFrame, judged: Mapping[str, Judged]) -> None:
    """Raise UserError if scores say that another judge gave them: DVC does not watch every judge's folder."""
    arms = rows[["relation", "method", JUDGE]].drop_duplicates().itertuples(index=False)
    found = [(f"'{relation}' by '{method}'", by) for relation, method, by in arms]
    found += [(f"the exemplars of '{relation}'", of.judge) for relation, of in judged.items()]
    others = [what for what, by in found if by not in ("", judge["fingerprint"])]  # "": by an earlier version
    if others:
        raise UserError(
            f"The scores of {others[0]} are by another judge than '{judge['name']}' is now: change the revision of "
            "the base's judge in params.yaml, and run `dvc repro`."
        )
