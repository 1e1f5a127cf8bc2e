"""The training loop's batches: each step a function of seed and step, each picture visited equally often."""

from __future__ import annotations

import dataclasses
import errno
import re
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from relinv.diffusion.bases import Base
from relinv.diffusion.concept import EMBEDDING, load_concept
from relinv.diffusion.conditioning import Drawer
from relinv.diffusion.randomness import generator
from relinv.errors import UserError
from relinv.exemplars import load_image, read_exemplars
from relinv.learning import training
from relinv.learning.batches import visits
from relinv.learning.checkpoints import Checkpoints, load_state, save_state
from relinv.learning.exemplar_latents import encode_pictures
from relinv.learning.inversion import identity, invert_relation, invert_together
from relinv.learning.losses import LossTerm, weighted_sum
from relinv.learning.method import LossInputs
from relinv.learning.problem import Task
from relinv.learning.training import Loop, optimizer_of
from relinv.learning.training_log import TrainingLog
from relinv.plugins import find_plugin
from relinv.settings import Sampler
from tests.exploits import Exploit
from tests.inverting import LEARNING, build, looping, problem, stopping
from tests.tiny import velocity_base, weights


def test_numbers_are_a_function_of_seed_purpose_and_step() -> None:
    def first(*arguments: object) -> float:
        return torch.rand(1, generator=generator(*arguments)).item()  # type: ignore[arg-type]

    assert first(0, "noise", 3) == first(0, "noise", 3)
    assert len({first(0, "noise", 3), first(1, "noise", 3), first(0, "data", 3), first(0, "noise", 4)}) == 4


def test_each_pass_visits_each_picture_once() -> None:
    shown = [picture for step in range(10) for picture in visits(4, 2, step, seed=0)]
    passes = [shown[start : start + 4] for start in range(0, 20, 4)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in passes)
    assert len({tuple(order) for order in passes}) > 1  # shuffled anew


def test_batches_larger_than_the_set_are_balanced_too() -> None:
    assert Counter(visits(4, 8, step=5, seed=1)) == {0: 2, 1: 2, 2: 2, 3: 2}


