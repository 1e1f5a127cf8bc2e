"""Generation: a relation's scenarios drawn with a learned concept, in batches, each image from a seed of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from relinv.benchmark import Scenario
from relinv.checking import parse
from relinv.devices import deterministic
from relinv.diffusion.bases import Base
from relinv.diffusion.concept import Concept
from relinv.diffusion.conditioning import Drawer, in_use, with_draw_options
from relinv.diffusion.sampling import encode_png, to_pictures
from relinv.errors import UserError
from relinv.files import atomic_write_bytes, code_hash
from relinv.images import FORMS_FILE, ImageRecord, png_texts, publish, workspace
from relinv.settings import GenerateSettings

# The code that decides the pixels: an unfinished run is resumed only by the same code.
CODE = ("adapters", "benchmark.py", "devices.py", "diffusion", "generation.py", "images.py")

WRITERS = 4  # threads; compressing a 512 px PNG takes about as long as sampling it on a fast GPU

# What error messages call the settings in records.
NAMES = {"base_sha256": "base", "concept_sha256": "concept", "concepts": "concept",
         "run": "library, GPU or way to run the base"}  # fmt: skip


def generate_folder(
    base: Base,
    concept: Concept,
    scenarios: Sequence[Scenario],
    settings: GenerateSettings,
    folder: Path,
    scratch: Path,
    confirm: Callable[[], None] = lambda: None,
) -> None:
    """Draw `scenarios` into `folder`: their PNGs and records.jsonl, which appear together when all are done.

    If the concept's token has several forms, forms.png beside them shows the first scenario with each.

    Killed and run again, it draws only the batches not yet complete in the `scratch` folder, and ends with the
    same bytes as an uninterrupted run; so it does if `confirm`, called before and once all are drawn, raises an error.
    Raises UserError as `generate` does.
    """
    records = plan(base, concept, scenarios, settings)
    label = f"{records[0].relation} by {records[0].method}"
    with workspace(scratch, records, code_hash(Path(__file__).parent, CODE), base.processor) as made:
        confirm()  # the workspace is named by the code that is there by now
        with ThreadPoolExecutor(WRITERS) as threads, tqdm(total=len(records), desc=label, unit="image") as progress:

            def is_done(batch: Sequence[ImageRecord]) -> bool:
                """Return whether a batch's files are there, and show so; each appears only when complete."""
                done = all((made / record.file).is_file() for record in batch)
                progress.update(len(batch) if done else 0)
                return done

            written: Iterator[None] = iter(())
            for batch, pictures in generate(base, concept, records, settings, skip=is_done):
                list(written)  # of the batch before, while this one was drawn; reports a full disk now
                written = threads.map(partial(write_image, made), batch, pictures)
                progress.update(len(batch))
            list(written)
        sheet = made / FORMS_FILE
        if not sheet.is_file() and (forms := draw_forms(base, concept, scenarios[0], settings)):
            atomic_write_bytes(sheet, encode_png(forms))
        confirm()
        publish(made, records, folder)


def write_image(folder: Path, record: ImageRecord, picture: Image.Image) -> None:
    """Write `picture` as its record's file in `folder`, whole or not at all, with the record in it."""
    atomic_write_bytes(folder / record.file, encode_png(picture, png_texts(record)))


def redraw(base: Base, concept: Concept, record: ImageRecord, scenarios: Sequence[Scenario]) -> Image.Image:
    """Return the picture of `record`, redrawn in the batch it was drawn in: on the same machine, pixel for pixel.

    `scenarios` are those of its run. Raises UserError if anything it was drawn with differs from the record.
    """
    settings = settings_of(record)
    records = plan(base, concept, scenarios, settings)
    require_same(record, records)
    start = records.index(record) // settings.batch_size * settings.batch_size
    batch = records[start : start + settings.batch_size]
    ((_, pictures),) = generate(base, concept, batch, settings)
    return pictures[batch.index(record)]


def settings_of(record: ImageRecord) -> GenerateSettings:
    """Return the settings an image was drawn with; UserError if its record is from an earlier version."""
    given = {name: value for name, value in record.settings.items() if name in GenerateSettings.model_fields}
    return parse(GenerateSettings, given, "settings", record.file)


def require_same(record: ImageRecord, records: Sequence[ImageRecord]) -> None:
    """Raise UserError unless `record` is among those that would be drawn now, saying what differs."""
    if record in records:
        return
    now = records[0].settings if records else record.settings
    changed = {NAMES.get(name, name) for name in {*now, *record.settings} if now.get(name) != record.settings.get(name)}
    raise UserError(
        f"The image {record.file} was drawn with another {' and '.join(sorted(changed)) or 'benchmark'} than is here "
        "now: put that back."
    )


