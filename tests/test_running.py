"""How a base may be run: in bf16, with other attention, in passes, with activations computed twice, compiled."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from diffusers.models.upsampling import Upsample2D
from functorch.compile import make_boxed_func, nop
from PIL import Image
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table

from benchmarks.training import peak_bytes
from relinv.benchmark import load_benchmark
from relinv.diffusion.bases import Base, load_base
from relinv.diffusion.concept import load_concept
from relinv.diffusion.conditioning import Drawer
from relinv.generation import generate
from relinv.generation import plan as plan_images
from relinv.learning.inversion import invert_relation, invert_together
from relinv.learning.losses import denoising
from relinv.learning.passes import accumulate_gradients
from relinv.learning.training import Loop, take_step
from relinv.settings import GenerateSettings, Sampler
from tests.conftest import tiny_settings
from tests.inverting import FORMS, LEARNING, problem, training


def run(tiny_base: Path, **changes: Any) -> Base:
    """Return the tiny base, run another way."""
    return load_base(tiny_settings(tiny_base).model_copy(update=changes))


def learned(
    base: Base, exemplar_folder: Path, tmp_path: Path, method: str = "reversion", **changes: Any
) -> torch.Tensor:
    """Return the row that a short inversion learns."""
    invert_relation(problem(base, exemplar_folder, method, **changes), tmp_path / "concept", tmp_path / "scratch")
    row = load_concept(tmp_path / "concept", base).embedding
    assert row is not None
    return row


def drawn(base: Base) -> torch.Tensor:
    """Return two pictures of nothing in particular."""
    prompts = ["cat inside box"] * 2
    return Drawer(base, [], prompts, Sampler(steps=3, guidance_scale=4.0, scheduler="ddim")).draw(prompts, [1, 2])


def test_attention_computed_otherwise_draws_the_same(tiny_base: Path, base: Base) -> None:
    other = run(tiny_base, attention="eager")
    assert other.text_encoder.config._attn_implementation == "eager" != base.text_encoder.config._attn_implementation
    assert {type(each).__name__ for each in other.unet.attn_processors.values()} == {"AttnProcessor"}
    assert torch.allclose(drawn(other), drawn(base), atol=1e-4)


def samples_of_passes(unet: torch.nn.Module) -> list[int]:
    """Return the list to which every later pass with gradients (so no preview's) adds how many samples it took."""
    seen: list[int] = []
    unet.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])) if torch.is_grad_enabled() else None)
    return seen


@pytest.mark.parametrize("size", [1, 3])
def test_several_passes_teach_the_same(
    size: int, tiny_base: Path, base: Base, exemplar_folder: Path, tmp_path: Path
) -> None:
    whole = learned(base, exemplar_folder, tmp_path / "whole", batch_size=4)
    parted = run(tiny_base, samples_per_pass=size)
    passes = samples_of_passes(parted.unet)
    row = learned(parted, exemplar_folder, tmp_path / "parted", batch_size=4)
    assert passes == {1: [1] * 4, 3: [3, 1]}[size] * 6  # in each of six steps, none a second time
    assert torch.allclose(row, whole, atol=1e-4)
    assert not torch.allclose(row, learned(base, exemplar_folder, tmp_path / "other", batch_size=3), atol=1e-3)


def test_relations_in_one_batch_and_several_passes_learn_as_alone(
    tiny_base: Path, exemplar_folder: Path, tmp_path: Path
) -> None:
    base, other = run(tiny_base, samples_per_pass=3), Path(shutil.copytree(exemplar_folder, tmp_path / "on"))
    tasks = [problem(base, folder, "reversion", seed) for seed, folder in enumerate([exemplar_folder, other])]
    for task in tasks:
        invert_relation(task, tmp_path / "alone" / task.exemplars.relation, tmp_path / "scratch")
    passes = samples_of_passes(base.unet)
    invert_together(tasks, tmp_path / "scratch")
    assert passes == [3, 1] * 6  # two samples of each relation
    for task in tasks:
        name = task.exemplars.relation
        invert_relation(task, tmp_path / "together" / name, tmp_path / "scratch")  # takes no step of its own
        rows = [load_concept(tmp_path / way / name, base).embedding for way in ("alone", "together")]
        torch.testing.assert_close(*rows, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [*LEARNING, *FORMS])
