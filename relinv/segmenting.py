"""Soft masks from CLIPSeg (Lüddecke and Ecker 2022): where a picture shows what some words say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from tqdm import tqdm

from relinv.errors import UserError, reason
from relinv.exemplars import IMAGE_SUFFIXES, MASKS, OWN, open_upright, pictures_in
from relinv.files import atomic_folder, is_visible
from relinv.results import FOLDERS

if TYPE_CHECKING:
    import torch

MODEL = "CIDAS/clipseg-rd64-refined"  # what Perfusion's authors used
SIDE = 352  # pixels a side of the square that the published weights take
# Perfusion's code averages over nine prompts of this kind.
PROMPTS = ("{}", "a photo of {}", "a picture of {}", "a clear view of {}", "a scene with {} in it")
FAINT = 0.5  # a mask that is nowhere brighter than this has probably found nothing


class Segmenter:
    """A loaded CLIPSeg and its processor, on the CPU, which is fast enough for a handful of pictures."""

    def __init__(self, name: str, network: Any, processor: Any) -> None:
        self.name = name
        self._network, self._processor = network.eval(), processor

    def find(self, picture: Image.Image, words: str) -> Image.Image:
        """Return how likely each pixel of an RGB picture shows what `words` say, as a grey picture of the same size.

        The mean over all `PROMPTS`. Raises UserError if there are more words than the model reads.
        """
        import torch

        resample = Image.Resampling.BILINEAR
        square = picture.resize((SIDE, SIDE), resample)  # all of it, with nothing cropped by the processor
        pixels = self._processor(images=square, return_tensors="pt")["pixel_values"]  # (1, 3, height, width)
        texts = self._tokenize([prompt.format(words) for prompt in PROMPTS])
        with torch.inference_mode():
            pixels = pixels.expand(len(PROMPTS), -1, -1, -1)
            levels = self._network(pixel_values=pixels, **texts).logits.sigmoid().mean(dim=0)  # (height, width)
        grey = Image.fromarray((255 * levels).round().byte().numpy())
        return grey.resize(picture.size, resample)

    def _tokenize(self, texts: list[str]) -> Mapping[str, torch.Tensor]:
        """Return the padded ids of `texts` and their attention mask, both (texts, tokens)."""
        tokens = self._processor(text=texts, padding=True, return_tensors="pt")
        limit = self._network.config.text_config.max_position_embeddings
        if tokens["input_ids"].shape[1] > limit:
            raise UserError(f"'{texts[0]}' is more than the {limit} tokens that '{self.name}' reads: use fewer words.")
        return tokens


def load_segmenter(model: str) -> Segmenter:
    """Return the CLIPSeg in a folder or with a hub id; UserError if it is unavailable or another model."""
    from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

    try:
        processor = CLIPSegProcessor.from_pretrained(model)
        network, report = CLIPSegForImageSegmentation.from_pretrained(model, output_loading_info=True)
    except Exception as error:  # configurations, weights, tokenizers, downloads: each fails in its own way
        raise UserError(
            f"The segmentation model '{model}' cannot be loaded ({reason(error)}): go online, or give --model the "
            "folder of a CLIPSeg with its processor."
        ) from error
    if report["missing_keys"]:
        lacking = ", ".join(sorted(report["missing_keys"])[:3])
        raise UserError(f"'{model}' is not a complete CLIPSeg: it lacks {lacking} and more; give --model another.")
    return Segmenter(model, network, processor)


def find_pictures(folder: Path) -> list[Path]:
    """Return a relation folder's pictures, each to get its own mask, in name order.

    Raises UserError if there are none, if two would share a mask, if there are masks already, or if it is a copy.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder '{folder}': name one with exemplars, such as data/exemplars/own/kissing.")
    if folder.resolve().is_relative_to(FOLDERS["fetch"].resolve()):
        raise UserError(
            f"'{folder}' is a copy, which the next fetch replaces: name the folder it is copied from, such as "
            f"{OWN / folder.name}."
        )
    pictures = pictures_in(folder)
    if not pictures:
        raise UserError(f"'{folder}' holds no pictures ({', '.join(sorted(IMAGE_SUFFIXES))}): name one with exemplars.")
    by_stem = {path.stem: path.name for path in pictures}
    for path in pictures:
        if by_stem[path.stem] != path.name:
            both = f"'{path.name}' and '{by_stem[path.stem]}' of '{folder}'"
            raise UserError(f"{both} would share {MASKS}/{path.stem}.png: rename one, in its captions too.")
    if any(is_visible(path.name) for path in (folder / MASKS).glob("*")):
        raise UserError(f"'{folder / MASKS}' holds masks already: move it away to have others made.")
    return pictures


def write_masks(pictures: list[Path], words: str, segmenter: Segmenter) -> dict[str, float]:
    """Write a mask for each of a folder's pictures to `masks` beside them, all or none.

    Returns {picture's name: its mask's highest brightness, 0 to 1}. Raises UserError as `Segmenter.find` and
    `open_upright` do.
    """
    brightest = {}
    with atomic_folder(pictures[0].parent / MASKS) as new:
        for path in tqdm(pictures, desc="masks", unit="picture"):
            mask = segmenter.find(open_upright(path), words)
            mask.save(new / f"{path.stem}.png")
            brightest[path.name] = max(mask.tobytes()) / 255
    return brightest
