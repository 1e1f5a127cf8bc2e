"""The miniature from sprites to weights: each step reads what the step before it wrote and writes its own folder."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from relinv.benchmark import Benchmark, load_benchmark
from relinv.errors import UserError
from relinv.files import atomic_folder, atomic_write_text, code_hash, sha256_file, sha256_folder, write_json
from relinv.judge import load_judge
from relinv.learning.checkpoints import load_state, save_state
from relinv.miniature import autoencoder, judge
from relinv.miniature.card import judge_accuracy
from relinv.miniature.dataset import Scenes, render_scenes
from relinv.miniature.denoiser import build_scheduler, train_denoiser
from relinv.miniature.loop import Schedule
from relinv.miniature.vocabulary import miniature_tokenizer
from relinv.settings import JudgeSettings, Positive, Seed, Settings
from relinv.world.exemplars import BENCHMARK
from relinv.world.sampling import FOR_BASE, FOR_JUDGE, Mix

HOME = Path("data/miniature")
SCRATCH = Path(".scratch/miniature")
JUDGE_SCENES_SEED_GAP = 1  # the judge's scenes are drawn from another seed than those the base is trained on


class SceneSettings(Settings):
    """How many training scenes are rendered, and from which seed."""

    count: Positive
    seed: Seed


class TrainingSettings(Settings):
    """One model's training: `scenes` of them are used (of the judge's, rendered for it alone)."""

    scenes: Positive
    periods: Annotated[list[Positive], Field(min_length=1)]  # steps of each, see `Schedule`
    batch_size: Positive
    learning_rate: Annotated[float, Field(gt=0)]
    precision: Literal["fp32", "bf16"]
    seed: Seed

    def schedule(self, **rest: float) -> Schedule:
        """Return the schedule that these settings and `rest` make."""
        return Schedule(tuple(self.periods), self.learning_rate, self.precision, **rest)


def training_scenes(settings: SceneSettings) -> Scenes:
    """Return the scenes that autoencoder and denoiser are trained on."""
    return _render(settings.count, settings.seed, "scenes", FOR_BASE)


def workspace(name: str, *decides: Any) -> Path:
    """Return the scratch folder of one piece of work: another for any change in what `decides` it, or in the code.

    So nothing is ever taken up that was made by other code, of other sprites or with other settings.
    """
    package = Path(__file__).parents[1]
    code = code_hash(package, ("benchmark.py", "learning/words.yaml", "miniature", "world"))
    text = json.dumps([code, sha256_folder(HOME / "sprites"), sha256_file(BENCHMARK), *decides])
    return SCRATCH / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _training(name: str, settings: TrainingSettings, *decides: Any) -> Path:
    """Return the folder of a training's checkpoints; they tell their periods, so that it can be prolonged by one."""
    return workspace(name, settings.model_dump(exclude={"periods"}), *decides)


def make_autoencoder(scenes: SceneSettings, settings: TrainingSettings, decoder: TrainingSettings) -> None:
    """Train the autoencoder, then its decoder alone to sharper pictures; write `base/vae`, fp16."""
    images = training_scenes(scenes).images
    whole = [scenes.model_dump(), settings.model_dump()]
    schedule = settings.schedule(weight_decay=0.0, average=0.99)
    folder = _training("autoencoder", settings, scenes.model_dump())
    model = autoencoder.train_autoencoder(
        images[: settings.scenes], schedule, folder, seed=settings.seed, batch=settings.batch_size
    )
    schedule = decoder.schedule(weight_decay=0.0, average=0.99)
    folder = _training("decoder", decoder, *whole)
    model = autoencoder.sharpen_decoder(
        model, images[: decoder.scenes], schedule, folder, seed=decoder.seed, batch=decoder.batch_size
    )
    with atomic_folder(HOME / "base" / "vae") as folder:
        model.half().save_pretrained(folder)


