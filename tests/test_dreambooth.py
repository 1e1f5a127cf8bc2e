"""DreamBooth: low-rank and full, put in place and taken out again; the base's own pictures; clipped gradients."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from relinv.adapters import custom_diffusion
from relinv.adapters.dreambooth import FILES, Adapter, attention_layers, initial_tensors, own_weights
from relinv.diffusion.attention_maps import attention_maps
from relinv.diffusion.bases import Base, load_base
from relinv.diffusion.concept import load_concept
from relinv.diffusion.conditioning import in_use
from relinv.diffusion.randomness import generator
from relinv.errors import UserError
from relinv.exemplars import Exemplar, ExemplarSet
from relinv.learning import prior
from relinv.learning.inversion import invert_relation
from relinv.learning.prior import class_prompts, prior_pictures
from relinv.learning.training import Loop, train
from relinv.methods.dreambooth import Method
from relinv.settings import Sampler
from tests.conftest import tiny_settings
from tests.inverting import problem, training
from tests.tiny import weights
from tests.unets import answer, changed_projections

LORA = {"weights": "lora", "rank": 4}
FULL = {"weights": "full"}


def changed(base: Base, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return tensors that change the UNet's output."""
    source = torch.Generator().manual_seed(3)
    return {
        name: tensor.float() + 0.1 * torch.randn(tensor.shape, generator=source)
        for name, tensor in initial_tensors(base, options).items()
    }


def modules(base: Base) -> list[tuple[str, int]]:
    """Return the names and identities of the UNet's modules and parameters."""
    return [(name, id(each)) for name, each in (*base.unet.named_modules(), *base.unet.named_parameters())]


@pytest.mark.parametrize("options", [LORA, FULL])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_changes_the_unet_and_leaves_not_a_trace(precision: str, options: dict[str, Any], tiny_base: Path) -> None:
    base = load_base(tiny_settings(tiny_base).model_copy(update={"precision": precision}))
    plain, before, keys = answer(base), modules(base), set(vars(base.unet))
    adapter = Adapter(base, "<r>", initial_tensors(base, options), options)
    assert all(tensor.dtype == torch.float32 for tensor in adapter.tensors.values())
    with adapter.applied():
        untouched = answer(base)
        assert untouched.dtype == base.dtype
    exact = precision == "fp32" or options == LORA
    assert torch.equal(untouched, plain) if exact else torch.allclose(untouched, plain, atol=0.05)
    with Adapter(base, "<r>", changed(base, options), options).applied():
        assert not torch.allclose(answer(base), plain, atol=0.05)
    assert torch.equal(answer(base), plain)
    assert modules(base) == before and set(vars(base.unet)) == keys


def test_low_rank_changes_are_of_every_linear_layer_of_the_attentions(base: Base) -> None:
    names = [name for name, module in base.unet.named_modules() if isinstance(module, torch.nn.Linear)]
    attentions = [name for name in names if ".attn1." in name or ".attn2." in name]
    assert attention_layers(base) == attentions and len(attentions) % 8 == 0  # four each of self- and cross-attention
    assert len(initial_tensors(base, LORA)) == 2 * len(attentions)


def test_weights_of_a_file_are_laid_out_in_memory_as_the_bases_own(base: Base) -> None:
    own = own_weights(base)
    packed = {name: weight.detach().contiguous() for name, weight in own.items()}
    adapter = Adapter(base, "<r>", packed, FULL)
    assert {name: tensor.stride() for name, tensor in adapter.tensors.items()} == {
        name: weight.stride() for name, weight in own.items()
    }
    assert packed["conv_in.weight"].stride() != own["conv_in.weight"].stride()


def test_low_rank_changes_are_of_the_rank_that_is_set(base: Base, exemplar_folder: Path) -> None:
    task = problem(base, exemplar_folder, "dreambooth", rank=3)
    learned = Method(base, task.words, task.settings, task.exemplars).weights.tensors
    assert {tensor.shape["lora_B" in name] for name, tensor in learned.items()} == {3}


def test_low_rank_changes_begin_from_noise_of_their_own_that_shrinks_with_the_rank(base: Base) -> None:
    for rank in (4, 16):
        initial = initial_tensors(base, {"weights": "lora", "rank": rank})
        downs = [tensor.flatten() for name, tensor in initial.items() if ".lora_A." in name]
        assert torch.cat(downs).std().item() == pytest.approx(1 / rank, rel=0.05)
        assert len({tuple(down[:8].tolist()) for down in downs}) == len(downs)


