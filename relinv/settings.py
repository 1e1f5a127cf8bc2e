"""Parameters: what each section of params.yaml may hold, read and checked before any work starts."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from relinv.checking import parse as parse  # every reader of settings needs it, so it is offered here too
from relinv.errors import UserError, unknown
from relinv.files import read_yaml
from relinv.plugins import plugin_names

T = TypeVar("T")
PRESETS = "presets.yaml"  # beside params.yaml
SECTIONS = ("base", "bases", "relations", "methods", "exemplars", "validate", "invert", "generate", "score", "report")
OF_ALL_METHODS = ("seed", "preview", "preset")  # in `invert`, beside a section for each method


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("an item stands twice")
    return names


NAME = r"^[a-z0-9_]{1,100}$"  # of relations and methods: they name folders, and DVC joins them with "-"
Name = Annotated[str, Field(pattern=NAME)]
Names = Annotated[
    list[Name], Field(min_length=1), AfterValidator(_distinct), Field(json_schema_extra={"uniqueItems": True})
]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Device = Annotated[str, Field(pattern=r"^(cpu|mps|cuda(:\d+)?)$")]

Pairs = Literal["all", "validation", "test"]


def require_name(name: str, what: str) -> None:
    """Raise UserError where `name` cannot stand in params.yaml as a relation's or method's; `what` it is to name."""
    if not re.fullmatch(NAME, name):
        raise UserError(
            f"'{name}' cannot name a {what}: write up to 100 of a to z, 0 to 9 and _, such as shaking_hands."
        )


class Settings(BaseModel):
    """A section of parameters: every key known and present, every value in range, none changed later."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class NetworkSettings(Settings):
    """A diffusion model: a diffusers folder or hub id, and how to run it. Resolution in pixels a side.

    precision: fp16 is for drawing; training needs bf16 or fp32. attention: sdpa is PyTorch's fused kernel, eager the
    plain products of matrices, sliced one head of the UNet after another in less memory. compile: whether the UNet goes
    through torch.compile.
    """

    source: Annotated[str, Field(min_length=1)]
    revision: str | None
    device: Device
    precision: Literal["fp32", "bf16", "fp16"]
    resolution: Annotated[int, Field(ge=16, le=2048, multiple_of=8)]
    attention: Literal["sdpa", "eager", "sliced"] = "sdpa"
    compile: bool = False


class TrainingSettings(Settings):
    """How a base is trained in less memory, in more time; nothing that is drawn depends on it.

    gradient_checkpointing: whether activations are computed twice, not kept. samples_per_pass: how many samples of a
    step go through the UNet at once, each pass computed a second time for its gradient; null: all of them, once.
    """

    gradient_checkpointing: bool = False
    samples_per_pass: Positive | None = None


class ModelSettings(NetworkSettings, TrainingSettings):
    """All that a base is told: which model it is, how it runs, and how it is trained."""


class JudgeSettings(Settings):
    """The CLIP model that scores: a local open_clip folder, or an open_clip name with its pretrained tag."""

    model: Annotated[str, Field(min_length=1)]
    pretrained: str | None
    device: Device


class ExemplarSource(Settings):
    """Where a base's exemplars come from: a file in relinv/sources, and the folder or address it reads.

    manifest: a folder that keeps each relation's checksums, or none.
    """

    source: Name
    path: str | None
    manifest: Path | None

    def location(self) -> str:
        """Return the folder or address; UserError where there is none."""
        if not self.path:
            raise UserError(f"The base's exemplars have source '{self.source}' but no path: set it in params.yaml.")
        return self.path


class BaseSettings(Settings):
    """One entry of `bases`: a model, how it is trained and draws, its benchmark, its exemplars, its judge.

    preset: the one of `presets` that holds where `invert.preset` names none.
    """

    benchmark: Path
    exemplars: ExemplarSource
    preset: Name | None
    model: NetworkSettings
    training: TrainingSettings
    sampling: SamplingSettings
    judge: JudgeSettings