def make_denoiser(scenes: SceneSettings, settings: TrainingSettings) -> None:
    """Train text encoder and UNet on the autoencoder's latents; write them, tokenizer, scheduler and model index."""
    rendered = training_scenes(scenes)
    tokenizer = miniature_tokenizer()
    decides = [scenes.model_dump(), _autoencoder_hash()]
    latents = scene_latents(load_autoencoder(), rendered, settings.scenes, workspace("latents", *decides))
    captions = rendered.captions[: settings.scenes]
    schedule = settings.schedule()
    folder = _training("denoiser", settings, *decides)
    model = train_denoiser(
        latents, captions, tokenizer, schedule, folder, seed=settings.seed, batch=settings.batch_size
    )
    base = HOME / "base"
    # The text encoder stays in fp32: transformers loads weights as they are stored, diffusers as fp32.
    parts = {"text_encoder": model.text_encoder, "unet": model.unet.half()}
    for name, part in (parts | {"tokenizer": tokenizer, "scheduler": build_scheduler()}).items():
        with atomic_folder(base / name) as folder:
            part.save_pretrained(folder)
    atomic_write_text(base / "model_index.json", json.dumps(_model_index(), indent=2) + "\n")


def make_judge(settings: TrainingSettings) -> None:
    """Train the judge on fresh scenes passed through the autoencoder; write `judge`, fp16."""
    scenes = _render(settings.scenes, settings.seed + JUDGE_SCENES_SEED_GAP, "judge-scenes", FOR_JUDGE)
    images = round_trip(scenes)
    tokenizer = miniature_tokenizer()
    schedule = settings.schedule()
    model = judge.train_judge(
        images, scenes.triplets, _benchmark(), tokenizer, schedule, _training("judge", settings, _autoencoder_hash()),
        seed=settings.seed, batch=settings.batch_size,
    )  # fmt: skip
    with atomic_folder(HOME / "judge") as folder:
        judge.save_judge(model, tokenizer, folder)
        saved = load_judge(JudgeSettings(model=str(folder), pretrained=None, device="cpu"))
        accuracy = judge_accuracy(saved, load_autoencoder(), _benchmark(), seed=settings.seed + 2)
        write_json(folder / "accuracy.json", accuracy)


def load_autoencoder() -> nn.Module:
    """Return the autoencoder as it was written, in fp32. UserError if it has not been made."""
    from diffusers import AutoencoderKL

    folder = HOME / "base" / "vae"
    if not (folder / "config.json").is_file():
        raise UserError(f"There is no autoencoder in '{folder}': run `python -m stages.miniature autoencoder` first.")
    return AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval().requires_grad_(False)


def scene_latents(model: Any, scenes: Scenes, count: int, folder: Path) -> torch.Tensor:
    """Return the scaled latents of the first `count` scenes, (count, 4, 16, 16), cached in `folder`."""
    cache = folder / f"{count}.pt"
    latents = load_state(cache)
    if latents is None:
        latents = autoencoder.encode(model, scenes.images[:count]) * model.config.scaling_factor
        save_state(cache, latents)
    check_latents(model, latents, scenes)
    return latents


def check_latents(model: Any, latents: torch.Tensor, scenes: Scenes) -> None:
    """Raise UserError unless latents have about unit variance, no dead channel, and decode to their scenes."""
    spread = latents[:2000].std(dim=(0, 2, 3))  # (channels,)
    if not 0.8 < float(latents[:2000].std()) < 1.25 or float(spread.min()) < 0.3:
        raise UserError(
            f"The autoencoder's latents are unusable, standard deviations {spread.tolist()}: train it anew."
        )
    restored = autoencoder.decode(model, latents[:200] / model.config.scaling_factor).astype("float32")
    error = float(((restored - scenes.images[:200]) ** 2).mean())
    if error > 400:  # 22 dB
        raise UserError(
            f"Decoded latents miss their scenes by a mean square of {error:.0f}: train the autoencoder anew."
        )


def round_trip(scenes: Scenes) -> np.ndarray:
    """Return the scenes' pictures as the autoencoder restores them, uint8 (n, 64, 64, 3)."""
    model = load_autoencoder()
    return autoencoder.decode(model, autoencoder.encode(model, scenes.images))


def _render(count: int, seed: int, name: str, mix: Mix) -> Scenes:
    folder = workspace(name, seed, asdict(mix))
    return render_scenes(_benchmark(), mix, count, seed=seed, folder=folder, workers=os.cpu_count() or 1)


def _benchmark() -> Benchmark:
    return load_benchmark(BENCHMARK)


def _autoencoder_hash() -> str:
    return sha256_folder(HOME / "base" / "vae")


def _model_index() -> dict[str, Any]:
    return {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
