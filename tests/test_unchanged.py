"""Code that changes while a stage runs: the stage fails, since DVC would record its result as the new code's."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from relinv import unchanged
from relinv.errors import UserError
from relinv.params import Params, read_params
from relinv.unchanged import code_in, require_unchanged

PIPELINE = (
    "stages: {invert: {deps: [relinv/part, 'relinv/methods/${item.method}.py']}, score: {deps: [relinv/other]}}\n"
)
LOADED = ("part/used.py", "part/words.yaml", "methods/ours.py", "methods/theirs.py", "plumbing.py")


@pytest.fixture
def params(tmp_path: Path) -> Params:
    """Parameters that nothing changes."""
    (tmp_path / "params.yaml").write_text("base: b\n")
    return read_params(tmp_path / "params.yaml")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout's package: of its modules this process has loaded all but part/unused.py, before they are edited."""
    folder = tmp_path / "relinv"
    for name in (*LOADED, "part/unused.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    (folder / "part/.#used.py").symlink_to("someone@host")  # by which an editor locks a file
    for name in (name for name in LOADED if name.endswith(".py")):  # what modules read is no module
        module = ModuleType(name)
        module.__file__ = str(folder / name)
        monkeypatch.setitem(sys.modules, name, module)
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    monkeypatch.setattr(unchanged, "PACKAGE", folder)
    monkeypatch.setattr(unchanged, "AT_START", code_in(folder))
    return folder


@pytest.mark.parametrize("name", ["part/used.py", "part/words.yaml", "methods/ours.py"])
def test_an_edit_of_what_was_loaded_is_told_until_it_is_taken_back(name: str, package: Path, params: Params) -> None:
    require_unchanged(params, "invert", "ours")
    (package / name).write_text("# other")
    with pytest.raises(UserError, match=f"^Code was changed while this ran, .*: relinv/{name}. Put it back"):
        require_unchanged(params, "invert", "ours")
    (package / name).unlink()  # as git does on the way to another branch
    with pytest.raises(UserError, match=name):
        require_unchanged(params, "invert", "ours")
    (package / name).write_text("")
    require_unchanged(params, "invert", "ours")


def test_what_dvc_does_not_record_as_the_results_code_may_be_edited_meanwhile(package: Path, params: Params) -> None:
    for name in ("part/unused.py", "part/new.py", "methods/theirs.py", "plumbing.py"):
        (package / name).write_text("# other")
    require_unchanged(params, "invert", "ours")
    (package / "part/used.py").write_text("# other")
    require_unchanged(params, "score")


@pytest.mark.parametrize("stage", ["fetch", "validate", "judge", "invert", "generate", "score", "report"])
def test_each_stage_watches_code_of_its_own(stage: str, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    source = import_module(f"stages.{stage}").__file__
    assert source and f'params, "{stage}"' in Path(source).read_text(encoding="utf-8")  # as which it asks
    require_unchanged(params, stage, "reversion")
    monkeypatch.setattr(unchanged, "AT_START", dict.fromkeys(unchanged.AT_START, "of other code"))
    with pytest.raises(UserError, match=r"relinv/benchmark\.py"):  # which all depend on
        require_unchanged(params, stage, "reversion")


def test_an_edit_of_a_parameter_that_a_stage_has_read_is_told(package: Path, params: Params) -> None:
    assert params.section("base", str) == "b"
    (package.parent / "params.yaml").write_text("base: other\n")
    with pytest.raises(UserError, match=r"^Parameters were changed while this ran, .*: base"):
        require_unchanged(params, "invert", "ours")