def test_adapters_nest(base: Base) -> None:
    before, learned = weights(base), changed(base, LORA)
    with Adapter(base, "<r>", learned, LORA).applied():
        once = answer(base)
        with Adapter(base, "<s>", initial_tensors(base, LORA), LORA).applied():
            assert torch.equal(answer(base), once)
        with Adapter(base, "<s>", learned, LORA).applied():
            assert not torch.allclose(answer(base), once, atol=1e-3)
        with Adapter(base, "<s>", own_weights(base), FULL).applied():
            assert torch.equal(answer(base), once)
        assert torch.equal(answer(base), once)
    assert weights(base) == before


def test_untouched_projections_change_nothing_of_a_unet_whose_weights_are_replaced(base: Base) -> None:
    untouched = custom_diffusion.Adapter(base, "<s>", custom_diffusion.pretrained(base), {})
    with Adapter(base, "<r>", changed(base, FULL), FULL).applied():
        once = answer(base)
        with untouched.applied():
            assert torch.equal(answer(base), once)


@pytest.mark.parametrize("options", [LORA, FULL])
def test_its_finer_weights_are_guided_in_half_precision(options: dict[str, Any], base: Base, tiny_base: Path) -> None:
    maps = []
    for each in (base, load_base(tiny_settings(tiny_base).model_copy(update={"precision": "bf16"}))):
        text = each.encode(each.tokenize(["cat inside box"]))
        with Adapter(each, "<r>", changed(each, options), options).applied():
            maps.append(attention_maps(each, torch.ones(1, 4, 16, 16), torch.tensor(500), text))
    bare = attention_maps(base, torch.ones(1, 4, 16, 16), torch.tensor(500), text.float())
    for fine, rough, other in zip(*maps, bare, strict=True):  # nearer to each other than to the base's own
        assert (fine - rough).abs().max() < 0.2 * (fine - other).abs().max()


def learn(base: Base, exemplars: Path, folder: Path, **changes: Any) -> Path:
    """Return the folder of a concept learned in a few steps."""
    invert_relation(problem(base, exemplars, "dreambooth", **changes), folder / "concept", folder / "scratch")
    return folder / "concept"


