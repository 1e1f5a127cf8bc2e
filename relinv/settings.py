"""Settings: what each section of params.yaml may hold, checked before any work starts."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from relinv.checking import UNKNOWN
from relinv.errors import UserError, unknown
from relinv.files import parse_yaml

Item = TypeVar("Item")


def _distinct(items: list[Item]) -> list[Item]:
    """Refuse items that are equal, or differ only in case: neither tokenizers nor some disks tell these apart."""
    if len({item.casefold() if isinstance(item, str) else item for item in items}) < len(items):
        raise ValueError("each item may appear only once")
    return items


Distinct = Annotated[list[Item], Field(min_length=1), AfterValidator(_distinct)]
NAME = r"^[a-z0-9_]{1,100}$"  # of relations and methods: they name folders, and DVC joins them with "-"
Name = Annotated[str, Field(pattern=NAME)]
Names = Distinct[Name]
Positive = Annotated[int, Field(ge=1)]
MOST_STEPS = 500  # of sampling: with nearly as many as the 1,000 of training, schedulers fail
SamplingSteps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
GuidanceScale = Annotated[float, Field(ge=0, le=50)]
Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
Place = Annotated[str, Field(min_length=1), AfterValidator(os.path.expanduser)]  # a folder, with ~ expanded, or an id
File = Annotated[Path, Field(strict=False)]  # named by text
Device = Annotated[str, Field(pattern=r"^(cpu|mps|cuda(:\d+)?)$")]

Pairs = Literal["all", "validation", "test"]
Precision = Literal["fp32", "bf16", "fp16"]
Scheduler = Literal["ddim", "pndm", "dpmpp"]


def require_name(name: str, what: str) -> None:
    """Raise UserError if `name` cannot name a relation or method in params.yaml; `what` says which of the two it is."""
    if not re.fullmatch(NAME, name):
        raise UserError(
            f"'{name}' cannot name a {what}: write up to 100 of a to z, 0 to 9 and _, such as shaking_hands."
        )
    if not isinstance(parse_yaml(name, "name"), str):  # in params.yaml, it would be a number, true or nothing
        raise UserError(f"'{name}' cannot name a {what}: YAML takes it for something else than a word; add letters.")


class Settings(BaseModel):
    """A section of parameters: no key is unknown, none without a default is missing, every value is in range.

    None changes later. Text, true and false are no numbers, and 120.0 is no integer.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _know_the_names(cls, values: Any) -> Any:
        """Refuse an unknown name, as pydantic itself does, but with the closest known one."""
        if isinstance(values, dict) and cls.model_config["extra"] == "forbid":
            for name in values:
                if name not in cls.model_fields:
                    said = str(unknown("parameter", str(name), cls.model_fields))
                    raise PydanticCustomError(UNKNOWN, "{said}", {"said": said, UNKNOWN: name})
        return values


class NetworkSettings(Settings):
    """A diffusion model: a diffusers folder or hub id, and how to run it.

    precision: not fp16, in which training would lose small gradients; drawing in fp16 is a setting of `sampling`.
    resolution: pixels per side. attention: sdpa is PyTorch's fused kernel, eager uses plain matrix products. compile:
    whether the UNet goes through torch.compile.
    """

    source: Place
    revision: str | None
    device: Device
    precision: Literal["fp32", "bf16"]
    resolution: Annotated[int, Field(ge=16, le=2048, multiple_of=8)]
    attention: Literal["sdpa", "eager"] = "sdpa"
    compile: bool = False


class Sampler(Settings):
    """How noise becomes an image; a guidance_scale of 1 or less is none."""

    steps: SamplingSteps
    guidance_scale: GuidanceScale
    scheduler: Scheduler


class TrainingSettings(Settings):
    """How a base is trained; drawing images does not use these settings.

    Two take less memory, and more time. gradient_checkpointing: whether activations are recomputed instead of kept.
    samples_per_pass: how many samples of a step go through the UNet at once, forward and backward, before the next
    ones; null: all of them. deterministic: whether a GPU learns the same to the last bit each time; if not, it may
    choose its kernels by speed and add gradients in any order. preview: how previews (`PreviewSettings`) are drawn, by
    default as suits Stable Diffusion.
    """

    gradient_checkpointing: bool = False
    samples_per_pass: Positive | None = None
    deterministic: bool = True
    preview: Sampler = Sampler(steps=30, guidance_scale=7.5, scheduler="ddim")


