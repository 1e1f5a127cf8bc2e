"""On a GPU: Stable Diffusion 1.5's architecture in bf16, in its true size; skipped where there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.training import build_sd15
from relinv.benchmark import load_benchmark
from relinv.diffusion.bases import Base, load_base
from relinv.diffusion.concept import load_concept
from relinv.errors import UserError
from relinv.forking import fork_server
from relinv.generation import generate
from relinv.generation import plan as plan_images
from relinv.judge import load_judge
from relinv.learning.inversion import invert_relation, invert_together
from relinv.settings import GenerateSettings, JudgeSettings, ModelSettings
from tests.inverting import FORMS, LEARNING, problem
from tests.tiny import weights
from tests.tiny_judge import build_tiny_judge

SETTINGS = GenerateSettings(pairs="all", seed=0, steps=3, guidance_scale=7.5, scheduler="dpmpp", batch_size=2)
CAN_COMPILE = shutil.which("gcc") and Path(sysconfig.get_path("include"), "Python.h").is_file()
COMPILING = pytest.mark.skipif(not CAN_COMPILE, reason="torch.compile needs gcc and Python's headers on a GPU")
pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSettings:
    return build_sd15(tmp_path_factory.mktemp("sd15"))


@pytest.fixture(scope="module")
def base(model: ModelSettings) -> Base:
    return load_base(model)


def test_a_relation_is_learned_and_drawn(base: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    before = weights(base)
    invert_relation(problem(base, exemplar_folder, "reversion"), tmp_path / "first", tmp_path / "scratch")
    invert_relation(problem(base, exemplar_folder, "reversion"), tmp_path / "again", tmp_path / "scratch")
    assert weights(base) == before
    concept, again = load_concept(tmp_path / "first", base), load_concept(tmp_path / "again", base)
    assert concept.embedding is not None and again.embedding is not None
    assert torch.equal(concept.embedding, again.embedding)
    scenarios = load_benchmark("data/benchmark/reversion.yaml").scenarios("inside")[:2]
    records = plan_images(base, concept, scenarios, SETTINGS)
    ((_, pictures),), ((_, redrawn),) = (generate(base, concept, records, SETTINGS) for _ in range(2))
    assert [picture.size for picture in pictures] == [(base.resolution, base.resolution)] * 2
    assert pictures == redrawn


@pytest.mark.parametrize("name", [*LEARNING, *FORMS])
def test_every_method_learns_and_draws(name: str, base: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    invert_relation(problem(base, exemplar_folder, name, steps=2), tmp_path / "concept", tmp_path / "scratch")
    concept = load_concept(tmp_path / "concept", base)
    scenarios = load_benchmark("data/benchmark/reversion.yaml").scenarios("inside")[:1]
    ((_, (picture,)),) = generate(base, concept, plan_images(base, concept, scenarios, SETTINGS), SETTINGS)
    assert picture.size == (base.resolution, base.resolution)


def test_the_judge_reads_as_on_the_cpu(tmp_path: Path) -> None:
    folder, readings = build_tiny_judge(tmp_path), []
    for device in ("cpu", "cuda"):
        judge = load_judge(JudgeSettings(model=str(folder), pretrained=None, device=device))
        pictures = [Image.new("RGB", (64, 64), colour) for colour in ("ivory", "sienna", "navy")]
        readings.append(judge.encode_images(pictures, 2) @ judge.encode_texts(["cat inside box", "cat on box"]).T)
    np.testing.assert_allclose(*readings, atol=1e-4)


def test_relations_trained_together_come_out_as_alone(base: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    tasks = [problem(base, exemplar_folder, "textual_inversion", seed=seed) for seed in (0, 1)]
    invert_together(tasks, tmp_path / "scratch")
    for task in tasks:
        invert_relation(task, tmp_path / f"joint{task.seed}", tmp_path / "scratch")
        invert_relation(task, tmp_path / f"alone{task.seed}", tmp_path / "other")
        joint, alone = (load_concept(tmp_path / f"{way}{task.seed}", base).embedding for way in ("joint", "alone"))
        assert joint is not None and alone is not None
        assert torch.nn.functional.cosine_similarity(joint, alone, dim=0) > 0.99


@pytest.mark.parametrize(
    ("way", "method"),
    [
        pytest.param({"compile": True}, "reversion", marks=COMPILING),
        pytest.param({"compile": True}, "perfusion", marks=COMPILING),  # whose edit is renewed within the pass
        ({"gradient_checkpointing": True}, "reversion"),
        ({"attention": "eager"}, "reversion"),
        ({"deterministic": False}, "reversion"),
    ],
)
def test_other_ways_to_run_it_work(
    way: dict[str, object], method: str, model: ModelSettings, exemplar_folder: Path, tmp_path: Path
) -> None:
    base = load_base(model.model_copy(update=way))
    invert_relation(problem(base, exemplar_folder, method, steps=2), tmp_path / "concept", tmp_path / "scratch")
    assert load_concept(tmp_path / "concept", base).embedding is not None


def test_stages_forked_from_the_libraries_use_it(tmp_path: Path) -> None:
    command = "import os, torch\nfrom relinv import cli\napp = cli.stage_app()\n@app.command()\ndef run():\n"
    command += " print(torch.ones(2, device='cuda').sum().item(), os.getppid())\n"
    (tmp_path / "command.py").write_text(f"{command}if __name__ == '__main__': cli.run(app)")
    with fork_server(tmp_path):
        environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{Path.cwd()}"}
        run = {"cwd": tmp_path, "env": environment, "stdout": subprocess.PIPE, "text": True}
        said = subprocess.run([sys.executable, "-m", "command"], check=True, **run).stdout  # type: ignore[call-overload]
    total, parent = said.split()
    assert float(total) == 2 and int(parent) != os.getpid()


def test_too_little_memory_is_told(base: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    task = problem(base, exemplar_folder, "reversion", steps=1, batch_size=400)
    with pytest.raises(UserError, match=r"too small for training with 400 samples: set the base's training\.s"):
        invert_relation(task, tmp_path / "concept", tmp_path / "scratch")
