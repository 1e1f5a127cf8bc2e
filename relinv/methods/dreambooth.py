"""DreamBooth (Ruiz et al., CVPR 2023): weights of the UNet, low-rank or all, with the base's own pictures beside.

L = denoise_weight * L_denoise + prior_weight * L_prior (+ the anchor's). With `resolutions` above 1 the token has a row
for each part of the timesteps: the second form of Multiresolution Textual Inversion (Daras & Dimakis 2022).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from relinv.adapters.dreambooth import Adapter, initial_tensors
from relinv.errors import UserError
from relinv.learning.token_row import TOKEN
from relinv.learning.unet_weights import UnetWeightsMethod, UnetWeightsSettings
from relinv.settings import Positive

if TYPE_CHECKING:
    import torch

    from relinv.diffusion.bases import Base


class Settings(UnetWeightsSettings):
    """The section `invert.dreambooth`.

    weights: lora learns low-rank changes of the attention layers, full all weights of the UNet. train_token: whether
    the row of `<r>` learns too; else it stays the initializer_token's, and learning_rate and norm do nothing.
    """

    weights: Literal["lora", "full"]
    rank: Positive  # of the low-rank changes
    train_token: bool


class Method(UnetWeightsMethod):
    """The UNet's weights, and the row by choice."""

    settings: Settings

    def __init__(self, base: Base, words: str, settings: Settings) -> None:
        if settings.anchor_weight and not settings.train_token:
            raise UserError("DreamBooth's anchor_weight pulls a row that train_token: false holds: set one of them.")
        if settings.resolutions > 1 and not settings.train_token:
            raise UserError(
                "DreamBooth's resolutions give the token rows that differ as they learn, and train_token: false holds "
                "them all at one word's: set one of them."
            )
        super().__init__(base, words, settings)
        self._learned.requires_grad_(settings.train_token)

    def weights_adapter(self) -> Adapter:
        """Return the low-rank changes, none yet, or the UNet's own weights, as the settings say."""
        settings = self.settings
        options = {"weights": settings.weights} | ({"rank": settings.rank} if settings.weights == "lora" else {})
        return Adapter(self.base, self.token, initial_tensors(self.base, options), options)

    def groups(self) -> list[dict[str, Any]]:
        """Return the weights, and the row where it learns."""
        row, weights = super().groups()
        return [row, weights] if self.settings.train_token else [weights]

    def state(self) -> dict[str, torch.Tensor]:
        """Return the weights, and the row where it learns, by name."""
        state = super().state()
        if not self.settings.train_token:
            del state[TOKEN]
        return state

    def after_step(self) -> None:
        """Hold the norm of a row that learns; one that does not is the word's to the bit."""
        if self.settings.train_token:
            super().after_step()
