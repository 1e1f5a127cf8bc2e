"""Shared by methods that learn UNet weights besides a token's row: two learning rates, and prior preservation."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from relinv.learning.losses import LossTerm, denoising
from relinv.learning.method import LossInputs, TrainingPicture
from relinv.learning.prior import class_prompts, prior_pictures
from relinv.learning.resolution_rows import ResolutionRowsMethod, ResolutionRowsSettings
from relinv.learning.token_row import Weight
from relinv.settings import GuidanceScale, Sampler, SamplingSteps

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from relinv.diffusion.adapter import ConceptAdapter
    from relinv.diffusion.bases import Base
    from relinv.exemplars import ExemplarSet


class UnetWeightsSettings(ResolutionRowsSettings):
    """How weights are learned besides the row, whose rate is learning_rate; weight_decay applies to both.

    prior_images: how many pictures of its own the base draws beforehand, in prior_steps at prior_guidance_scale; each
    step uses as many of them as of exemplars. 0: none, which saves half of each step.
    """

    weights_learning_rate: Annotated[float, Field(gt=0, le=10)]
    max_grad_norm: Annotated[float, Field(gt=0)] | None  # the norm that gradients are clipped to; null: no clipping
    prior_images: Annotated[int, Field(ge=0, le=10000)]
    prior_weight: Weight
    prior_steps: SamplingSteps
    prior_guidance_scale: GuidanceScale


class UnetWeightsMethod(ResolutionRowsMethod):
    """Learns the row or rows of `<r>` and the tensors of an adapter, which each subclass provides."""

    settings: UnetWeightsSettings

    def __init__(self, base: Base, words: str, settings: UnetWeightsSettings, exemplars: ExemplarSet) -> None:
        super().__init__(base, words, settings, exemplars)
        self.prior_batch_size = settings.batch_size if settings.prior_images else 0
        self.max_grad_norm = settings.max_grad_norm
        self.weights = self.weights_adapter()
        self.adapters = [*self.adapters, self.weights]

    def weights_adapter(self) -> ConceptAdapter:
        """Return the adapter with its initial weights; each method has its own."""
        raise NotImplementedError

    def groups(self) -> list[dict[str, Any]]:
        """Return the row, if it is learned, and the weights, each at its own learning rate."""
        settings, weights = self.settings, list(self.weights.tensors.values())
        rate, decay = settings.weights_learning_rate, settings.weight_decay
        return [*super().groups(), {"params": weights, "lr": rate, "weight_decay": decay}]

    def state(self) -> dict[str, torch.Tensor]:
        """Return the row, if it is learned, and the weights by name."""
        return {**super().state(), **self.weights.tensors}

    def training_pictures(self, scratch: Path) -> list[TrainingPicture]:
        """Return the exemplars and the prior pictures, which are kept below `scratch`."""
        settings = self.settings
        prompts = class_prompts(self.exemplars, self.words, settings.prior_images)
        sampler = Sampler(steps=settings.prior_steps, guidance_scale=settings.prior_guidance_scale, scheduler="dpmpp")
        prior = prior_pictures(self.base, prompts, sampler, scratch)
        return [*super().training_pictures(scratch), *prior]

    def losses(self, inputs: LossInputs) -> dict[str, LossTerm]:
        """Return the terms of the exemplars alone, and the denoising loss of the prior pictures as `prior`."""
        terms = super().losses(self.own(inputs))
        if self.prior_batch_size:
            prior = denoising(inputs.prediction[-self.prior_batch_size :], inputs.target[-self.prior_batch_size :])
            terms["prior"] = LossTerm(self.settings.prior_weight, prior)
        return terms

    def own(self, inputs: LossInputs) -> LossInputs:
        """Return the inputs of the exemplars alone, which come first."""
        count = len(inputs.prompts) - self.prior_batch_size
        names = [field.name for field in fields(inputs) if field.name != "generator"]  # these have a part per sample
        return replace(inputs, **{name: getattr(inputs, name)[:count] for name in names})