def test_gradients_of_several_passes_are_those_of_one(
    name: str, tiny_base: Path, base: Base, exemplar_folder: Path, tmp_path: Path
) -> None:
    def first_step(each: Base) -> tuple[list[torch.Tensor], torch.Tensor]:
        task = problem(each, exemplar_folder, name, batch_size=4, anchor_weight=0.25)
        loop = Loop(training(task, tmp_path))
        with loop.method.attached():
            take_step([loop], 0)
        gradients = [tensor.grad for group in loop.optimizer.param_groups for tensor in group["params"]]
        assert gradients[0].any()
        return gradients, loop.log.losses[0]

    one, terms = first_step(base)
    several, the_same_terms = first_step(run(tiny_base, samples_per_pass=3))
    assert torch.allclose(the_same_terms, terms, rtol=1e-5)
    for gradient, expected in zip(several, one, strict=True):
        assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_a_pass_of_its_own_needs_less_memory(tiny_base: Path, base: Base) -> None:
    noisy, timesteps, target = torch.randn(8, 4, 16, 16), torch.arange(8), torch.randn(8, 4, 16, 16)
    conditioning = torch.randn(8, base.tokenizer.model_max_length, base.dim, requires_grad=True)
    peaks, gradients = [], []
    for each in (base, run(tiny_base, samples_per_pass=1)):

        def step(each: Base = each) -> None:
            inputs = (noisy, timesteps, conditioning, target)
            accumulate_gradients(each, *inputs, loss=lambda answer: (denoising(answer, target), None))

        peaks.append(peak_bytes(each, step))
        gradients.append(conditioning.grad)
        conditioning.grad = None
    assert peaks[1] < peaks[0] / 3
    assert torch.allclose(*gradients, atol=1e-7)


