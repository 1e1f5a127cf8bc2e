"""Exemplars: a relation's folder of pictures and text.json, and its pictures as a model sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from PIL.Image import Transpose

from relinv.errors import UserError
from relinv.files import is_visible, opened_picture, read_json, sha256_files

OWN = Path("data/exemplars/own")  # the relations that the user laid out
CAPTIONS = "text.json"
MASKS = "masks"  # a folder beside it; masks/0.png is bright where to learn the relation in 0.png or 0.jpg
TO_FILL = "HEAD {} TAIL"  # the caption in a new text.json, to be replaced by what the picture shows
EXIF_ORIENTATION = 0x0112
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".tif", ".tiff"})


@dataclass(frozen=True)
class Exemplar:
    """A picture, its caption templates, each with one `{}` where the relation's token goes, and its mask, if any."""

    path: Path
    templates: tuple[str, ...]
    mask: Path | None = None


@dataclass(frozen=True)
class ExemplarSet:
    """A relation's exemplars in file-name order; `fingerprint` changes with any byte of any file."""

    relation: str
    exemplars: tuple[Exemplar, ...]
    fingerprint: str


def read_exemplars(folder: Path) -> ExemplarSet:
    """Return the exemplars in a relation's folder; UserError if text.json or a picture it names is missing."""
    folder = Path(folder)
    captions = read_captions(folder)
    missing = [name for name in captions if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder / CAPTIONS} names pictures that are not there: {', '.join(missing)}.")
    masks = {name: f"{MASKS}/{Path(name).stem}.png" for name in captions}
    present = {name: mask for name, mask in masks.items() if (folder / mask).is_file()}
    exemplars = tuple(
        Exemplar(folder / name, captions[name], folder / present[name] if name in present else None)
        for name in captions
    )
    return ExemplarSet(folder.name, exemplars, sha256_files(folder, [*captions, CAPTIONS, *present.values()]))


def read_captions(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return the caption templates of each picture, in file-name order.

    Raises UserError if text.json is missing or does not map file names to lists of templates.
    """
    folder = Path(folder)
    remedy = f"write it, or fetch the exemplars with `python -m stages.fetch {folder.name}`"
    content = read_json(folder / CAPTIONS, "caption file", remedy)
    if not isinstance(content, Mapping) or not all(map(_is_template_list, content.values())):
        raise UserError(
            f"{folder / CAPTIONS} must map each picture's file name to a list of captions, "
            'such as {"0.png": ["cat {} box"]}: correct it.'
        )
    if elsewhere := [name for name in content if "/" in name]:
        raise UserError(f"{folder / CAPTIONS} names '{elsewhere[0]}', and not by its name alone: put it beside it.")
    return {name: tuple(content[name]) for name in sorted(content)}


def pictures_in(folder: Path) -> list[Path]:
    """Return the pictures in a folder in file-name order, recognised by suffix; hidden files are skipped."""
    names = (path for path in folder.iterdir() if is_visible(path.name) and path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in names if path.is_file())


def _is_template_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def orientation(picture: Image.Image) -> int:
    """Return an opened picture's EXIF orientation, 1 (upright) to 8 (EXIF 2.3, section 4.6.4)."""
    found = picture.getexif().get(EXIF_ORIENTATION, 1)
    return int(found) if found in range(1, 9) else 1  # some programs write it as a fraction


def open_upright(path: Path) -> Image.Image:
    """Return a picture as RGB with its EXIF orientation applied; transparency becomes white.

    Raises UserError if the file cannot be decoded.
    """
    turns = [Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM, Transpose.TRANSPOSE,
             Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90]  # for 2 to 8 # fmt: skip
    with opened_picture(path) as opened:
        # not ImageOps.exif_transpose: that rewrites all of the EXIF, and fails if a camera wrote any of it badly
        opened.load()  # first: of a TIFF, this applies the orientation and removes it
        turned = orientation(opened)
        upright = opened.transpose(turns[turned - 2]) if turned > 1 else opened.copy()
        if not upright.has_transparency_data:
            return upright.convert("RGB")
        white = Image.new("RGBA", upright.size, "white")
        return Image.alpha_composite(white, upright.convert("RGBA")).convert("RGB")


def load_image(path: Path, resolution: int) -> Image.Image:
    """Return a picture as a model sees it: the upright RGB centre square, `resolution` pixels a side, bicubic.

    Never squashed or flipped: either would change the relation shown. Raises UserError as `open_upright` does.
    """
    return ImageOps.fit(open_upright(path), (resolution, resolution), Image.Resampling.BICUBIC)


def load_mask(exemplar: Exemplar, side: int) -> Image.Image | None:
    """Return a picture's grey mask, framed as `load_image` frames the picture, `side` pixels a side; or None.

    A mask that is not its picture's size, such as a segmenter's square, is first stretched over the whole picture.
    Raises UserError as `open_upright` does.
    """
    if exemplar.mask is None:
        return None
    mask = open_upright(exemplar.mask).convert("L").resize(open_upright(exemplar.path).size, Image.Resampling.BILINEAR)
    return ImageOps.fit(mask, (side, side), Image.Resampling.BILINEAR)
