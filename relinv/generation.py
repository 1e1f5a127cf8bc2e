"""Generation: the scenarios of a relation drawn with a learned concept, prompts batched, a seed an image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from relinv.devices import deterministic
from relinv.diffusion.conditioning import Encodings, guided_by, in_use
from relinv.diffusion.sampling import Sampler, initial_latents, sample, to_pictures
from relinv.errors import UserError
from relinv.files import code_hash
from relinv.images import ImageRecord, ImageWriter, Workspace, contact_sheet
from relinv.settings import GenerateSettings

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from relinv.adapters import ConceptAdapter
    from relinv.benchmark import Scenario
    from relinv.diffusion.bases import Base
    from relinv.diffusion.concept import Concept

# The code that decides the pixels: an unfinished run is never finished by other code.
CODE = ("adapters", "benchmark.py", "devices.py", "diffusion", "generation.py", "images.py")


def generate_folder(
    base: Base,
    concept: Concept,
    scenarios: Sequence[Scenario],
    settings: GenerateSettings,
    folder: Path,
    scratch: Path,
) -> None:
    """Draw `scenarios` into `folder`: a PNG each and records.jsonl, there at once when all are done.

    Killed and run again, it draws only the batches that are not whole yet in the `scratch` folder, and ends
    with the same bytes as a run straight through. Raises UserError as `generate` does.
    """
    records = plan(base, concept, scenarios, settings)
    # beside the records: what the last bits of a picture depend on, the code among it
    version = [code_hash(Path(__file__).parent, CODE), json.dumps(base.numerics), str(settings.batch_size)]
    workspace = Workspace(scratch, records, version)
    label = f"{records[0].relation} by {records[0].method}"
    with (
        ImageWriter(workspace.folder) as writer,
        tqdm(total=len(records), desc=label, unit="image") as progress,
    ):
        for batch, pictures in generate(base, concept, records, settings, skip=workspace.is_done):
            for record, picture in zip(batch, pictures, strict=True):
                writer.write(record, picture)
            progress.update(len(batch))
    workspace.publish(folder)


def redraw(base: Base, concept: Concept, record: ImageRecord, scenarios: Sequence[Scenario]) -> Image.Image:
    """Return the picture of `record` drawn again, among the pictures it was drawn with: pixel for pixel on one machine.

    `scenarios` are those of its run. Raises UserError where base, concept or scenarios are not those of the record.
    """
    settings = GenerateSettings(**{name: record.settings[name] for name in GenerateSettings.model_fields})
    records = plan(base, concept, scenarios, settings)
    if record not in records:
        raise UserError(
            f"The image {record.file} of '{record.relation}' by {record.method} was drawn with another base, concept "
            "or benchmark than are here now: put those back."
        )
    start = records.index(record) // settings.batch_size * settings.batch_size
    batch = records[start : start + settings.batch_size]
    ((_, pictures),) = generate(base, concept, batch, settings)
    return pictures[batch.index(record)]


def imagine(base: Base, concepts: Sequence[Concept], prompt: str, settings: GenerateSettings, seed: int) -> Image.Image:
    """Return the picture of a free prompt, with all of `concepts` in use at once; UserErrors as `generate`."""
    sampler = Sampler(settings.steps, settings.guidance_scale, settings.scheduler)
    with deterministic(base.device), in_use(base, concepts) as adapters:
        encodings = Encodings(base, adapters, ["", prompt], sampler.timesteps(base))
        return to_pictures(_draw(base, adapters, encodings, [prompt], [seed], sampler))[0]


def draw_forms(base: Base, concept: Concept, scenario: Scenario, settings: GenerateSettings) -> Image.Image | None:
    """Return one scenario drawn with every form that the concept's token may take, all from the same noise.

    A line of pictures for each of the adapter's lines of forms; None for a token that has one form. Raises UserError
    as `generate` does.
    """
    with in_use(base, [concept]) as adapters:
        lines = [line for adapter in adapters for line in adapter.forms()]
    if not lines:
        return None
    (record,) = plan(base, concept, [scenario], settings)
    forms = [replace(record, prompt=record.prompt.replace(str(concept.token), form)) for line in lines for form in line]
    pictures = [picture for _, batch in generate(base, concept, forms, settings) for picture in batch]
    return contact_sheet(pictures, lines)


def plan(base: Base, concept: Concept, scenarios: Sequence[Scenario], settings: GenerateSettings) -> list[ImageRecord]:
    """Return the record of each image to be drawn, in the order of `scenarios`; nothing is drawn yet."""
    shared = {
        **settings.model_dump(),
        "resolution": base.resolution,
        "base": base.id,
        "base_sha256": base.fingerprint,
        "concept_sha256": concept.fingerprint,
    }
    return [
        ImageRecord(
            file=f"{scenario.index:03d}.png",
            prompt=concept.prompt(scenario.head, scenario.tail),
            head=scenario.head,
            tail=scenario.tail,
            relation=scenario.relation,
            index=scenario.index,
            seed=image_seed(settings.seed, scenario.relation, scenario.index),
            held_out=scenario.held_out,
            method=concept.method,
            settings=shared,
        )
        for scenario in scenarios
    ]


def image_seed(seed: int, relation: str, index: int) -> int:
    """Return the 32-bit seed of one image's noise: the same for every method, on every machine.

    Methods share it so that their images of one scenario differ by the method alone.
    """
    digest = hashlib.sha256(f"{seed}|{relation}|{index}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def generate(
    base: Base,
    concept: Concept,
    records: Sequence[ImageRecord],
    settings: GenerateSettings,
    skip: Callable[[Sequence[ImageRecord]], bool] = lambda batch: False,
) -> Iterator[tuple[Sequence[ImageRecord], list[Image.Image]]]:
    """Yield each batch of `records`, `batch_size` at a time, with its pictures; `skip` tells which are done.

    Raises UserError for a prompt with an unknown `<token>` or too many tokens, when the device's memory is
    too small for a batch, and when the base's precision is too low for its numbers.
    """
    sampler = Sampler(settings.steps, settings.guidance_scale, settings.scheduler)
    prompts = ["", *(record.prompt for record in records)]
    with deterministic(base.device), in_use(base, [concept]) as adapters:
        encodings = Encodings(base, adapters, prompts, sampler.timesteps(base))
        for start in range(0, len(records), settings.batch_size):
            batch = records[start : start + settings.batch_size]
            if not skip(batch):
                texts, seeds = [record.prompt for record in batch], [record.seed for record in batch]
                yield batch, to_pictures(_draw(base, adapters, encodings, texts, seeds, sampler))


def _draw(
    base: Base,
    adapters: Sequence[ConceptAdapter],
    encodings: Encodings,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampler: Sampler,
) -> torch.Tensor:
    """Return one image a prompt, (prompts, 3, pixels, pixels) in [0, 1]; UserErrors as `sample`."""
    conditions = encodings.of(prompts), encodings.of([""] * len(prompts))
    return sample(base, *conditions, initial_latents(base, seeds), sampler, guided_by(adapters, prompts))
