"""Compositional Inversion: the spatial loss by hand, the guidance of a batch, and the anchor in the log."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from PIL import Image

from relinv.adapters import layout
from relinv.adapters.layout import Adapter, Layout, box_cells, draw_boxes, layout_of, spatial_loss
from relinv.checking import parse
from relinv.diffusion.attention_maps import attention_maps, coarse_layers
from relinv.diffusion.bases import Base, load_base
from relinv.diffusion.concept import Concept
from relinv.diffusion.conditioning import Drawer, guided_by, in_use, with_draw_options
from relinv.diffusion.cross_attention import cross_attentions
from relinv.diffusion.sampling import build_scheduler, initial_latents
from relinv.errors import UserError
from relinv.learning.token_row import initial_row
from relinv.learning.training import train
from relinv.methods import compositional
from relinv.params import load_params
from relinv.settings import Sampler
from tests.conftest import tiny_settings
from tests.inverting import problem, training
from tests.tiny import weights

LAYOUT = {"head": [0.0, 0.0, 0.5, 1.0], "tail": [0.5, 0.0, 1.0, 1.0], "scale": 30.0, "threshold": 0.2, "iterations": 5,
          "fraction": 1.0}  # fmt: skip
SAMPLER = Sampler(steps=4, guidance_scale=5.0, scheduler="dpmpp")
LEFT, RIGHT = [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]
WORDS = torch.tensor([[[False, True, False], [False, False, True]]])  # one image: token 1 is the head, token 2 the tail


def attended(*cells: int, side: int = 4) -> torch.Tensor:
    """Return one image's map of one head, (1, 1, cells, tokens): each token is attended to in one cell alone."""
    maps = torch.zeros(1, 1, side * side, len(cells))
    for token, cell in enumerate(cells):
        maps[0, 0, cell, token] = 0.3  # how much is of no account, only where
    return maps


def concept(base: Base, **changes: Any) -> Concept:
    row = torch.randn(base.dim, generator=torch.Generator().manual_seed(0))
    adapter = {"name": "layout", "file": None, "options": LAYOUT | changes}
    return Concept("<r>", row, {"method": "compositional", "adapters": [adapter]})


def drawn(base: Base, used: Concept, prompts: list[str], seeds: list[int], sampler: Sampler = SAMPLER) -> torch.Tensor:
    """Return the images of prompts, (prompts, 3, side, side)."""
    with in_use(base, [used]) as adapters:
        return Drawer(base, adapters, prompts, sampler).draw(prompts, seeds)


@pytest.fixture
def adapter(base: Base) -> Iterator[Adapter]:
    with in_use(base, [concept(base)]) as (found,):
        assert isinstance(found, Adapter)
        yield found


# The loss


def test_the_loss_is_zero_with_all_attention_in_the_boxes_and_one_with_none() -> None:
    inside, outside = attended(0, 5, 10), attended(0, 10, 5)  # of 4 x 4 cells, 5 is on the left and 10 on the right
    assert spatial_loss([inside], WORDS, [LEFT, RIGHT]).tolist() == [0]
    assert spatial_loss([outside], WORDS, [LEFT, RIGHT]).tolist() == [1]
    assert spatial_loss([inside, outside, outside, outside], WORDS, [LEFT, RIGHT]).tolist() == [0.75]


def test_the_loss_by_hand() -> None:
    maps = torch.zeros(1, 2, 4, 3)  # two heads, 2 x 2 cells, three tokens
    maps[0, 0, :, 1] = torch.tensor([0.1, 0.3, 0.2, 0.4])  # 0.3 of it on the left
    maps[0, 1, :, 1] = torch.tensor([0.4, 0.0, 0.4, 0.2])  # 0.8
    maps[0, :, :, 2] = torch.tensor([0.1, 0.1, 0.1, 0.1])  # 0.5 on the right
    head, tail = (0.7**2 + 0.2**2) / 2, 0.5**2
    assert spatial_loss([maps], WORDS, [LEFT, RIGHT]).item() == pytest.approx((head + tail) / 2)
    both = torch.tensor([[[False, True, True], [False, False, False]]])  # a head of two tokens, and no tail
    tokens = (head + 0.5**2) / 2
    assert spatial_loss([maps], both, [LEFT, RIGHT]).item() == pytest.approx(tokens)


def test_images_have_losses_of_their_own() -> None:
    maps = torch.cat([attended(0, 5, 10), attended(0, 10, 5), attended(0, 10, 5)])
    nothing = torch.zeros(1, 2, 3, dtype=torch.bool)
    losses = spatial_loss([maps], torch.cat([WORDS, WORDS, nothing]), [LEFT, RIGHT])
    assert losses.tolist() == [0, 1, 0]


