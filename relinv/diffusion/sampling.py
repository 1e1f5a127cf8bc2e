"""Sampling: from text encodings and starting noise to images, by classifier-free guidance.

The loop is `StableDiffusionPipeline`'s (Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022, equation
6), kept here because a concept may condition on the timestep, which that pipeline cannot express. Training's
previews and generation share it. An adapter's guidance, which moves the latents, is separate.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from relinv.devices import to_device
from relinv.errors import UserError, enough_memory

if TYPE_CHECKING:
    import torch

    from relinv.diffusion.adapter import Guidance
    from relinv.diffusion.bases import Base
    from relinv.settings import Sampler, Scheduler

    Conditioning = Callable[[int], torch.Tensor]  # from timestep to the prompts' encodings, (batch, tokens, dim)

# Scheduler classes of diffusers, with the options each needs besides the base's own noise schedule.
SCHEDULERS: dict[Scheduler, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),  # Song et al. 2020; latents have no bound to clip to
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),  # Liu et al. 2022, as Stable Diffusion 1.5 uses it
    "dpmpp": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),  # Lu et al. 2022, order 2
}

FEWER_AT_ONCE = (  # what to do if memory runs out
    "lower the base's sampling.batch_size; for a method's own pictures, its training.samples_per_pass; for previews, "
    "take some of invert.preview.prompts out"
)
SMALLER = "set the base's sampling.precision to fp16 or bf16, lower its model.resolution, or set its device to cpu"
DECODED_AT_ONCE = 8 * 512 * 512  # pixels: the decoder's memory grows with the batch far more than the UNet's


def sample(
    base: Base,
    prompt_embeds: Conditioning,
    negative_embeds: Conditioning,
    latents: torch.Tensor,
    sampler: Sampler,
    guidance: Guidance | None = None,
) -> torch.Tensor:
    """Return the images that `latents`, unit noise (batch, channels, height, width), are denoised to.

    Shape (batch, 3, pixels, pixels), float32 in [0, 1] on the base's device. The same inputs give the same images. The
    two conditions of classifier-free guidance go through the UNet in one pass; at a scale of 1 or less only
    `prompt_embeds` does, as in diffusers. `guidance` is an adapter's: it moves the latents before each step that starts
    from them. Raises UserError if the device's memory is too small or the base's precision too low for its numbers.
    """
    import torch

    gradients = torch.no_grad() if guidance else torch.inference_mode()  # an adapter's guidance may need them
    several = len(latents) > 1
    purpose, remedy = (f"{len(latents)} images at once", FEWER_AT_ONCE) if several else ("an image", SMALLER)
    with enough_memory(base.device, purpose, remedy), gradients:
        images = decode(base, denoise(base, prompt_embeds, negative_embeds, latents, sampler, guidance))
    if not images.isfinite().all():
        raise overflow(base)
    return images


def overflow(base: Base) -> UserError:
    """Return the error to raise if images are not finite."""
    if base.settings.precision == "fp32":
        return UserError(
            f"The base '{base.id}' overflows even in fp32, so what it draws with has diverged: learn it again at a "
            "lower learning_rate, or set a lower scale of its layout."
        )
    wider = "fp32" if base.settings.precision == "bf16" else "bf16 or fp32"
    return UserError(
        f"The base '{base.id}' overflows in its precision: set its sampling.precision to {wider}; if it does so in "
        "training, its model.precision."
    )


def denoise(
    base: Base,
    prompt_embeds: Conditioning,
    negative_embeds: Conditioning,
    latents: torch.Tensor,
    sampler: Sampler,
    guidance: Guidance | None = None,
) -> torch.Tensor:
    """Return denoised latents, float32, of the shape of `latents`; see `sample` for the arguments."""
    scheduler = build_scheduler(base, sampler)
    # The timesteps are kept on the CPU, where they are read; the UNet gets a copy on its device.
    timesteps, on_device = scheduler.timesteps, to_device(scheduler.timesteps, base.device)
    distinct = list(dict.fromkeys(timesteps.tolist()))
    guided = sampler.guidance_scale > 1
    conditions = [negative_embeds, prompt_embeds] if guided else [prompt_embeds]
    # The scheduler's own arithmetic stays in float32, whatever precision the UNet runs in.
    latents = to_device(latents, base.device).float() * scheduler.init_noise_sigma
    for index, timestep in enumerate(timesteps):
        # PNDM evaluates its second timestep twice, first to step from older latents: a move made then would be lost
        if guidance and timestep not in timesteps[index + 1 :]:
            progress = distinct.index(int(timestep)) / len(distinct)
            latents = guidance(latents, timestep, progress, prompt_embeds(int(timestep)))
        embeds = [condition(int(timestep)) for condition in conditions]
        inputs = scheduler.scale_model_input(latents, timestep)
        noise = _predict(base, inputs, on_device[index], embeds)
        if guided:
            unconditional, conditional = noise.chunk(2)
            noise = unconditional + sampler.guidance_scale * (conditional - unconditional)
        latents = scheduler.step(noise, timestep, latents).prev_sample
    return latents


def build_scheduler(base: Base, sampler: Sampler) -> Any:
    """Return a fresh diffusers scheduler with the base's noise schedule.

    Its `timesteps` are those at which the UNet is evaluated, in order.
    """
    import diffusers

    kind, overrides = SCHEDULERS[sampler.scheduler]
    scheduler = getattr(diffusers, kind).from_config(base.scheduler.config, **overrides)
    scheduler.set_timesteps(sampler.steps)
    return scheduler


def decode(base: Base, latents: torch.Tensor) -> torch.Tensor:
    """Return the images of `latents`, (batch, 3, pixels, pixels), float32 in [0, 1] on the base's device."""
    import torch

    latents = (latents / base.vae.config.scaling_factor).to(base.dtype)
    most = max(1, DECODED_AT_ONCE // base.resolution**2)
    parts = latents.tensor_split(ceil(len(latents) / most))  # of about one size, which takes the least memory
    pixels = [base.vae.decode(part).sample.float() for part in parts]
    return (torch.cat(pixels) / 2 + 0.5).clamp(0, 1)


def initial_latents(base: Base, seeds: Sequence[int]) -> torch.Tensor:
    """Return unit noise (images, channels, height, width), each image's from its own CPU generator.

    So an image does not depend on its batch, except for rounding, and its noise does not depend on the device.
    """
    import torch

    shape = (base.unet.config.in_channels, base.latent_side, base.latent_side)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def to_pictures(images: torch.Tensor) -> list[Image.Image]:
    """Return one RGB picture for each of `images`, (batch, 3, height, width) in [0, 1]."""
    # the arithmetic on the images' device: a GPU waits for what the CPU does between two batches
    levels = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()  # (batch, height, width, 3)
    return [Image.fromarray(picture) for picture in levels]


def encode_png(picture: Image.Image, texts: Mapping[str, str] = {}) -> bytes:
    """Return the picture as a PNG that holds `texts` by their keys; the same pixels and texts give the same bytes."""
    info = PngInfo()
    for key, text in texts.items():
        info.add_itxt(key, text)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=6, pnginfo=info)
    return buffer.getvalue()


def _predict(base: Base, latents: torch.Tensor, timestep: torch.Tensor, embeds: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the UNet's output under each of `embeds` in one pass, (conditions * batch, channels, h, w)."""
    import torch

    inputs = torch.cat([latents] * len(embeds)).to(base.dtype)
    conditioning = torch.cat(list(embeds)).to(base.device, base.dtype)
    return base.unet(inputs, timestep, encoder_hidden_states=conditioning).sample.float()
