"""A token of several vectors, as Textual Inversion (Gal et al. 2022) may learn one: the rows follow one another.

Where a prompt has `<r>`, the text encoder reads `<r|0|><r|1|>` ..., as many tokens as there are rows. Nothing here
learns such a token: files of other programs hold them (relinv/exchange/importing.py).
"""

from __future__ import annotations

import re

from relinv.diffusion.token_rows import TokenRowsAdapter, row_token


class Adapter(TokenRowsAdapter):
    """Replaces the token in a prompt by all of its rows, in order."""

    def prepare(self) -> None:
        """Put the rows in place, and find the token in prompts."""
        super().prepare()
        self._name = re.compile(re.escape(str(self.token)), re.IGNORECASE)
        self._rows = "".join(row_token(str(self.token), number) for number in range(self.count))

    def prompt_at(self, prompt: str, timestep: int) -> str:
        """Return the prompt with all rows in the token's place, at every timestep."""
        return self._name.sub(lambda _: self._rows, prompt)  # not the text: re would read its backslashes
