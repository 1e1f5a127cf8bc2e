"""ReVersion (Huang et al., SIGGRAPH Asia 2024): a row steered to prepositions, learned mostly at noisy timesteps.

L = denoise_weight * L_denoise + steer_weight * L_steer, with timesteps drawn by relation-focal importance
sampling. With `resolutions` above 1 the token has one row per range of timesteps, and each is steered.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from relinv.devices import to_device
from relinv.learning.losses import LossTerm, steering
from relinv.learning.method import LossInputs
from relinv.learning.resolution_rows import ResolutionRowsMethod, ResolutionRowsSettings
from relinv.learning.token_row import Weight
from relinv.learning.words import PREPOSITIONS, STOP_WORDS

if TYPE_CHECKING:
    import torch

    from relinv.diffusion.bases import Base
    from relinv.exemplars import ExemplarSet

WORD = re.compile(r"<[^<>\s]+>|(?<=\w)['\u2019]\w+|[^\W\d_]+")  # a placeholder, a contraction's end, or letters


class Settings(ResolutionRowsSettings):
    """The section `invert.reversion`; steer_positives is the number of prepositions drawn for each caption."""

    steer_weight: Weight
    steer_positives: Annotated[int, Field(ge=1, le=len(PREPOSITIONS))]
    steer_temperature: Annotated[float, Field(gt=0, le=100)]


class Method(ResolutionRowsMethod):
    """Denoising, the relation-steering contrastive loss, and importance sampling."""

    settings: Settings

    def __init__(self, base: Base, words: str, settings: Settings, exemplars: ExemplarSet) -> None:
        super().__init__(base, words, settings, exemplars)
        self._prepositions = preposition_ids(base)
        self._negatives: dict[str, list[int]] = {}  # ids of each caption's content words, computed once

    def losses(self, inputs: LossInputs) -> dict[str, LossTerm]:
        """Return the shared terms and the steering term."""
        return super().losses(inputs) | {"steer": LossTerm(self.settings.steer_weight, self._steer(inputs))}

    def _steer(self, inputs: LossInputs) -> torch.Tensor:
        """Return the steering loss over the batch, each caption with its own content words and drawn prepositions."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        drawn = torch.tensor([self._draw(inputs.generator) for _ in inputs.prompts])  # (batch, n_p) ids
        contents = [torch.tensor(self._content(prompt), dtype=torch.long) for prompt in inputs.prompts]
        content = pad_sequence(contents, batch_first=True, padding_value=-1)  # (batch, n_n) ids, -1 for none
        return steering(
            self.rows_of(inputs),
            self._rows(drawn),
            self._rows(content.clamp(min=0)),
            to_device(content >= 0, self.base.device),
            self.settings.steer_temperature,
        )

    def _draw(self, generator: torch.Generator) -> list[int]:
        """Return the ids of `steer_positives` prepositions, drawn without replacement."""
        import torch

        order = torch.randperm(len(self._prepositions), generator=generator)
        return [self._prepositions[index] for index in order[: self.settings.steer_positives].tolist()]

    def _content(self, prompt: str) -> list[int]:
        if prompt not in self._negatives:
            self._negatives[prompt] = content_ids(self.base, prompt)
        return self._negatives[prompt]

    def _rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the table's rows for ids, (batch, ids) to (batch, ids, dim) float32."""
        return self.base.table[to_device(ids, self.base.device)].float()


def preposition_ids(base: Base) -> list[int]:
    """Return the ids of the prepositions that are one token; "astride", two in CLIP's vocabulary, is left out."""
    return _single_ids(base, PREPOSITIONS)


def _single_ids(base: Base, words: Sequence[str]) -> list[int]:
    """Return the ids of those of `words` that are one token."""
    pieces = base.tokenizer(list(words), add_special_tokens=False).input_ids
    return [ids[0] for ids in pieces if len(ids) == 1]


def content_ids(base: Base, caption: str) -> list[int]:
    """Return the ids of a caption's content words, each once: the negatives of the steering loss.

    Placeholders, prepositions, stop words, contractions, numbers and punctuation are left out, as are padding and the
    tokenizer's other special tokens. Whole words are filtered, so no fragment of a long preposition slips through, and
    then their pieces: "toucan" ends in the token of "can".
    """
    skipped = (*PREPOSITIONS, *STOP_WORDS)
    words = [word for word in WORD.findall(caption.lower()) if word[0] not in "<'\u2019" and word not in skipped]
    ids = [piece for word in words for piece in base.tokenizer(word, add_special_tokens=False).input_ids]
    unwanted = set(_single_ids(base, skipped))
    return [id_ for id_ in dict.fromkeys(ids) if id_ not in unwanted]
