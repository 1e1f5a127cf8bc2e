"""A small repository for studies, where a stage writes made-up scores: `python -m tests.studying ROOT` runs one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from relinv.study.plan import Trial, load_plan, trials
from relinv.study.running import alone, run_pending

HERE = Path(__file__).parent.parent
# Git's author, this Python as `python`, and this checkout's tests for stages in temporary checkouts.
ENVIRONMENT = {
    **{f"GIT_{role}_NAME": "test" for role in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{role}_EMAIL": "test@example.org" for role in ("AUTHOR", "COMMITTER")},
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(HERE),
    "DVC_NO_ANALYTICS": "1",
}
PARAMS = """base: b
bases:
  b:
    preset:
    judge:
      model: ViT-B-32
      pretrained: openai
      device: cpu
relations:
- inside
- hug
methods:
- relation_words
- reversion
score:
  skill: 0.6
invert:
  seed: 0
report:
  subject: reversion
  resamples: 100
  seed: 0
  level: 0.95
presets:
  reversion: {}
"""
PIPELINE = """stages:
  invert:
    matrix: {method: "${methods}"}
    cmd: mkdir -p data && touch data/${item.method}
    deps: ["relinv/methods/${item.method}.py"]
    outs: ["data/${item.method}"]
  score:
    cmd: python make.py
    deps: [make.py, data/exemplars, relinv/metrics]
    params: [relations, methods, score, invert]
    outs: [{reports/scores.csv: {cache: false}}]
  judge:
    cmd: mkdir -p data && touch data/judged
    deps: [relinv/judging.py]
    outs: [data/judged]
  report:
    cmd: python tell.py
    deps: [tell.py, reports/scores.csv, relinv/report]
    params: [score]
    outs: [{reports/report.html: {cache: false}}, {reports/grids: {cache: false}}]
"""
MAKE = """import os, pathlib, sys, time
from ruamel.yaml import YAML
from tests.reporting import pretended
params = YAML(typ="safe", pure=True).load(pathlib.Path("params.yaml").read_text())
if params["score"]["skill"] < 0:
    sys.exit("score.skill cannot be negative")
if begun := os.environ.get("BEGUN"):  # say so, and never end
    pathlib.Path(begun).touch()
    time.sleep(600)
pathlib.Path("reports").mkdir(exist_ok=True)
pathlib.Path("reports/scores.csv").write_text(pretended(params))
"""
TELL = """import pathlib
from ruamel.yaml import YAML
params = YAML(typ="safe", pure=True).load(pathlib.Path("params.yaml").read_text())
pathlib.Path("reports/report.html").write_text(f"<p>skill {params['score']['skill']}</p>")
pathlib.Path("reports/grids").mkdir(exist_ok=True)
pathlib.Path("reports/grids/hug.png").write_text(f"a grid of {params['score']['skill']}")
"""
REPRODUCE = """import pathlib, sys
from dvc.cli import main
from relinv.overrides import changed_params
*changes, slots, two = sys.argv[1:]
assert set(changes[::2]) <= {"--set-param"} and [slots, two] == ["--slots", "2"]
with changed_params(pathlib.Path(), changes[1::2]):
    pass
sys.exit(main(["repro"]))
"""
PLAN = """common: {report.seed: 0}
seeds: [0]
seeded: [invert.seed]
arms:
  plain: {}
  better: {score.skill: 0.9}
contrasts:
- {title: What skill adds, left: better/reversion, right: plain/reversion}
- {title: Over plain words, left: plain/reversion, right: plain/relation_words}
"""


def write_repository(root: Path) -> None:
    """Make `root` a git and DVC repository with one committed run; experiments are run with this Python."""
    contents = {
        "params.yaml": PARAMS,
        "dvc.yaml": PIPELINE,
        "make.py": MAKE,
        "tell.py": TELL,
        "data/exemplars/README.md": "",
        "data/miniature/weights": "",
        "reports/README.md": "",
        "reports/metrics.json": "{}",
        "reports/report.md": "",
        "data/miniature/dvc.lock": "",
        "stages/__init__.py": "",
        "stages/reproduce.py": REPRODUCE,
        "study.yaml": PLAN,
        ".gitignore": "/.scratch/\n__pycache__/\n",
        "relinv/report/rows.py": "",
        "relinv/commands/tokens.py": "",
        "relinv/metrics/skill.py": "",
        "relinv/judging.py": "",
        **{f"relinv/methods/{name}.py": "" for name in ("relation_words", "reversion", "dreambooth")},
    }
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    run = runner(root)
    run("git", "init", "--quiet", "--initial-branch", "main")
    run(sys.executable, "-m", "dvc", "init", "--quiet")
    run("git", "add", ".")
    run("git", "commit", "--quiet", "-m", "empty")
    run(sys.executable, "-m", "dvc", "repro", "--quiet")
    run("git", "add", ".")
    run("git", "commit", "--quiet", "-m", "a run")


def runner(root: Path) -> Callable[..., str]:
    """Return a function that runs a command in `root` and returns what it printed."""

    def run(*command: str) -> str:
        given = os.environ | ENVIRONMENT
        done = subprocess.run(command, cwd=root, env=given, check=True, capture_output=True, text=True, timeout=120)
        return done.stdout

    return run


def two_arms(repository: Path) -> list[Trial]:
    """Return the trials of the repository's plan with two other arms, of which the second changes nothing."""
    arms = {"low": {"score.skill": 0.3}, "as_it_is": {}}
    plan = load_plan(repository / "study.yaml").model_copy(update={"arms": arms, "contrasts": []})
    return trials(repository, plan)


def run_all(repository: Path, planned: Sequence[Trial]) -> dict[str, str]:
    """Return {name: commit} of the trials, once those that were not have been run."""
    with alone(repository) as lock:
        return run_pending(repository, planned, 2, lock)


if __name__ == "__main__":
    run_all(Path(sys.argv[1]), two_arms(Path(sys.argv[1])))
