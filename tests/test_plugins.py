"""Plugins are found by file name, private modules are none, and a wrong name is answered with the closest."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from relinv.errors import UserError, unknown
from relinv.plugins import find_plugin, plugin_names


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package with two plugins, a private module, and a plugin that is broken; forgotten afterwards."""
    folder = tmp_path / "shapes"
    folder.mkdir()
    contents = {"__init__": "", "circle": "SIDES = 0", "square": "SIDES = 4", "_private": "", "torn": "1 / 0"}
    for name, text in contents.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield "shapes"
    for name in [name for name in sys.modules if name.partition(".")[0] == "shapes"]:
        del sys.modules[name]


def test_names_leave_out_private_modules(shapes: str) -> None:
    assert plugin_names(shapes) == ["circle", "square", "torn"]


def test_plugin_is_found_by_its_file_name(shapes: str) -> None:
    assert find_plugin(shapes, "square").SIDES == 4


@pytest.mark.parametrize("name", ["sqare", "_private", "os", "square.x", ""])
def test_unknown_plugin_is_refused(shapes: str, name: str) -> None:
    with pytest.raises(UserError, match=r"Unknown shape '.*'.*Available: circle, square, torn\.") as caught:
        find_plugin(shapes, name)
    assert ("Did you mean 'square'" in str(caught.value)) == name.startswith("s")


def test_of_many_names_the_closest_are_listed() -> None:
    said = str(unknown("shape", "polygon_8", [f"polygon_{sides}" for sides in range(3, 300)]))
    assert "Did you mean 'polygon_8'" in said and "The closest of 297: " in said and said.count(",") == 7


def test_error_inside_a_plugin_is_not_hidden(shapes: str) -> None:
    with pytest.raises(ZeroDivisionError):
        find_plugin(shapes, "torn")
