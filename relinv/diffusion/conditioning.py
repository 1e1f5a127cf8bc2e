"""Concepts in use: their tokens and adapters put into a base, and prompts encoded for each step of a sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from relinv.diffusion.embeddings import PlaceholderTokens
from relinv.errors import UserError
from relinv.plugins import find_plugin

if TYPE_CHECKING:
    import torch

    from relinv.adapters import ConceptAdapter, Guidance
    from relinv.diffusion.bases import Base
    from relinv.diffusion.concept import Concept

PROMPTS_AT_ONCE = 100  # encoded together, whatever the batch size, so that it changes no encoding


@contextmanager
def in_use(base: Base, concepts: Sequence[Concept]) -> Iterator[list[ConceptAdapter]]:
    """Inside the block `base` knows the tokens of `concepts` and has their adapters, which it yields, in place.

    Raises UserError where two concepts have one token, or an adapter does not fit the base.
    """
    tokens = [concept.token for concept in concepts if concept.token]
    for index, token in enumerate(tokens):
        if token in tokens[:index]:
            raise UserError(f"The base knows the token '{token}' already, by another concept: use one of them.")
    adapters = []
    with ExitStack() as stack:
        for concept in concepts:
            if concept.token and concept.embedding is not None:
                stack.enter_context(PlaceholderTokens(base, {concept.token: concept.embedding}))
            described = concept.metadata.get("adapter")
            if described:
                kind = find_plugin("relinv.adapters", described["name"]).Adapter
                adapter = kind(base, concept.token, concept.weights, described["options"])
                adapters.append(stack.enter_context(adapter))
        yield adapters


class Encodings:
    """What conditions the UNet for some prompts at some timesteps, each distinct text encoded once.

    Raises UserError for a prompt with a `<token>` that nothing has learned, or with more tokens than the base reads.
    """

    def __init__(
        self, base: Base, adapters: Sequence[ConceptAdapter], prompts: Sequence[str], timesteps: Sequence[int]
    ) -> None:
        import torch

        self._adapters = adapters
        encode: Callable[[Sequence[str]], torch.Tensor] = lambda texts: base.encode(base.tokenize(texts))  # noqa: E731
        for adapter in adapters:
            encode = partial(adapter.encode, plain=encode)
        texts = list(dict.fromkeys(self._text(prompt, timestep) for prompt in prompts for timestep in timesteps))
        with torch.no_grad():
            parts = [encode(texts[i : i + PROMPTS_AT_ONCE]) for i in range(0, len(texts), PROMPTS_AT_ONCE)]
        self._encodings = dict(zip(texts, torch.cat(parts), strict=True))

    def of(self, prompts: Sequence[str]) -> Callable[[int], torch.Tensor]:
        """Return the function from timestep to the encodings of `prompts`, (prompts, tokens, dim)."""
        import torch

        return lambda timestep: torch.stack([self._encodings[self._text(prompt, timestep)] for prompt in prompts])

    def _text(self, prompt: str, timestep: int) -> str:
        for adapter in self._adapters:
            prompt = adapter.prompt_at(prompt, timestep)
        return prompt


def guided_by(adapters: Sequence[ConceptAdapter], prompts: Sequence[str]) -> Guidance | None:
    """Return the guidance of the one adapter that has any for these prompts, or None; UserError where two have."""
    found = [guidance for adapter in adapters if (guidance := adapter.guidance(prompts))]
    if len(found) > 1:
        raise UserError("Two of the concepts in use guide the latents: use one of them.")
    return found[0] if found else None
