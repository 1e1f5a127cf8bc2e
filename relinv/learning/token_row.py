"""Shared by methods that learn one token: the initial row or rows, norm, place in the base, losses and artefact."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from relinv.diffusion.embeddings import TOKEN, PlaceholderTokens
from relinv.errors import UserError
from relinv.learning.early_stopping import EVALUATIONS, EarlyStopping
from relinv.learning.losses import LossTerm, anchor, weighted_denoising
from relinv.learning.method import InversionMethod, LossInputs
from relinv.learning.timesteps import importance
from relinv.settings import Positive, Settings

if TYPE_CHECKING:
    import torch
    from transformers import CLIPTokenizer

    from relinv.diffusion.bases import Base
    from relinv.exemplars import ExemplarSet

Weight = Annotated[float, Field(ge=0, le=1000)]


class TokenRowSettings(Settings):
    """How one token's row is learned: AdamW at a constant rate, from the row of a word the base knows."""

    steps: Positive
    batch_size: Positive
    learning_rate: Annotated[float, Field(gt=0, le=10)]
    weight_decay: Annotated[float, Field(ge=0, le=1)]  # 0: the published 0.01 only shrinks the row
    initializer_token: Annotated[str, Field(min_length=1)] | None  # null: the relation's or object's own word
    norm: Literal["free", "vocabulary"]  # vocabulary: held at the mean norm of the table's rows
    importance_alpha: Annotated[float, Field(ge=0, le=1)]  # how far the noisy end is favoured; 0: uniform timesteps
    denoise_weight: Weight
    anchor_weight: Weight  # pulls the row to a word's (Compositional Inversion); 0: not at all
    anchor_word: Annotated[str, Field(min_length=1)] | None  # which word's; null: the initializer_token
    stop_window: Annotated[int, Field(ge=EVALUATIONS)] | None  # steps of a level fixed loss; null: no stop
    stop_threshold: Annotated[float, Field(gt=0, lt=1)]  # the share of the loss's variance below which it is level

    def check_words(self, words: str, tokenizer: CLIPTokenizer) -> None:
        """Raise UserError if a word whose row is taken, by default the relation's `words`, is not one token."""
        word_id(tokenizer, self.initializer_token or words, "initializer_token")
        if self.anchor_word:
            word_id(tokenizer, self.anchor_word, "anchor_word")


class TokenRowMethod(InversionMethod):
    """Learns the row of `<r>` and nothing else; a method with more rows overrides `_place` and `rows_of`."""

    settings: TokenRowSettings
    token = TOKEN

    def __init__(self, base: Base, words: str, settings: TokenRowSettings, exemplars: ExemplarSet) -> None:
        super().__init__(base, words, settings, exemplars)
        self.steps, self.batch_size = settings.steps, settings.batch_size
        self.initializer = settings.initializer_token or words
        self._learned, self._known = self._place(initial_row(base, self.initializer))
        self._learned.requires_grad_(self.learns_row)
        self._norm = vocabulary_norm(base) if settings.norm == "vocabulary" and self.learns_row else None
        self._anchor = initial_row(base, settings.anchor_word or self.initializer, "anchor_word")
        self._hold_norm()

    @property
    def learns_row(self) -> bool:
        """Return whether the row is learned; if not, it stays exactly the word's."""
        return True

    def _place(self, row: torch.Tensor) -> tuple[torch.nn.Parameter, Callable[[], AbstractContextManager[None]]]:
        """Return the tensor to learn, (rows, dim), starting as `row`, and what opens the block where it is known."""
        tokens = PlaceholderTokens(self.base, {TOKEN: row})
        return tokens.rows, tokens.applied

    @property
    def row(self) -> torch.Tensor:
        """Return the learned row, (dim,), with its gradient."""
        return self._learned[0]

    def rows_of(self, inputs: LossInputs) -> torch.Tensor:
        """Return the learned row that every prompt of a step uses, (dim,), or one per prompt, (batch, dim)."""
        return self.row

    def groups(self) -> list[dict[str, Any]]:
        """Return the row, if it is learned, as one parameter group."""
        rate, decay = self.settings.learning_rate, self.settings.weight_decay
        return [{"params": [self._learned], "lr": rate, "weight_decay": decay}] if self.learns_row else []

    def state(self) -> dict[str, torch.Tensor]:
        """Return the row or rows, (rows, dim), if they are learned."""
        return {TOKEN: self._learned} if self.learns_row else {}

    def known(self) -> AbstractContextManager[None]:
        """Return the block in which the base knows `<r>`."""
        return self._known()

    def timestep_distribution(self, total: int) -> torch.Tensor:
        """Return ReVersion's relation-focal distribution, (total,), which is uniform at an importance_alpha of 0."""
        return importance(total, self.settings.importance_alpha)

    def losses(self, inputs: LossInputs) -> dict[str, LossTerm]:
        """Return the denoising term, and the anchor term if its weight is not 0."""
        settings = self.settings
        terms = {"denoise": LossTerm(settings.denoise_weight, self.denoise(inputs))}
        if settings.anchor_weight:
            limit = self.base.tokenizer.model_max_length
            terms["anchor"] = LossTerm(settings.anchor_weight, anchor(self.rows_of(inputs), self._anchor, limit))
        return terms

    def denoise(self, inputs: LossInputs) -> torch.Tensor:
        """Return the denoising loss, a scalar, weighted by the exemplars' masks."""
        return weighted_denoising(inputs.prediction, inputs.target, inputs.masks)

    def early_stopping(self) -> EarlyStopping | None:
        """Return DVAR's rule if a window is given."""
        settings = self.settings
        return EarlyStopping(settings.stop_window, settings.stop_threshold) if settings.stop_window else None

    def after_step(self) -> None:
        """Hold the rows' norm, if the settings ask for it."""
        self._hold_norm()

    def _hold_norm(self) -> None:
        """Rescale each row to the vocabulary's mean norm, if the settings ask for it.

        A row far longer than any word's swamps its position embedding and the prompt's other words; at a fixed norm
        only its direction is learned (Directional Textual Inversion).
        """
        if self._norm is not None:
            rows = self._learned.data
            rows.mul_(self._norm / rows.norm(dim=-1, keepdim=True))

    def embedding(self) -> torch.Tensor | None:
        """Return a copy of the row, (dim,) float32 on the CPU."""
        return self.row.detach().float().cpu().clone()


def initial_row(base: Base, word: str, parameter: str = "initializer_token") -> torch.Tensor:
    """Return a copy of a word's row in the token table, (dim,). Raises UserError if the word is not one token."""
    return base.table[word_id(base.tokenizer, word, parameter)].detach().clone()


def word_id(tokenizer: CLIPTokenizer, word: str, parameter: str) -> int:
    """Return the id of a word that `parameter` names. Raises UserError if the word is not one token."""
    ids = tokenizer(word, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise UserError(f"The {parameter} '{word}' is {len(ids)} tokens for this base: name a word that is one.")
    return int(ids[0])


def vocabulary_norm(base: Base) -> float:
    """Return the mean Euclidean norm of the rows of the token table."""
    return base.table.detach().float().norm(dim=-1).mean().item()
