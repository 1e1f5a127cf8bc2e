"""Textual Inversion (Gal et al. 2022): one token's row, learned by denoising the exemplars at uniform timesteps."""

from __future__ import annotations

from relinv.learning.token_row import TokenRowMethod, TokenRowSettings


class Settings(TokenRowSettings):
    """The section `invert.textual_inversion`."""


class Method(TokenRowMethod):
    """The plain form: nothing but a token's row and its losses."""

    settings: Settings
