"""DreamBooth (Ruiz et al., CVPR 2023): UNet weights, low-rank changes or all of them, learned with prior pictures.

L = denoise_weight * L_denoise + prior_weight * L_prior (+ the anchor term). With `resolutions` above 1 the token has
one row per range of timesteps, as in the second form of Multiresolution Textual Inversion (Daras & Dimakis 2022); but
that starts its rows at random, learns none of them unless it trains the text encoder, and prompts with the token alone.
"""

from __future__ import annotations

from typing import Literal

from relinv.adapters.dreambooth import Adapter, initial_tensors
from relinv.errors import UserError
from relinv.learning.unet_weights import UnetWeightsMethod, UnetWeightsSettings
from relinv.settings import Positive


class Settings(UnetWeightsSettings):
    """The section `invert.dreambooth`.

    weights: lora learns low-rank changes of the attention layers, full learns all weights of the UNet. train_token:
    whether the row of `<r>` is learned too; if not, it stays the initializer_token's, and learning_rate and norm do
    nothing.
    """

    weights: Literal["lora", "full"]
    rank: Positive  # of the low-rank changes
    train_token: bool


class Method(UnetWeightsMethod):
    """Learns the UNet's weights and, optionally, the row."""

    settings: Settings

    @classmethod
    def settings_for(cls, relation: str, settings: Settings) -> Settings:  # type: ignore[override]  # its own kind
        """Return the settings; UserError if two of them contradict each other."""
        if settings.anchor_weight and not settings.train_token:
            raise UserError("DreamBooth's anchor_weight pulls a row that train_token: false holds: set one of them.")
        if settings.resolutions > 1 and not settings.train_token:
            raise UserError(
                "DreamBooth's resolutions give the token rows that differ as they learn, and train_token: false holds "
                "them all at one word's: set one of them."
            )
        return settings

    @property
    def learns_row(self) -> bool:
        """Return whether the row is learned, as `train_token` says."""
        return self.settings.train_token

    def weights_adapter(self) -> Adapter:
        """Return an adapter of low-rank changes, initially zero, or of the UNet's own weights, as the settings say."""
        settings = self.settings
        options = {"weights": settings.weights} | ({"rank": settings.rank} if settings.weights == "lora" else {})
        return Adapter(self.base, self.token, initial_tensors(self.base, options), options)
