"""Sampling against diffusers' own pipeline, and its independence of batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from relinv.diffusion.bases import Base, load_base
from relinv.diffusion.conditioning import Drawer
from relinv.diffusion.sampling import (
    SCHEDULERS,
    build_scheduler,
    decode,
    denoise,
    initial_latents,
    sample,
    to_pictures,
)
from relinv.settings import MOST_STEPS, Sampler
from tests.conftest import tiny_settings
from tests.tiny import velocity_base

PROMPTS = ["cat in box", "a photo of a dog on a stone"]
SEEDS = [11, 12]


def encode(base: Base, prompts: list[str]) -> torch.Tensor:
    with torch.inference_mode():
        return base.encode(base.tokenize(prompts))


def constant(encodings: torch.Tensor) -> Callable[[int], torch.Tensor]:
    """Return the condition that is the same at every timestep."""
    return lambda timestep: encodings


def drawn(base: Base, sampler: Sampler, prompts: list[str] = PROMPTS, seeds: list[int] = SEEDS) -> np.ndarray:
    """Return what `sample` draws as 8-bit pixels, (images, side, side, 3)."""
    conditions = constant(encode(base, prompts)), constant(encode(base, [""] * len(prompts)))
    images = sample(base, *conditions, initial_latents(base, seeds), sampler)
    return np.stack([np.asarray(picture) for picture in to_pictures(images)]).astype(int)


def drawn_by_diffusers(base: Base, sampler: Sampler, negative: str = "") -> np.ndarray:
    """Return what diffusers' own pipeline draws from the base's folder, as `drawn` does."""
    pipeline = StableDiffusionPipeline.from_pretrained(base.id, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    kind, overrides = SCHEDULERS[sampler.scheduler]
    pipeline.scheduler = getattr(diffusers, kind).from_config(pipeline.scheduler.config, **overrides)
    images = pipeline(
        PROMPTS,
        negative_prompt=[negative] * len(PROMPTS),
        num_inference_steps=sampler.steps,
        guidance_scale=sampler.guidance_scale,
        latents=initial_latents(base, SEEDS),
        output_type="np",
    ).images
    return np.round(images * 255)


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_images_are_those_of_diffusers_pipeline(base: Base, scheduler: str, guidance: float) -> None:
    sampler = Sampler(steps=5, guidance_scale=guidance, scheduler=scheduler)
    assert np.abs(drawn(base, sampler) - drawn_by_diffusers(base, sampler)).max() <= 2


def test_a_negative_prompt_is_led_away_from_as_by_diffusers_pipeline(base: Base) -> None:
    sampler, negative = Sampler(steps=5, guidance_scale=7.5, scheduler="ddim"), "a red stone"
    images = Drawer(base, [], PROMPTS, sampler, negative).draw(PROMPTS, SEEDS)
    ours = np.stack([np.asarray(picture) for picture in to_pictures(images)]).astype(int)
    assert np.abs(ours - drawn_by_diffusers(base, sampler, negative)).max() <= 2
    assert np.abs(ours - drawn(base, sampler)).max() > 20


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_velocities_draw_the_images_of_diffusers_pipeline(
    base: Base, tiny_base: Path, tmp_path: Path, scheduler: str
) -> None:
    velocity = velocity_base(tiny_base, tmp_path / "base")
    sampler = Sampler(steps=5, guidance_scale=7.5, scheduler=scheduler)
    ours = drawn(velocity, sampler)
    assert np.abs(ours - drawn_by_diffusers(velocity, sampler)).max() <= 2
    assert np.abs(ours - drawn(base, sampler)).max() > 20  # and not those of a UNet that answers the noise


def test_an_image_does_not_depend_on_its_batch(base: Base) -> None:
    sampler = Sampler(steps=5, guidance_scale=5.0, scheduler="ddim")
    together = drawn(base, sampler)
    alone = np.concatenate(
        [drawn(base, sampler, [prompt], [seed]) for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
    )
    assert np.abs(together - alone).max() <= 2
    assert np.abs(together[0] - together[1]).max() > 20  # and the two differ


def test_a_guidance_of_one_or_less_is_none(base: Base) -> None:
    half, one = (drawn(base, Sampler(steps=5, guidance_scale=guidance, scheduler="ddim")) for guidance in (0.5, 1.0))
    assert np.array_equal(half, one)


def test_prompt_and_guidance_reach_the_image(base: Base) -> None:
    weak, strong = (
        drawn(base, Sampler(steps=5, guidance_scale=guidance, scheduler="ddim"), seeds=[11, 11])
        for guidance in (1.0, 15.0)
    )
    assert np.abs(weak[0] - weak[1]).max() > 0
    assert np.abs(weak - strong).max() > 0


def test_conditioning_may_depend_on_the_timestep(base: Base) -> None:
    encodings, negatives = encode(base, PROMPTS), constant(encode(base, ["", ""]))
    latents, sampler = initial_latents(base, SEEDS), Sampler(steps=4, guidance_scale=5.0, scheduler="ddim")
    seen: list[int] = []

    def by_timestep(timestep: int) -> torch.Tensor:
        seen.append(timestep)
        return encodings

    images = sample(base, by_timestep, negatives, latents, sampler)
    assert torch.equal(images, sample(base, constant(encodings), negatives, latents, sampler))
    assert seen == build_timesteps(base, 4)


def build_timesteps(base: Base, steps: int) -> list[int]:
    return build_scheduler(base, Sampler(steps=steps, guidance_scale=1.0, scheduler="ddim")).timesteps.tolist()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_each_step_is_guided_once_and_each_move_counts(base: Base, scheduler: str) -> None:
    """PNDM asks twice at its second timestep, and its step there starts from where the first one did."""
    sampler, noise = Sampler(steps=5, guidance_scale=1.0, scheduler=scheduler), initial_latents(base, [1])
    with torch.inference_mode():
        words = base.encode(base.tokenize(["cat inside box"]))  # (1, tokens, dim)
    same = constant(words), constant(words)

    def moved(at: int | None) -> tuple[torch.Tensor, list[int], list[float]]:
        """Return the latents where the guidance moves them at its call `at`, and the calls' timesteps and progress."""
        timesteps: list[int] = []
        progress: list[float] = []

        def guidance(
            latents: torch.Tensor, timestep: torch.Tensor, done: float, encodings: torch.Tensor
        ) -> torch.Tensor:
            assert torch.equal(encodings, words)
            timesteps.append(int(timestep))
            progress.append(done)
            return latents + 10.0 if len(timesteps) - 1 == at else latents

        with torch.inference_mode():
            return denoise(base, *same, noise, sampler, guidance), timesteps, progress

    seen: list[torch.Tensor] = []
    hook = base.unet.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    guided: list[torch.Tensor] = []
    with torch.inference_mode():
        denoise(
            base,
            constant(words),
            constant(words),
            noise,
            sampler,
            lambda latents, *_: guided.append(latents) or latents,
        )
    hook.remove()
    assert torch.equal(guided[0], seen[0]) and torch.equal(guided[-1], seen[-1])  # what the UNet is given, unscaled
    still, timesteps, progress = moved(None)
    assert timesteps == list(dict.fromkeys(build_scheduler(base, sampler).timesteps.tolist()))
    assert progress == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])
    for at in range(5):
        assert (moved(at)[0] - still).abs().mean() > 1


