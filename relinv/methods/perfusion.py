"""Perfusion (Tewel et al., SIGGRAPH 2023): a token's row and, at each cross-attention, its value.

The layers' keys are locked to a word's (the edit is in relinv/adapters/perfusion.py). For a single relation this learns
the row, the outputs o_V and, as a moving average, the encoding i at which the edit applies. The last two start from the
word as it is encoded in the token's place in the captions. An encoding depends on the words before it, so that of the
bare word is far from any that the token has, and the edit would not apply to the token at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field

from relinv.adapters.perfusion import DIRECTION, INPUT, SUPERCLASS, Adapter, DrawOptions, require_lockable
from relinv.devices import deterministic
from relinv.diffusion.cross_attention import projections
from relinv.diffusion.embeddings import TOKEN
from relinv.errors import UserError
from relinv.learning.second_moment import read_captions, second_moment
from relinv.learning.token_row import TokenRowMethod, TokenRowSettings
from relinv.settings import File

if TYPE_CHECKING:
    import torch
    from transformers import CLIPTokenizer

    from relinv.diffusion.bases import Base
    from relinv.exemplars import ExemplarSet

WATCHED = Path("data/benchmark")  # a dependency of the stage, so that DVC notices a change there


def _is_watched(path: Path) -> Path:
    if path.parent != WATCHED:
        raise ValueError(f"it must be a file in {WATCHED}")
    return path


Captions = Annotated[File, AfterValidator(_is_watched)]


class Settings(TokenRowSettings, DrawOptions):
    """The section `invert.perfusion`; those of `DrawOptions` apply unless generate.adapters overrides them."""

    value_learning_rate: Annotated[float, Field(gt=0, le=10)]  # of the outputs o_V
    input_average: Annotated[float, Field(ge=0, lt=1)]  # share of i, the token's mean encoding, that a step keeps
    superclass: Annotated[str, Field(min_length=1)] | None  # words whose keys it gets; null: the initializer_token
    train_beta: Annotated[float, Field(ge=-10, le=10)]  # the gate's threshold and, below, its softness in training
    train_tau: Annotated[float, Field(gt=0, le=10)]
    captions: Captions  # from which C is computed: a benchmark's YAML file, or one caption per line

    def check_words(self, words: str, tokenizer: CLIPTokenizer) -> None:
        """Raise UserError if a word whose row is taken, or the superclass of a global locking, is not one token."""
        super().check_words(words, tokenizer)
        if self.superclass:
            require_lockable(tokenizer, self.superclass, self.locking)


class Method(TokenRowMethod):
    """The denoising loss weighted by masks; the edit is trained with local locking, as published.

    Previews show it with the gate of training, too.
    """

    settings: Settings
    _seen: torch.Tensor  # the token's mean encoding in the current step, (dim,)

    def __init__(self, base: Base, words: str, settings: Settings, exemplars: ExemplarSet) -> None:
        super().__init__(base, words, settings, exemplars)
        moment = second_moment(base, read_captions(settings.captions))
        self._inverse = moment.inverse().float().to(base.device)  # (dim, dim)
        superclass = settings.superclass or self.initializer
        start = encoding_in_place(base, superclass, exemplars)  # (dim,)
        layers = {name: layer for name, layer in projections(base).items() if name.endswith("to_v")}
        values = {name: layer.weight.float() @ start for name, layer in layers.items()}  # (out,) each
        options = {name: getattr(settings, name) for name in DrawOptions.model_fields}
        options |= {"superclass": superclass, "second_moment": moment.id}
        tensors = {INPUT: start, DIRECTION: self._inverse @ start, SUPERCLASS: start, **values}
        self.edit = Adapter(base, TOKEN, tensors, options)
        self.edit.gate, self.edit.learning = (settings.train_beta, settings.train_tau), True
        self.adapters = [self.edit]
        self._input, self._direction = self.edit.tensors[INPUT], self.edit.tensors[DIRECTION]
        self._values = [self.edit.tensors[name] for name in values]

    def groups(self) -> list[dict[str, Any]]:
        """Return the row and the o_V; these have no weight decay, which would shrink the outputs towards zero."""
        values = {"params": self._values, "lr": self.settings.value_learning_rate, "weight_decay": 0.0}
        return [*super().groups(), values]

    def state(self) -> dict[str, torch.Tensor]:
        """Return the row and the adapter's tensors."""
        return super().state() | self.edit.tensors

    def conditioning(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the encodings, (prompts, tokens, dim), and store the token's mean encoding."""
        encodings = super().conditioning(ids)
        here = (ids == self.base.tokenizer.convert_tokens_to_ids(TOKEN)).float()  # (prompts, tokens)
        self._seen = (here[..., None] * encodings.detach().float()).sum((0, 1)) / here.sum()
        return encodings

    def after_step(self) -> None:
        """Move i towards the token's encoding, averaged over the step's distinct prompts, and update C^-1 i."""
        import torch

        super().after_step()
        with torch.no_grad():
            self._input.lerp_(self._seen, 1 - self.settings.input_average)
            self._direction.copy_(self._inverse @ self._input)


def encoding_in_place(base: Base, words: str, exemplars: ExemplarSet) -> torch.Tensor:
    """Return the mean encoding of the last token of `words` in the token's place in all captions, (dim,) float32.

    The published code averages over the first batch's captions. What comes after the token does not matter, because the
    text encoder is causal.
    """
    import torch

    if not base.tokenizer(words, add_special_tokens=False).input_ids:
        raise UserError("The superclass is empty: name a word.")
    templates = dict.fromkeys(template for exemplar in exemplars.exemplars for template in exemplar.templates)
    prompts = [template.partition("{}")[0] + words for template in templates]
    last = [len(base.tokenizer(prompt, add_special_tokens=False).input_ids) for prompt in prompts]  # after the start
    with torch.no_grad(), deterministic(base.device, backward=False):
        encodings = base.encode(base.tokenize(prompts)).float()  # (prompts, tokens, dim)
    return torch.stack([encoding[place] for encoding, place in zip(encodings, last, strict=True)]).mean(0)
