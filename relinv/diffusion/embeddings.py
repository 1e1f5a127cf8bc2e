"""Learned tokens: rows kept outside the token table, which hooks put into its output while they are in use."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from relinv.errors import UserError

if TYPE_CHECKING:
    import torch

    from relinv.diffusion.bases import Base

TOKEN = "<r>"  # the relation's placeholder; lower case, because CLIP's tokenizer folds case


class PlaceholderTokens:
    """Tokens that a base knows temporarily: `tokens` maps each name ("<r>") to its row, (dim,).

    Only `rows`, (tokens, dim) float32, get a gradient; the table is neither extended nor changed, so the optimiser and
    checkpoints hold a few KB and the table need not be restored afterwards (Gal et al. 2022 train one row of the
    table). Raises UserError for a name with capitals, or for a row that does not fit the base.
    """

    def __init__(self, base: Base, tokens: Mapping[str, torch.Tensor]) -> None:
        import torch

        self._base = base
        self._names = list(tokens)
        rows = torch.zeros(len(tokens), base.dim, device=base.device)
        for index, (name, row) in enumerate(tokens.items()):
            if name != name.lower():
                raise UserError(f"The token '{name}' must be lower case: tokenizers of CLIP fold case.")
            if row.shape != (base.dim,):
                raise UserError(f"{name} has shape {tuple(row.shape)} and the base '{base.id}' takes ({base.dim},).")
            rows[index] = row.detach()
        self.rows = torch.nn.Parameter(rows)
        self._extensions: tuple[Any, Any] = (None, None)  # the last tokenizer seen, and a copy that knows the names
        self._ids: torch.Tensor  # the names' ids in that copy, (names,)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the base knows the tokens; leaving it, even by an error, restores the base.

        Blocks nest: inside another block, the base knows both sets. Without any tokens, results do not change.
        Raises UserError for a name that the tokenizer already knows.
        """
        import torch

        outer = self._base.tokenizer
        if self._extensions[0] is not outer:
            extended = self._extended(outer)
            ids = extended.convert_tokens_to_ids(self._names)
            self._ids = torch.tensor(ids, dtype=torch.long, device=self._base.device)
            self._extensions = outer, extended
        table = self._base.text_encoder.get_input_embeddings()
        with ExitStack() as undo:
            undo.callback(setattr, self._base, "tokenizer", outer)
            self._base.tokenizer = self._extensions[1]
            undo.callback(table.register_forward_pre_hook(self._hide).remove)
            undo.callback(table.register_forward_hook(self._substitute).remove)
            yield

    def _extended(self, tokenizer: Any) -> Any:
        """Return a copy of `tokenizer` that takes each name as one token."""
        from tokenizers import AddedToken

        for name in set(self._names) & set(tokenizer.get_vocab()):
            raise UserError(f"The base '{self._base.id}' knows the token '{name}' already: choose another name.")
        extended = copy.deepcopy(tokenizer)
        # normalized=False: otherwise the tokenizer lower-cases the name it looks for, and diffusers misses it.
        extended.add_tokens([AddedToken(name, normalized=False) for name in self._names])
        return extended

    def _hide(self, table: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        """Remember where the tokens are, and look up row 0 there, since the table has no rows for them."""
        (ids,) = inputs  # (prompts, tokens)
        self._found = ids[..., None] == self._ids  # (prompts, tokens, names)
        return (ids.masked_fill(self._found.any(-1), 0),)

    def _substitute(self, table: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        """Return the table's rows with the learned ones in their places, (prompts, tokens, dim)."""
        import torch

        learned = (self._found.to(self.rows.dtype) @ self.rows).to(output.dtype)
        return torch.where(self._found.any(-1, keepdim=True), learned, output)