class ExemplarSettings(Settings):
    """Which exemplar pictures are rendered: `shared` has one backdrop and tint in all ten, `varied` has not."""

    set: Literal["shared", "varied"]
    seed: Seed


class ValidateSettings(Settings):
    """What an exemplar folder must satisfy; sides in pixels.

    Two pictures whose small copies differ by at most `duplicate_difference` levels of 255 on the mean count
    as nearly the same.
    """

    minimum_images: Annotated[int, Field(ge=1, le=1000)]
    minimum_side: Annotated[int, Field(ge=16, le=4096)]
    duplicate_difference: Annotated[float, Field(ge=0, le=64)]


class PreviewSettings(Settings):
    """Pictures along the way: `count` times, evenly apart, the last time at the end, however many steps there are.

    Each time one a prompt, `<r>` standing for the relation.
    """

    count: Positive
    prompts: list[str]
    steps: Annotated[int, Field(ge=1, le=1000)]
    guidance_scale: Annotated[float, Field(ge=0, le=50)]
    seed: Seed


class ScenarioSettings(Settings):
    """What is drawn: all scenarios, those by which settings may be chosen, or the test scenarios, which are the others.

    seed: of the noise. adapters: by the names of adapters, options of theirs other than what was learned says.
    """

    pairs: Pairs
    seed: Seed
    adapters: dict[Name, dict[str, Any]] = {}


class SamplingSettings(Settings):
    """How a base draws; batch_size counts images and changes an image by rounding alone."""

    steps: Annotated[int, Field(ge=1, le=1000)]
    guidance_scale: Annotated[float, Field(ge=0, le=50)]
    scheduler: Literal["ddim", "pndm", "dpmpp"]
    batch_size: Positive


class GenerateSettings(SamplingSettings, ScenarioSettings):
    """All that generation is told: which scenarios, and how they are drawn."""


class ScoreSettings(Settings):
    """How images are scored; batch_size counts images and changes a score by rounding alone."""

    batch_size: Positive


class ReportSettings(Settings):
    """The report's intervals: bootstrap resamples, their seed, and the level they cover."""

    resamples: Annotated[int, Field(ge=100, le=1_000_000)]
    seed: Seed
    level: Annotated[float, Field(gt=0, lt=1)]