def test_latents_are_those_of_the_autoencoder(base: Base, exemplar_folder: Path) -> None:
    pictures = [load_image(found.path, base.resolution) for found in read_exemplars(exemplar_folder).exemplars]
    latents = encode_pictures(base, pictures)
    assert latents.mean.shape == latents.deviation.shape == (4, 4, 16, 16)
    levels = torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures])  # (4, side, side, 3)
    with torch.inference_mode():
        moments = base.vae.encode(levels.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist
    torch.testing.assert_close(latents.mean, 0.4 * moments.mean, atol=1e-5, rtol=1e-4)  # the base's scaling factor
    torch.testing.assert_close(latents.deviation, 0.4 * moments.std, atol=1e-5, rtol=1e-4)
    drawn = torch.cat([latents.sample([2, 0], generator(0, "latents", step)) for step in range(400)])
    assert torch.allclose(drawn[::2].mean(0), latents.mean[2], atol=5 * latents.deviation.max().item() / 20)
    assert torch.allclose(drawn[1::2].std(0), latents.deviation[0], rtol=0.25)


def test_a_velocity_is_learned_where_the_base_answers_one(
    tiny_base: Path, base: Base, exemplar_folder: Path, tmp_path: Path
) -> None:
    """Salimans & Ho 2022: alpha * noise - sigma * clean, where the base is shown alpha * clean + sigma * noise."""
    targets = []
    for each in (base, velocity_base(tiny_base, tmp_path / "base")):
        loop = looping(problem(each, exemplar_folder, "textual_inversion", 7, batch_size=8), tmp_path / "scratch")
        shown = loop.batch(3)
        clean = loop.batches.latents.sample(visits(4, 8, step=3, seed=7), generator(7, "latents", 3))
        noise = torch.randn(clean.shape, generator=generator(7, "noise", 3))
        kept = each.scheduler.alphas_cumprod[shown.timesteps, None, None, None]
        alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
        torch.testing.assert_close(shown.noisy, alpha * clean + sigma * noise)
        targets.append((shown.target, noise, alpha * noise - sigma * clean))
    torch.testing.assert_close(targets[0][0], targets[0][1])
    torch.testing.assert_close(targets[1][0], targets[1][2])


def test_each_step_draws_anew_for_the_methods_terms(base: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    """At each step with the same pictures the prepositions alone differ, and with them the steering loss."""
    loop, reseeded = (
        looping(problem(base, exemplar_folder, "reversion", seed), tmp_path / "scratch") for seed in (0, 1)
    )
    batch = loop.batch(0)
    first, again, other = (loop.terms(step, batch, batch.target)["steer"].value.item() for step in (3, 3, 4))
    assert first == again != other
    assert reseeded.terms(3, batch, batch.target)["steer"].value.item() != first


def test_two_updates_are_adamws_by_hand(base: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    """Loshchilov & Hutter 2019, algorithm 2, with betas of 0.9 and 0.999: the decay is by the rate alone."""
    changes = {"norm": "free", "learning_rate": 0.1, "weight_decay": 0.5}
    loop = looping(problem(base, exemplar_folder, "textual_inversion", **changes), tmp_path / "scratch")
    (row,) = loop.method.state().values()
    start = row.detach().clone()
    first, second = torch.linspace(-1, 1, base.dim)[None], torch.linspace(3, 1, base.dim)[None]
    for step, gradient in enumerate((first, second)):
        row.grad = gradient
        loop.update(step)
    once = 0.95 * start - 0.1 * first.sign()
    mean, square = (0.09 * first + 0.1 * second) / 0.19, (0.999 * first**2 + second**2) / 1.999
    torch.testing.assert_close(row.detach(), 0.95 * once - 0.1 * mean / square.sqrt())


def test_on_cuda_adamw_is_one_kernel_and_resumes_from_a_checkpoint(tmp_path: Path) -> None:
    """PyTorch has that kernel for CPUs too, where this runs it."""

    def optimizer(row: torch.nn.Parameter) -> torch.optim.Optimizer:
        base = SimpleNamespace(device=torch.device("cuda:0"))
        return optimizer_of(SimpleNamespace(groups=lambda: [{"params": [row], "lr": 0.1}], base=base))

    def step(row: torch.nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        row.grad = row.detach().cos()
        optimizer.step()

    row = torch.nn.Parameter(torch.linspace(-1, 1, 9))
    straight = optimizer(row)
    assert straight.param_groups[0]["fused"] is True
    step(row, straight)
    save_state(tmp_path / "state.pt", {"row": row.detach(), "optimizer": straight.state_dict()})
    saved = load_state(tmp_path / "state.pt")
    again = torch.nn.Parameter(saved["row"])
    resumed = optimizer(again)
    resumed.load_state_dict(saved["optimizer"])
    for each in ((row, straight), (again, resumed)):
        step(*each)
    assert torch.equal(row, again) and resumed.param_groups[0]["fused"] is True


def test_a_learned_row_lies_on_the_sphere_of_the_vocabulary(base: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    task = problem(base, exemplar_folder, "textual_inversion", norm="vocabulary", steps=2)
    invert_relation(task, tmp_path / "concept", tmp_path / "scratch")
    row = load_concept(tmp_path / "concept", base).embedding
    assert row.norm().item() == pytest.approx(base.table.norm(dim=-1).mean().item(), rel=1e-6)


def test_checkpoints_of_another_identity_are_not_taken_up(tmp_path: Path) -> None:
    Checkpoints(tmp_path, "run", {"seed": 0}).save({"done": 3})
    assert Checkpoints(tmp_path, "run", {"seed": 0}).load() == {"done": 3}
    assert Checkpoints(tmp_path, "run", {"seed": 1}).load() is None


def test_a_training_begun_on_another_processor_is_not_gone_on_with(
    base: Base, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = problem(base, exemplar_folder, "reversion")
    invert_together([task], tmp_path)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "another's")
    monkeypatch.setattr(training, "take_step", stopping(training.take_step, after=0))
    with pytest.raises(KeyboardInterrupt):  # where it would have taken a step
        invert_relation(task, tmp_path / "concept", tmp_path)
    monkeypatch.undo()
    invert_relation(task, tmp_path / "concept", tmp_path)


def test_saves_that_take_long_are_far_between_unless_each_step_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = begun = 1000.0

    def save_in_ten_seconds(path: Path, state: object) -> None:
        nonlocal now
        now += 10

    monkeypatch.setattr("relinv.learning.checkpoints.time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr("relinv.learning.checkpoints.save_state", save_in_ten_seconds)
    checkpoints = Checkpoints(tmp_path, "inside", {}, interval=5.0)
    assert not checkpoints.is_due()  # setup may have taken minutes
    now = begun + 5.0
    assert checkpoints.is_due()
    checkpoints.save({})
    now = begun + 15 + 199.0
    assert not checkpoints.is_due()  # a save may take a twentieth of the time
    now = begun + 15 + 200.0
    assert checkpoints.is_due()
    at_each_step = Checkpoints(tmp_path, "inside", {}, interval=0.0)
    assert at_each_step.is_due()
    at_each_step.save({})
    assert at_each_step.is_due()


def test_a_damaged_checkpoint_is_no_checkpoint_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = Checkpoints(tmp_path, "run", {})
    assert checkpoints.load() is None and not capsys.readouterr().err
    checkpoints.save({"done": 3, "row": torch.ones(3)})
    whole = (checkpoints.folder / "state.pt").read_bytes()
    row = whole.index(torch.ones(3).numpy().tobytes())
    flipped = whole[:row] + bytes([whole[row] ^ 1]) + whole[row + 1 :]
    method = whole.index(b"PK\1\2") + 10  # how the first file is compressed: not at all, until this bit is flipped
    deflated = whole[:method] + bytes([whole[method] ^ 8]) + whole[method + 1 :]
    for damage in (b"", b"damaged", whole[:-40], flipped, deflated):
        (checkpoints.folder / "state.pt").write_bytes(damage)
        assert checkpoints.load() is None
        told = f"'{checkpoints.folder / 'state.pt'}' cannot be read: the training starts again.\n"
        assert capsys.readouterr() == ("", told)


def test_a_checkpoint_runs_no_code_where_it_is_taken_up(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "run", {})
    checkpoints.save({"done": Exploit(tmp_path / "ran")})
    assert checkpoints.load() is None and not (tmp_path / "ran").exists()


def test_a_training_whose_preview_is_gone_starts_again_and_tells_it(
    base: Base, exemplar_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = problem(base, exemplar_folder, "reversion")
    invert_together([task], tmp_path)
    begun = Task(task, build(task), Checkpoints(tmp_path, "invert-inside-reversion", identity(task)))
    assert Loop(begun).done == 6
    (preview,) = tmp_path.glob("*/step_0003.png")
    preview.unlink()
    capsys.readouterr()
    assert Loop(begun).done == 0
    assert capsys.readouterr().err == f"'{preview}' cannot be read: the training starts again.\n"


def test_a_term_that_comes_and_goes_is_refused() -> None:
    log, one = TrainingLog(), LossTerm(1.0, torch.tensor(0.5))
    log.add({"denoise": one})
    log.add({"denoise": one})
    with pytest.raises(ValueError, match=r"same at every step, not \['denoise'\], then \['denoise', 'steer'\]"):
        log.add({"denoise": one, "steer": one})


def test_a_second_writer_may_remove_the_folder_first(tmp_path: Path) -> None:
    first, second = (Checkpoints(tmp_path, "run", {}, interval=0.0) for _ in range(2))
    first.save({"done": 1})
    second.remove()
    assert first.load() is None and first.read_file("step_0001.png") is None
    first.save({"done": 2})
    first.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", LEARNING)
def test_relations_trained_together_come_out_as_alone_or_are_refused(
    method: str, base: Base, exemplar_folder: Path, tmp_path: Path
) -> None:
    """One relation has more steps than the others, and each its own seed."""
    problems = []
    for seed, name in enumerate(["inside", "on", "hug"]):
        folder = Path(shutil.copytree(exemplar_folder, tmp_path / "relations" / name))
        problems.append(problem(base, folder, method, seed, steps=8 if name == "on" else 6))
    if not all(adapter.shares_unet for adapter in build(problems[0]).adapters):
        with pytest.raises(UserError, match="cannot share one pass"):
            invert_together(problems, tmp_path / "scratch")
        return
    for each in problems:
        invert_relation(each, tmp_path / "alone" / each.exemplars.relation, tmp_path / "scratch")
    before = weights(base)
    invert_together(problems, tmp_path / "scratch")
    assert weights(base) == before
    for each in problems:
        name = each.exemplars.relation
        invert_relation(each, tmp_path / "together" / name, tmp_path / "scratch")  # takes no step of its own
        alone, together = (learned(tmp_path / way / name, base) for way in ("alone", "together"))
        torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
        assert not torch.equal(together, learned(tmp_path / "alone" / other(name), base))
        losses = [(tmp_path / way / name / "losses.csv").read_text().count("\n") for way in ("alone", "together")]
        assert losses == [each.settings.steps + 1] * 2
    assert not list((tmp_path / "scratch").glob("*"))


def learned(folder: Path, base: Base) -> torch.Tensor:
    """Return what a concept's token has learned."""
    concept = load_concept(folder, base)
    if concept.embedding is not None:
        return concept.embedding
    return torch.cat([tensor.flatten() for own in concept.weights.values() for tensor in own.values()])


def other(name: str) -> str:
    return "hug" if name == "inside" else "inside"


def test_a_joint_training_that_was_stopped_goes_on(
    base: Base, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [Path(shutil.copytree(exemplar_folder, tmp_path / "relations" / name)) for name in ("inside", "on")]
    problems = [problem(base, folder, "reversion") for folder in folders]
    invert_together(problems, tmp_path / "straight")
    monkeypatch.setattr(Checkpoints, "is_due", lambda self: True)
    monkeypatch.setattr("relinv.learning.training.take_step", stopping(training.take_step, after=3))
    with pytest.raises(KeyboardInterrupt):
        invert_together(problems, tmp_path / "stopped")
    monkeypatch.undo()
    invert_together(problems, tmp_path / "stopped")
    for each in problems:
        name = each.exemplars.relation
        for way in ("straight", "stopped"):
            invert_relation(each, tmp_path / "out" / way / name, tmp_path / way)
        straight, stopped = (tmp_path / "out" / way / name for way in ("straight", "stopped"))
        assert (straight / EMBEDDING).read_bytes() == (stopped / EMBEDDING).read_bytes()


def test_the_term_that_diverged_first_is_named(
    base: Base, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = problem(base, exemplar_folder, "reversion", steps=6)
    losses = build(task).losses
    seen: list[LossInputs] = []

    def broken(method: object, inputs: LossInputs) -> dict[str, LossTerm]:
        seen.append(inputs)
        scale = torch.nan if len(seen) > 1 else 1.0
        terms = losses(inputs)
        return terms | {"pull": LossTerm(0.1, scale * terms["denoise"].value)}

    monkeypatch.setattr(find_plugin("relinv.methods", "reversion").Method, "losses", broken)
    with pytest.raises(UserError, match=r"no longer a finite number, first in 'pull' at step 2: lower"):
        invert_relation(task, tmp_path / "concept", tmp_path / "scratch")


@pytest.mark.parametrize(("value", "told"), [(torch.zeros(3), r"one of shape \(3,\)"), (0.5, "float")])
def test_a_term_of_the_wrong_kind_is_named(value: Any, told: str) -> None:
    with pytest.raises(ValueError, match=rf"loss term 'pull' must be a scalar tensor, not {told}"):
        weighted_sum({"denoise": LossTerm(1.0, torch.tensor(1.0)), "pull": LossTerm(1.0, value)})


def test_a_folder_that_holds_no_concept_is_not_replaced(base: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    task = problem(base, exemplar_folder, "textual_inversion", steps=1)
    (tmp_path / "results").mkdir()
    (tmp_path / "results/notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"results' holds files but no concept, which would replace them: move them"):
        invert_relation(task, tmp_path / "results", tmp_path / "scratch")
    assert (tmp_path / "results/notes.txt").read_text() == "mine"
    for _ in range(2):  # one that is empty but for what is hidden, then a concept
        (tmp_path / "concept").mkdir(exist_ok=True)
        (tmp_path / "concept/.DS_Store").touch()
        invert_relation(task, tmp_path / "concept", tmp_path / "scratch")
    assert (tmp_path / "concept/concept.json").is_file()


def test_a_diverged_training_is_told_before_a_picture_is_drawn_of_it(
    base: Base, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, taken = Loop.update, []

    def diverging(loop: Loop, step: int) -> None:
        update(loop, step)
        taken.append(1)
        if len(taken) == 3:  # a preview is due after it
            loop.method.row.data.fill_(torch.nan)

    monkeypatch.setattr(Loop, "update", diverging)
    with pytest.raises(UserError, match=r"no longer a finite number: lower the method's learning_rate\.$"):
        invert_relation(problem(base, exemplar_folder, "reversion"), tmp_path / "concept", tmp_path / "scratch")
    assert len(taken) == 3 and not (tmp_path / "concept").exists()


@pytest.mark.parametrize(("diverges", "steps"), [(0, 1), (3, 5), (5, 6)])
def test_a_training_that_diverges_ends_at_the_next_look_and_leaves_no_concept(
    diverges: int, steps: int, base: Base, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, taken = Loop.update, []

    def diverging(loop: Loop, step: int) -> None:
        update(loop, step)
        taken.append(step)
        if step == diverges:
            loop.method.row.data.fill_(torch.nan)

    monkeypatch.setattr(Loop, "update", diverging)
    monkeypatch.setattr(training, "SHOWN_EVERY", 2)  # it looks after the steps 0, 2 and 4, and at the end
    task = problem(base, exemplar_folder, "reversion", steps=6)
    task = dataclasses.replace(task, preview=task.preview.model_copy(update={"prompts": []}))
    with pytest.raises(UserError, match="no longer a finite number"):
        invert_relation(task, tmp_path / "concept", tmp_path / "scratch")
    assert len(taken) == steps and not (tmp_path / "concept").exists()


def test_a_loss_that_diverges_in_half_precision_may_not_in_a_wider_one(
    base: Base, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = looping(problem(base, exemplar_folder, "reversion"), tmp_path)
    loop.log.add({"denoise": LossTerm(1.0, torch.tensor(torch.nan))})
    monkeypatch.setattr(base, "settings", base.settings.model_copy(update={"precision": "bf16"}))
    with pytest.raises(UserError, match=r"learning_rate, or set the model's precision to fp32\.$"):
        loop.require_finite()


def test_relations_end_whole_beside_one_that_diverges(
    base: Base, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [Path(shutil.copytree(exemplar_folder, tmp_path / "relations" / name)) for name in ("on", "inside")]
    problems = [problem(base, folder, "reversion") for folder in folders]
    invert_relation(problems[1], tmp_path / "alone", tmp_path / "scratch")
    update = Loop.update

    def diverging(loop: Loop, step: int) -> None:
        update(loop, step)
        if loop.problem.exemplars.relation == "on":
            loop.method.row.data.fill_(torch.nan)

    monkeypatch.setattr(Loop, "update", diverging)
    with pytest.raises(UserError, match=r"^The loss of 'on' is no longer a finite number"):
        invert_together(problems, tmp_path / "scratch")
    monkeypatch.setattr(training, "take_step", stopping(training.take_step, after=0))
    invert_relation(problems[1], tmp_path / "together", tmp_path / "scratch")  # takes no step of its own
    alone, together = (load_concept(tmp_path / way, base).embedding for way in ("alone", "together"))
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_early_stopping_looks_in_passes_as_small_as_trainings(
    base: Base, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = problem(base, exemplar_folder, "textual_inversion", stop_window=10)
    loop = looping(task, tmp_path / "scratch")
    whole = loop._fixed_loss()
    assert loop._fixed_loss() == whole  # by the same captions, timesteps and noise
    monkeypatch.setattr(base, "settings", base.settings.model_copy(update={"samples_per_pass": 1}))
    seen: list[int] = []
    hook = base.unet.register_forward_pre_hook(
        lambda unet, inputs: None if torch.is_grad_enabled() else seen.append(len(inputs[0]))
    )
    try:
        parts = looping(task, tmp_path / "scratch")._fixed_loss()
    finally:
        hook.remove()
    assert seen == [1] * 4
    assert parts == pytest.approx(whole, rel=1e-5)


def test_a_preview_that_cannot_be_drawn_is_told_before_anything_is_learned(
    base: Base, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "take_step", stopping(training.take_step, after=0))
    task = problem(base, exemplar_folder, "reversion")
    task = dataclasses.replace(task, preview=task.preview.model_copy(update={"prompts": ["cat <x> box"]}))
    with pytest.raises(UserError, match="names <x>, which no concept in use has learned"):
        invert_relation(task, tmp_path / "concept", tmp_path / "scratch")


def test_previews_are_drawn_as_the_base_says(
    base: Base, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = looping(problem(base, exemplar_folder, "reversion"), tmp_path / "scratch")
    own = {"preview": Sampler(steps=3, guidance_scale=7.5, scheduler="ddim")}
    monkeypatch.setattr(base, "settings", base.settings.model_copy(update=own))
    with loop.method.attached():
        assert loop._drawer()._sampler == Sampler(steps=3, guidance_scale=7.5, scheduler="ddim")


def test_previews_are_of_the_noise_that_their_seed_says(
    base: Base, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = problem(base, exemplar_folder, "reversion")
    task = dataclasses.replace(task, preview=task.preview.model_copy(update={"seed": 7}))
    loop, seeds = looping(task, tmp_path / "scratch"), []
    pictures = torch.zeros(2, 3, 64, 64)
    monkeypatch.setattr(Drawer, "draw", lambda drawer, prompts, given: (seeds.append([*given]), pictures)[1])
    for step in (1, 2):
        with loop.method.attached():
            loop._preview(step)
    assert seeds == [[7, 8]] * 2


def test_trainings_say_where_their_losses_and_previews_so_far_are(
    base: Base,
    exemplar_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders = [Path(shutil.copytree(exemplar_folder, tmp_path / "relations" / name)) for name in ("inside", "on")]
    problems = [problem(base, folder, "reversion") for folder in folders]
    monkeypatch.setattr(Checkpoints, "is_due", lambda self: True)
    monkeypatch.setattr(training, "take_step", stopping(training.take_step, after=4))
    with pytest.raises(KeyboardInterrupt):
        invert_together(problems, tmp_path / "scratch")
    told = re.findall(r"of '(\w+)' so far are kept in '(.+)'\.\n", capsys.readouterr().err)
    assert [relation for relation, _ in told] == ["inside", "on"]
    for _, folder in told:
        assert (Path(folder) / "losses.csv").read_text().count("\n") == 5  # with the names of its columns
        assert (Path(folder) / "step_0003.png").exists()
    monkeypatch.undo()
    invert_together(problems, tmp_path / "scratch")
    capsys.readouterr()
    invert_together(problems, tmp_path / "scratch")  # takes no step
    assert "so far" not in capsys.readouterr().err


def test_the_loss_shown_is_the_mean_since_it_was_last_shown(
    base: Base, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[float] = []
    monkeypatch.setattr(training, "SHOWN_EVERY", 3)
    monkeypatch.setattr(training.tqdm, "set_postfix", lambda self, loss: shown.append(float(loss)))
    invert_relation(problem(base, exemplar_folder, "reversion", steps=7), tmp_path / "concept", tmp_path / "scratch")
    losses = np.loadtxt(tmp_path / "concept/losses.csv", delimiter=",", skiprows=1)[:, -1]  # the totals
    assert shown == pytest.approx([losses[0], losses[1:4].mean(), losses[4:7].mean()], abs=1e-4)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError(), RuntimeError("GET was unable to find an engine to execute this computation")]
)
def test_too_little_memory_says_what_to_lower(
    error: RuntimeError, base: Base, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "take_step", MagicMock(side_effect=error))
    with pytest.raises(
        UserError,
        match=r"too small for training with 2 samples( \(taken from: GET was .*\))?: set the base's training\.s",
    ):
        invert_relation(problem(base, exemplar_folder, "reversion"), tmp_path / "concept", tmp_path / "scratch")


def test_a_checkpoint_larger_than_it_may_be_is_told_with_its_file_and_leaves_nothing(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # bytes, as on a disk that is full after as many
    try:
        with pytest.raises(OSError) as caught:  # torch.save ends by a RuntimeError of its own
            save_state(tmp_path / "state.pt", {"weights": torch.zeros(2**18)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path / "state.pt"))
    assert not list(tmp_path.iterdir())
