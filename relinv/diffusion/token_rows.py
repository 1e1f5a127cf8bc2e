"""Adapters of a token that has several rows, each of which is a token of its own: `<r|0|>`, `<r|1|>` ... of `<r>`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from relinv.diffusion.adapter import ConceptAdapter
from relinv.diffusion.embeddings import PlaceholderTokens
from relinv.errors import UserError

if TYPE_CHECKING:
    import torch

    from relinv.diffusion.bases import Base

ROWS = "rows"  # the one tensor of a concept's file, (rows, dim)


class TokenRowsAdapter(ConceptAdapter):
    """Puts a token's rows in place; an adapter overrides `prompt_at` to choose which of them a prompt uses."""

    FILE = "rows.safetensors"
    shares_unet = True  # a subclass that changes the UNet, or the encodings' width, sets this back to False

    def __init__(
        self, base: Base, token: str | None, tensors: Mapping[str, torch.Tensor], options: Mapping[str, Any]
    ) -> None:
        super().__init__(base, token, {}, options)
        if token is None or set(tensors) != {ROWS} or tensors[ROWS].dim() != 2:
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            raise UserError(f"A concept of several rows holds {shapes}, not the rows of a token.")
        self.count = len(tensors[ROWS])
        self._tokens = PlaceholderTokens(base, {row_token(token, n): row for n, row in enumerate(tensors[ROWS])})
        self.tensors = {ROWS: self._tokens.rows}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the base knows every row."""
        with self._tokens.applied():
            yield


def row_token(token: str, number: int) -> str:
    """Return the name of one row of a token: `<r|3|>` of `<r>`."""
    return f"{token.removesuffix('>')}|{number}|>"


def stem(name: str) -> str:
    """Return what the names of a token's rows, such as "<r|3|>", begin with, as that of the token itself does."""
    return name.removesuffix(">").partition("|")[0]
