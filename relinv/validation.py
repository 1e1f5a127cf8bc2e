"""Validation of exemplar folders: all problems of a folder at once, each with what to do about it."""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from relinv.benchmark import ENTRY
from relinv.errors import UserError
from relinv.exemplars import CAPTIONS, MASKS, OWN, TO_FILL, open_upright, orientation, pictures_in, read_captions
from relinv.files import is_visible, opened_picture, write_json
from relinv.results import Verdict
from relinv.settings import ValidateSettings

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

PLACEHOLDER = re.compile(r"<[^<>\s]+>")  # as relinv/diffusion/bases.py finds it
THUMBNAIL = 32  # pixels a side at which pictures are compared
DEEP_MODES = frozenset({"1", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"})  # RGB conversion would clip them


class Look(NamedTuple):
    """What is kept of a picture to compare it with others: whole photographs would fill the memory."""

    digest: str  # of its size and pixels
    thumbnail: np.ndarray  # levels 0 to 255, (32, 32, 3)


def validate_folder(folder: Path, settings: ValidateSettings, tokenizer: CLIPTokenizer, resolution: int) -> Verdict:
    """Return the verdict on a relation's folder of pictures and text.json.

    `tokenizer` is the base's, which works on pictures of `resolution` pixels a side.
    """
    folder = Path(folder)
    verdict = Verdict(folder.name, images=0, captions=0, errors=[], warnings=[])
    if not folder.is_dir():
        verdict.errors.append(
            f"The folder '{folder}' does not exist: make it with `python -m stages.fetch {folder.name}`."
        )
        return verdict
    names = _image_names(folder, verdict)
    _check_captions(folder, names, verdict, tokenizer)
    looks = {name: _check_picture(folder / name, settings, resolution, verdict) for name in names}
    _check_duplicates({name: look for name, look in looks.items() if look is not None}, settings, verdict)
    verdict.images = len(names)
    if len(names) < settings.minimum_images:
        verdict.errors.append(
            f"There are {len(names)} pictures, and at least {settings.minimum_images} are needed: add more."
        )
    return verdict


def write_verdict(verdict: Verdict, folder: Path, file: Path) -> None:
    """Write the verdict on a folder as JSON to `file`, then raise UserError that lists its errors, if there are any."""
    write_json(file, verdict.to_json())
    if not verdict.valid:
        lines = "".join(f"\n  - {error}" for error in verdict.errors)
        own = OWN / folder.name
        where = f"in '{own}'" if own.is_dir() else f"where they come from, or in a copy of them in '{own}'"
        raise UserError(
            f"The exemplars in '{folder}' cannot be used. They are copies: correct them {where}, then fetch them "
            f"again.{lines}"
        )


def _image_names(folder: Path, verdict: Verdict) -> list[str]:
    """Return the names of the folder's pictures, in order; warn of files that do not belong there."""
    images = [path.name for path in pictures_in(folder)]
    for path in sorted(folder.iterdir()):
        if is_visible(path.name) and path.name not in (*images, CAPTIONS, MASKS, ENTRY):
            verdict.warnings.append(f"{path.name} is not a picture and is not used: remove it.")
    _check_masks(folder / MASKS, images, verdict)
    return images


def _check_masks(folder: Path, images: Sequence[str], verdict: Verdict) -> None:
    """Add the masks that belong to no picture or to two, cannot be read, are deeper than 8 bits, or transparent."""
    stems = [Path(name).stem for name in images]
    for path in sorted(path for path in folder.glob("*") if is_visible(path.name)):
        if path.suffix != ".png" or path.stem not in stems:
            verdict.warnings.append(
                f"{MASKS}/{path.name} belongs to no picture: name it as its picture, ending in .png."
            )
            continue
        if stems.count(path.stem) > 1:
            verdict.errors.append(f"{MASKS}/{path.name} would be the mask of two pictures: rename one of them.")
        try:
            open_upright(path)
            facts = _file_facts(path)
        except UserError as error:
            verdict.errors.append(str(error))
            continue
        mode = facts["mode"]
        if mode in DEEP_MODES - {"1"}:
            verdict.errors.append(f"{MASKS}/{path.name}: its mode is {mode}: save it in 8-bit grey.")
        elif facts["transparent"]:
            verdict.warnings.append(
                f"{MASKS}/{path.name}: what is transparent in it counts in full, as white does: save it in 8-bit grey."
            )


def _check_captions(folder: Path, names: list[str], verdict: Verdict, tokenizer: CLIPTokenizer) -> None:
    """Add what is wrong with text.json: the pictures it names, and every template."""
    try:
        captions = read_captions(folder)
    except UserError as error:
        verdict.errors.append(str(error))
        return
    composed = {unicodedata.normalize("NFC", name) for name in names}
    for name in sorted(captions.keys() - set(names)):
        remedy = "add the picture or drop the entry"
        if unicodedata.normalize("NFC", name) in composed:  # Macs store é as two characters
            remedy = "a picture's name differs from it by how accents are stored, so copy that into the entry"
        verdict.errors.append(f"{CAPTIONS} names '{name}', which is not there: {remedy}.")
    for name in sorted(set(names) - captions.keys()):
        verdict.errors.append(f"{name} has no captions in {CAPTIONS}: add an entry for it or remove the picture.")
    verdict.captions = sum(map(len, captions.values()))
    for name, templates in captions.items():
        if len(set(templates)) < len(templates):
            verdict.warnings.append(f"{name} has the same caption twice: change or drop one.")
        for template in dict.fromkeys(templates):
            problem = _template_problem(template, tokenizer)
            if problem:
                verdict.errors.append(f"The caption '{template}' of {name} {problem}.")


def _template_problem(template: str, tokenizer: CLIPTokenizer) -> str | None:
    """Return what is wrong with one caption template and what to do, or None."""
    slots = template.count("{}")
    if slots != 1:
        return f"has {slots} '{{}}': write exactly one, where the relation stands"
    if set("{}") & set(template.replace("{}", "")):
        return "has braces besides its '{}': remove them"
    if set(TO_FILL.replace("{}", " ").split()) & set(template.split()):
        return "is still to be filled in: write what the picture shows in place of HEAD and TAIL"
    if placeholder := PLACEHOLDER.search(template):
        return f"names {placeholder[0]}, as prompts do a learned token: write it without angle brackets"
    if (tokens := count_tokens(template, tokenizer)) > tokenizer.model_max_length:
        return f"takes {tokens} tokens, and the text encoder reads {tokenizer.model_max_length}: shorten it"
    return None


def count_tokens(template: str, tokenizer: CLIPTokenizer) -> int:
    """Return how many tokens a caption takes with its `{}` filled in, start and end tokens included."""
    pieces = [tokenizer(piece, add_special_tokens=False, verbose=False).input_ids for piece in template.split("{}")]
    return sum(map(len, pieces)) + 3  # the {} becomes one token; plus the start and end tokens


def _check_picture(path: Path, settings: ValidateSettings, resolution: int, verdict: Verdict) -> Look | None:
    """Add what is wrong with one picture; return its look, or None if it cannot be decoded."""
    try:
        picture = open_upright(path)
        facts = _file_facts(path)
    except UserError as error:
        verdict.errors.append(str(error))
        return None
    errors, warnings = _mode_problems(facts)
    side = min(picture.size)
    if side < settings.minimum_side:
        errors.append(f"its shorter side has {side} pixels, at least {settings.minimum_side} are needed: "
                      "use a larger picture")  # fmt: skip
    elif side < resolution:
        warnings.append(f"its shorter side has {side} pixels and is enlarged to {resolution}: "
                        "a larger picture would be sharper")  # fmt: skip
    if max(picture.size) > 2 * side:
        warnings.append("it is more than twice as long as wide, and only the centre square is used: crop it")
    verdict.errors += [f"{path.name}: {text}." for text in errors]
    verdict.warnings += [f"{path.name}: {text}." for text in warnings]
    return _look(picture)


def _file_facts(path: Path) -> Mapping[str, Any]:
    """Return the mode, the EXIF orientation, the number of frames and the transparency of a picture's file."""
    with opened_picture(path) as opened:
        return {
            "mode": opened.mode,
            "orientation": orientation(opened),
            "frames": getattr(opened, "n_frames", 1),
            "transparent": opened.has_transparency_data,
        }


def _mode_problems(facts: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the errors and the warnings that follow from how a picture's file stores it."""
    errors, warnings = [], []
    mode = facts["mode"]
    if mode in DEEP_MODES:
        errors.append(f"its mode is {mode}: save it in 8-bit RGB")
    elif facts["transparent"]:
        warnings.append(f"its mode is {mode} with transparency, which is laid on white: save it in RGB to choose")
    elif mode != "RGB":
        warnings.append(f"its mode is {mode} and is converted to RGB: save it in RGB to be sure of its colours")
    if facts["orientation"] != 1:
        warnings.append(f"its EXIF orientation is {facts['orientation']} and is applied: save it upright to be sure")
    if facts["frames"] > 1:
        warnings.append(f"it holds {facts['frames']} frames and only the first is used: save that one alone")
    return errors, warnings


def _check_duplicates(looks: Mapping[str, Look], settings: ValidateSettings, verdict: Verdict) -> None:
    """Add the pairs of pictures with the same pixels (errors) and with nearly the same (warnings)."""
    for first, second in itertools.combinations(looks, 2):
        if looks[first].digest == looks[second].digest:
            verdict.errors.append(f"{second} is an exact duplicate of {first}: remove one of the two.")
        elif np.abs(looks[first].thumbnail - looks[second].thumbnail).mean() <= settings.duplicate_difference:
            verdict.warnings.append(f"{second} is nearly the same picture as {first}: different scenes teach more.")


def _look(picture: Image.Image) -> Look:
    """Return what is kept of an RGB picture to compare it with others."""
    pixels = hashlib.sha256(repr(picture.size).encode() + picture.tobytes())
    small = picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return Look(pixels.hexdigest(), np.asarray(small, dtype=np.float32))
