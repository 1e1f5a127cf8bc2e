"""The miniature's autoencoder: 64 × 64 × 3 pixels to 16 × 16 × 4 latents and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional as F

from relinv.miniature.loop import Schedule, train
from relinv.miniature.perceptual import Perceptual

CROP = 32
KL_WEIGHT = 1e-5
EDGE_WEIGHT = 1.0
PERCEPTUAL_WEIGHT = 0.3


def build_autoencoder() -> AutoencoderKL:
    """Return an untrained autoencoder of factor 4 with 4 latent channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """Return uint8 pictures (n, h, w, 3) as floats in −1..1, (n, 3, h, w)."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_autoencoder(images: np.ndarray, schedule: Schedule, folder: Path, *, seed: int, batch: int) -> AutoencoderKL:
    """Return the autoencoder trained on random 32 × 32 crops of `images`, scaled so that latents have unit variance.

    The loss is the absolute error of pixels and of their differences between neighbours (edges), plus a weak pull of
    the latents towards a normal distribution.
    """
    torch.manual_seed(seed)
    model = build_autoencoder()

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of a step, a scalar, and its terms by the names they are logged under."""
        pixels = to_pixels(_crops(images, batch, generator))  # (batch, 3, 32, 32)
        posterior = model.encode(pixels).latent_dist
        decoded = model.decode(posterior.sample(generator)).sample
        error = decoded - pixels
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        mse = error.square().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        value = error.abs().mean() + 2 * mse + EDGE_WEIGHT * edges + KL_WEIGHT * 100 * kl
        return value, {"mse": mse.item(), "psnr": float(10 * torch.log10(4 / mse.detach())), "kl": kl.item()}

    train("autoencoder", model, loss, schedule, folder, seed=seed)
    model.eval().requires_grad_(False)
    latents = encode(model, images[:2000])
    model.register_to_config(scaling_factor=float(1 / latents.std()))
    return model


def sharpen_decoder(
    model: AutoencoderKL, images: np.ndarray, schedule: Schedule, folder: Path, *, seed: int, batch: int
) -> AutoencoderKL:
    """Return `model` with its decoder trained further, on the latents' means, with a perceptual term (LPIPS).

    The encoder stays as it is to the last bit, so latents made before stay right. Crops are doubled in size before
    they are compared, since LPIPS looks at 11 × 11 pixels at a time.
    """
    distance = Perceptual()
    model.requires_grad_(False)
    decoder = Decoder(model).requires_grad_(True)

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of a step, a scalar, and its terms by the names they are logged under."""
        pixels = to_pixels(_crops(images, batch, generator))  # (batch, 3, 32, 32)
        with torch.no_grad():
            latents = model.encode(pixels).latent_dist.mean
        decoded = decoder(latents)
        error = decoded - pixels
        perceptual = distance(F.interpolate(decoded, scale_factor=2), F.interpolate(pixels, scale_factor=2))
        value = error.abs().mean() + 2 * error.square().mean() + PERCEPTUAL_WEIGHT * perceptual
        return value, {"mse": error.square().mean().item(), "lpips": perceptual.item()}

    train("decoder", decoder, loss, schedule, folder, seed=seed)
    return model.eval().requires_grad_(False)


class Decoder(nn.Module):
    """The half of an autoencoder that makes pixels of latents, sharing its weights."""

    def __init__(self, model: AutoencoderKL) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = model.post_quant_conv, model.decoder

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Return pictures (batch, 3, 4 h, 4 w) in −1..1 of unscaled latents (batch, 4, h, w)."""
        return self.decoder(self.post_quant_conv(latents))


@torch.no_grad()
def encode(model: AutoencoderKL, images: np.ndarray, batch: int = 50) -> torch.Tensor:
    """Return the means of the latents before scaling, (n, 4, 16, 16)."""
    parts = [model.encode(to_pixels(images[i : i + batch])).latent_dist.mean for i in range(0, len(images), batch)]
    return torch.cat(parts)


@torch.no_grad()
def decode(model: AutoencoderKL, latents: torch.Tensor, batch: int = 50) -> np.ndarray:
    """Return unscaled latents (n, 4, 16, 16) as pictures, uint8 (n, 64, 64, 3)."""
    parts = []
    for i in range(0, len(latents), batch):
        pixels = model.decode(latents[i : i + batch]).sample  # (batch, 3, 64, 64)
        parts.append(((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def psnr(model: AutoencoderKL, images: np.ndarray) -> float:
    """Return the mean peak signal-to-noise ratio of the round trip, in dB."""
    restored = decode(model, encode(model, images)).astype(np.float32)
    mse = ((restored - images) ** 2).mean(axis=(1, 2, 3))
    return float((10 * np.log10(255**2 / mse)).mean())


def _crops(images: np.ndarray, count: int, generator: torch.Generator) -> np.ndarray:
    picks = torch.randint(len(images), (count,), generator=generator).tolist()
    # Corners on multiples of 4, so that a crop's latents lie on the grid of the whole picture's.
    corners = (4 * torch.randint((64 - CROP) // 4 + 1, (count, 2), generator=generator)).tolist()
    return np.stack([images[i, y : y + CROP, x : x + CROP] for i, (y, x) in zip(picks, corners, strict=True)])
