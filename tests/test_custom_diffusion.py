"""Custom Diffusion: untouched it is the base, its file is diffusers', its losses and variants are by hand."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from relinv.adapters.custom_diffusion import Adapter, _change, pretrained
from relinv.diffusion.bases import Base, load_base
from relinv.diffusion.randomness import generator
from relinv.errors import UserError
from relinv.learning.inversion import invert_relation
from relinv.learning.losses import masked_denoising
from relinv.learning.method import LossInputs, TrainingPicture
from relinv.learning.scale_augmentation import FAR_PREFIXES, NEAR_PREFIXES, scale_variant
from relinv.methods.custom_diffusion import Method
from tests.conftest import tiny_settings
from tests.inverting import looping, problem
from tests.tiny import TOKENS, weights
from tests.unets import answer, changed_projections, unet_of_diffusers

FILE = "pytorch_custom_diffusion_weights.safetensors"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_with_untouched_weights_it_is_the_base(precision: str, tiny_base: Path) -> None:
    base = load_base(tiny_settings(tiny_base).model_copy(update={"precision": precision}))
    plain = answer(base)
    adapter = Adapter(base, "<r>", pretrained(base), {})
    assert all(tensor.dtype == torch.float32 for tensor in adapter.tensors.values())
    with adapter.applied():
        assert torch.equal(answer(base), plain)
    with Adapter(base, "<r>", changed_projections(base), {}).applied():
        assert not torch.equal(answer(base), plain)
    assert torch.equal(answer(base), plain)


def test_its_file_does_in_diffusers_processors_what_it_does_here(
    base: Base, exemplar_folder: Path, tmp_path: Path
) -> None:
    invert_relation(problem(base, exemplar_folder, "custom_diffusion"), tmp_path / "concept", tmp_path / "scratch")
    learned = load_file(tmp_path / "concept" / FILE)
    with Adapter(base, "<r>", learned, {}).applied():
        ours = answer(base)
    assert len(learned) == 2 * sum(".attn2." in name for name in base.unet.attn_processors)
    theirs = answer(base, unet_of_diffusers(base, learned))
    assert torch.allclose(ours, theirs, atol=1e-5) and not torch.allclose(ours, answer(base), atol=1e-4)


def test_a_change_too_small_for_a_weights_own_precision_is_not_lost() -> None:
    own = torch.ones(1, 2, dtype=torch.bfloat16)
    weight, encodings = own.float() + 2**-12, torch.ones(1, 3, 2, dtype=torch.bfloat16)
    changed = _change(weight, own, torch.nn.Linear(2, 1), (encodings,), torch.zeros(1, 3, 1, dtype=torch.bfloat16))
    assert changed.dtype == torch.bfloat16 and changed.flatten().tolist() == [2**-11] * 3


def test_two_of_them_add_up_and_leave_the_base_as_it_was(base: Base) -> None:
    before, learned = weights(base), changed_projections(base)
    halves = {name: (tensor + pretrained(base)[name]) / 2 for name, tensor in learned.items()}
    with Adapter(base, "<r>", learned, {}).applied():
        whole = answer(base)
    with Adapter(base, "<r>", halves, {}).applied(), Adapter(base, "<s>", halves, {}).applied():
        assert torch.allclose(answer(base), whole, atol=1e-5)
    assert weights(base) == before


def test_the_first_token_teaches_nothing(base: Base) -> None:
    """Where only token 0 carries anything, the projections get no gradient; from another they do."""
    for place, taught in ((0, False), (3, True)):
        text = torch.zeros(1, 24, base.dim)
        text[0, place] = 1
        adapter = Adapter(base, "<r>", changed_projections(base), {})
        with adapter.applied():
            base.unet(torch.ones(1, 4, 16, 16), 5, encoder_hidden_states=text).sample.square().sum().backward()
        assert any(tensor.grad.any() for tensor in adapter.tensors.values()) == taught


def test_weights_of_another_base_are_refused(base: Base) -> None:
    learned = pretrained(base)
    with pytest.raises(UserError, match=r"do not fit the base .* is missing and should be"):
        Adapter(base, "<r>", dict(list(learned.items())[1:]), {})
    name, weight = next(iter(learned.items()))
    with pytest.raises(UserError, match="learned for another kind of base"):
        Adapter(base, "<r>", learned | {name: weight[:, 1:]}, {})


def test_the_masked_loss_is_the_mean_inside_the_mask() -> None:
    prediction, target, masks = torch.zeros(2, 4, 2, 2), torch.zeros(2, 4, 2, 2), torch.ones(2, 1, 2, 2)
    target[0], target[1, :, 0, 0], target[1, :, 1, 1] = 3, 2, 100
    masks[1] = torch.tensor([[1.0, 0], [0, 0]])
    assert masked_denoising(prediction, target, masks).item() == (9 + 4) / 2  # per channel: no factor of 4
    assert masked_denoising(prediction, target, masks / 4).item() == (9 + 4 / 4) / 2  # less than one cell counts less
    assert masked_denoising(prediction, target, torch.zeros(2, 1, 2, 2)).item() == 0


def test_losses_keep_exemplars_and_prior_apart(base: Base, exemplar_folder: Path) -> None:
    task = problem(base, exemplar_folder, "custom_diffusion", anchor_weight=0.95, prior_weight=0.5)
    method = Method(base, task.words, task.settings, task.exemplars)
    target, masks = torch.zeros(4, 4, 2, 2), torch.ones(4, 1, 2, 2)
    target[:2, :, 0, 0], target[:2, :, 1, 1], target[2:] = 2, 9, 3
    masks[:2] = torch.tensor([[1.0, 0], [0, 0]])
    inputs = LossInputs(["cat"] * 4, torch.zeros(4), torch.zeros(4, 4, 2, 2), target, generator(0, "", 0), masks)
    terms = method.losses(inputs)
    assert list(terms) == ["denoise", "anchor", "prior"]
    assert (terms["denoise"].value.item(), terms["prior"].value.item(), terms["prior"].weight) == (4, 9, 0.5)
    assert method.losses(replace(inputs, target=target * 2))["prior"].value.item() == 36


def test_row_and_weights_learn_at_their_own_rates(base: Base, exemplar_folder: Path) -> None:
    changes = {"learning_rate": 0.3, "weights_learning_rate": 0.002, "weight_decay": 0.5}
    task = problem(base, exemplar_folder, "custom_diffusion", **changes)
    row, projections = Method(base, task.words, task.settings, task.exemplars).groups()
    assert (row["lr"], projections["lr"]) == (0.3, 0.002)
    assert (row["weight_decay"], projections["weight_decay"]) == (0.5, 0.5)
    assert len(projections["params"]) == len(pretrained(base))


def test_variants_are_scaled_captioned_and_masked() -> None:
    shown = TrainingPicture(Image.new("RGB", (512, 512), "white"), ["cat {} box"])
    variants = [scale_variant(shown, 64, generator(0, "scale", index)) for index in range(200)]
    assert 0.58 < sum(variant.mask is not None for variant in variants) / 200 < 0.74
    for variant in variants:
        assert variant.image.size == (512, 512)
        levels = white(variant.image)
        if variant.mask is None:
            assert levels.all() and variant.templates == [f"{prefix}cat {{}} box" for prefix in NEAR_PREFIXES]
            continue
        side = round(int(levels.sum()) ** 0.5)
        assert side**2 == levels.sum() and 170 <= side <= 512
        far = [f"{prefix}cat {{}} box" for prefix in FAR_PREFIXES]
        assert variant.templates == (far if side < 0.6 * 512 else ["cat {} box"])
        cells = levels.view(64, 8, 64, 8).all(dim=3).all(dim=1)  # which cells the picture fills
        assert variant.mask.bool().any() and not (variant.mask.bool() & ~cells).any()
        assert (side // 8 - 2) ** 2 <= variant.mask.sum() <= (side // 8 - 1) ** 2


def test_larger_pictures_have_the_published_sizes_at_any_place() -> None:
    """Told by how slowly a ramp of levels rises in them: half a level a pixel in the picture itself."""
    ramp = Image.fromarray(np.tile(np.arange(512) // 2, (512, 1)).astype(np.uint8))
    sides, lefts = [], []
    for index in range(800):
        variant = scale_variant(TrainingPicture(ramp, ["cat {} box"]), 64, generator(0, "scale", index))
        if variant.mask is None:
            slope, _ = np.polyfit(np.arange(512), np.asarray(variant.image)[0], 1)
            sides.append(256 / slope)
            lefts.append(variant.image.getpixel((0, 0)) * 2 / 512)  # shares of the picture that are cut off
    assert (round(min(sides)), round(max(sides))) == (614, 716)
    assert min(lefts) == 0 and max(lefts) > 0.2


def test_larger_pictures_are_cut_at_any_height() -> None:
    ramp = Image.fromarray(np.tile(np.arange(64)[:, None], 64).astype(np.uint8))  # its levels rise downwards
    variants = [scale_variant(TrainingPicture(ramp, ["{}"]), 16, generator(0, "scale", index)) for index in range(200)]
    tops = [variant.image.getpixel((0, 0)) for variant in variants if variant.mask is None]
    assert min(tops) == 0 and max(tops) > 12  # of 64 rows; of the largest pictures, 18 are cut off


def test_smaller_pictures_have_the_published_sizes_at_any_place_on_grey() -> None:
    shown = TrainingPicture(Image.new("RGB", (64, 64), "white"), ["{}"])
    sides, places = [], []
    for index in range(400):
        variant = scale_variant(shown, 16, generator(0, "scale", index))
        if variant.mask is not None:
            left, top, right, _ = Image.fromarray(white(variant.image).numpy()).getbbox()
            sides.append(right - left)
            places.append((left, top))
            assert {colour for _, colour in variant.image.getcolors()} <= {(255, 255, 255), (127, 127, 127)}
    assert (min(sides), max(sides)) == (round(64 * 170 / 512), 64)
    assert max(left - top for left, top in places) > 20 and max(top - left for left, top in places) > 20


def white(image: Image.Image) -> torch.Tensor:
    """Return which pixels are white, (height, width)."""
    return torch.frombuffer(bytearray(image.convert("L").tobytes()), dtype=torch.uint8).view(image.size) == 255


def test_what_is_shown_is_made_once_and_the_same_each_time(base: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    task = problem(base, exemplar_folder, "custom_diffusion", scale_variants=3, prior_images=5)
    methods = {name: Method(base, task.words, task.settings, task.exemplars) for name in ("first", "second")}
    first, second = (method.training_pictures(tmp_path / name) for name, method in methods.items())
    assert [shown.image.tobytes() for shown in first] == [shown.image.tobytes() for shown in second]
    assert [shown.prior for shown in first] == [False] * 12 + [True] * 5
    assert all(shown.mask is None for shown in first[12:])
    places = ["" if shown.mask is None else str(shown.mask.nonzero().tolist()) for shown in first[:12]]
    assert len({tuple(places[start : start + 3]) for start in range(0, 12, 3)}) == 4  # each exemplar has its own
    plain = problem(base, exemplar_folder, "custom_diffusion", scale_variants=0, prior_images=0)
    method = Method(base, plain.words, plain.settings, plain.exemplars)
    assert method.prior_batch_size == 0 and len(method.training_pictures(tmp_path)) == 4


def test_the_fixed_batch_has_each_exemplar_once_however_many_variants_there_are(
    base: Base, exemplar_folder: Path, tmp_path: Path
) -> None:
    task = problem(base, exemplar_folder, "custom_diffusion", scale_variants=3, prior_images=5)
    loop = looping(task, tmp_path / "scratch")
    with loop.method.attached():
        fixed = loop.batches.fixed()
    assert len(fixed.noisy) == 4 and torch.equal(fixed.masks, loop.batches.masks[[0, 3, 6, 9]])


def test_a_caption_that_its_prefix_makes_too_long_is_refused_before_the_first_step(
    base: Base, exemplar_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exemplar_folder, tmp_path / "inside"))
    captions = json.loads((folder / "text.json").read_text())
    captions["0.png"] = ["cat {} box", "cat {} box" + " red" * (TOKENS - 5)]  # as long as may be, both ends included
    (folder / "text.json").write_text(json.dumps(captions))
    task = problem(base, folder, "custom_diffusion", scale_variants=5, prior_images=0)
    with pytest.raises(UserError, match=rf"has \d+ tokens and the limit is {TOKENS}: shorten it"):
        looping(task, tmp_path / "scratch")
    looping(problem(base, folder, "custom_diffusion", scale_variants=0, prior_images=0), tmp_path / "scratch")
