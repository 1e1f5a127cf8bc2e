"""Code that changes while a stage runs: the stage fails, since DVC would record its result as the new code's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from relinv import source_code
from relinv.errors import UserError
from relinv.params import Params, read_params


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkout's package of two modules, of which this process has loaded `used`, and a file of words."""
    folder = tmp_path / "relinv"
    folder.mkdir()
    for name in ("used.py", "unused.py", "words.yaml"):
        (folder / name).write_text("")
    module = ModuleType("used")
    module.__file__ = str(folder / "used.py")
    monkeypatch.setitem(sys.modules, "used", module)
    monkeypatch.setattr(source_code, "PACKAGE", folder)
    source_code.code_at_start.cache_clear()
    yield folder
    source_code.code_at_start.cache_clear()


@pytest.fixture
def params(package: Path, tmp_path: Path) -> Params:
    """Parameters as a stage reads them first."""
    (tmp_path / "params.yaml").write_text("base: b\n")
    return read_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("name", ["used.py", "words.yaml"])
def test_an_edit_of_what_was_loaded_is_told_until_it_is_taken_back(name: str, package: Path, params: Params) -> None:
    params.require_unchanged()
    (package / name).write_text("# other")
    with pytest.raises(UserError, match=f"^Code was changed while this ran, .*: relinv/{name}. Run the same"):
        params.require_unchanged()
    (package / name).unlink()  # as git does on the way to another branch
    with pytest.raises(UserError, match=name):
        params.require_unchanged()
    (package / name).write_text("")
    params.require_unchanged()


def test_other_code_may_be_edited_meanwhile(package: Path, params: Params) -> None:
    (package / "unused.py").write_text("# other")
    (package / "new.py").write_text("")
    params.require_unchanged()


def test_the_code_that_this_process_runs_is_known() -> None:
    known = source_code.code_at_start()
    assert {Path(source_code.__file__), Path(__file__).parents[1] / "stages/invert.py"} <= known.keys()
