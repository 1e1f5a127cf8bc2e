"""Every method with the committed base and its own settings of params.yaml, in a few steps: it learns what holds of
other draws, is kept, is drawn, and leaves the base as it was."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
import torch

from relinv.diffusion.bases import Base, load_base
from relinv.diffusion.concept import load_concept
from relinv.exemplars import read_exemplars
from relinv.generation import imagine
from relinv.learning.checkpoints import Checkpoints
from relinv.learning.inversion import Problem, learn
from relinv.learning.training import Task, train
from relinv.methods import InversionMethod
from relinv.plugins import find_plugin
from relinv.settings import GenerateSettings, PreviewSettings, load_params
from relinv.world.exemplars import write_exemplars
from tests.inverting import METHODS
from tests.tiny import weights

DRAWING = GenerateSettings(pairs="all", seed=0, steps=2, guidance_scale=4.0, scheduler="dpmpp", batch_size=1)
NO_PREVIEW = PreviewSettings(every=100, prompts=[], steps=1, guidance_scale=1.0, seed=0)


@pytest.fixture(scope="module")
def miniature() -> Base:
    return load_base(load_params().model())


@pytest.fixture(scope="module")
def exemplars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hug")
    write_exemplars("hug", folder, exemplar_set="shared", seed=0)
    return folder


def build(base: Base, exemplars: Path, name: str, **changes: Any) -> tuple[Problem, InversionMethod]:
    plugin = find_plugin("relinv.methods", name)
    values = load_params().section(f"invert.{name}", dict[str, Any])
    small = {key: value for key, value in changes.items() if key in plugin.Settings.model_fields}
    settings = plugin.Settings(**(values | small))
    problem = Problem(base, read_exemplars(exemplars), "hugging", name, settings, 0, NO_PREVIEW)
    return problem, plugin.Method(base, problem.words, settings)


def losses(problem: Problem, method: InversionMethod, scratch: Path, seed: int) -> torch.Tensor:
    """Return the total loss of each step of a training, (steps,)."""
    checkpoints = Checkpoints(scratch, "unused", {"of": str(uuid.uuid4())}, interval=1e9)
    (log,) = train([Task(method, problem.exemplars, seed, NO_PREVIEW, checkpoints)])
    return torch.stack(log.losses)[:, -1]


@pytest.mark.parametrize("name", METHODS)
def test_it_learns_is_kept_and_is_drawn(name: str, miniature: Base, exemplars: Path, tmp_path: Path) -> None:
    before = weights(miniature)
    # An anchor that is not the first word: there its loss would have nothing to fall by.
    few = {"prior_images": 2, "prior_steps": 2, "anchor_word": "near"}
    problem, method = build(miniature, exemplars, name, steps=8, **few)
    learn(problem, method, tmp_path / "concept", Checkpoints(tmp_path, "learning", {}, interval=1e9))
    concept = load_concept(tmp_path / "concept", miniature)
    learned = imagine(miniature, [concept], concept.prompt("cat", "dog"), DRAWING, 0)
    again = imagine(miniature, [concept], concept.prompt("cat", "dog"), DRAWING, 0)
    assert learned.tobytes() == again.tobytes()
    assert weights(miniature) == before
    if not method.steps:
        return
    still, fresh = build(miniature, exemplars, name, steps=3, learning_rate=1e-9, weights_learning_rate=1e-9,
                         value_learning_rate=1e-9, **few)  # fmt: skip
    unseen = losses(still, fresh, tmp_path, seed=1)
    for tensor, value in zip(fresh.state().values(), method.state().values(), strict=True):
        tensor.data.copy_(value)
    seen = losses(still, fresh, tmp_path, seed=1)  # the same draws
    assert seen.mean() < unseen.mean()