def test_activations_computed_twice_teach_the_same(
    tiny_base: Path, base: Base, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = learned(base, exemplar_folder, tmp_path / "kept")
    calls: list[int] = []
    checkpoint = torch.utils.checkpoint.checkpoint
    counted = lambda *args, **kw: (calls.append(1), checkpoint(*args, **kw))[1]  # noqa: E731
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", counted)
    assert torch.equal(learned(run(tiny_base, gradient_checkpointing=True), exemplar_folder, tmp_path / "twice"), kept)
    assert calls


def test_the_text_encoder_computes_its_activations_twice_as_well(
    tiny_base: Path, base: Base, exemplar_folder: Path, tmp_path: Path
) -> None:
    def computed(each: Base, folder: Path) -> int:
        calls: list[int] = []
        layer = next(module for name, module in each.text_encoder.named_modules() if name.endswith("fc1"))
        hook = layer.register_forward_hook(lambda *_: calls.append(1) if torch.is_grad_enabled() else None)
        learned(each, exemplar_folder, folder)
        hook.remove()
        return len(calls)

    once = computed(base, tmp_path / "once")
    assert computed(run(tiny_base, gradient_checkpointing=True), tmp_path / "twice") == 2 * once > 0


def test_compiled_once_for_its_steps_and_not_for_previews_or_the_fixed_loss(
    tiny_base: Path, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[torch.fx.GraphModule] = []  # a part of the UNet that cannot be compiled would split one in two

    def keep(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    base = run(tiny_base, compile=True)
    base.unet.compile(backend=keep)
    drawn, measured = (MagicMock(side_effect=getattr(Loop, name)) for name in ("_preview", "_fixed_loss"))
    monkeypatch.setattr(Loop, "_preview", lambda *arguments: drawn(*arguments))
    monkeypatch.setattr(Loop, "_fixed_loss", lambda *arguments: measured(*arguments))
    learned(base, exemplar_folder, tmp_path, steps=8, stop_window=10)
    assert drawn.called and measured.called and len(graphs) == 1


@pytest.mark.parametrize("size", [None, (7, 7)])
def test_a_compiled_unet_upsamples_as_any_and_to_twice_the_side_without_adding_at_indices(
    size: tuple[int, int] | None, tiny_base: Path, base: Base
) -> None:
    backward: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        backward.append(graph)
        return make_boxed_func(graph.forward)

    plain, ours = (
        next(layer for layer in each.unet.modules() if isinstance(layer, Upsample2D))
        for each in (base, run(tiny_base, compile=True))
    )
    backend = aot_autograd(fw_compiler=nop, bw_compiler=keep, decompositions=select_decomp_table())
    ours.compile(backend=backend)
    hidden = torch.randn(2, plain.channels, 4, 4).contiguous(memory_format=torch.channels_last)
    one, other = (hidden.clone().requires_grad_() for _ in range(2))
    expected, got = plain(one, size), ours(other, size)
    assert torch.equal(expected, got)
    change = torch.randn_like(expected)
    expected.backward(change)
    got.backward(change)
    assert one.grad is not None and other.grad is not None
    assert torch.allclose(one.grad, other.grad, atol=1e-5)
    adds = [node for node in backward[0].graph.nodes if "index_put" in str(node.target)]
    assert bool(adds) == (size is not None)


def test_compiled_only_where_it_is_asked_for(tiny_base: Path, base: Base) -> None:
    assert run(tiny_base, compile=True).unet._compiled_call_impl is not None
    assert base.unet._compiled_call_impl is None


@pytest.mark.parametrize(
    "other",
    [
        {"attention": "eager"},
        {"gradient_checkpointing": True},
        {"samples_per_pass": 1},
        {"precision": "bf16"},
        {"deterministic": False},
        {"preview": Sampler(steps=3, guidance_scale=5.0, scheduler="ddim")},
    ],
)
def test_a_run_is_never_finished_in_another_way(
    other: dict[str, Any], tiny_base: Path, base: Base, exemplar_folder: Path
) -> None:
    from relinv.learning.inversion import identity

    task = problem(base, exemplar_folder, "reversion")
    assert identity(task) != identity(problem(run(tiny_base, **other), exemplar_folder, "reversion"))


def test_a_run_is_never_finished_as_another(
    base: Base, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from relinv.learning import inversion

    task = problem(base, exemplar_folder, "reversion")
    folder = Path(shutil.copytree(exemplar_folder, tmp_path / exemplar_folder.name))
    Image.new("RGB", (64, 64)).save(folder / "0.png")
    others = {
        "another rate": problem(base, exemplar_folder, "reversion", learning_rate=0.04),
        "another method": problem(base, exemplar_folder, "textual_inversion"),
        "another seed": problem(base, exemplar_folder, "reversion", seed=1),
        "another picture": problem(base, folder, "reversion"),
        "other words": replace(task, words="in"),
        "another preview": replace(task, preview=task.preview.model_copy(update={"count": 1})),
        "another base": replace(task, base=Base(base.settings, base._folder, "of other weights")),
    }
    known = inversion.identity(task)
    assert inversion.identity(problem(base, exemplar_folder, "reversion")) == known
    assert [name for name, other in others.items() if inversion.identity(other) == known] == []
    monkeypatch.setattr(torch, "__version__", f"{torch.__version__.partition('+')[0]}+another.build")
    another_build = inversion.identity(replace(task, base=Base(base.settings, base._folder, base.fingerprint)))
    monkeypatch.undo()
    monkeypatch.setattr(inversion, "code_hash", lambda root, parts: "another")
    assert known not in (another_build, inversion.identity(task))


@pytest.mark.parametrize("kept", [True, False])
def test_gradients_are_deterministic_unless_the_base_says_otherwise(
    kept: bool, tiny_base: Path, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    for name, fixed in (("deterministic", True), ("fp32_as_such", False)):
        block = partial(lambda fixed, device, **_: nullcontext(asked.append(fixed)), fixed)
        monkeypatch.setattr(f"relinv.learning.training.{name}", block)
    learned(run(tiny_base, deterministic=kept), exemplar_folder, tmp_path)
    assert asked == [kept]


def test_only_an_edit_of_its_own_method_ends_a_run(
    base: Base, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from relinv.learning import inversion

    package = Path(inversion.__file__).parents[1]
    copied = Path(shutil.copytree(package, tmp_path / "relinv", ignore=shutil.ignore_patterns("__pycache__")))
    monkeypatch.setattr(inversion, "__file__", str(copied / "learning/inversion.py"))
    task = problem(base, exemplar_folder, "reversion")
    known = inversion.identity(task)
    with (copied / "methods/multires.py").open("a") as other:
        other.write("# edited")
    assert inversion.identity(task) == known
    with (copied / "methods/reversion.py").open("a") as own:
        own.write("# edited")
    assert inversion.identity(task) != known


def test_in_bf16_the_row_and_its_loss_stay_fp32(
    tiny_base: Path, base: Base, exemplar_folder: Path, tmp_path: Path
) -> None:
    half = run(tiny_base, precision="bf16")
    start = learned(half, exemplar_folder, tmp_path / "start", steps=1, learning_rate=1e-9)
    rough = learned(half, exemplar_folder, tmp_path / "half", steps=20)
    exact = learned(base, exemplar_folder, tmp_path / "full", steps=20)
    assert {parameter.dtype for parameter in half.unet.parameters()} == {torch.bfloat16}
    assert rough.dtype == torch.float32
    assert rough.norm().item() == pytest.approx(half.table.float().norm(dim=-1).mean().item(), rel=1e-5)
    assert not torch.equal(rough, rough.bfloat16().float())  # finer than bf16 could hold
    assert torch.nn.functional.cosine_similarity(rough - start, exact - start, dim=0) > 0.9  # learned the same way


def test_in_bf16_pictures_are_drawn(tiny_base: Path, exemplar_folder: Path, tmp_path: Path) -> None:
    half = run(tiny_base, precision="bf16")
    learned(half, exemplar_folder, tmp_path)
    settings = GenerateSettings(pairs="all", seed=0, steps=2, guidance_scale=4.0, scheduler="dpmpp", batch_size=2)
    scenarios = load_benchmark("data/benchmark/miniature.yaml").scenarios("inside")[:2]
    concept = load_concept(tmp_path / "concept", half)
    ((_, pictures),) = generate(half, concept, plan_images(half, concept, scenarios, settings), settings)
    assert [picture.size for picture in pictures] == [(64, 64)] * 2
