"""What every method must keep to, tested over each file in relinv/methods."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch

from relinv.diffusion.bases import Base
from relinv.diffusion.concept import REQUIRED, load_concept
from relinv.diffusion.conditioning import Encodings, in_use
from relinv.errors import UserError
from relinv.files import sha256_folder
from relinv.learning.checkpoints import Checkpoints
from relinv.learning.inversion import Problem, invert_relation, learn
from relinv.learning.training import Task, train
from relinv.methods import InversionMethod
from relinv.plugins import find_plugin
from tests.dying import eager_checkpoints
from tests.inverting import METHODS, problem
from tests.tiny import weights

Folders = dict[str, Path]
pytestmark = pytest.mark.parametrize("name", METHODS)


def build(task: Problem) -> InversionMethod:
    return find_plugin("relinv.methods", task.method).Method(task.base, task.words, task.settings)


def no_checkpoints(folder: Path) -> Checkpoints:
    """Return checkpoints that no other training finds."""
    return Checkpoints(folder, "unused", {"of": str(uuid.uuid4())}, interval=1e9)


@pytest.fixture(scope="module")
def concepts(base: Base, exemplar_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """One concept folder of each method, straight through."""
    root = tmp_path_factory.mktemp("concepts")
    for name in METHODS:
        invert_relation(problem(base, exemplar_folder, name), root / name, root / "scratch")
    assert list((root / "scratch").glob("invert-*")) == []  # a finished inversion leaves no checkpoint
    return {name: root / name for name in METHODS}


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


def train_shortly(method: InversionMethod, exemplar_folder: Path, scratch: Path, seed: int = 0) -> Any:
    task = problem(method.base, exemplar_folder, "relation_words")
    (log,) = train([Task(method, task.exemplars, seed, task.preview, no_checkpoints(scratch))])
    return log


def test_loss_falls(name: str, base: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    """Learned on some draws of noise and timesteps, the loss is lower on others."""
    before = build(problem(base, exemplar_folder, name, steps=8, learning_rate=1e-9, batch_size=4))
    if not before.steps:
        pytest.skip("it learns nothing")
    after = build(problem(base, exemplar_folder, name, steps=25, learning_rate=0.1, batch_size=4))
    train_shortly(after, exemplar_folder, tmp_path, seed=1)
    unseen = train_shortly(before, exemplar_folder, tmp_path).losses
    for tensor, learned in zip(before.state().values(), after.state().values(), strict=True):
        tensor.data.copy_(learned)
    seen = train_shortly(before, exemplar_folder, tmp_path).losses
    assert torch.stack(seen)[:, -1].mean() < torch.stack(unseen)[:, -1].mean()


def test_the_same_seed_gives_the_same_bytes(
    name: str, base: Base, exemplar_folder: Path, tmp_path: Path, concepts: Folders
) -> None:
    invert_relation(problem(base, exemplar_folder, name), tmp_path / "again", tmp_path / "scratch")
    invert_relation(problem(base, exemplar_folder, name, seed=1), tmp_path / "other", tmp_path / "scratch")
    assert sha256_folder(tmp_path / "again") == sha256_folder(concepts[name])
    assert sha256_folder(tmp_path / "other") != sha256_folder(concepts[name])


@pytest.fixture(scope="module")
def killed(tiny_base: Path, exemplar_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each method that learns, as two processes left it that SIGKILL ended in their third step."""
    root = tmp_path_factory.mktemp("killed")
    learning = [name for name in METHODS if "steps" in find_plugin("relinv.methods", name).Settings.model_fields]
    command = [sys.executable, "-m", "tests.dying", *map(str, (tiny_base, exemplar_folder, root)), *learning]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(printed.splitlines()[-1]) == dict.fromkeys(learning, [-signal.SIGKILL] * 2)
    return root


def test_killed_and_resumed_equals_straight_through(
    name: str, base: Base, exemplar_folder: Path, concepts: Folders, killed: Path
) -> None:
    task = problem(base, exemplar_folder, name)
    method, folder = build(task), killed / name
    assert not (folder / "concept").exists()
    taken: list[int] = []
    method.after_step = counted(method.after_step, taken)  # type: ignore[method-assign]
    learn(task, method, folder / "concept", eager_checkpoints(task, folder))
    assert len(taken) == max(0, method.steps - 4)  # two processes took two whole steps each
    assert sha256_folder(folder / "concept") == sha256_folder(concepts[name])


def counted(function: Any, calls: list[int]) -> Any:
    def call() -> None:
        calls.append(1)
        function()

    return call


def test_saved_and_loaded_it_conditions_images(name: str, base: Base, concepts: Folders) -> None:
    concept = load_concept(concepts[name], base)
    prompt = concept.prompt("cat", "box")
    with in_use(base, [concept]) as adapters:
        encoding, plain = Encodings(base, adapters, [prompt, "cat inside box"], [0]).of([prompt, "cat inside box"])(0)
    assert encoding.isfinite().all()
    assert torch.equal(encoding, plain) == (concept.token is None)


def test_metadata_is_complete(name: str, base: Base, exemplar_folder: Path, concepts: Folders) -> None:
    metadata = json.loads((concepts[name] / "concept.json").read_text())
    task = problem(base, exemplar_folder, name)
    assert set(REQUIRED) <= set(metadata)
    assert metadata["method"] == name and metadata["relation"] == "inside" and metadata["seed"] == 0
    assert metadata["params"] == task.settings.model_dump(mode="json")
    assert metadata["base_hash"] == base.fingerprint and metadata["exemplars_hash"] == task.exemplars.fingerprint
    assert set(metadata["versions"]) == {"torch", "diffusers", "transformers"}


def test_losses_and_previews_are_logged(name: str, base: Base, exemplar_folder: Path, concepts: Folders) -> None:
    from PIL import Image

    steps = build(problem(base, exemplar_folder, name)).steps
    table = concepts[name] / "losses.csv"
    previews = sorted(path.name for path in concepts[name].glob("previews/*"))
    assert table.exists() == bool(steps)
    assert previews == (["step_0004.png", "step_0006.png"] if steps else [])
    if steps:
        header, *rows = table.read_text().splitlines()
        assert header.startswith("step,denoise,") and header.endswith(",total")
        assert [row.split(",")[0] for row in rows] == [str(step) for step in range(1, steps + 1)]
        strip = Image.open(io.BytesIO((concepts[name] / "previews" / previews[0]).read_bytes()))
        assert strip.size == (2 * base.resolution, base.resolution)


def test_a_foreign_base_is_refused(name: str, base: Base, concepts: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "fingerprint", "0" * 64)
    with pytest.raises(UserError, match=r"was learned for the base .* invert the relation again"):
        load_concept(concepts[name], base)
