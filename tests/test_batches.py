"""What steps show the UNet: pictures, captions, timesteps and encodings that belong together."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from relinv.diffusion.bases import Base
from relinv.diffusion.randomness import generator
from relinv.learning import batches as module
from relinv.learning.batches import Batches, visits
from tests.inverting import build, problem


@contextmanager
def drawing(base: Base, exemplar_folder: Path, name: str, **changes: Any) -> Iterator[Batches]:
    """Yield the batches of a training by the method `name`, eight samples a step, where its token is known."""
    task = problem(base, exemplar_folder, name, batch_size=8, **changes)
    method = build(task)
    batches = Batches(method, method.training_pictures(Path()), task.seed)
    with method.attached(), torch.no_grad():
        yield batches


def test_a_samples_prompt_is_its_pictures_and_its_row_its_timesteps(base: Base, exemplar_folder: Path) -> None:
    seen: set[str] = set()
    with drawing(base, exemplar_folder, "multires") as batches:
        for step in range(20):
            batch = batches.of_step(step)
            for place, picture in enumerate(visits(4, 8, step, seed=0)):
                row = f"<r|{batch.timesteps[place].item() // 100}|>"  # ten rows for a thousand timesteps
                templates = batches.templates[picture]
                assert batch.prompts[place] in [template.format(row) for template in templates]
                seen.add(batch.prompts[place].replace(row, "{}"))
            encodings = base.encode(base.tokenize(batch.prompts))  # (8, tokens, dim)
            torch.testing.assert_close(batch.conditioning, encodings)
    assert len(seen) == 8  # each of four pictures has two templates


@pytest.mark.parametrize(("alpha", "share"), [(0.0, 0.5), (0.5, 0.5 + 0.5 / torch.pi)])
def test_timesteps_follow_the_distribution(alpha: float, share: float, base: Base, exemplar_folder: Path) -> None:
    """The density 1 - alpha cos(pi t / T) has 1/2 + alpha/pi of its mass in the noisier half."""
    with drawing(base, exemplar_folder, "reversion", importance_alpha=alpha) as batches:
        timesteps = torch.cat([batches.of_step(step).timesteps for step in range(100)])
    assert (timesteps >= 500).double().mean().item() == pytest.approx(share, abs=0.02)


def test_no_two_kinds_of_draws_share_their_numbers(
    base: Base, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    purposes: list[str] = []

    def noted(seed: int, purpose: str, step: int) -> torch.Generator:
        purposes.append(purpose)
        return generator(seed, purpose, step)

    monkeypatch.setattr(module, "generator", noted)
    method = build(problem(base, exemplar_folder, "dreambooth", batch_size=1, prior_images=1))
    batches = Batches(method, method.training_pictures(tmp_path), seed=0)
    with method.attached(), torch.no_grad():
        batches.of_step(0)
        assert len(purposes) == len({*purposes}) == 6  # both kinds of pictures, latents, timesteps, captions, noise
        batches.fixed()
    assert len(purposes) == len({*purposes}) == 9  # timesteps, captions and noise of no step


def test_what_is_no_distribution_is_refused_before_the_first_step(base: Base, exemplar_folder: Path) -> None:
    method = build(problem(base, exemplar_folder, "textual_inversion"))
    method.timestep_distribution = lambda total: torch.full((total,), 0.1)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="timestep_distribution must be 1000 numbers"):
        Batches(method, method.training_pictures(Path()), seed=0)


def test_the_pictures_themselves_are_not_kept(base: Base, exemplar_folder: Path) -> None:
    method = build(problem(base, exemplar_folder, "reversion"))
    pictures = method.training_pictures(Path())
    images = [weakref.ref(picture.image) for picture in pictures]
    batches = Batches(method, pictures, seed=0)
    del pictures
    gc.collect()
    assert [image() for image in images] == [None] * 4 and len(batches.latents.mean) == 4


def test_the_fixed_batch_is_the_same_each_time_and_of_every_exemplar(base: Base, exemplar_folder: Path) -> None:
    with drawing(base, exemplar_folder, "textual_inversion") as batches:
        first, again = batches.fixed(), batches.fixed()
    for name in ("timesteps", "noisy", "target", "conditioning"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    kept = base.scheduler.alphas_cumprod[first.timesteps, None, None, None]
    torch.testing.assert_close(first.noisy, kept.sqrt() * batches.latents.mean + (1 - kept).sqrt() * first.target)
