"""Prior preservation (Ruiz et al., "DreamBooth", 2023, section 3.3): pictures that keep what the base knew.

Learning UNet weights from ten pictures makes the UNet forget others. So the base first draws pictures of its own from
the exemplars' captions, with the relation's plain words in place of the token, and training uses them alongside the
exemplars. They are kept in the scratch folder, so a restarted training, or one at another learning rate, reuses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from relinv.devices import deterministic
from relinv.diffusion.bases import Base
from relinv.diffusion.conditioning import Drawer
from relinv.diffusion.sampling import encode_png, to_pictures
from relinv.errors import UserError
from relinv.exemplars import ExemplarSet
from relinv.files import atomic_write_bytes, code_hash, opened_picture, sha256_json
from relinv.learning.method import TrainingPicture
from relinv.settings import Sampler

CODE = ("devices.py", "diffusion", "learning/prior.py")  # determines the pictures besides the arguments
DRAWN_AT_ONCE = 8


def prior_pictures(base: Base, prompts: Sequence[str], sampler: Sampler, scratch: Path) -> list[TrainingPicture]:
    """Return one picture that the base draws for each of `prompts`, in batches of at most its samples_per_pass.

    Each batch is kept below `scratch`, and read from there if it was drawn before.
    """
    batch_size = min(DRAWN_AT_ONCE, base.settings.samples_per_pass or DRAWN_AT_ONCE)
    folder = scratch / f"prior-{_identity(base, prompts, sampler, batch_size)}"
    pictures: list[Image.Image] = []
    starts = range(0, len(prompts), batch_size)
    for start in tqdm(starts, desc="the base's own pictures", unit="batch", disable=not prompts):
        batch = prompts[start : start + batch_size]
        files = [folder / f"{start + index:04d}.png" for index in range(len(batch))]
        pictures += _read(files) or _keep(_draw(base, batch, start, sampler), files)
    return [TrainingPicture(picture, [prompt], prior=True) for picture, prompt in zip(pictures, prompts, strict=True)]


def _identity(base: Base, prompts: Sequence[str], sampler: Sampler, batch_size: int) -> str:
    """Return a hash of everything that determines the pictures to the last bit, code included."""
    facts = [base.fingerprint, base.numerics, base.processor, list(prompts), sampler.model_dump(), batch_size]
    facts.append(code_hash(Path(__file__).parents[1], CODE))
    return sha256_json(facts)[:16]


def _read(files: Sequence[Path]) -> list[Image.Image]:
    """Return the pictures in `files`, or an empty list if any of them is missing or damaged."""
    pictures = []
    for file in files:
        try:
            with opened_picture(file) as picture:
                pictures.append(picture.convert("RGB"))
        except UserError:
            return []
    return pictures


def _keep(pictures: list[Image.Image], files: Sequence[Path]) -> list[Image.Image]:
    """Write each picture to its file and return `pictures`."""
    for picture, file in zip(pictures, files, strict=True):
        atomic_write_bytes(file, encode_png(picture))
    return pictures


def _draw(base: Base, prompts: Sequence[str], seed: int, sampler: Sampler) -> list[Image.Image]:
    """Return one picture per prompt, with noise from `seed` and the seeds after it."""
    # as images are drawn; training's own determinism is a setting that these pictures are not to depend on
    with deterministic(base.device, backward=False):
        return to_pictures(Drawer(base, [], prompts, sampler).draw(prompts, range(seed, seed + len(prompts))))


def class_prompts(exemplars: ExemplarSet, words: str, count: int) -> list[str]:
    """Return `count` captions with the plain `words` for the relation: each exemplar's first, then each one's second.

    They repeat if the exemplars have fewer.
    """
    by_place = zip_longest(*(exemplar.templates for exemplar in exemplars.exemplars))
    templates = [template for templates in by_place for template in templates if template is not None]
    distinct = list(dict.fromkeys(template.replace("{}", words) for template in templates))
    return [distinct[index % len(distinct)] for index in range(count)]
