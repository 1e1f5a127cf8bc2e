"""Multiresolution Textual Inversion (Daras & Dimakis 2022): a row for each part of the timesteps.

It is textual inversion whose captions take, at timestep t of T, the row k(t) = floor(resolutions * t / T), so that each
row is learned at its own timesteps alone; relinv/adapters/multires.py tells how prompts choose among the rows.
"""

from __future__ import annotations

from relinv.learning.resolution_rows import ResolutionRowsMethod, ResolutionRowsSettings


class Settings(ResolutionRowsSettings):
    """The section `invert.multires`."""


class Method(ResolutionRowsMethod):
    """Nothing but the denoising loss, over rows by timestep."""

    settings: Settings