@pytest.mark.parametrize(("images", "parts"), [(3, [3]), (5, [3, 2]), (9, [3, 3, 3]), (10, [3, 3, 2, 2])])
def test_latents_are_decoded_in_parts_of_about_one_size(
    images: int, parts: list[int], base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relinv.diffusion.sampling.DECODED_AT_ONCE", 3 * base.resolution**2)
    latents, sizes = initial_latents(base, range(images)), []
    handle = base.vae.post_quant_conv.register_forward_hook(lambda _, inputs, output: sizes.append(len(output)))
    with torch.no_grad():
        pixels = decode(base, latents)
        handle.remove()
        assert sizes == parts
        monkeypatch.setattr("relinv.diffusion.sampling.DECODED_AT_ONCE", 100 * base.resolution**2)
        torch.testing.assert_close(pixels, decode(base, latents), atol=1e-5, rtol=1e-4)


def test_in_low_precision_the_schedulers_arithmetic_and_the_images_stay_in_fp32(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base(tiny_settings(tiny_base).model_copy(update={"precision": "bf16"}))
    step, seen = diffusers.DDIMScheduler.step, []

    def noted(scheduler: object, noise: torch.Tensor, timestep: int, latents: torch.Tensor) -> object:
        seen.append((noise.dtype, latents.dtype))
        return step(scheduler, noise, timestep, latents)

    monkeypatch.setattr(diffusers.DDIMScheduler, "step", noted)
    conditions = constant(encode(base, PROMPTS)), constant(encode(base, ["", ""]))
    sampler = Sampler(steps=2, guidance_scale=7.5, scheduler="ddim")
    images = sample(base, *conditions, initial_latents(base, SEEDS), sampler)
    assert seen == [(torch.float32, torch.float32)] * 2 and images.dtype == torch.float32


def test_levels_are_the_nearest() -> None:
    levels = torch.arange(256) + torch.linspace(-0.45, 0.45, 256)
    (picture,) = to_pictures((levels / 255).clamp(0, 1).expand(1, 3, 1, 256))
    assert [picture.getpixel((level, 0)) for level in range(256)] == [(level,) * 3 for level in range(256)]


def test_noise_belongs_to_the_image(base: Base) -> None:
    both = initial_latents(base, [5, 6])
    assert both.shape == (2, 4, 16, 16)
    assert torch.equal(both[1], initial_latents(base, [6])[0])
    assert not torch.equal(both[0], both[1])


def test_latents_are_not_clipped_whatever_the_base_says(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    clipping = diffusers.DDPMScheduler.from_config(base.scheduler.config, clip_sample=True)
    monkeypatch.setattr(base, "scheduler", clipping)
    assert build_scheduler(base, Sampler(steps=1, guidance_scale=1.0, scheduler="ddim")).config.clip_sample is False


def test_dpmpp_is_of_the_kind_and_order_that_records_name(base: Base) -> None:
    config = build_scheduler(base, Sampler(steps=1, guidance_scale=1.0, scheduler="dpmpp")).config
    assert (config.algorithm_type, config.solver_order) == ("dpmsolver++", 2)  # DPM++ 2M


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_most_steps_that_settings_allow_end_in_finite_latents(scheduler: str, base: Base) -> None:
    steps = build_scheduler(base, Sampler(steps=MOST_STEPS, guidance_scale=1.0, scheduler=scheduler))
    latents = noise = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    for timestep in steps.timesteps:
        latents = steps.step(noise, timestep, latents).prev_sample
    assert latents.isfinite().all()
