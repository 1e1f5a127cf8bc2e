"""Adapters of a token that has several rows, each of which is a token of its own: `<r|0|>`, `<r|1|>` ... of `<r>`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from relinv.diffusion.adapter import ConceptAdapter
from relinv.diffusion.embeddings import PlaceholderTokens
from relinv.errors import UserError

ROWS = "rows"  # the one tensor of a concept's file, (rows, dim)


class TokenRowsAdapter(ConceptAdapter):
    """Puts a token's rows in place; an adapter overrides `prompt_at` to choose which of them a prompt uses."""

    FILE = "rows.safetensors"
    shares_unet = True  # a subclass that changes the UNet, or the encodings' width, sets this back to False

    def prepare(self) -> None:
        """Put the rows in place. Raises UserError unless they are those of a token."""
        if self.token is None or set(self.tensors) != {ROWS} or self.tensors[ROWS].dim() != 2:
            shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
            raise UserError(f"A concept of several rows holds {shapes}, not the rows of a token.")
        rows = {row_token(self.token, number): row for number, row in enumerate(self.tensors[ROWS])}
        self.count, self._tokens = len(rows), PlaceholderTokens(self.base, rows)
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
