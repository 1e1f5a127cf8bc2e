"""The miniature's text encoder and UNet, trained together from nothing on latents and unreliable captions."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from relinv.miniature.loop import Schedule, train

WIDTH = 128
EMPTY_RATE = 0.1  # captions left out, for classifier-free guidance
# The loss's weight at a signal-to-noise ratio: high where words decide what is drawn (timesteps 400 to 900), low where
# it is plain in the noisy latents already. With more weight there, small faces stayed alike for thousands of steps.
HALF_SNR, FLOOR = 0.05, 0.1
WORD_WEIGHT = 0.02


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return an untrained causal text encoder, 3 layers of width 128, for `tokenizer`."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            projection_dim=WIDTH,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet() -> UNet2DConditionModel:
    """Return an untrained UNet of 11 M parameters with cross-attention at 8 × 8 and 4 × 4."""
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    unet.set_attn_processor(AttnProcessor())  # faster than the fused kernel's backward in bf16 on a CPU
    return unet


def build_scheduler() -> DDPMScheduler:
    """Return Stable Diffusion's noise schedule: scaled linear, 0.00085 to 0.012, 1,000 steps, epsilon prediction."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        steps_offset=1,
    )


class Denoiser(nn.Module):
    """Text encoder and UNet as one model; `words` reads the next word off an encoding (a training aid, not kept)."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder = build_text_encoder(tokenizer)
        self.unet = build_unet()
        self.words = nn.Linear(WIDTH, WIDTH)


def train_denoiser(
    latents: torch.Tensor,
    captions: list[list[str]],
    tokenizer: CLIPTokenizer,
    schedule: Schedule,
    folder: Path,
    *,
    seed: int,
    batch: int,
) -> Denoiser:
    """Return text encoder and UNet trained on scaled `latents` (n, 4, 16, 16) with several captions each.

    The denoising loss is weighted as in soft Min-SNR (Hang et al., Efficient Diffusion Training via Min-SNR Weighting,
    2023; Crowson et al., Hourglass Diffusion Transformers, 2024). A small loss of predicting each caption's next word
    gives words of one kind, such as prepositions, embeddings of one direction, as a text encoder trained on real
    captions has them.
    """
    torch.manual_seed(seed)
    model = Denoiser(tokenizer)
    ids = _token_ids(captions, tokenizer)  # (n, captions, tokens)
    empty = tokenizer("", padding="max_length", return_tensors="pt").input_ids[0]
    noise_schedule = build_scheduler()
    signal = noise_schedule.alphas_cumprod  # (1000,)

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of a step, a scalar, and its terms by the names they are logged under."""
        picks = torch.randint(len(latents), (batch,), generator=generator)
        variants = torch.randint(ids.shape[1], (batch,), generator=generator)
        tokens = ids[picks, variants]  # (batch, tokens)
        left_out = torch.rand(batch, generator=generator) < EMPTY_RATE
        tokens = torch.where(left_out[:, None], empty, tokens)
        clean = latents[picks]
        noise = torch.randn(clean.shape, generator=generator)
        # One timestep from each of `batch` equal parts of the range: uniform, with less variance between batches.
        timesteps = ((torch.arange(batch) + torch.rand(batch, generator=generator)) * (1000 / batch)).long()
        noisy = noise_schedule.add_noise(clean, noise, timesteps)
        encodings = model.text_encoder(tokens).last_hidden_state  # (batch, tokens, 128)
        predicted = model.unet(noisy, timesteps, encodings).sample
        errors = (predicted - noise).square().mean(dim=(1, 2, 3))  # (batch,)
        snr = signal[timesteps] / (1 - signal[timesteps])
        denoise = (errors * (1 / (snr + HALF_SNR) + FLOOR)).mean()
        word = _next_word(model, encodings, tokens, tokenizer.pad_token_id)
        return denoise + WORD_WEIGHT * word, {"mse": errors.mean().item(), "word": word.item()}

    train("denoiser", model, loss, schedule, folder, seed=seed)
    return model.eval().requires_grad_(False)


def _token_ids(captions: list[list[str]], tokenizer: CLIPTokenizer) -> torch.Tensor:
    flat = [text for variants in captions for text in variants]
    ids = tokenizer(flat, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return ids.view(len(captions), -1, ids.shape[-1])


def _next_word(model: Denoiser, encodings: torch.Tensor, tokens: torch.Tensor, pad: int) -> torch.Tensor:
    """Return the mean cross-entropy of each next token; of the padding only the first, the end, counts."""
    table = model.text_encoder.get_input_embeddings().weight
    scores = model.words(encodings[:, :-1]) @ table.T  # (batch, tokens - 1, vocabulary)
    counted = tokens[:, :-1] != pad
    return F.cross_entropy(scores[counted].float(), tokens[:, 1:][counted])
