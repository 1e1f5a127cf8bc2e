"""Soft masks beside exemplars: framed as their pictures, and weighing the loss."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from relinv.diffusion.bases import Base
from relinv.diffusion.randomness import generator
from relinv.exemplars import Exemplar, load_mask, read_exemplars
from relinv.learning.batches import visits
from relinv.learning.losses import weighted_denoising
from relinv.learning.method import InversionMethod, LossInputs, TrainingPicture, mask_of
from relinv.learning.scale_augmentation import scale_variant
from relinv.learning.training import take_step
from relinv.settings import ValidateSettings
from relinv.validation import validate_folder
from tests.inverting import build, looping, problem


def test_a_mask_weighs_the_squared_error_once() -> None:
    masks = torch.tensor([0.5, 1.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    prediction, target = torch.full((2, 3, 4, 4), 3.0), torch.ones(2, 3, 4, 4)
    assert weighted_denoising(prediction, target, masks).item() == pytest.approx((0.5 * 4 + 1.0 * 4) / 2)


def test_masks_beside_pictures_are_framed_as_these_and_shown_with_them(
    base: Base, exemplar_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "inside"
    shutil.copytree(exemplar_folder, folder)
    (folder / "masks").mkdir()
    Image.new("RGB", (128, 64), "white").save(folder / "0.png")  # its left and right quarters are cut off
    plain = read_exemplars(folder)
    stripes = Image.new("L", (32, 32))  # a segmenter's square: its middle half is what the picture keeps
    stripes.paste(200, (0, 0, 12, 32))
    stripes.save(folder / "masks" / "0.png")
    Image.new("L", (64, 64)).save(folder / "masks" / "1.png")  # nothing found
    masked = read_exemplars(folder)
    mask = mask_of(base, masked.exemplars[0])
    assert mask is not None and mask.shape == (16, 16)
    assert mask[:, :3].eq(1).all() and mask[:, 5:].eq(0).all()
    assert mask_of(base, masked.exemplars[1]) is None and mask_of(base, masked.exemplars[2]) is None
    assert masked.fingerprint != plain.fingerprint
    settings = problem(base, exemplar_folder, "perfusion").settings
    shown = InversionMethod(base, "inside", settings, masked).training_pictures(Path())  # what most methods show
    assert torch.equal(shown[0].mask, mask) and shown[1].mask is None  # type: ignore[arg-type]


def test_a_mask_lies_over_a_picture_as_it_is_seen_and_not_as_a_camera_stored_it(tmp_path: Path) -> None:
    picture, mask, exif = Image.new("RGB", (128, 64)), Image.new("L", (128, 64)), Image.Exif()
    mask.paste(255, (0, 0, 48, 64))  # of columns 32 to 96, which are kept, the first 16
    mask.save(tmp_path / "mask.png")
    exif[0x0112] = 6  # stored on its side
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "0.png", exif=exif)
    framed = np.asarray(load_mask(Exemplar(tmp_path / "0.png", ("cat {} box",), tmp_path / "mask.png"), 16))
    assert (framed[:, :3] == 255).all() and (framed[:, 5:] == 0).all()


def half_masked(exemplar_folder: Path, tmp_path: Path) -> Path:
    """Return a copy of the exemplars in which a mask of the left half stands beside one picture, 2.png."""
    folder = Path(shutil.copytree(exemplar_folder, tmp_path / "inside"))
    (folder / "masks").mkdir()
    left = Image.new("L", (64, 64))
    left.paste(255, (0, 0, 32, 64))
    left.save(folder / "masks" / "2.png")
    return folder


def test_a_steps_loss_counts_where_its_pictures_masks_say(base: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    task = problem(base, half_masked(exemplar_folder, tmp_path), "textual_inversion", batch_size=4)
    loop = looping(task, tmp_path)
    batch = loop.batch(0)
    with torch.no_grad():
        prediction = base.unet(batch.noisy, batch.timesteps, encoder_hidden_states=batch.conditioning).sample
    take_step([loop], 0)
    noise = torch.randn(4, 4, 16, 16, generator=generator(0, "noise", 0))
    squares = (prediction - noise).square()
    squares[visits(4, 4, 0, seed=0).index(2)] *= mask_of(base, task.exemplars.exemplars[2])
    assert loop.log.losses[0].tolist() == pytest.approx([squares.mean().item()] * 2, rel=1e-5)


def test_the_fixed_loss_counts_there_too(base: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    task = problem(base, half_masked(exemplar_folder, tmp_path), "textual_inversion")
    loop = looping(task, tmp_path)
    with loop.method.attached(), torch.no_grad():
        batch = loop.batches.fixed()
        prediction = base.unet(batch.noisy, batch.timesteps, encoder_hidden_states=batch.conditioning).sample
    squares = (prediction - batch.target).square()
    squares[2] *= mask_of(base, task.exemplars.exemplars[2])
    assert loop._fixed_loss() == pytest.approx(squares.mean().item(), rel=1e-5)


def test_every_methods_loss_is_weighed(base: Base, exemplar_folder: Path) -> None:
    method = build(problem(base, exemplar_folder, "textual_inversion"))
    masks, noise = torch.zeros(2, 1, 4, 4), torch.Generator()
    masks[0, :, 0] = 1
    target, prediction = torch.zeros(2, 4, 4, 4), torch.ones(2, 4, 4, 4)
    inputs = LossInputs(["cat <r> box"] * 2, torch.zeros(2), prediction, target, noise, masks)
    assert method.losses(inputs)["denoise"].value.item() == 1 / 8


def test_a_scaled_pictures_own_mask_is_scaled_with_it() -> None:
    """The picture is white where its mask is 1, so that wherever it goes the mask is the picture's own lightness."""
    mask = torch.zeros(16, 16)
    mask[2:14, 1:6] = 1
    picture = Image.new("RGB", (64, 64), "black")
    picture.paste("white", (4, 8, 24, 56))
    for seed in range(20):
        found = scale_variant(TrainingPicture(picture, ["{}"], mask), 16, generator(seed, "scale", 0))
        bare = scale_variant(TrainingPicture(picture, ["{}"]), 16, generator(seed, "scale", 0))
        assert found.mask is not None and found.image.tobytes() == bare.image.tobytes()
        inside = torch.ones(16, 16) if bare.mask is None else bare.mask
        lightness = torch.from_numpy(np.array(found.image.convert("L"))) / 255  # (64, 64)
        cells = lightness.reshape(16, 4, 16, 4).mean((1, 3))  # (16, 16)
        assert (found.mask - cells * inside).abs().mean() < 0.03


def test_validation_names_masks_of_no_picture_and_damaged_ones(
    base: Base, exemplar_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "inside"
    shutil.copytree(exemplar_folder, folder)
    (folder / "masks").mkdir()
    Image.new("L", (64, 64), 255).save(folder / "masks" / "0.png")
    Image.new("L", (64, 64), 255).save(folder / "masks" / "9.png")
    (folder / "masks" / "1.png").write_bytes(b"no picture")
    settings = ValidateSettings(minimum_images=4, minimum_side=64, duplicate_difference=0)
    verdict = validate_folder(folder, settings, base.tokenizer, resolution=64)
    assert [error for error in verdict.errors if "1.png" in error] and len(verdict.errors) == 1
    assert verdict.warnings == ["masks/9.png belongs to no picture: name it as its picture, ending in .png."]
