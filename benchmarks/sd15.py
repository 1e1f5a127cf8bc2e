"""Stable Diffusion 1.5's architecture with random weights: in full, or a tenth as wide for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from relinv.miniature.tokenizer import BOS, EOS

TOKENS = 77


def build_sd15_base(folder: Path, full: bool = False) -> Path:
    """Save the pipeline into `folder` and return `folder`; every layer is there, at its true width if `full`.

    The tokenizer is CLIP's own, whose vocabulary comes with open_clip.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = StableDiffusionPipeline(
            vae=_vae(1 if full else 8),
            text_encoder=text_encoder(1 if full else 12),
            tokenizer=clip_tokenizer(),
            unet=unet(1 if full else 10, 768 if full else 64),
            scheduler=_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


def clip_tokenizer() -> CLIPTokenizer:
    """Return CLIP's tokenizer, 49,408 pieces, from the list that open_clip ships."""
    from open_clip.tokenizer import SimpleTokenizer

    shipped = SimpleTokenizer()
    vocabulary = {piece: index for piece, index in shipped.encoder.items() if index < len(shipped.encoder) - 2}
    vocabulary |= {BOS: len(vocabulary), EOS: len(vocabulary) + 1}
    return CLIPTokenizer(vocab=vocabulary, merges=list(shipped.bpe_ranks), model_max_length=TOKENS)


def text_encoder(part: int, layers: int = 12, words: int = 49408) -> CLIPTextModel:
    """Return the text encoder with 1/`part` of its width, random weights."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words,
            hidden_size=768 // part,
            intermediate_size=3072 // part,
            num_hidden_layers=layers,
            num_attention_heads=12 if part == 1 else 4,
            max_position_embeddings=TOKENS,
            hidden_act="quick_gelu",
            projection_dim=768 // part,
            bos_token_id=0,
            eos_token_id=2,  # as published: the pooled output, which nothing here uses, depends on it
            pad_token_id=1,
        )
    )


def unet(part: int, width: int) -> UNet2DConditionModel:
    """Return the UNet with 1/`part` of its channels, for encodings of `width`, random weights."""
    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=tuple(channels // part for channels in (320, 640, 1280, 1280)),
        layers_per_block=2,
        down_block_types=(*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
        cross_attention_dim=width,
        attention_head_dim=8,
        norm_num_groups=32,
    )


def _vae(part: int) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=tuple(channels // part for channels in (128, 256, 512, 512)),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=32 if part == 1 else 16,
        sample_size=512,
        scaling_factor=0.18215,
    )


def _scheduler() -> PNDMScheduler:
    return PNDMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        set_alpha_to_one=False,
        steps_offset=1,
        skip_prk_steps=True,
    )