class Params:
    """The parameters of one run; a section is checked when it is read, and `sections_read` remembers which.

    DVC re-runs a stage when a section it names changes, so a test compares `sections_read` with dvc.yaml.
    """

    def __init__(self, values: Mapping[str, Any], file: Path) -> None:
        self._values = values
        self.file = file
        self.sections_read: set[str] = set()

    def section(self, name: str, kind: type[T]) -> T:
        """Return what stands at a dotted name ("generate", "invert.seed"), checked as a `kind`.

        Raises UserError where it is missing or not as `kind` wants it.
        """
        node: Any = self._values
        for part in name.split("."):
            if not isinstance(node, Mapping) or part not in node:
                raise UserError(f"Parameter '{name}' is missing from {self.file}: add it.")
            node = node[part]
        self.sections_read.add(name)
        return parse(kind, node, name, self.file)

    def names(self, section: str) -> list[str]:
        """Return the names in a section, "" for the whole file; none where it is no section."""
        node: Any = self._values
        for part in section.split(".") if section else ():
            node = node.get(part) if isinstance(node, Mapping) else None
        return [str(name) for name in node] if isinstance(node, Mapping) else []

    def require_known(self, section: str, known: Collection[str]) -> None:
        """Raise UserError, with the closest name, where a section, "" for the whole file, has one not `known`."""
        for name in self.names(section):
            if name not in known:
                place = f"{section}.{name}" if section else name
                raise UserError(f"{unknown('parameter', name, known)} It stands in {self.file} as '{place}'.")

    def method(self, name: str, kind: type[T]) -> T:
        """Return the section `invert.NAME`, with what the preset in force changes in it, checked as a `kind`.

        Raises UserError where either is missing or not as `kind` wants it, and for an unknown preset.
        """
        values = self.section(f"invert.{name}", dict[str, Any])
        chosen = self.section("invert.preset", Name | None)
        preset = chosen or self.section(f"bases.{self.base()}.preset", Name | None)
        if preset is None:
            return parse(kind, values, f"invert.{name}", self.file)
        file = self.file.with_name(PRESETS)
        changes = load_preset(preset, file)
        if values and name not in changes:
            raise UserError(f"The preset '{preset}' says nothing of '{name}': add it to {file}, or set invert.preset.")
        return parse(kind, values | changes.get(name, {}), f"{preset}.{name}", file)

    def base(self) -> str:
        """Return the name of the base in use; UserError where `bases` holds no such entry."""
        base = self.section("base", str)
        bases = parse(dict[str, Any], self._values.get("bases"), "bases", self.file)
        if base not in bases:
            raise UserError(f"{unknown('base', base, bases)} It stands in {self.file} as 'base'.")
        return base

    def model(self) -> ModelSettings:
        """Return the diffusion model of the base in use, to draw with."""
        return ModelSettings(**self.section(f"bases.{self.base()}.model", NetworkSettings).model_dump())

    def trained_model(self) -> ModelSettings:
        """Return the diffusion model of the base in use, to train with."""
        training = self.section(f"bases.{self.base()}.training", TrainingSettings)
        return self.model().model_copy(update=training.model_dump())

    def judge(self) -> JudgeSettings:
        """Return the judge of the base in use."""
        return self.section(f"bases.{self.base()}.judge", JudgeSettings)

    def generation(self) -> GenerateSettings:
        """Return what is drawn, and how the base in use draws."""
        scenarios = self.section("generate", ScenarioSettings)
        sampling = self.section(f"bases.{self.base()}.sampling", SamplingSettings)
        return GenerateSettings(**scenarios.model_dump(), **sampling.model_dump())

    def exemplar_source(self) -> ExemplarSource:
        """Return where the exemplars of the base in use come from."""
        return self.section(f"bases.{self.base()}.exemplars", ExemplarSource)

    def benchmark(self) -> Path:
        """Return the benchmark file of the base in use."""
        return self.section(f"bases.{self.base()}.benchmark", Path)

    def relations(self) -> list[str]:
        """Return the names of the relations to work on."""
        return self.section("relations", Names)

    def methods(self) -> list[str]:
        """Return the names of the methods to compare."""
        return self.section("methods", Names)


def load_preset(name: str, file: Path) -> dict[str, dict[str, Any]]:
    """Return what a preset changes, by method; UserError with the closest name where `file` has no such preset."""
    presets = parse(dict[str, dict[str, dict[str, Any]]], read_yaml(file, "preset file"), "", file)
    if name not in presets:
        raise UserError(f"{unknown('preset', name, presets)} They stand in {file}.")
    return presets[name]


def read_params(file: Path) -> Params:
    """Return the parameters in `file`, of any names; UserError where it is missing, no YAML, or no mapping."""
    values = read_yaml(file, "parameter file")
    if not isinstance(values, Mapping):
        raise UserError(f"The parameter file '{file}' holds no named sections: restore it from git.")
    return Params(values, file)


def load_params(file: Path | str = "params.yaml") -> Params:
    """Return the pipeline's parameters in `file`; UserError as `read_params`, and for a section that nothing reads.

    What stands in a section is checked by the stage that reads it.
    """
    params = read_params(Path(file))
    params.require_known("", SECTIONS)
    params.require_known("invert", [*OF_ALL_METHODS, *plugin_names("relinv.methods")])
    for base in params.names("bases"):
        params.require_known(f"bases.{base}", BaseSettings.model_fields)
    return params
