"""A base with Stable Diffusion 1.5's cross-attentions in their true sizes, and little else."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.sd15 import text_encoder, unet
from relinv.diffusion.bases import Base
from relinv.diffusion.cross_attention import projections


def wide_base(tiny: Base) -> Base:
    """Return a base whose cross-attentions have Stable Diffusion 1.5's true sizes, to build concepts for.

    The rest of its UNet takes no memory; its text encoder is one layer as wide as CLIP's, for the words of `tiny`.
    """
    base = Base(tiny.settings, Path(tiny.id), tiny.fingerprint)
    base.tokenizer = tiny.tokenizer
    base.text_encoder = text_encoder(1, layers=1, words=len(tiny.tokenizer))
    with torch.device("meta"):
        base.unet = unet(1, 768)
    for layer in projections(base).values():
        layer.to_empty(device="cpu").reset_parameters()
    return base
