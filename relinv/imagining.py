"""Prompts of one's own, drawn with one concept, several or none; and any picture, drawn again from its record."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from relinv.devices import deterministic
from relinv.diffusion.bases import PLACEHOLDER, Base, load_base
from relinv.diffusion.concept import Concept, load_concept
from relinv.diffusion.conditioning import Drawer, in_use, with_draw_options
from relinv.diffusion.sampling import to_pictures
from relinv.errors import UserError
from relinv.files import parse_yaml
from relinv.generation import redraw, require_same, settings_of, shared_facts
from relinv.images import NEGATIVE, ImageRecord
from relinv.params import Params
from relinv.results import find_benchmark, find_result
from relinv.settings import GenerateSettings

FORM = re.compile(r"[\[(|>]")  # ends the name in a token, such as <r>, or <r[3]> of several rows


def imagine(
    base: Base, concepts: Sequence[Concept], prompt: str, settings: GenerateSettings, seed: int, negative: str = ""
) -> Image.Image:
    """Return the picture of a free prompt, with all of `concepts` in use at once; UserError as in `generate`.

    `negative` is the prompt that guidance leads away from.
    """
    (picture,) = imagine_each(base, concepts, prompt, settings, [seed], negative)
    return picture


def imagine_each(
    base: Base,
    concepts: Sequence[Concept],
    prompt: str,
    settings: GenerateSettings,
    seeds: Iterable[int],
    negative: str = "",
) -> Iterator[Image.Image]:
    """Yield the picture of a free prompt for each seed; each is drawn by itself, so none depends on the others."""
    concepts = [with_draw_options(concept, settings.adapters) for concept in concepts]
    with deterministic(base.device, backward=False), in_use(base, concepts) as adapters:
        drawer = Drawer(base, adapters, [prompt], settings, negative)
        for seed in seeds:
            yield to_pictures(drawer.draw([prompt], [seed]))[0]


def free_record(
    base: Base,
    concepts: Mapping[str, Concept],
    prompt: str,
    settings: GenerateSettings,
    seed: int,
    file: str,
    negative: str = "",
) -> ImageRecord:
    """Return the record of a picture that `imagine` draws; `concepts` by their source, such as "r=inside/reversion".

    It belongs to no scenario: the fields of one are empty.
    """
    used = {source: concept.fingerprint for source, concept in concepts.items()}
    facts = {**shared_facts(base, settings), "concepts": used} | ({NEGATIVE: negative} if negative else {})
    return ImageRecord(file, prompt, "", "", "", 0, seed, None, "", facts)


def draw_again(record: ImageRecord, params: Params) -> Image.Image:
    """Return the picture of a scenario or of a free prompt, redrawn with what is here now.

    Raises UserError if that is not what the record says it was drawn with.
    """
    base = load_base(params.drawing_model())
    if (uses := record.settings.get("concepts")) is not None:
        return reimagine(base, find_concepts(list(uses), base), record)
    scenarios = find_benchmark(params, record.relation).scenarios(record.relation, record.settings["pairs"])
    concept = load_concept(find_result("invert", record.relation, record.method), base)
    return redraw(base, concept, record, scenarios)


def reimagine(base: Base, concepts: Mapping[str, Concept], record: ImageRecord) -> Image.Image:
    """Return the picture of a `free_record`, redrawn; UserError if anything differs from the record."""
    settings, negative = settings_of(record), record.settings.get(NEGATIVE, "")
    now = free_record(base, concepts, record.prompt, settings, record.seed, record.file, negative)
    require_same(record, [now])
    return imagine(base, list(concepts.values()), record.prompt, settings, record.seed, negative)


def find_concepts(uses: Sequence[str], base: Base) -> dict[str, Concept]:
    """Return the concepts named as TOKEN=RELATION/METHOD, each called by its token.

    They are sorted, because pixels depend on their order, which an image's record does not keep.
    """
    concepts = {}
    for use in sorted(uses):
        token, equals, place = use.partition("=")
        relation, _, method = place.partition("/")
        if not (equals and relation and method) or "/" in method:
            raise UserError(f"'{use}' names no concept: write --use TOKEN=RELATION/METHOD, such as r=inside/reversion.")
        if not PLACEHOLDER.fullmatch(f"<{token}>"):
            raise UserError(
                f"'{use}' has a token that prompts cannot name: write what stands between '<' and '>', without spaces."
            )
        token = token.lower()  # as prompts are read
        concepts[use] = load_concept(find_result("invert", relation, method), base).called(f"<{token}>")
    return concepts


def unsaid(prompt: str, negative: str, concepts: Mapping[str, Concept]) -> list[str]:
    """Return a sentence for each concept, by its source, whose token neither prompt says in any of its forms."""
    said = {FORM.split(token.lower())[0] for token in PLACEHOLDER.findall(f"{prompt} {negative}")}
    return [
        f"The prompt '{prompt}' does not say {concept.token}: write it where {use} is to be shown."
        for use, concept in concepts.items()
        if concept.token and FORM.split(concept.token)[0] not in said
    ]


def with_options(options: Sequence[str], adapters: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return `adapters` with options of the form ADAPTER.NAME=VALUE applied; the value is YAML."""
    changed = {name: dict(values) for name, values in adapters.items()}
    for option in options:
        place, equals, value = option.partition("=")
        adapter, dot, name = place.partition(".")
        if not (equals and dot):
            raise UserError(f"'{option}' is not an option: write --with ADAPTER.NAME=VALUE, as in perfusion.beta=0.5.")
        changed.setdefault(adapter, {})[name] = parse_yaml(value, f"value in '{option}'")
    return changed


def require_used(
    options: Sequence[str], adapters: Mapping[str, Mapping[str, Any]], concepts: Iterable[Concept]
) -> None:
    """Raise UserError if one of `options`, which gave `adapters` by `with_options`, fits none of the concepts."""
    given = {option.partition(".")[0]: option for option in options}
    changes = {name: adapters[name] for name in given}
    drawn = [with_draw_options(concept, changes, "--with") for concept in concepts]
    used = {adapter["name"] for concept in drawn for adapter in concept.adapters}
    for name, option in given.items():
        if name not in used:
            raise UserError(
                f"'{option}' would change nothing, because no concept in use has the adapter '{name}' (they have "
                f"{', '.join(sorted(used)) or 'none'}): leave it out."
            )
