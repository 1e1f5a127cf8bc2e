"""Multiresolution Textual Inversion (Daras & Dimakis 2022): the row of a token depends on the timestep.

The timesteps fall into equal parts, the resolutions, numbered from 0, where least noise is left and detail is drawn,
to the last, where the layout is. A prompt says which of a token's rows it takes at resolution k:

    <r[n]>  fully resolution-dependent: the row max(k, n), so that nothing finer than n is asked for
    <r(n)>  semi resolution-dependent: the row k where k >= n; at finer resolutions the token leaves the prompt
    <r|n|>  fixed: the row n
    <r>     <r[0]>

n is a whole number, or a fraction of the number of resolutions written with a point: <r[0.8]> is <r[8]> of ten.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeVar

from relinv.diffusion.adapter import ConceptAdapter
from relinv.diffusion.embeddings import PlaceholderTokens
from relinv.errors import UserError

if TYPE_CHECKING:
    import torch

    from relinv.diffusion.bases import Base

KINDS = ("[]", "()", "||")
ROWS = "rows"  # the one tensor of a concept's file, (resolutions, dim)
NUMBER = re.compile(r"\d+|\d*\.\d+")

Timesteps = TypeVar("Timesteps", int, "torch.Tensor")


class Adapter(ConceptAdapter):
    """A token's rows as so many tokens, `<r|0|>` and on; `prompt_at` writes the one that holds at a timestep."""

    FILE = "rows.safetensors"
    shares_unet = True

    def __init__(
        self, base: Base, token: str | None, tensors: Mapping[str, torch.Tensor], options: Mapping[str, Any]
    ) -> None:
        super().__init__(base, token, {}, options)
        if token is None or set(tensors) != {ROWS} or tensors[ROWS].dim() != 2:
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            raise UserError(f"A concept of several resolutions holds {shapes}, not the rows of a token.")
        self._count = len(tensors[ROWS])
        self._tokens = PlaceholderTokens(base, {row_token(token, n): row for n, row in enumerate(tensors[ROWS])})
        self.tensors = {ROWS: self._tokens.rows}
        self._form = re.compile(rf"{re.escape(token.removesuffix('>'))}(?P<form>[\[(|][^<>]*)?>", re.IGNORECASE)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the base knows every row."""
        with self._tokens.applied():
            yield

    def prompt_at(self, prompt: str, timestep: int) -> str:
        """Return the prompt with the row that each form of the token takes; UserError for a form that is none."""
        now = resolution(timestep, self._count, self.base.scheduler.config.num_train_timesteps)
        return self._form.sub(lambda match: self._row_at(match, now), prompt)

    def forms(self) -> list[list[str]]:
        """Return a line of each way to write the token, from the finest resolution to the coarsest."""
        stem = str(self.token).removesuffix(">")
        return [[f"{stem}{a}{n}{b}>" for n in range(self._count)] for a, b in KINDS]

    def _row_at(self, match: re.Match[str], now: int) -> str:
        """Return what stands at resolution `now` in place of one form of the token: a row's token, or nothing."""
        form = match["form"] or "[0]"
        kind, number = form[0] + form[-1], self._number(form[1:-1])
        if kind not in KINDS or number is None:
            raise UserError(
                f"The prompt '{match.string}' names {match[0]}: write {self.token}, or [n], (n) or |n| before its end, "
                f"where n is a whole number from 0 to {self._count - 1} or a fraction below 1, such as 0.5."
            )
        if kind == "()" and now < number:
            return ""
        return row_token(str(self.token), number if kind == "||" else max(now, number))

    def _number(self, text: str) -> int | None:
        """Return which resolution a whole number or a fraction of them all names, None where there is no such."""
        if not NUMBER.fullmatch(text):
            return None
        number = int(Fraction(text) * self._count) if "." in text else int(text)  # exact, where floats round
        return number if number < self._count else None


def resolution(timesteps: Timesteps, count: int, total: int) -> Timesteps:
    """Return which of `count` resolutions each of the timesteps below `total` belongs to: floor(count * t / total)."""
    return timesteps * count // total


def row_token(token: str, number: int) -> str:
    """Return the name of one row of a token: `<r|3|>` of `<r>`."""
    return f"{token.removesuffix('>')}|{number}|>"


def stands_for(name: str, token: str | None) -> bool:
    """Return whether a name that a tokenizer knows is the token's own, or that of one of its rows."""
    return token is not None and (name == token or name.startswith(f"{token.removesuffix('>')}|"))
