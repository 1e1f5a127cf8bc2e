"""Images: how one was made, made again, and of prompts of one's own."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from tqdm import tqdm

from relinv import cli
from relinv.adapters.layout import draw_boxes, layout_of
from relinv.checking import parse
from relinv.commands.common import base_on_cpu
from relinv.diffusion.bases import load_base
from relinv.diffusion.concept import load_concept
from relinv.diffusion.conditioning import with_draw_options
from relinv.diffusion.sampling import encode_png
from relinv.errors import UserError
from relinv.files import atomic_write_bytes
from relinv.generation import settings_of
from relinv.images import ImageRecord, parameters, png_texts, read_image_record, require_target
from relinv.imagining import draw_again, find_concepts, free_record, imagine_each, require_used, unsaid, with_options
from relinv.params import load_params
from relinv.results import find_result
from relinv.settings import GenerateSettings, Sampler, Scheduler

app = cli.stage_app()


@app.command(epilog="Example: relinv show data/images/inside/reversion/042.png")
def show(
    image: Annotated[Path, typer.Argument(help="An image that the pipeline drew.")],
    boxes: Annotated[
        Path | None, typer.Option(help="Also write the image with its boxes drawn in, to this PNG.")
    ] = None,
) -> None:
    """Print how an image was made.

    The last line is the command that makes it again.
    """
    if boxes:
        require_target(boxes)
    record = read_image_record(image)
    if boxes:
        _require_another(boxes, image)
        _write_with_boxes(image, record, boxes)
    print(parameters(record))
    print(json.dumps(asdict(record), indent=2, ensure_ascii=False))
    print(f"To make it again: {shlex.join(['relinv', 'draw', str(image), 'again.png'])}")


def _require_another(target: Path, image: Path) -> None:
    """Raise UserError if an image would be written over the one that was read."""
    if target.exists() and target.samefile(image):
        raise UserError(f"'{target}' is the image that is read, and it would be lost: name another file to write.")


def _write_with_boxes(image: Path, record: ImageRecord, target: Path) -> None:
    """Write a drawn image with the boxes of its concept; UserError if it has none or has changed since."""
    if not record.method:
        raise UserError(f"The image '{image}' is of a prompt of its own: boxes are shown on the scenarios' images.")
    learned = find_result("invert", record.relation, record.method)
    concept = load_concept(learned, base_on_cpu())
    layout = layout_of(with_draw_options(concept, settings_of(record).adapters))
    if concept.fingerprint != record.settings.get("concept_sha256"):
        raise UserError(f"The image '{image}' was drawn with another concept than is here now: generate it again.")
    with Image.open(image) as picture:
        atomic_write_bytes(target, encode_png(draw_boxes(picture.convert("RGB"), layout), png_texts(record)))


@app.command(epilog="Example: relinv draw data/images/inside/reversion/042.png again.png")
def draw(
    image: Annotated[Path, typer.Argument(help="An image that the pipeline drew.")],
    target: Annotated[Path, typer.Argument(help="The PNG to write.")],
) -> None:
    """Draw an image again, by the record in it.

    On the same machine it has the same bytes.
    """
    require_target(target)
    record = read_image_record(image)
    _require_another(target, image)
    atomic_write_bytes(target, encode_png(draw_again(record, load_params()), png_texts(record)))


@app.command(
    epilog='Example: relinv imagine "<koala> <r> box" a.png --use r=inside/reversion --use koala=koala/dreambooth; or '
    'relinv imagine "cat <r> bowl" cat.png --use r=inside/perfusion --with perfusion.beta=0.5'
)
def imagine(
    prompt: Annotated[str, typer.Argument(help="What to draw, with a <token> for each concept.")],
    target: Annotated[Path, typer.Argument(help="The PNG to write; of several images, each name ends in its seed.")],
    use: Annotated[
        list[str] | None, typer.Option(help="A concept as TOKEN=RELATION/METHOD; may be given several times.")
    ] = None,
    negative: Annotated[str, typer.Option(help="A prompt of what is not to be seen.")] = "",
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="The seed of the noise.")] = 0,
    images: Annotated[int, typer.Option(min=1, help="How many to draw, from that seed and those after it.")] = 1,
    steps: Annotated[
        int | None, typer.Option(help="Sampling steps, 1 to 500; default: the base's, as in params.yaml.")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="0 to 50; default: the base's, as in params.yaml.")
    ] = None,
    scheduler: Annotated[Scheduler | None, typer.Option(help="Default: the base's, as in params.yaml.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--with", help="As in generate.adapters: perfusion.beta=0.5; may be given several times."),
    ] = None,
) -> None:
    """Draw a prompt of your own.

    It may use one concept from data/concepts, several at once, or none.
    """
    _require_recordable(f"{prompt}{negative}", seed, images)
    seeds = range(seed, seed + images)
    files = [target if images == 1 else target.parent / f"{target.stem}_{each}{target.suffix}" for each in seeds]
    for file in files:
        require_target(file)
    params = load_params()
    given, options = {"steps": steps, "guidance_scale": guidance_scale, "scheduler": scheduler}, option or []
    settings = _as_given(params.generation(), given, options)
    if negative and settings.guidance_scale <= 1:
        raise UserError("The negative prompt would change nothing at a guidance scale of 1 or less: raise that.")
    base = load_base(params.drawing_model())
    concepts = find_concepts(use or [], base)
    for sentence in unsaid(prompt, negative, concepts):  # drawn anyway: weights beside a token change any picture
        print(f"Warning: {sentence}", file=sys.stderr)
    require_used(options, settings.adapters, concepts.values())
    record = free_record(base, concepts, prompt, settings, seed, target.name, negative)
    shown = tqdm(seeds, unit="image", disable=images == 1)
    pictures = imagine_each(base, list(concepts.values()), prompt, settings, shown, negative)
    for each, file, picture in zip(seeds, files, pictures, strict=True):
        atomic_write_bytes(file, encode_png(picture, png_texts(replace(record, seed=each, file=file.name))))


def _as_given(settings: GenerateSettings, sampler: Mapping[str, Any], options: Sequence[str]) -> GenerateSettings:
    """Return the settings with those of the sampler that are given, not None, and with options of adapters."""
    values = {name: getattr(settings, name) if value is None else value for name, value in sampler.items()}
    chosen = parse(Sampler, values, "", "the command").model_dump()
    return settings.model_copy(update={**chosen, "adapters": with_options(options, settings.adapters)})


def _require_recordable(prompt: str, seed: int, images: int) -> None:
    """Raise UserError for a prompt or seeds that the images' records could not hold."""
    if seed + images > 2**32:
        raise UserError(f"{images} images from seed {seed} on take seeds beyond {2**32 - 1}: start from a lower one.")
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError("The prompt is not UTF-8 text: write it in a terminal that uses UTF-8.") from None