def test_attention_that_is_nowhere_makes_no_nan() -> None:
    maps = torch.zeros(1, 1, 16, 3, requires_grad=True)
    loss = spatial_loss([maps], WORDS, [LEFT, RIGHT])
    loss.sum().backward()
    assert loss.item() == 1 and maps.grad is not None and maps.grad.isfinite().all()


def test_boxes_take_the_nearest_cells_and_at_least_one() -> None:
    assert box_cells([0.1, 0.1, 0.75, 0.5], 4).view(4, 4).tolist() == [[1, 1, 1, 0]] * 2 + [[0] * 4] * 2
    assert box_cells([0.6, 0.2, 0.95, 0.8], 2).view(2, 2).tolist() == [[0, 1], [0, 1]]
    assert box_cells([0.95, 0.95, 1.0, 1.0], 4).view(4, 4)[3].tolist() == [0, 0, 0, 1]
    assert box_cells([0.0, 0.0, 1.0, 1.0], 1).tolist() == [1]


# The maps


def test_maps_are_probabilities_of_the_coarse_layers_and_nothing_after_them_runs(base: Base) -> None:
    layers = coarse_layers(base)
    found = cross_attentions(base)
    assert [name.split(".")[:2] for name, layer in found.items() if layer in layers] == [
        ["up_blocks", "0"],
        ["up_blocks", "0"],
        ["mid_block", "attentions"],
    ]
    ran: list[str] = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: ran.append(name))
        for name, module in base.unet.named_modules()
    ]
    latents = torch.randn(2, 4, 16, 16, requires_grad=True)
    encodings = base.encode(base.tokenize(["cat in box", "dog"]))
    maps = attention_maps(base, latents, torch.tensor(500), encodings)
    for hook in hooks:
        hook.remove()
    last = "up_blocks.0.attentions.1.transformer_blocks.0"
    assert f"{last}.norm2" in ran and "down_blocks.0" in ran
    assert not [
        name for name in ran if name.startswith(("up_blocks.1", "conv_out", f"{last}.attn2.to_out", f"{last}.ff"))
    ]
    assert [tuple(each.shape) for each in maps] == [(2, 2, 64, 24)] * 3
    assert all(torch.allclose(each.sum(-1), torch.ones(2, 2, 64)) for each in maps)
    assert not any(layer._forward_pre_hooks for layer in layers)
    (gradient,) = torch.autograd.grad(maps[0][0, :, :, 1].sum(), latents)
    assert gradient[0].abs().sum() > 0 and gradient[1].abs().sum() == 0


def test_a_pass_that_fails_leaves_no_hook(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base.unet.conv_in, "forward", MagicMock(side_effect=MemoryError))
    with pytest.raises(MemoryError):
        attention_maps(base, initial_latents(base, [1]), torch.tensor(500), base.encode(base.tokenize(["cat in box"])))
    assert not any(layer._forward_pre_hooks for layer in coarse_layers(base))


def test_maps_are_those_the_unet_attends_by(base: Base) -> None:
    """Applied to the values they give what the layer gives."""
    outputs: list[torch.Tensor] = []
    middle = base.unet.mid_block.attentions[0].transformer_blocks[0].attn2  # which runs first
    hook = middle.register_forward_hook(lambda layer, inputs, output: outputs.append(output))
    latents = initial_latents(base, [1])
    with torch.no_grad():
        encodings = base.encode(base.tokenize(["cat in box"]))
        base.unet(latents, torch.tensor(500), encoder_hidden_states=encodings)
        hook.remove()
        first, *_ = attention_maps(base, latents, torch.tensor(500), encodings)
        values = middle.head_to_batch_dim(middle.to_v(encodings), out_dim=4)  # (1, heads, tokens, d)
        mixed = middle.to_out[0]((first @ values).permute(0, 2, 1, 3).flatten(2))
    assert torch.allclose(mixed, outputs[0], atol=1e-6)


# The words


def test_words_before_the_token_are_the_head_and_those_after_it_the_tail(adapter: Adapter) -> None:
    prompts = [
        "cat <r> box",
        "a red zzyx <R> a big wooden box",
        "cat in box",
        "<r> box",
        "<r>",
    ]
    words = adapter.words(prompts)
    head, tail = ([row.nonzero()[:, 0].tolist() for row in words[:, part]] for part in (0, 1))
    pieces = len(adapter.base.tokenizer("zzyx", add_special_tokens=False).input_ids)
    assert pieces > 1
    token = 3 + pieces
    assert head == [[1], list(range(1, token)), [], [1], []]  # without a head the token is one, if there is a tail
    assert tail == [[3], list(range(token + 1, token + 5)), [], [2], []]
    assert adapter.guidance(always("cat in box", "<r>")) is None
    assert adapter.guidance(always("cat in box", "<r> box")) is not None


