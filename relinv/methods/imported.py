"""A token that was learned elsewhere, taken into the pipeline as it is, so that reports compare it with the methods."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_serializer

from relinv import settings
from relinv.diffusion.embeddings import TOKEN, PlaceholderTokens
from relinv.errors import UserError
from relinv.exchange.importing import read_published, sha256_of
from relinv.learning.method import InversionMethod
from relinv.plugins import find_plugin
from relinv.settings import Name, Place

if TYPE_CHECKING:
    import torch

    from relinv.diffusion.bases import Base
    from relinv.exemplars import ExemplarSet


class TokenFile(settings.Settings):
    """A learned token's file, of any kind that `relinv import` reads.

    sha256: of the file's bytes, followed by those of `token`'s, as `relinv import` prints it; DVC watches this number,
    not the files, nor the code that reads them. token: for Custom Diffusion, the token's own file; null: the one beside
    the weights.
    """

    file: Place
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    token: Place | None = None

    def require_files(self, relation: str) -> None:
        """Raise UserError, which names the relation, if a file is missing."""
        for file in filter(None, (self.file, self.token)):
            if not Path(file).is_file():
                raise UserError(
                    f"The token of '{relation}' should be in '{file}', but there is no such file: put it there, or "
                    f"correct invert.imported.tokens.{relation}."
                )

    @field_serializer("file", "token")
    def _name(self, place: str | None) -> str | None:
        """Return the name alone: what a concept says of its origin does not depend on where the files lie."""
        return place and Path(place).name


class Settings(settings.Settings):
    """The section `invert.imported`: the file of each relation's token."""

    tokens: dict[Name, TokenFile]


class Method(InversionMethod):
    """Takes no steps, and produces a concept of what the file holds."""

    settings: Settings
    token = TOKEN

    def __init__(self, base: Base, words: str, settings: Settings, exemplars: ExemplarSet) -> None:
        super().__init__(base, words, settings, exemplars)
        source = settings.tokens[exemplars.relation]
        source.require_files(exemplars.relation)
        published = read_published(Path(source.file), base, Path(source.token) if source.token else None)
        if (found := sha256_of(Path(source.file), published.token_file)) != source.sha256:
            raise UserError(
                f"'{source.file}' has the SHA-256 {found}, and params.yaml says {source.sha256}: if it is the token "
                f"you mean, set invert.imported.tokens.{exemplars.relation}.sha256 to that."
            )
        self._row = published.row
        if kind := published.adapter:
            adapter = find_plugin("relinv.adapters", kind).Adapter
            self.adapters = [adapter(base, TOKEN, published.tensors, published.options)]

    @classmethod
    def settings_for(cls, relation: str, settings: Settings) -> Settings:  # type: ignore[override]  # its own kind
        """Return the settings with this relation's file alone, so that no other's changes what it gives."""
        if relation not in settings.tokens:
            raise UserError(
                f"The method 'imported' has no token of '{relation}': name its file in params.yaml, as "
                f"invert.imported.tokens.{relation}, or take that relation out, or the method."
            )
        return settings.model_copy(update={"tokens": {relation: settings.tokens[relation]}})

    def known(self) -> AbstractContextManager[None]:
        """Return the block in which the base knows `<r>`, unless the token has several rows."""
        return PlaceholderTokens(self.base, {} if self._row is None else {TOKEN: self._row}).applied()

    def embedding(self) -> torch.Tensor | None:
        """Return the file's row, (dim,) float32 on the CPU, or None if the token has several."""
        return self._row
