"""What every method must keep to, tested over each file in relinv/methods."""

from __future__ import annotations

import gc
import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from relinv.benchmark import Scenario
from relinv.diffusion.bases import Base, load_base
from relinv.diffusion.concept import EMBEDDING, REQUIRED, load_concept
from relinv.diffusion.conditioning import Drawer, Encodings
from relinv.diffusion.sampling import initial_latents, to_pictures
from relinv.files import sha256_folder
from relinv.generation import generate, image_seed, plan
from relinv.learning.inversion import invert_relation, learn
from relinv.learning.method import InversionMethod
from relinv.learning.problem import Task
from relinv.learning.training import take_step, train
from relinv.params import load_params
from relinv.settings import GenerateSettings, ModelSettings
from tests.conftest import tiny_settings
from tests.dying import eager_checkpoints
from tests.inverting import FORMS, LEARNING, METHODS, build, looping, no_checkpoints, problem
from tests.tiny import weights

Folders = dict[str, Path]
NAMES = [*METHODS, *FORMS]
each_method, each_form = (pytest.mark.parametrize("name", names) for names in (METHODS, NAMES))
# For what takes long and holds for one base as for the other.
on_random, on_miniature = (
    pytest.mark.parametrize("model", [kind], indirect=True, scope="module") for kind in ("random", "miniature")
)
# What two steps learn is seen; and the gate of Perfusion is drawn as it is trained, so that one picture can be both.
SEEN = {"steps": 2, "learning_rate": 0.3, "weights_learning_rate": 0.01}
GATE = {"train_beta": 0.7, "train_tau": 0.15, "beta": 0.7, "tau": 0.15}
DRAWN = GenerateSettings(pairs="all", seed=0, steps=3, guidance_scale=4.0, scheduler="ddim", batch_size=2)
SCENARIOS = [Scenario("inside", 0, "cat", "box", None, False), Scenario("inside", 1, "dog", "cup", None, False)]


@pytest.fixture(scope="module", params=["random", "miniature"])
def model(request: pytest.FixtureRequest, tiny_base: Path) -> ModelSettings:
    """The base that methods learn with: one of random weights, or the committed miniature at half its resolution."""
    if request.param == "random":
        return tiny_settings(tiny_base)
    return tiny_settings(Path(load_params().model().source)).model_copy(update={"resolution": 32})


@pytest.fixture(scope="module")
def base(model: ModelSettings) -> Base:
    return load_base(model)


