"""Custom Diffusion (Kumari et al., CVPR 2023): a token's row, and each cross-attention's key and value projections.

L = denoise_weight * L_denoise within the scaled picture + prior_weight * L_prior (+ the anchor term).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from relinv.adapters.custom_diffusion import Adapter, pretrained
from relinv.learning.losses import masked_denoising
from relinv.learning.method import LossInputs, TrainingPicture
from relinv.learning.scale_augmentation import scale_variant
from relinv.learning.unet_weights import UnetWeightsMethod, UnetWeightsSettings

if TYPE_CHECKING:
    from pathlib import Path

    import torch


class Settings(UnetWeightsSettings):
    """The section `invert.custom_diffusion`.

    scale_variants: how many variants of each exemplar, at random scales and places, are made once; 0: it is used as is.
    """

    scale_variants: Annotated[int, Field(ge=0, le=1000)]


class Method(UnetWeightsMethod):
    """The row and the projections, learned from exemplars at several scales and from prior pictures."""

    settings: Settings

    def weights_adapter(self) -> Adapter:
        """Return an adapter that starts from the base's own projections."""
        return Adapter(self.base, self.token, pretrained(self.base), {})

    def training_pictures(self, scratch: Path) -> list[TrainingPicture]:
        """Return each exemplar at `scale_variants` scales, and the prior pictures unchanged."""
        from relinv.diffusion.randomness import generator

        pictures, count = super().training_pictures(scratch), self.settings.scale_variants
        own = [picture for picture in pictures if not picture.prior]
        prior = [picture for picture in pictures if picture.prior]
        variants = [
            scale_variant(picture, self.base.latent_side, generator(index, "scale", variant))
            for index, picture in enumerate(own)
            for variant in range(count)
        ]
        return [*(variants or own), *prior]

    def denoise(self, inputs: LossInputs) -> torch.Tensor:
        """Return the denoising loss within the exemplars' masks, a scalar."""
        return masked_denoising(inputs.prediction, inputs.target, inputs.masks)
