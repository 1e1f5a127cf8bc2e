"""Using concepts: applying their tokens and adapters to a base, and encoding prompts for each step and drawing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from relinv.checking import parse
from relinv.diffusion.adapter import drawing_adapter, in_place
from relinv.diffusion.concept import remedy_for
from relinv.diffusion.embeddings import PlaceholderTokens
from relinv.diffusion.sampling import build_scheduler, initial_latents, sample
from relinv.errors import UserError
from relinv.plugins import find_plugin

if TYPE_CHECKING:
    import torch

    from relinv.diffusion.adapter import ConceptAdapter, Guidance
    from relinv.diffusion.bases import Base
    from relinv.diffusion.concept import Concept
    from relinv.settings import Sampler

PROMPTS_AT_ONCE = 100  # encoded together: were it the sampling batch size, that would change encodings by rounding


def with_draw_options(concept: Concept, changes: Mapping[str, Mapping[str, Any]], file: str = "params.yaml") -> Concept:
    """Return the concept with changed drawing options, given in `file` by adapter name: {"perfusion": {"beta": 0.5}}.

    A concept with a token also gets any named adapter that it was learned without, if that is `addable`; other options
    have no effect on concepts without their adapter. Raises UserError as `drawing_adapter` does.
    """
    adapters = {described["name"]: described for described in concept.adapters}
    for name, options in changes.items():
        kind = drawing_adapter(name, options, file)
        if name not in adapters and not (kind.addable and concept.token):
            continue
        own = adapters.get(name, {"name": name, "file": None, "options": {}})
        known = {key: value for key, value in own["options"].items() if key in kind.DrawOptions.model_fields}
        chosen = parse(kind.DrawOptions, known | dict(options), f"generate.adapters.{name}", file)
        adapters[name] = {**own, "options": own["options"] | chosen.model_dump(mode="json")}
    if not adapters:
        return concept
    return replace(concept, metadata={**concept.metadata, "adapters": list(adapters.values())})


@contextmanager
def in_use(base: Base, concepts: Sequence[Concept]) -> Iterator[list[ConceptAdapter]]:
    """Inside the block `base` knows the tokens of `concepts`, and their adapters, which are yielded, are applied.

    Raises UserError if two concepts have the same token, or if an adapter does not fit the base.
    """
    tokens = [concept.token for concept in concepts if concept.token]
    for index, token in enumerate(tokens):
        if token in tokens[:index]:
            raise UserError(f"The base knows the token '{token}' already, by another concept: use one of them.")
    rows = {concept.token: concept.embedding for concept in concepts if concept.token and concept.embedding is not None}
    adapters = [adapter for concept in concepts for adapter in _adapters_of(base, concept)]
    with PlaceholderTokens(base, rows).applied(), in_place(adapters):
        yield adapters


def _adapters_of(base: Base, concept: Concept) -> Iterator[ConceptAdapter]:
    for described in concept.adapters:
        name, options = described["name"], described["options"]
        tensors = concept.weights.get(name, {})
        try:
            adapter = find_plugin("relinv.adapters", name).Adapter(base, concept.token, tensors, options)
        except KeyError as error:
            raise UserError(
                f"The concept of '{concept.metadata['relation']}' by '{concept.method}' is damaged: its adapter "
                f"'{name}' lacks {error}; {remedy_for(concept.metadata)}."
            ) from None
        yield adapter


class Encodings:
    """The UNet's conditioning for some prompts at some timesteps; each distinct text is encoded once.

    Raises UserError for a prompt with a `<token>` that no concept in use has learned, or with too many tokens.
    """

    def __init__(
        self, base: Base, adapters: Sequence[ConceptAdapter], prompts: Sequence[str], timesteps: Sequence[int]
    ) -> None:
        import torch

        self._adapters = adapters
        encode: Callable[[Sequence[str]], torch.Tensor] = lambda texts: base.encode(base.tokenize(texts))  # noqa: E731
        for adapter in adapters:
            encode = partial(adapter.encode, plain=encode)
        texts = list(dict.fromkeys(prompt_at(adapters, prompt, t) for prompt in prompts for t in timesteps))
        with torch.no_grad():
            parts = [encode(texts[i : i + PROMPTS_AT_ONCE]) for i in range(0, len(texts), PROMPTS_AT_ONCE)]
        self._encodings = dict(zip(texts, torch.cat(parts), strict=True))

    def of(self, prompts: Sequence[str]) -> Callable[[int], torch.Tensor]:
        """Return the function from timestep to the encodings of `prompts`, (prompts, tokens, dim)."""
        import torch

        def at(timestep: int) -> torch.Tensor:
            """Return the prompts' encodings at a timestep, (prompts, tokens, dim)."""
            texts = prompts_at(self._adapters, prompts, timestep)
            return torch.stack([self._encodings[text] for text in texts])

        return at


class Drawer:
    """Draws some prompts with adapters that are already applied; each distinct text is encoded once, for all batches.

    `negative` is the prompt that guidance leads away from. Raises UserError as `Encodings` does, before anything is
    drawn.
    """

    def __init__(
        self,
        base: Base,
        adapters: Sequence[ConceptAdapter],
        prompts: Sequence[str],
        sampler: Sampler,
        negative: str = "",
    ) -> None:
        self._base, self._adapters, self._sampler, self._negative = base, adapters, sampler, negative
        timesteps = build_scheduler(base, sampler).timesteps.tolist()
        self._encodings = Encodings(base, adapters, [negative, *prompts], timesteps)

    def draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> torch.Tensor:
        """Return one image per prompt, (prompts, 3, pixels, pixels) in [0, 1], each with noise from its own seed.

        Raises UserError as `sample` and `guided_by` do.
        """
        conditions = self._encodings.of(prompts), self._encodings.of([self._negative] * len(prompts))
        noise, guidance = initial_latents(self._base, seeds), guided_by(self._adapters, prompts)
        return sample(self._base, *conditions, noise, self._sampler, guidance)


def prompt_at(adapters: Sequence[ConceptAdapter], prompt: str, timestep: int) -> str:
    """Return the prompt as all adapters rewrite it for a timestep."""
    for adapter in adapters:
        prompt = adapter.prompt_at(prompt, timestep)
    return prompt


def prompts_at(adapters: Sequence[ConceptAdapter], prompts: Sequence[str], timestep: int) -> list[str]:
    """Return the prompts as all adapters rewrite them for a timestep."""
    return [prompt_at(adapters, prompt, timestep) for prompt in prompts]


def guided_by(adapters: Sequence[ConceptAdapter], prompts: Sequence[str]) -> Guidance | None:
    """Return the guidance of the one adapter that guides these prompts, or None. Raises UserError if two do."""
    at = partial(prompts_at, adapters, prompts)
    found = [guidance for adapter in adapters if (guidance := adapter.guidance(at))]
    if len(found) > 1:
        raise UserError("Two of the concepts in use guide the latents: use one of them.")
    return found[0] if found else None