class ModelSettings(NetworkSettings, TrainingSettings):
    """All settings of a base's model: which it is, how it runs, and how it is trained."""

    precision: Precision  # type: ignore[assignment]  # wider than a network's: drawing may be in fp16


class VqaSettings(Settings):
    """The vision-language model of a judge, for VQAScore: a folder or hub id of one that transformers loads.

    revision: for a hub id, a commit; for a folder, any word, to be changed when its weights change.
    """

    model: Place
    revision: str | None = None
    precision: Precision


class JudgeSettings(Settings):
    """The CLIP model that scores: a local open_clip folder, or an open_clip name with its pretrained tag.

    revision: for a folder, any word, to be changed when its weights change: the scores are then made anew. vqa: a
    second judge, which answers questions about a picture, on the same device.
    """

    model: Place
    pretrained: str | None
    revision: str | None = None
    device: Device
    vqa: VqaSettings | None = None

    @property
    def name(self) -> str:
        """Return what to call it: its folder, or its name and tag."""
        return f"{self.model}/{self.pretrained}" if self.pretrained else self.model


class ExemplarSource(Settings):
    """Where a base's exemplars come from: a file in relinv/sources, and the folder or address it reads.

    manifest: a folder that keeps each relation's checksums, or none.
    """

    source: Name
    path: Place | None
    manifest: File | None

    def location(self) -> str:
        """Return the folder or address; UserError if there is none."""
        if not self.path:
            raise UserError(f"The base's exemplars have source '{self.source}' but no path: set it in params.yaml.")
        return self.path


class ExemplarSettings(Settings):
    """Which exemplars there are. set, seed: how they are rendered from the miniature's world.

    `shared` has one backdrop and tint in all ten, `varied` does not. count: how many pictures are kept, the first by
    file name, of any source; null: all.
    """

    set: Literal["shared", "varied"]
    seed: Seed
    count: Positive | None


class ValidateSettings(Settings):
    """What an exemplar folder must satisfy; sides in pixels.

    Two pictures count as nearly the same if their small copies differ on average by at most `duplicate_difference`
    levels (0 to 255).
    """

    minimum_images: Annotated[int, Field(ge=1, le=1000)]
    minimum_side: Annotated[int, Field(ge=16, le=4096)]
    duplicate_difference: Annotated[float, Field(ge=0, le=64)]


class PreviewSettings(Settings):
    """Pictures drawn during training: `count` times, evenly spaced, the last at the end, whatever the number of steps.

    A training that stops early has fewer. Each time, one picture is drawn per prompt; `<r>` in a prompt stands for the
    relation. How they are drawn is a setting of the base (`TrainingSettings.preview`).
    """

    count: Positive
    prompts: list[str]
    seed: Seed


class ScenarioSettings(Settings):
    """What is drawn: all scenarios, validation ones (settings may be chosen on these), or test ones (the others).

    images: how many of each scenario. seed: of the noise. adapters: options, by adapter name, that override those
    stored with what was learned.
    """

    pairs: Pairs
    images: Annotated[int, Field(ge=1, le=1000)] = 1
    seed: Seed
    adapters: dict[Name, dict[str, Any]] = {}


class SamplingSettings(Sampler):
    """How a base draws; batch_size counts images and affects an image only by rounding."""

    batch_size: Positive


class DrawingSettings(SamplingSettings):
    """How a base draws, and in which precision; null: the model's own precision, which training uses too."""

    precision: Precision | None


class BaseSettings(Settings):
    """One entry of `bases`: a model, how it is trained and draws, its benchmark, its exemplars, its judge.

    preset: the one that applies if `invert.preset` names none.
    """

    benchmark: File
    exemplars: ExemplarSource
    preset: Name | None
    model: NetworkSettings
    training: TrainingSettings
    sampling: DrawingSettings
    judge: JudgeSettings


class GenerateSettings(SamplingSettings, ScenarioSettings):
    """All settings of generation: which scenarios are drawn, and how."""


class ScoreSettings(Settings):
    """How images are scored; batch_size counts images and affects a score only by rounding."""

    batch_size: Positive


class ReportSettings(Settings):
    """The report's intervals: the number of bootstrap resamples, their seed, and the level the intervals cover.

    subject: the method whose lead over each other method is told; if it did not run, the last one's is.
    """

    subject: Name
    resamples: Annotated[int, Field(ge=100, le=20_000)]  # of 1,000 scenarios, 20,000 take 0.5 GB of memory
    seed: Seed
    level: Annotated[float, Field(gt=0, lt=1)]
