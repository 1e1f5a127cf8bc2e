"""Multiresolution Textual Inversion (Daras & Dimakis 2022): one row per range of timesteps.

It is Textual Inversion whose captions use, at timestep t of T, the row k(t) = floor(resolutions * t / T), so that each
row is learned only at its own timesteps; relinv/adapters/multires.py describes how prompts choose among the rows.
"""

from __future__ import annotations

from relinv.learning.resolution_rows import ResolutionRowsMethod, ResolutionRowsSettings


class Settings(ResolutionRowsSettings):
    """The section `invert.multires`."""


class Method(ResolutionRowsMethod):
    """The plain form: nothing but rows by timestep and their losses."""

    settings: Settings