def draw_forms(base: Base, concept: Concept, scenario: Scenario, settings: GenerateSettings) -> Image.Image | None:
    """Return one scenario drawn with each form of the concept's token, all from the same noise.

    One line of pictures for each of the adapters' lines of forms; None if the token has only one form. Raises
    UserError as `generate` does.
    """
    with in_use(base, [concept]) as adapters:
        lines = [line for adapter in adapters for line in adapter.forms()]
    if not lines:
        return None
    record = plan(base, concept, [scenario], settings)[0]
    forms = [replace(record, prompt=record.prompt.replace(str(concept.token), form)) for line in lines for form in line]
    pictures = [picture for _, batch in generate(base, concept, forms, settings) for picture in batch]
    return contact_sheet(pictures, lines)


def contact_sheet(pictures: Sequence[Image.Image], lines: Sequence[Sequence[str]]) -> Image.Image:
    """Return the pictures arranged as `lines`, each below its words: as many pictures as words, in the same order."""
    cell, text, gap = 112, 18, 6  # pixels
    left = iter(pictures)
    size = (max(map(len, lines)) * (cell + gap) + gap, len(lines) * (cell + text + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for row, line in enumerate(lines):
        for column, words in enumerate(line):
            x, y = gap + column * (cell + gap), gap + row * (cell + text + gap)
            draw.text((x, y), words, fill="black", font=ImageFont.load_default(12))
            sheet.paste(next(left).resize((cell, cell), Image.Resampling.LANCZOS), (x, y + text))
    return sheet


def plan(base: Base, concept: Concept, scenarios: Sequence[Scenario], settings: GenerateSettings) -> list[ImageRecord]:
    """Return the record of each image to be drawn, scenario by scenario in the given order; nothing is drawn yet."""
    facts = {**shared_facts(base, settings), "concept_sha256": concept.fingerprint}
    return [
        ImageRecord(
            file=f"{scenario.index:03d}{f'_{number}' if number else ''}.png",
            prompt=concept.prompt(scenario.head, scenario.tail),
            head=scenario.head,
            tail=scenario.tail,
            relation=scenario.relation,
            index=scenario.index,
            seed=image_seed(settings.seed, scenario.relation, scenario.index, number),
            held_out=scenario.held_out,
            method=concept.method,
            settings=facts,
        )
        for scenario in scenarios
        for number in range(settings.images)
    ]


def shared_facts(base: Base, settings: GenerateSettings) -> dict[str, Any]:
    """Return what the records of all images of a run have in common."""
    facts = {"base": base.id, "base_sha256": base.fingerprint, "run": base.numerics}
    return {**settings.model_dump(), "resolution": base.resolution, **facts}


def image_seed(seed: int, relation: str, index: int, number: int = 0) -> int:
    """Return the 32-bit seed of one image's noise: the same for every method, on every machine.

    Methods share it so that their images of one scenario differ only by the method. `number` counts a scenario's
    images; the first does not depend on how many there are.
    """
    place = f"{seed}|{relation}|{index}" + (f"|{number}" if number else "")
    digest = hashlib.sha256(place.encode()).digest()
    return int.from_bytes(digest[:4], "big")


def generate(
    base: Base,
    concept: Concept,
    records: Sequence[ImageRecord],
    settings: GenerateSettings,
    skip: Callable[[Sequence[ImageRecord]], bool] = lambda batch: False,
) -> Iterator[tuple[Sequence[ImageRecord], list[Image.Image]]]:
    """Yield each batch of `records`, `batch_size` at a time, with its pictures; `skip` tells which are done.

    Raises UserError for a prompt with an unknown `<token>` or too many tokens, if the device's memory is too
    small for a batch, or if the base's precision is too low for its numbers.
    """
    prompts = [record.prompt for record in records]
    used = [with_draw_options(concept, settings.adapters)]
    with deterministic(base.device, backward=False), in_use(base, used) as adapters:
        drawer = Drawer(base, adapters, prompts, settings)
        for start in range(0, len(records), settings.batch_size):
            batch = records[start : start + settings.batch_size]
            if not skip(batch):
                texts, seeds = [record.prompt for record in batch], [record.seed for record in batch]
                yield batch, to_pictures(drawer.draw(texts, seeds))