@pytest.fixture(scope="module")
def concepts(base: Base, exemplar_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """One concept folder of each method and form, straight through."""
    root = tmp_path_factory.mktemp("concepts")
    for name in NAMES:
        invert_relation(problem(base, exemplar_folder, name), root / name, root / "scratch")
    assert list((root / "scratch").glob("invert-*")) == []  # a finished inversion leaves no checkpoint
    return {name: root / name for name in NAMES}


@each_method
def test_gradients_reach_its_own_state_alone(name: str, base: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    method, before, words = build(problem(base, exemplar_folder, name)), weights(base), base.tokenizer.get_vocab()
    if method.steps:
        train_shortly(method, exemplar_folder, tmp_path)
    own = [tensor for group in method.groups() for tensor in group["params"]]
    assert all(tensor.grad is not None for tensor in own)
    networks = (base.text_encoder, base.vae, base.unet)
    frozen = [tensor for network in networks for tensor in network.parameters()]
    assert not any(tensor.requires_grad or tensor.grad is not None for tensor in frozen)
    assert weights(base) == before
    assert base.tokenizer.get_vocab() == words


@pytest.mark.parametrize("name", LEARNING)
def test_any_learned_row_may_lean_to_noisy_timesteps_and_to_a_word(
    name: str, base: Base, exemplar_folder: Path, tmp_path: Path
) -> None:
    task = problem(base, exemplar_folder, name, steps=1, importance_alpha=0.5, anchor_weight=0.25)
    method = build(task)
    probabilities = method.timestep_distribution(1000)
    assert (1000 * probabilities[[0, 999]]).tolist() == pytest.approx([0.50025, 1.50075], abs=1e-5)
    (log,) = train([Task(task, method, no_checkpoints(tmp_path))])
    terms = dict(zip(log.names, log.losses[0].tolist(), strict=True))
    plain = build(problem(base, exemplar_folder, name, steps=1, importance_alpha=0.5, anchor_weight=0.0))
    (other,) = train([Task(task, plain, no_checkpoints(tmp_path))])
    assert terms["anchor"] > 0 and "anchor" not in other.names
    assert terms["total"] - 0.25 * terms["anchor"] == pytest.approx(other.losses[0][-1].item(), rel=1e-4)


@on_random
@pytest.mark.parametrize("name", LEARNING)
def test_a_step_frees_its_memory_without_a_search_for_garbage(
    name: str, base: Base, exemplar_folder: Path, tmp_path: Path
) -> None:
    loop = looping(problem(base, exemplar_folder, name), tmp_path)
    take_step([loop], 0)  # in which what is needed is loaded
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        take_step([loop], 1)
        loop.after(1)
        gc.collect()
        found = [type(each) for each in gc.garbage if isinstance(each, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert found == []


def train_shortly(method: InversionMethod, exemplar_folder: Path, scratch: Path, seed: int = 0) -> Any:
    task = problem(method.base, exemplar_folder, "relation_words", seed)
    (log,) = train([Task(task, method, no_checkpoints(scratch))])
    return log


@on_miniature
@each_method
def test_loss_falls(name: str, base: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    """Learned on some draws of noise and timesteps, the loss is lower on others."""
    still = {"learning_rate": 1e-9, "weights_learning_rate": 1e-9, "value_learning_rate": 1e-9}
    before = build(problem(base, exemplar_folder, name, steps=6, batch_size=4, **still))
    if not before.steps:
        pytest.skip("it learns nothing")
    after = build(problem(base, exemplar_folder, name, steps=16, learning_rate=0.1, batch_size=4))
    train_shortly(after, exemplar_folder, tmp_path, seed=1)
    unseen = train_shortly(before, exemplar_folder, tmp_path).losses
    for tensor, learned in zip(before.state().values(), after.state().values(), strict=True):
        tensor.data.copy_(learned)
    seen = train_shortly(before, exemplar_folder, tmp_path).losses
    assert torch.stack(seen)[:, -1].mean() < torch.stack(unseen)[:, -1].mean()


@on_random
@each_form
def test_the_same_seed_gives_the_same_bytes(
    name: str, base: Base, exemplar_folder: Path, tmp_path: Path, concepts: Folders
) -> None:
    invert_relation(problem(base, exemplar_folder, name), tmp_path / "again", tmp_path / "scratch")
    invert_relation(problem(base, exemplar_folder, name, seed=1), tmp_path / "other", tmp_path / "scratch")
    assert sha256_folder(tmp_path / "again") == sha256_folder(concepts[name])
    assert sha256_folder(tmp_path / "other") != sha256_folder(concepts[name])


@pytest.fixture(scope="module")
def killed(base: Base, tiny_base: Path, exemplar_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each name that learns, as two processes left it that SIGKILL ended in their third step."""
    root = tmp_path_factory.mktemp("killed")
    learning = [name for name in NAMES if hasattr(problem(base, exemplar_folder, name).settings, "steps")]
    command = [sys.executable, "-m", "tests.dying", *map(str, (tiny_base, exemplar_folder, root)), *learning]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout
    assert json.loads(printed.splitlines()[-1]) == dict.fromkeys(learning, [-signal.SIGKILL] * 2)
    return root


@on_random
@each_form
def test_killed_and_resumed_equals_straight_through(
    name: str, base: Base, exemplar_folder: Path, concepts: Folders, killed: Path
) -> None:
    task = problem(base, exemplar_folder, name)
    method, folder = build(task), killed / name
    assert not (folder / "concept").exists()
    taken: list[int] = []
    method.after_step = counted(method.after_step, taken)  # type: ignore[method-assign]
    learn(Task(task, method, eager_checkpoints(task, folder)), folder / "concept")
    assert len(taken) == max(0, method.steps - 4)  # two processes took two whole steps each
    assert sha256_folder(folder / "concept") == sha256_folder(concepts[name])


def counted(function: Any, calls: list[int]) -> Any:
    def call() -> None:
        calls.append(1)
        function()

    return call


@each_form
def test_saved_and_loaded_it_draws_what_training_left(
    name: str, base: Base, exemplar_folder: Path, tmp_path: Path
) -> None:
    task = problem(base, exemplar_folder, name, **SEEN, **GATE)
    before, method = answers(base), build(task)
    untrained = drawn(method)
    learn(Task(task, method, no_checkpoints(tmp_path)), tmp_path / "concept")
    trained = drawn(method)
    concept = load_concept(tmp_path / "concept", base)
    ((_, loaded),) = generate(base, concept, plan(base, concept, SCENARIOS, DRAWN), DRAWN)
    assert apart(levels(loaded), trained).max() == 0
    assert (apart(untrained, trained).min() > 2) == bool(method.steps)
    bare = drawn(InversionMethod(base, task.words, task.settings, task.exemplars))
    assert (apart(bare, trained).min() > 2) == bool(concept.token)
    assert all(torch.equal(one, other) for one, other in zip(answers(base), before, strict=True))


@each_form
@pytest.mark.parametrize("timestep", [0, 250, 500, 999])
def test_a_prompt_is_encoded_for_drawing_as_for_training(
    name: str, timestep: int, base: Base, exemplar_folder: Path
) -> None:
    method, generator = build(problem(base, exemplar_folder, name)), torch.Generator().manual_seed(0)
    for tensor in (tensor for group in method.groups() for tensor in group["params"]):
        tensor.data += 0.1 * torch.randn(tensor.shape, generator=generator)  # no two rows or layers are equal then
    with method.attached(), torch.no_grad():
        caption = method.caption("cat {} box", timestep)
        trained = method.conditioning(base.tokenize([caption]))
        prompt = method.template.format(head="cat", tail="box")
        drawn = Encodings(base, method.adapters, [prompt], [timestep]).of([prompt])(timestep)
    assert torch.equal(trained, drawn)
    assert drawn.shape[-1] == base.dim or name == "perfusion"  # no other adapter may widen encodings


def drawn(method: InversionMethod) -> np.ndarray:
    """Return the levels of the scenarios' pictures, drawn with a method's state as it stands in memory."""
    prompts = [method.template.format(head=each.head, tail=each.tail) for each in SCENARIOS]
    seeds = [image_seed(DRAWN.seed, each.relation, each.index) for each in SCENARIOS]
    with method.attached():
        drawer = Drawer(method.base, method.adapters, prompts, DRAWN)
        return levels(to_pictures(drawer.draw(prompts, seeds)))


def levels(pictures: list[Image.Image]) -> np.ndarray:
    """Return pictures as integers, (pictures, side, side, 3)."""
    return np.stack([np.asarray(picture).astype(int) for picture in pictures])


def apart(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return by how many levels each picture differs from its other at most, (pictures,)."""
    return np.abs(some - others).max(axis=(1, 2, 3))


def answers(base: Base) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the bare base's text encoder and UNet answer to a prompt."""
    with torch.no_grad():
        text = base.encode(base.tokenize(["cat inside box"]))
        return text, base.unet(initial_latents(base, [0]), torch.tensor([300]), encoder_hidden_states=text).sample


@on_random
@each_method
def test_metadata_is_complete(name: str, base: Base, exemplar_folder: Path, concepts: Folders) -> None:
    metadata = json.loads((concepts[name] / "concept.json").read_text())
    task = problem(base, exemplar_folder, name)
    assert set(REQUIRED) <= set(metadata)
    assert metadata["method"] == name and metadata["relation"] == "inside" and metadata["seed"] == 0
    assert metadata["params"] == task.settings.model_dump(mode="json")
    assert metadata["base_hash"] == base.fingerprint and metadata["exemplars_hash"] == task.exemplars.fingerprint
    assert set(metadata["versions"]) == {"torch", "diffusers", "transformers"}


@on_random
@each_method
def test_losses_and_previews_are_logged(name: str, base: Base, exemplar_folder: Path, concepts: Folders) -> None:
    steps = build(problem(base, exemplar_folder, name)).steps
    table = concepts[name] / "losses.csv"
    previews = sorted(path.name for path in concepts[name].glob("previews/*.png"))
    assert table.exists() == bool(steps)
    assert previews == (["step_0003.png", "step_0006.png"] if steps else [])
    if steps:
        header, *rows = table.read_text().splitlines()
        assert header.startswith("step,denoise,") and header.endswith(",total")
        assert [row.split(",")[0] for row in rows] == [str(step) for step in range(1, steps + 1)]
        strip = Image.open(io.BytesIO((concepts[name] / "previews" / previews[0]).read_bytes()))
        assert strip.size == (2 * base.resolution, base.resolution)


@on_random
@each_form
def test_a_token_that_is_a_row_is_kept_with_each_preview(name: str, base: Base, concepts: Folders) -> None:
    concept = load_concept(concepts[name], base)
    kept = {path.name: path.read_bytes() for path in concepts[name].glob("previews/*.safetensors")}
    if concept.embedding is None or concept.weights or not concept.metadata["steps"]:
        assert not kept
        return
    assert sorted(kept) == ["step_0003.safetensors", "step_0006.safetensors"]
    assert kept["step_0006.safetensors"] == (concepts[name] / EMBEDDING).read_bytes()
    assert len(set(kept.values())) == 2
