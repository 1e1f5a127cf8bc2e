"""Generated images on disk: one PNG each, and records.jsonl, which says how each was made, one line per image."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from PIL import Image
from pydantic import ConfigDict

from relinv.checking import parse
from relinv.errors import UserError, told_as
from relinv.files import atomic_folder, atomic_write_text, opened_picture, parse_json, read_text, sha256_json
from relinv.settings import GenerateSettings, Positive, Scheduler, Seed

RECORDS = "records.jsonl"
NEGATIVE = "negative_prompt"  # among a record's settings, if there is one
PNG_RECORD = "relinv"  # the key of the PNG text that holds its record
FORMS_FILE = "forms.png"  # beside the records: one scenario with each form of the token, if it has several
SAMPLERS: dict[Scheduler, str] = {"ddim": "DDIM", "pndm": "PLMS", "dpmpp": "DPM++ 2M"}  # as the web UIs call them


@dataclass(frozen=True)
class ImageRecord:
    """One image: its file, what it should show, and everything it was made with."""

    file: str
    prompt: str
    head: str
    tail: str
    relation: str
    index: int  # of the scenario in the relation's grid
    seed: Seed  # of this image's starting noise: torch.Generator().manual_seed(seed), float32 on the CPU
    held_out: bool | None
    method: str
    settings: dict[str, Any]  # all that decides the pixels: settings, base and concept with hashes, libraries

    __pydantic_config__ = ConfigDict(extra="forbid")


class RecordSettings(GenerateSettings, extra="ignore"):
    """The least that a record's settings hold."""

    resolution: Positive
    base: str
    base_sha256: str
    concept_sha256: str | None = None  # of a scenario's image
    concepts: dict[str, str] | None = None  # of a free prompt's: hashes by the values of --use
    negative_prompt: str = ""  # of a free prompt's, if it has one


def write_records(folder: Path, records: Iterable[ImageRecord]) -> None:
    """Write `records` to the folder's records.jsonl, one line each, whole or not at all."""
    lines = [json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records]
    atomic_write_text(Path(folder) / RECORDS, "".join(lines))


def read_records(folder: Path) -> list[ImageRecord]:
    """Return an image folder's records in their order; UserError if they are missing, damaged or empty."""
    path = Path(folder) / RECORDS
    lines = read_text(path, "record file", "generate the images again").split("\n")  # JSON may hold other line ends
    with told_as(f"The image records '{path}' are damaged: delete the folder and generate again."):
        content = [parse_json(line, "record") for line in lines if line]
        records = parse(list[ImageRecord], content, "records", path)
    if not records:
        raise UserError(f"The image records '{path}' are empty: delete the folder and generate again.")
    return records


def read_pictures(folder: Path, records: Sequence[ImageRecord]) -> list[Image.Image]:
    """Return the RGB picture of each record; UserError naming the first file that is missing or damaged."""
    return [_read_picture(Path(folder) / record.file) for record in records]


def _read_picture(path: Path) -> Image.Image:
    with opened_picture(path, "image", "delete its folder and generate again") as picture:
        return picture.convert("RGB")


def png_texts(record: ImageRecord) -> dict[str, str]:
    """Return the texts of an image's PNG, which hold its record twice: as web UIs write it, and in full as JSON."""
    full = json.dumps(asdict(record), sort_keys=True, ensure_ascii=False)
    return {"parameters": parameters(record), PNG_RECORD: full}


def parameters(record: ImageRecord) -> str:
    """Return how an image was made in the web UIs' format: prompt, negative prompt, a line of settings."""
    settings = record.settings
    side = settings["resolution"]
    line = {
        "Steps": settings["steps"],
        "Sampler": SAMPLERS[settings["scheduler"]],
        "CFG scale": settings["guidance_scale"],
        "Seed": record.seed,
        "Size": f"{side}x{side}",
        "Model hash": settings["base_sha256"][:10],
        "Model": Path(settings["base"]).name,
    }
    settings_line = ", ".join(f"{key}: {_quoted(value)}" for key, value in line.items())
    return f"{record.prompt}\nNegative prompt: {settings.get(NEGATIVE, '')}\n{settings_line}"


def _quoted(value: Any) -> str:
    """Return a value as web UIs write it: in quotes if it holds what ends a value or its name."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if {*text} & {*",:\n"} else text


def read_image_record(path: Path) -> ImageRecord:
    """Return the record in an image that relinv drew; UserError for any other image, or one from another version."""
    with opened_picture(path, "image", "name one that relinv drew") as picture:
        text = getattr(picture, "text", {}).get(PNG_RECORD)
    if text is None:
        raise UserError(f"The image '{path}' does not say how it was made: it is not one that relinv drew.")
    content = parse_json(text, f"record in the image '{path}'")
    remedy = "generate it again, or correct its record"
    with told_as(f"The image '{path}' does not say how it was made as this version does: {remedy}."):
        record = parse(ImageRecord, content, "record", path)
        parse(RecordSettings, record.settings, "record.settings", path)
    return record


def require_target(path: Path) -> None:
    """Raise UserError unless an image may be written to `path`: a PNG by name, which replaces only one drawn here."""
    if path.suffix.lower() != ".png":
        raise UserError(f"The image '{path}' would be a PNG by another name: let its name end in .png.")
    if path.exists():
        try:
            read_image_record(path)
        except UserError:  # whose own remedy is for an image to be read
            told = f"'{path}' exists, and is no image of this relinv: name another file to write, or remove it."
            raise UserError(told) from None


@contextmanager
def workspace(scratch: Path, records: Sequence[ImageRecord], *further: str) -> Iterator[Path]:
    """Yield a folder below `scratch` in which an image folder grows, so that a killed run can resume where it stopped.

    DVC deletes the output folder before each run; this one lies elsewhere, named by a hash of everything that
    determines the images, so that a run that would draw others never resumes it; `further` is what no record says,
    such as a hash of the code that draws them. It belongs to one run: a second waits, because a killed run may have
    left its stage running.
    """
    folder = scratch / f"generate-{sha256_json([*further, *map(asdict, records)])[:16]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        folder.mkdir(exist_ok=True)
        yield folder


def publish(workspace: Path, records: Sequence[ImageRecord], folder: Path) -> None:
    """Replace `folder` with the finished images, records and sheet of forms, and remove the workspace."""
    with atomic_folder(folder) as new:
        forms = [FORMS_FILE] if (workspace / FORMS_FILE).is_file() else []
        for file in [record.file for record in records] + forms:
            shutil.copyfile(workspace / file, new / file)
        write_records(new, records)
    shutil.rmtree(workspace, ignore_errors=True)
