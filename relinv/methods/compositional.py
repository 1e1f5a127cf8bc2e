"""Compositional Inversion (Zhang et al., AAAI 2024): a token's row anchored to a word's, and a layout to draw in.

L = denoise_weight * L_denoise + anchor_weight * L_anchor; the layout is an adapter (relinv/adapters/layout.py).
"""

from __future__ import annotations

from relinv.adapters.layout import Adapter, Layout
from relinv.diffusion.bases import Base
from relinv.diffusion.embeddings import TOKEN
from relinv.exemplars import ExemplarSet
from relinv.learning.token_row import TokenRowMethod, TokenRowSettings


class Settings(TokenRowSettings):
    """The section `invert.compositional`; layout says where head and tail are drawn."""

    layout: Layout


class Method(TokenRowMethod):
    """Textual Inversion with the anchor loss, drawn with spatial guidance of the latents."""

    settings: Settings

    def __init__(self, base: Base, words: str, settings: Settings, exemplars: ExemplarSet) -> None:
        super().__init__(base, words, settings, exemplars)
        self.adapters = [Adapter(base, TOKEN, {}, settings.layout.model_dump(mode="json"))]
