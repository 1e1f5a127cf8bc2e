"""The whole pipeline in a clone with few parameters: one run by `dvc repro`, the rest as `make reproduce` does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from dvc.utils.hydra import apply_overrides

from relinv.benchmark import load_benchmark
from relinv.files import read_yaml
from relinv.forking import fork_server
from relinv.overrides import as_override
from relinv.report.story import as_yaml

AUTHOR = ("-c", "user.name=t", "-c", "user.email=t@example.org")
DEADLINE = 1800  # seconds for a command, which may run every stage: several times what a busy machine takes
ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "relations": ["inside", "hug"],
    "methods": ["relation_words", "reversion"],
    "invert.reversion.steps": 2,
    "invert.preview.count": 2,
    "bases.miniature.sampling.steps": 2,
    "generate.pairs": "validation",  # a quarter of the scenarios
    "report.resamples": 200,
}


def _run(clone: Path, *command: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=clone, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=DEADLINE
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def _stages_run(output: str) -> set[str]:
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a fresh clone of the working tree with small parameters, reproduced once.

    The lock file comes along, as with a newcomer whose cache is empty, but for the relations left out: DVC parses and
    rewrites it whole, again and again. The reports are made anew.
    """
    target = tmp_path_factory.mktemp("clone") / "relinv"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    for name in done.stdout.splitlines():
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    shutil.rmtree(target / "reports", ignore_errors=True)
    lock = read_yaml(target / "dvc.lock")
    lock["stages"] = {
        stage: entry
        for stage, entry in lock["stages"].items()
        if stage.partition("@")[2].partition("-")[0] in ("", *SMALL["relations"])
    }
    (target / "dvc.lock").write_text(as_yaml(lock))
    apply_overrides(target / "params.yaml", [as_override(name, value) for name, value in SMALL.items()])
    _run(target, "git", "init", "-q")
    _run(target, "git", "add", ".")
    _run(target, "git", *AUTHOR, "commit", "-qm", "start")
    one = ["fetch@hug", "validate@hug", "invert@hug-reversion"]
    assert _stages_run(_run(target, "dvc", "repro", one[-1])) == set(one)
    assert _stages_run(_run(target, "python", "-m", "stages.reproduce", "--slots", "2")) == {"report"}
    logs = "".join(log.read_text() for log in (target / ".scratch/reproduce").glob("*.log"))
    assert len(_stages_run(logs) - set(one)) == 3 * 2 + 3 * 2 * 2 - len(one)  # by relation; by method too
    yield target


def test_it_leaves_a_report_with_pictures_and_metrics(clone: Path) -> None:
    metrics = json.loads((clone / "reports/metrics.json").read_text())
    assert set(metrics) == set(SMALL["methods"])
    assert {"scene_accuracy", "relation_accuracy", "entity_accuracy", "leakage"} <= set(metrics["reversion"])
    scores = pd.read_csv(clone / "reports/scores.csv")
    benchmark = load_benchmark(ROOT / "data/benchmark/miniature.yaml")
    assert len(scores) == 2 * sum(len(benchmark.scenarios(name, "validation")) for name in SMALL["relations"])
    assert sorted(p.name for p in (clone / "reports/grids").iterdir()) == ["hug.png", "inside.png"]
    page = (clone / "reports/report.html").read_text()
    assert "<svg" in page
    assert "data:image/jpeg;base64," in page
    assert 'src="http' not in page
    assert (clone / "data/concepts/inside/reversion/learned_embeds.safetensors").is_file()


def test_a_rerun_with_nothing_changed_does_nothing(clone: Path) -> None:
    assert _stages_run(_run(clone, "dvc", "repro")) == set()


def test_another_steering_weight_runs_reversions_arms_and_what_follows_from_them(clone: Path) -> None:
    _run(clone, "git", "add", "reports", "dvc.lock")
    _run(clone, "git", *AUTHOR, "commit", "-qm", "the first run")
    with fork_server(clone):  # as `make reproduce` runs stages
        output = _run(clone, "dvc", "exp", "run", "-S", "invert.reversion.steer_weight=0.1")
    stages = ("invert", "generate", "score")
    arms = {f"{stage}@{relation}-reversion" for stage in stages for relation in SMALL["relations"]}
    assert _stages_run(output) == {*arms, "report"}
    changed = json.loads(_run(clone, "dvc", "metrics", "diff", "--json"))["reports/metrics.json"]
    assert {name.partition(".")[0] for name in changed} == {"reversion"}
    assert "steer_weight" in _run(clone, "dvc", "exp", "show", "--only-changed", "--md")


def test_plain_metrics_and_plots_commands_work(clone: Path) -> None:
    assert "scene_accuracy" in _run(clone, "dvc", "metrics", "show")
    for command in ("show", "diff"):
        page = _run(clone, "dvc", "plots", command).split("file://")[1].split()[0]
        drawn = Path(page).read_text(encoding="utf-8")
        assert '"denoise"' in drawn and '"reversion"' in drawn and "hug.png" in drawn
