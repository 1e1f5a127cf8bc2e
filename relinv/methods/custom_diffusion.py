"""Custom Diffusion (Kumari et al., CVPR 2023): a token's row, and keys and values of each cross-attention.

L = denoise_weight * L_denoise within the scaled picture + prior_weight * L_prior (+ the anchor's).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from relinv.adapters.custom_diffusion import Adapter, pretrained
from relinv.learning.losses import masked_denoising
from relinv.learning.method import Shown, Visit
from relinv.learning.scale_augmentation import scale_variant
from relinv.learning.unet_weights import UnetWeightsMethod, UnetWeightsSettings

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from relinv.exemplars import ExemplarSet


class Settings(UnetWeightsSettings):
    """The section `invert.custom_diffusion`.

    scale_variants: at how many random scales and places each exemplar is shown, made once; 0: as it is.
    """

    scale_variants: Annotated[int, Field(ge=0, le=1000)]


class Method(UnetWeightsMethod):
    """The row and the projections, learned from exemplars at several scales and from the base's own pictures."""

    settings: Settings

    def weights_adapter(self) -> Adapter:
        """Return the base's own projections, to be learned from."""
        return Adapter(self.base, self.token, pretrained(self.base), {})

    def shown(self, exemplars: ExemplarSet, scratch: Path) -> list[Shown]:
        """Return each exemplar at `scale_variants` scales, and the base's own pictures as they are."""
        from relinv.diffusion.randomness import generator

        pictures, count = super().shown(exemplars, scratch), self.settings.scale_variants
        own = [picture for picture in pictures if not picture.prior]
        prior = [picture for picture in pictures if picture.prior]
        variants = [
            scale_variant(picture, self.base.latent_side, generator(index, "scale", variant))
            for index, picture in enumerate(own)
            for variant in range(count)
        ]
        return [*(variants or own), *prior]

    def denoise(self, visit: Visit) -> torch.Tensor:
        """Return the denoising loss where the exemplars' pictures are, a scalar."""
        return masked_denoising(visit.prediction, visit.target, visit.masks)
