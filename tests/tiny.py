"""A complete Stable Diffusion of random weights in diffusers' own format, built within a second."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from relinv.diffusion.bases import Base, load_base
from relinv.learning.words import PREPOSITIONS, STOP_WORDS
from relinv.miniature.tokenizer import build_tokenizer
from tests.conftest import tiny_settings

RESOLUTION = 64  # pixels a side; the latents are (4, 16, 16)
WIDTH = 32  # of the text encoder
TOKENS = 24  # a caption's length, with both ends
# Stable Diffusion's own noise schedule, whatever the sampler.
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "set_alpha_to_one": False,
         "steps_offset": 1}  # fmt: skip
WORDS = (
    *("man", "woman", "child", "cat", "rabbit", "monkey", "dog", "hamster", "kangaroo", "panda", "guitar"),
    *("hamburger", "stone", "vase", "schoolbag", "box", "basket", "bowl", "cup", "wall", "canvas", "paper"),
    *("photo", "picture", "snow", "beach", "night", "red", "blue", "riding", "hanging", "wrapped", "hugging"),
    *("painted", "carved", "shaking", "hands", "back", "wooden", "big", "small"),
)


def build_tiny_base(folder: Path) -> Path:
    """Save a random-weight `StableDiffusionPipeline` for 64x64 images into `folder`; return `folder`.

    Its latents are (4, 16, 16); its tokenizer knows every word of `WORDS`, every preposition and every stop
    word as one token. The weights are the same each time.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = build_tokenizer({*WORDS, *PREPOSITIONS, *STOP_WORDS}, TOKENS)
        pipeline = StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=_text_encoder(tokenizer),
            tokenizer=tokenizer,
            unet=_unet(),
            scheduler=_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


def velocity_base(tiny_base: Path, folder: Path) -> Base:
    """Return a copy in `folder` of the tiny base whose UNet answers the velocity, as Stable Diffusion 2.1's does."""
    config = Path(shutil.copytree(tiny_base, folder)) / "scheduler/scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "v_prediction"}))
    return load_base(tiny_settings(folder))


def weights(base: Base) -> str:
    """Return one hash over every weight and buffer of a base's networks."""
    digest = hashlib.sha256()
    for network in (base.text_encoder, base.vae, base.unet):
        for name, tensor in sorted(network.state_dict().items()):
            digest.update(name.encode() + tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return a one-layer text encoder whose table's rows have about unit norm, so that prompts differ."""
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    torch.nn.init.normal_(encoder.get_input_embeddings().weight, std=WIDTH**-0.5)
    return encoder


def _vae() -> AutoencoderKL:
    """Return an autoencoder that makes a quarter of each side and four channels."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=RESOLUTION,
        scaling_factor=0.4,
    )


def _unet() -> UNet2DConditionModel:
    """Return a noise predictor with cross-attention at two resolutions, 16x16 and 8x8."""
    return UNet2DConditionModel(
        sample_size=RESOLUTION // 4,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
    )


def _scheduler() -> DDIMScheduler:
    """Return Stable Diffusion's own noise schedule: scaled linear, epsilon prediction."""
    return DDIMScheduler(**NOISE, clip_sample=False)
