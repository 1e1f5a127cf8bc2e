"""The invert stage around the loop: what it refuses, and where it puts its result."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from dvc.utils.hydra import apply_overrides

from relinv import unchanged
from relinv.errors import UserError
from relinv.files import read_yaml
from relinv.learning import training
from relinv.learning.checkpoints import Checkpoints
from relinv.learning.training import take_step
from relinv.overrides import require_edits_take_effect
from relinv.params import load_params
from relinv.pipeline.repository import git
from relinv.report.story import as_yaml
from relinv.results import Verdict
from stages.fetch import fetch
from stages.invert import invert
from stages.invert_together import invert_together
from tests.checkouts import ROOT, lay_out_checkout


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_base: Path, exemplar_folder: Path) -> dict[str, Any]:
    """A checkout with a benchmark of one relation, its exemplars and a good verdict; the parameters."""
    monkeypatch.chdir(lay_out_checkout(tmp_path, tiny_base))
    shutil.copytree(exemplar_folder, "data/relations/inside")
    write_verdict()
    return read_yaml(Path("params.yaml"))


def write_verdict(*errors: str) -> None:
    Path("data/verdicts").mkdir(exist_ok=True)
    verdict = Verdict("inside", images=4, captions=8, errors=[*errors], warnings=[])
    Path("data/verdicts/inside.json").write_text(json.dumps(verdict.to_json()))


def test_plain_words_make_a_concept_without_a_tensor(project: dict[str, Any]) -> None:
    invert("inside", "relation_words")
    folder = Path("data/concepts/inside/relation_words")
    assert [path.name for path in folder.iterdir()] == ["concept.json"]
    assert json.loads((folder / "concept.json").read_text())["template"] == "{head} inside {tail}"


def test_plain_words_need_no_pytorch(project: dict[str, Any]) -> None:  # whose import takes seconds
    code = "import sys; from stages.invert import invert; invert('inside', 'relation_words'); "
    code += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, timeout=120)


def test_an_experiments_change_that_the_preset_undoes_is_refused_before_anything_is_fetched_or_learned(
    project: dict[str, Any],
) -> None:
    apply_overrides(Path("params.yaml"), ["bases.miniature.preset=official"])
    invert("inside", "relation_words")  # without git, no change is known
    commit_all()
    apply_overrides(Path("params.yaml"), ["invert.reversion.steer_weight=0.1", "invert.multires.steps=1"])
    told = (
        r"^'invert\.reversion\.steer_weight' would change nothing: .* write presets\.reversion\.official\.steer_weight"
    )
    invertings = partial(invert, "inside", "reversion"), partial(invert_together, "reversion", 2)
    for command in (partial(fetch, "inside"), *invertings):
        with pytest.raises(UserError, match=told):
            command()
    require_edits_take_effect(load_params(), ["relation_words", "textual_inversion"])
    with pytest.raises(UserError, match="meant for runs without this preset, commit it first"):
        require_edits_take_effect(load_params(), ["textual_inversion", "multires"])
    for change in ("invert.compositional.layout.scale=2", "++invert.compositional.layout=null"):  # nested, and null
        apply_overrides(Path("params.yaml"), [change])
        with pytest.raises(UserError, match=r"'invert\.compositional\.layout(\.scale)?' would change nothing"):
            require_edits_take_effect(load_params(), ["compositional"])
    commit_all()
    require_edits_take_effect(load_params(), ["reversion", "multires"])


def commit_all() -> None:
    for words in (["init", "-q"], ["add", "params.yaml"], ["commit", "-qm", "parameters"]):
        git(Path(), "-c", "user.name=t", "-c", "user.email=t@example.org", *words)


def test_exemplars_that_failed_validation_are_refused(project: dict[str, Any]) -> None:
    write_verdict("3.png cannot be read: replace it.")
    with pytest.raises(UserError, match=r"data/verdicts/inside\.json(.|\n)*3\.png cannot be read"):
        invert("inside", "reversion")


def test_exemplars_that_were_never_validated_are_refused(project: dict[str, Any]) -> None:
    Path("data/verdicts/inside.json").unlink()
    with pytest.raises(UserError, match=r"inside\.json' does not exist: .* `python -m stages\.validate inside`"):
        invert("inside", "reversion")


@pytest.mark.parametrize("text", ["[]", "{}", "null", '{"valid": false}', '{"valid": true, "warnings": []}'])
def test_a_verdict_that_says_nothing_is_refused(project: dict[str, Any], text: str) -> None:
    Path("data/verdicts/inside.json").write_text(text)
    with pytest.raises(UserError, match=r"inside\.json' is damaged: .* make it with .* stages\.validate inside`"):
        invert("inside", "reversion")


def test_unknown_names_are_answered_with_the_closest(project: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="Did you mean 'reversion'"):
        invert("inside", "revrsion")
    with pytest.raises(UserError, match="Did you mean 'inside'"):
        invert("insde", "reversion")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steer_weight", -1.0, r"'invert\.reversion\.steer_weight' is -1\.0 .* greater than or equal to 0"),
        ("steer_wieght", 1.0, "Did you mean 'steer_weight'"),
        ("norm", "long", "it must be 'free' or 'vocabulary'"),
    ],
)
def test_a_bad_parameter_is_named(project: dict[str, Any], name: str, value: Any, message: str) -> None:
    project["invert"]["reversion"][name] = value
    Path("params.yaml").write_text(as_yaml(project))
    with pytest.raises(UserError, match=message):
        invert("inside", "reversion")


def test_a_training_whose_code_is_not_what_was_loaded_does_not_begin(
    project: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "take_step", MagicMock(side_effect=AssertionError))
    edited = unchanged.PACKAGE / "methods/reversion.py"
    monkeypatch.setattr(unchanged, "AT_START", {**unchanged.AT_START, edited: "of other code"})
    with pytest.raises(UserError, match=r"Code was changed while this ran, .*: relinv/methods/reversion\.py\. Put"):
        invert("inside", "reversion")


def test_a_training_whose_parameters_were_edited_meanwhile_can_be_finished_once_they_are_put_back(
    project: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    apply_overrides(Path("params.yaml"), ["invert.reversion.steps=2"])
    before = Path("params.yaml").read_text()
    steps: list[int] = []

    def edit(loops: Sequence[Any], step: int) -> None:
        steps.append(step)
        Path("params.yaml").write_text(before.replace("steer_weight", "steer_wieght"))
        take_step(loops, step)

    monkeypatch.setattr(training, "take_step", edit)
    monkeypatch.setattr("relinv.learning.inversion.Checkpoints", partial(Checkpoints, interval=0.0))
    with pytest.raises(UserError, match=r"changed while this ran, .*: invert\.reversion"):
        invert("inside", "reversion")
    done = len(steps)
    Path("params.yaml").write_text(before)
    invert("inside", "reversion")
    assert steps[done:] == []  # the last step's checkpoint was there