def test_a_letter_of_several_bytes_is_part_of_its_word(adapter: Adapter) -> None:
    pieces = len(adapter.base.tokenizer("naïve", add_special_tokens=False).input_ids)
    words = adapter.words(["naïve <r> box"])[0]
    assert words[0].nonzero()[:, 0].tolist() == list(range(1, 1 + pieces)) and words[1].sum() == 1


def test_punctuation_is_no_object(adapter: Adapter) -> None:
    assert torch.equal(adapter.words(["cat <r> box."]), adapter.words(["cat <r> box"]))
    assert adapter.words(["cat, <r>!"]).nonzero().tolist() == [[0, 0, 1]]  # without a tail
    assert not adapter.words(["<r>."]).any()


# The guidance


def always(*prompts: str) -> Callable[[int], list[str]]:
    """Return the prompts as a function of the timestep, on which they do not depend."""
    return lambda timestep: [*prompts]


def losses_of(adapter: Adapter, latents: torch.Tensor, prompts: list[str], timestep: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        encodings = adapter.base.encode(adapter.base.tokenize(prompts))
        maps = attention_maps(adapter.base, latents, timestep, encodings)
        return spatial_loss(maps, adapter.words(prompts), adapter.layout.boxes)


def test_the_loss_goes_down_and_each_image_is_moved_by_itself(adapter: Adapter) -> None:
    base, prompts, timestep = adapter.base, ["cat <r> box", "cat in box", "dog <r> cup"], torch.tensor(900)
    latents = initial_latents(base, [1, 2, 3])
    guidance = adapter.guidance(always(*prompts))
    assert guidance is not None
    with torch.no_grad():
        encodings = base.encode(base.tokenize(prompts))
        moved = guidance(latents, timestep, 0.0, encodings)
        alone = adapter.guidance(always(*prompts[2:]))(latents[2:], timestep, 0.0, encodings[2:])
    before, after = (losses_of(adapter, each, prompts, timestep) for each in (latents, moved))
    assert after[0] < before[0] and after[2] < before[2]
    assert torch.equal(moved[1], latents[1])  # it names no relation
    assert torch.allclose(moved[2], alone[0], atol=1e-5)
    assert not moved.requires_grad
    assert not any(tensor.requires_grad or tensor.grad is not None for tensor in base.unet.parameters())


def test_latents_are_guided_by_one_concept_alone(base: Base) -> None:
    with in_use(base, [concept(base), concept(base).called("<s>")]) as adapters:
        assert guided_by(adapters, ["cat <r> box", "cat in box"]) is not None
        assert guided_by(adapters, ["cat in box"]) is None
        with pytest.raises(UserError, match="Two of the concepts in use guide the latents: use one of them"):
            guided_by(adapters, ["cat <r> box", "dog <s> cup"])


def test_two_objects_in_a_prompt_are_not_both_guided(base: Base) -> None:
    with in_use(base, [concept(base), concept(base).called("<s>")]) as adapters:
        assert all(adapter.words(["<r> beside a <s>"]).any() for adapter in adapters)
        with pytest.raises(UserError, match="Two of the concepts in use guide the latents"):
            guided_by(adapters, ["<r> beside a <s>"])


def test_tokens_beside_a_relations_are_its_head_and_tail_and_guide_nothing_themselves(base: Base) -> None:
    with in_use(base, [concept(base), *(concept(base).called(name) for name in ("<dog>", "<box>"))]) as adapters:
        words = [adapter.words(["<dog> <r> <box>"])[0] for adapter in adapters]
        assert words[0].nonzero().tolist() == [[0, 1], [1, 3]] and not torch.stack(words[1:]).any()
        assert guided_by(adapters, ["<dog> <r> <box>", "cat <r> <box>", "<dog> <r> cup"]) is not None


def test_one_update_is_a_step_down_the_gradient(base: Base) -> None:
    timestep, latents = torch.tensor(700), initial_latents(base, [1])
    with in_use(base, [concept(base, iterations=1)]) as (adapter,), torch.no_grad():
        encodings = base.encode(base.tokenize(["cat <r> box"]))
        words = adapter.words(["cat <r> box"])
        moved = adapter.guidance(always("cat <r> box"))(latents, timestep, 0.0, encodings)
    start = latents.clone().requires_grad_()
    loss = spatial_loss(attention_maps(base, start, timestep, encodings), words, [LEFT, RIGHT])
    (gradient,) = torch.autograd.grad(30 * loss.sum(), start)
    assert torch.allclose(moved, latents - (1 - base.scheduler.alphas_cumprod[700]) * gradient, atol=1e-7)


def test_an_image_is_left_alone_once_its_loss_is_at_the_threshold(
    base: Base, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step decides anew: what lies below stays, while others of the batch go on to `iterations`."""
    prompts, timestep = ["cat <r> box", "dog <r> cup"], torch.tensor(900)
    latents = initial_latents(base, [1, 2])
    low, high = sorted(losses_of(adapter, latents, prompts, timestep).tolist())
    adapter.layout = adapter.layout.model_copy(update={"threshold": (low + high) / 2, "scale": 1e-6})
    runs: list[int] = []
    forward = base.unet.forward
    monkeypatch.setattr(
        base.unet, "forward", lambda x, *rest, **names: (runs.append(len(x)), forward(x, *rest, **names))
    )
    with torch.no_grad():
        guidance = adapter.guidance(always(*prompts))
        moved = guidance(latents, timestep, 0.0, base.encode(base.tokenize(prompts)))
    assert runs == [2, 1, 1, 1, 1]
    assert (moved - latents).flatten(1).abs().sum(1).gt(0).sum() == 1
    adapter.layout = adapter.layout.model_copy(update={"threshold": high})
    with torch.no_grad():
        assert torch.equal(guidance(latents, timestep, 0.0, base.encode(base.tokenize(prompts))), latents)


@pytest.mark.parametrize(("steps", "guided"), [(50, 10), (8, 2), (4, 1)])
def test_the_first_fraction_of_the_steps_is_guided(
    steps: int, guided: int, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def count(base: Base, latents: torch.Tensor, timestep: torch.Tensor, encodings: torch.Tensor) -> list[torch.Tensor]:
        seen.append(int(timestep))
        return [torch.ones(1, 1, 4, encodings.shape[1]) + 0 * latents.sum()]

    monkeypatch.setattr(layout, "attention_maps", count)
    sampler = Sampler(steps=steps, guidance_scale=1.0, scheduler="ddim")
    drawn(base, concept(base, fraction=0.2, iterations=1), ["cat <r> box"], [1], sampler)
    assert seen == build_scheduler(base, sampler).timesteps.tolist()[:guided]


# Drawing


def test_a_threshold_of_one_changes_no_image(base: Base) -> None:
    prompts, used = ["cat <r> box", "dog <r> cup"], concept(base, threshold=1.0)
    plain = replace(used, metadata={})
    guided = drawn(base, concept(base), prompts, [1, 2])
    assert torch.equal(drawn(base, used, prompts, [1, 2]), drawn(base, plain, prompts, [1, 2]))
    assert not torch.equal(guided, drawn(base, plain, prompts, [1, 2]))
    assert torch.equal(guided, drawn(base, concept(base), prompts, [1, 2]))  # deterministic
    assert not torch.is_inference(guided) and not guided.requires_grad


def test_its_gradients_alone_are_computed_as_training_computes_them(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict: list[bool] = []  # for each gradient, whether it was computed inside the block that training is in
    inside = False

    @contextmanager
    def block(device: torch.device) -> Iterator[None]:
        nonlocal inside
        inside = True
        yield
        inside = False

    gradient = torch.autograd.grad
    monkeypatch.setattr(layout, "deterministic", block)
    monkeypatch.setattr(torch.autograd, "grad", lambda *given: strict.append(inside) or gradient(*given))
    drawn(base, concept(base), ["cat <r> box"], [1])
    assert strict and all(strict) and not inside


def test_a_layout_is_added_to_concepts_of_a_token_alone(base: Base) -> None:
    learned = Concept("<r>", torch.zeros(base.dim), {"method": "reversion"})
    words = Concept(None, None, {"method": "relation_words"})
    assert [each["name"] for each in with_draw_options(learned, {"layout": LAYOUT}).adapters] == ["layout"]
    assert with_draw_options(words, {"layout": LAYOUT}) is words


def test_an_image_does_not_depend_on_its_batch(base: Base) -> None:
    before = weights(base)
    together = drawn(base, concept(base), ["cat <r> box", "dog <r> a big cup", "cat in box"], [1, 2, 3])
    alone = drawn(base, concept(base), ["dog <r> a big cup"], [2])
    assert (together[1] - alone[0]).abs().max() < 2 / 255
    assert weights(base) == before


def test_small_gradients_survive_fp16_and_no_digit_changes_in_fp32(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(precision: str, scale: float) -> torch.Tensor:
        monkeypatch.setattr(layout, "GRADIENT_SCALE", scale)
        used = load_base(tiny_settings(tiny_base).model_copy(update={"precision": precision}))
        with in_use(used, [concept(used, iterations=1, threshold=0.0)]) as adapters:
            latents, encodings = initial_latents(used, [3]), used.encode(used.tokenize(["cat <r> box"]))
            guide = guided_by(adapters, ["cat <r> box"])
            assert guide is not None
            return (guide(latents, torch.tensor(981), 0.0, encodings) - latents).float()

    ours = layout.GRADIENT_SCALE
    plain, scaled = moved("fp32", 1.0), moved("fp32", ours)
    assert torch.equal(plain, scaled) and plain.norm() > 0
    rounded, kept = ((moved("fp16", scale) - plain).norm() for scale in (1.0, ours))
    assert kept < 0.8 * rounded


def test_a_compiled_base_is_guided_alike(base: Base, tiny_base: Path) -> None:
    compiled = load_base(tiny_settings(tiny_base))
    compiled.unet.compile(backend="eager")
    prompts = ["cat <r> box", "dog <r> cup"]
    same = [drawn(each, concept(each), prompts, [1, 2]) for each in (base, compiled)]
    assert (same[0] - same[1]).abs().max() < 1e-3


@pytest.mark.parametrize("way", [{"gradient_checkpointing": True}, {"attention": "eager"}, {"precision": "bf16"}])
def test_other_ways_to_run_a_base_are_guided_alike(way: dict[str, Any], base: Base, tiny_base: Path) -> None:
    other = load_base(tiny_settings(tiny_base).model_copy(update=way))
    prompts = ["cat <r> box", "dog <r> cup"]
    same = [drawn(each, concept(each), prompts, [1, 2]) for each in (base, other)]
    assert (same[0] - same[1]).abs().max() < (0.1 if "precision" in way else 1e-3)


# The settings and the method


def test_boxes_outside_the_picture_or_without_area_are_refused() -> None:
    for box, message in (
        ([0.5, 0.2, 0.1, 0.8], r"layout.head' is \[0.5, .* with left < right, top < bottom"),
        ([0.5, 0.2, 0.5, 0.8], r"layout.head' is \[0.5, .* with left < right, top < bottom"),
        ([0.1, 0.2, 0.5, 1.8], r"layout.head.3' is 1.8 in params.yaml: it must be less than or equal to 1"),
        ([0.1, 0.2, 0.5], r"layout.head' is .* in the order left, top, right, bottom"),
    ):
        with pytest.raises(UserError, match=message):
            parse(Layout, LAYOUT | {"head": box}, "layout")


def test_the_anchor_reaches_the_log(base: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    changes = {"anchor_word": "inside", "norm": "free", "denoise_weight": 0.05, "anchor_weight": 0.95}
    task = training(problem(base, exemplar_folder, "compositional", **changes), tmp_path)
    first = (task.method.row.detach() - initial_row(base, "inside")).square().sum().item() / (24 * 32)
    (log,) = train([task])
    (row, *_) = csv.DictReader(io.StringIO(log.losses_csv()))
    assert float(row["anchor"]) == pytest.approx(first, rel=1e-4)
    assert float(row["total"]) == pytest.approx(0.05 * float(row["denoise"]) + 0.95 * first, rel=1e-4)


def test_the_committed_boxes_mirror_each_other() -> None:
    chosen = load_params().method("compositional", compositional.Settings).layout
    assert [round(1 - edge, 6) for edge in chosen.tail] == chosen.head[2:] + chosen.head[:2]


def test_boxes_are_drawn_on_a_picture(base: Base) -> None:
    picture = Image.new("RGB", (64, 64), "white")
    marked = draw_boxes(picture, layout_of(concept(base)))
    assert picture.getpixel((0, 10)) == (255, 255, 255)
    assert marked.getpixel((0, 10)) == (0xC9, 0x50, 0x6B) and marked.getpixel((63, 10)) == (0x2B, 0x7B, 0xB9)
    assert marked.getpixel((10, 10)) == (255, 255, 255)
    with pytest.raises(UserError, match="reversion learned is drawn without boxes"):
        layout_of(Concept("<r>", None, {"method": "reversion"}))