def test_diffusers_loads_the_file_to_the_same_output(
    base: Base, tiny_base: Path, exemplar_folder: Path, tmp_path: Path
) -> None:
    folder = learn(base, exemplar_folder, tmp_path, weights_learning_rate=0.03)
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base)
    pipeline.load_lora_weights(folder, weight_name=FILES["lora"])
    theirs = answer(base, pipeline.unet)
    with in_use(base, [load_concept(folder, base)]):
        ours = answer(base)
    assert torch.allclose(ours, theirs, atol=1e-5) and not torch.allclose(ours, answer(base), atol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_in_full_every_weight_learns_and_stands_in_the_file(
    precision: str, tiny_base: Path, exemplar_folder: Path, tmp_path: Path
) -> None:
    base = load_base(tiny_settings(tiny_base).model_copy(update={"precision": precision}))
    plain = answer(base)
    folder = learn(base, exemplar_folder, tmp_path, weights="full", steps=2)
    learned = load_file(folder / "diffusion_pytorch_model.safetensors")
    own = base.unet.state_dict()
    assert set(learned) == set(own) and all(tensor.dtype == torch.float32 for tensor in learned.values())
    assert not any(torch.equal(tensor, own[name].float()) for name, tensor in learned.items())
    assert torch.equal(answer(base), plain)
    with in_use(base, [load_concept(folder, base)]):
        assert not torch.equal(answer(base), plain)


def test_a_row_that_does_not_learn_stays_the_words(base: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    folder = learn(base, exemplar_folder, tmp_path, train_token=False, norm="vocabulary")
    index = base.tokenizer.convert_tokens_to_ids("with</w>")
    assert torch.equal(load_concept(folder, base).embedding, base.table[index])


def test_relations_are_not_trained_together(base: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    for name in ("dreambooth", "custom_diffusion"):
        task = training(problem(base, exemplar_folder, name), tmp_path)
        with pytest.raises(UserError, match=r"changes the UNet, so its relations cannot share one pass: train each al"):
            train([task, task])


def test_gradients_over_all_groups_are_clipped(base: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    task = problem(base, exemplar_folder, "dreambooth", max_grad_norm=0.5, prior_images=0)
    loop = Loop(training(task, tmp_path))
    for group in loop.optimizer.param_groups:
        for tensor in group["params"]:
            tensor.grad = torch.ones_like(tensor)
    loop.update(0)
    gradients = [tensor.grad for group in loop.optimizer.param_groups for tensor in group["params"]]
    assert torch.cat([gradient.flatten() for gradient in gradients]).norm().item() == pytest.approx(0.5, rel=1e-4)


def test_each_loss_is_of_its_own_pictures(base: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    changes = {"prior_images": 1, "prior_weight": 0.25, "denoise_weight": 2.0}
    loop = Loop(training(problem(base, exemplar_folder, "dreambooth", **changes), tmp_path))
    with loop.method.attached(), torch.no_grad():
        batch = loop.batch(0)
        prediction = base.unet(batch.noisy, batch.timesteps, encoder_hidden_states=batch.conditioning).sample
        loop.log.add(loop.terms(0, batch, prediction))
    noise = torch.randn(4, 4, 16, 16, generator=generator(0, "noise", 0))
    errors = (prediction - noise).square().mean((1, 2, 3))  # (batch,)
    own = torch.tensor(["<r>" in prompt for prompt in batch.prompts])  # the base's own picture has plain words
    instance, prior = errors[own].mean().item(), errors[~own].mean().item()
    assert own.sum() == 2 and instance != pytest.approx(prior, rel=1e-3)
    assert loop.log.names == ["denoise", "prior", "total"]
    assert loop.log.losses[0].tolist() == pytest.approx([instance, prior, 2 * instance + 0.25 * prior], rel=1e-5)


def test_class_prompts_go_round_the_exemplars() -> None:
    exemplars = [
        Exemplar(Path("0.png"), ("cat {} box", "a cat {} a box")),
        Exemplar(Path("1.png"), ("dog {} cup", "cat {} box")),
    ]
    prompts = class_prompts(ExemplarSet("inside", tuple(exemplars), ""), "inside", 5)
    assert prompts == ["cat inside box", "dog inside cup", "a cat inside a box", "cat inside box", "dog inside cup"]


def test_the_bases_own_pictures_are_those_it_draws_for_plain_words(
    base: Base, exemplar_folder: Path, tmp_path: Path
) -> None:
    task = problem(base, exemplar_folder, "dreambooth", prior_images=3)
    shown = Method(base, task.words, task.settings, task.exemplars).training_pictures(tmp_path / "one")[4:]
    prompts = [template for picture in shown for template in picture.templates]
    assert prompts == ["cat inside box", "dog inside basket", "rabbit inside bowl"]
    steps, guidance_scale = task.settings.prior_steps, task.settings.prior_guidance_scale
    sampler = Sampler(steps=steps, guidance_scale=guidance_scale, scheduler="dpmpp")
    alone = prior_pictures(base, prompts, sampler, tmp_path / "other")
    assert [picture.image.tobytes() for picture in alone] == [picture.image.tobytes() for picture in shown]
    assert len({picture.image.tobytes() for picture in shown}) == 3 and all(picture.prior for picture in shown)


def test_the_bases_own_pictures_are_drawn_as_images_are(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(prior, "deterministic", lambda device, backward: nullcontext(asked.append(backward)))
    prior_pictures(base, ["cat in box"], Sampler(steps=1, guidance_scale=5.0, scheduler="ddim"), tmp_path)
    assert asked == [False]  # whatever the training around them says, which their cache does not know


def test_the_bases_own_pictures_show_their_prompts(base: Base, tmp_path: Path) -> None:
    """From the same noise, another prompt is another picture."""
    sampler = Sampler(steps=1, guidance_scale=5.0, scheduler="ddim")
    (one,), (other,) = (prior_pictures(base, [prompt], sampler, tmp_path) for prompt in ("cat in box", "a stone wall"))
    assert one.image.tobytes() != other.image.tobytes()


@pytest.mark.parametrize("at_once", [1, 2])
def test_the_bases_own_pictures_of_one_prompt_differ_within_a_batch_and_from_batch_to_batch(
    at_once: int, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "settings", base.settings.model_copy(update={"samples_per_pass": at_once}))
    sampler = Sampler(steps=1, guidance_scale=5.0, scheduler="ddim")
    first, second = prior_pictures(base, ["cat in box"] * 2, sampler, tmp_path)
    assert first.image.tobytes() != second.image.tobytes()


@pytest.mark.parametrize("name", ["devices.py", "diffusion/sampling.py", "learning/prior.py"])
def test_the_bases_own_pictures_are_drawn_anew_by_other_code(
    name: str, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Path(shutil.copytree(Path(prior.__file__).parents[1], tmp_path / "relinv"))
    monkeypatch.setattr(prior, "__file__", str(package / "learning/prior.py"))
    draw = MagicMock(return_value=[Image.new("RGB", (8, 8))])
    monkeypatch.setattr(prior, "_draw", draw)
    sampler = Sampler(steps=1, guidance_scale=2.0, scheduler="ddim")
    for _ in range(2):
        prior_pictures(base, ["cat in box"], sampler, tmp_path / "scratch")
        assert draw.call_count == 1
    with (package / name).open("a") as file:
        file.write("# another line")
    prior_pictures(base, ["cat in box"], sampler, tmp_path / "scratch")
    assert draw.call_count == 2


def test_the_bases_own_pictures_are_kept_by_batches(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[str]] = []
    draw = prior._draw
    monkeypatch.setattr(base, "settings", base.settings.model_copy(update={"samples_per_pass": 2}))
    monkeypatch.setattr(
        prior, "_draw", lambda base, prompts, *rest: drawn.append(prompts) or draw(base, prompts, *rest)
    )

    def pictures(**changes: Any) -> list[bytes]:
        drawn.clear()
        prompts = ["cat in box", "dog on wood", "a stone"]
        sampler = Sampler(steps=1, guidance_scale=2.0, scheduler="ddim")
        arguments = {"base": base, "prompts": prompts, "sampler": sampler}
        shown = prior_pictures(**arguments | {"scratch": tmp_path} | changes)
        return [picture.image.tobytes() for picture in shown]

    first = pictures()
    assert drawn == [["cat in box", "dog on wood"], ["a stone"]]
    assert pictures() == first and drawn == []
    ((damaged,),) = [list(folder.glob("0001.png")) for folder in tmp_path.iterdir()]
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert pictures() == first and drawn == [["cat in box", "dog on wood"]]

    rounded = Base(base.settings.model_copy(update={"precision": "bf16"}), base._folder, base.fingerprint)
    alone = Base(base.settings.model_copy(update={"samples_per_pass": 1}), base._folder, base.fingerprint)
    another = Base(base.settings, base._folder, "another")
    for change in (
        {"sampler": Sampler(steps=2, guidance_scale=2.0, scheduler="ddim")},
        {"sampler": Sampler(steps=1, guidance_scale=3.0, scheduler="ddim")},
        {"prompts": ["cat in box", "dog on wood", "a stone wall"]},
        {"base": alone},
        {"base": rounded},
        {"base": another},
    ):
        pictures(**change)
        assert sum(map(len, drawn)) == 3
        pictures(**change)
        assert drawn == []
    monkeypatch.setattr(prior, "code_hash", lambda root, parts: "of other code")
    assert pictures() == first and sum(map(len, drawn)) == 3
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "another's")
    assert pictures() == first and sum(map(len, drawn)) == 3


@pytest.mark.parametrize("name", ["dreambooth", "custom_diffusion"])
def test_on_a_bf16_base_weights_learn_in_fp32(
    name: str, tiny_base: Path, exemplar_folder: Path, tmp_path: Path
) -> None:
    base = load_base(tiny_settings(tiny_base).model_copy(update={"precision": "bf16"}))
    task = training(problem(base, exemplar_folder, name, steps=2), tmp_path)
    before = {key: tensor.detach().clone() for key, tensor in task.method.weights.tensors.items()}
    (log,) = train([task])
    assert torch.stack(log.losses).isfinite().all()
    for key, tensor in task.method.weights.tensors.items():
        assert tensor.dtype == torch.float32 and not torch.equal(tensor, before[key])


def test_a_compiled_base_sees_an_adapter_come_and_go(tiny_base: Path) -> None:
    base = load_base(tiny_settings(tiny_base).model_copy(update={"compile": True}))
    base.unet.compile(backend="eager")  # traced and guarded as ever, no machine code
    plain = answer(base)
    with custom_diffusion.Adapter(base, "<r>", changed_projections(base), {}).applied():
        assert not torch.allclose(answer(base), plain, atol=1e-3)
    assert torch.allclose(answer(base), plain, atol=1e-5)
