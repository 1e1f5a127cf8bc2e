"""Exemplars are copied as they are from a folder placed by hand, and what is missing is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from relinv.errors import UserError
from relinv.exemplars import read_exemplars
from relinv.fetching import fetch_exemplars
from relinv.settings import ExemplarSettings, ExemplarSource

SETTINGS = ExemplarSettings(set="shared", seed=0)


def test_placed_folder_is_copied_as_it_is(exemplar_folder: Path, tmp_path: Path) -> None:
    source = ExemplarSource(source="folder", path=exemplar_folder.parent)
    fetch_exemplars("inside", tmp_path / "data" / "inside", source, SETTINGS)
    expected = read_exemplars(exemplar_folder)
    assert read_exemplars(tmp_path / "data" / "inside").fingerprint == expected.fingerprint


def test_absent_folder_says_where_to_place_it(tmp_path: Path) -> None:
    source = ExemplarSource(source="folder", path=tmp_path)
    with pytest.raises(UserError, match=r"no exemplars of 'inside': place its pictures and text\.json in '.*inside'"):
        fetch_exemplars("inside", tmp_path / "out", source, SETTINGS)
    assert not (tmp_path / "out").exists()


def test_folder_source_without_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set exemplars\.path"):
        fetch_exemplars("inside", tmp_path, ExemplarSource(source="folder", path=None), SETTINGS)


@pytest.mark.parametrize("exemplar_set", ["shared", "varied"])
def test_world_renders_ten_pictures_alike_each_time(tmp_path: Path, exemplar_set: str) -> None:
    source = ExemplarSource(source="world", path=None)
    settings = ExemplarSettings.model_validate({"set": exemplar_set, "seed": 0})
    for name in ("first", "second"):
        fetch_exemplars("inside", tmp_path / name / "inside", source, settings)
    first, second = (read_exemplars(tmp_path / name / "inside") for name in ("first", "second"))
    assert len(first.exemplars) == 10
    assert first.fingerprint == second.fingerprint
