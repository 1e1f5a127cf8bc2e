"""Multiresolution Textual Inversion (Daras & Dimakis 2022): the row of a token depends on the timestep.

The timesteps are divided into equal ranges, the resolutions, numbered from 0, where noise is least and detail is drawn,
to the last, where the layout is. A prompt says which of a token's rows it uses at resolution k:

    <r[n]>  fully resolution-dependent: the row max(k, n), so that nothing finer than n is used
    <r(n)>  semi resolution-dependent: the row k if k >= n; at finer resolutions the token is dropped from the prompt
    <r|n|>  fixed: the row n
    <r>     <r[0]>

n is a whole number, or a fraction of the resolutions with a decimal point: of ten resolutions, <r[0.8]> is <r[8]>.
<r(n)> is as the published code for DreamBooth has it. That for Textual Inversion has a row of zeros at resolution n and
finer ones.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING, TypeVar

from relinv.diffusion.token_rows import TokenRowsAdapter, row_token
from relinv.errors import UserError

if TYPE_CHECKING:
    import torch

KINDS = ("[]", "()", "||")
NUMBER = re.compile(r"\d+|\d*\.\d+")

Timesteps = TypeVar("Timesteps", int, "torch.Tensor")


class Adapter(TokenRowsAdapter):
    """Replaces the token in a prompt by the one of its rows to use at a timestep."""

    def prepare(self) -> None:
        """Put the rows in place, and find the token's forms in prompts."""
        super().prepare()
        stem = re.escape(str(self.token).removesuffix(">"))
        self._form = re.compile(rf"{stem}(?P<form>[\[(|][^<>]*)?>", re.IGNORECASE)

    def prompt_at(self, prompt: str, timestep: int) -> str:
        """Return the prompt with each form of the token replaced by its row. Raises UserError for an unknown form."""
        now = resolution(timestep, self.count, self.base.scheduler.config.num_train_timesteps)
        return self._form.sub(lambda match: self._row_at(match, now), prompt)

    def forms(self) -> list[list[str]]:
        """Return one line per way to write the token, each from the finest resolution to the coarsest."""
        stem = str(self.token).removesuffix(">")
        return [[f"{stem}{kind[0]}{n}{kind[1]}>" for n in range(self.count)] for kind in KINDS]

    def _row_at(self, match: re.Match[str], now: int) -> str:
        """Return what replaces one form of the token at resolution `now`: a row's token, or nothing."""
        form = match["form"] or "[0]"
        kind, number = form[0] + form[-1], self._number(form[1:-1])
        if kind not in KINDS or number is None:
            raise UserError(
                f"The prompt '{match.string}' names {match[0]}: write {self.token}, or [n], (n) or |n| before its end, "
                f"where n is a whole number from 0 to {self.count - 1} or a fraction below 1, such as 0.5."
            )
        if kind == "()" and now < number:
            return ""
        return row_token(str(self.token), number if kind == "||" else max(now, number))

    def _number(self, text: str) -> int | None:
        """Return the resolution that a whole number or a fraction names, or None if there is no such resolution."""
        if not NUMBER.fullmatch(text):
            return None
        number = int(Fraction(text) * self.count) if "." in text else int(text)  # exact, where floats round
        return number if number < self.count else None


def resolution(timesteps: Timesteps, count: int, total: int) -> Timesteps:
    """Return which of `count` resolutions each of the timesteps below `total` belongs to: floor(count * t / total)."""
    return timesteps * count // total
