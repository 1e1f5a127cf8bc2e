"""Prior preservation (Ruiz et al., "DreamBooth", 2023, section 3.3): pictures that keep what the base knew.

Whatever learns weights of the UNet from ten pictures forgets others. So the base first draws pictures of its own for
the exemplars' captions with the relation's plain words, and training shows them beside the exemplars.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING

from tqdm import tqdm

from relinv.diffusion.sampling import Sampler, initial_latents, sample, to_pictures
from relinv.methods import Shown

if TYPE_CHECKING:
    from PIL import Image

    from relinv.diffusion.bases import Base
    from relinv.exemplars import ExemplarSet

FIRST_SEED = 2**32  # of the pictures' noise: drawn scenarios and previews have seeds below


def prior_pictures(base: Base, prompts: list[str], sampler: Sampler, batch_size: int) -> list[Shown]:
    """Return one picture that the base draws for each of `prompts`, a function of the arguments alone."""
    pictures: list[Image.Image] = []
    for start in tqdm(range(0, len(prompts), batch_size), desc="the base's own pictures", unit="batch"):
        pictures += _draw(base, prompts[start : start + batch_size], FIRST_SEED + start, sampler)
    return [Shown(picture, [prompt], prior=True) for picture, prompt in zip(pictures, prompts, strict=True)]


def _draw(base: Base, prompts: list[str], seed: int, sampler: Sampler) -> list[Image.Image]:
    """Return one picture a prompt, their noise from `seed` on."""
    import torch

    with torch.no_grad():
        encodings = base.encode(base.tokenize([*prompts, ""]))  # (prompts + 1, tokens, dim)
    empty = encodings[-1:].expand(len(prompts), -1, -1)
    noise = initial_latents(base, range(seed, seed + len(prompts)))
    return to_pictures(sample(base, encodings[:-1], empty, noise, sampler))


def class_prompts(exemplars: ExemplarSet, words: str, count: int) -> list[str]:
    """Return `count` captions with the plain `words` for the relation: each exemplar's first, then each one's second.

    They begin anew where the exemplars have fewer.
    """
    by_place = zip_longest(*(exemplar.templates for exemplar in exemplars.exemplars))
    templates = [template for templates in by_place for template in templates if template is not None]
    distinct = list(dict.fromkeys(template.replace("{}", words) for template in templates))
    return [distinct[index % len(distinct)] for index in range(count)]
