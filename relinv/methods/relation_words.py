"""The text-to-image baseline: the relation's plain words, "cat inside box", with nothing learned."""

from __future__ import annotations

from relinv import settings
from relinv.learning.method import InversionMethod


class Settings(settings.Settings):
    """The section `invert.relation_words`: it has no parameters."""


class Method(InversionMethod):
    """Takes no steps, and produces a concept without tensors."""

    settings: Settings
