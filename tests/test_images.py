"""Image folders: the same pixels give the same bytes, folders appear whole, and damage is named."""

from __future__ import annotations

import json
from concurrent.futures import wait
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from relinv.errors import UserError
from relinv.images import (
    RECORDS,
    ImageWriter,
    Workspace,
    encode_png,
    read_image_record,
    read_pictures,
    read_records,
    write_records,
)
from tests.records import SETTINGS, record


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    records = [record(0), record(1, head="café", held_out=True)]
    write_records(tmp_path, records)
    assert read_records(tmp_path) == records
    lines = (tmp_path / RECORDS).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["index"] for line in lines] == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "damaged"), ('{"file": "0.png"}\n', "damaged"), ("", "empty"), ("[1]\n", "damaged")],
)
def test_damaged_records_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / RECORDS).write_text(text)
    with pytest.raises(UserError, match=f"{RECORDS}.*{message}"):
        read_records(tmp_path)


def test_missing_records_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_records(tmp_path)


def test_the_same_pixels_give_the_same_bytes_and_come_back(tmp_path: Path) -> None:
    data = encode_png(picture())
    assert encode_png(picture()) == data != encode_png(picture(1))
    (tmp_path / "000.png").write_bytes(data)
    np.testing.assert_array_equal(np.asarray(read_pictures(tmp_path, [record(0)])[0]), np.asarray(picture()))


def test_an_image_says_how_it_was_made_as_web_uis_do_and_in_full(tmp_path: Path) -> None:
    made = record(7, head="café", prompt="café <r> box")
    (tmp_path / "007.png").write_bytes(encode_png(picture(), made))
    with Image.open(tmp_path / "007.png") as opened:
        assert opened.text["parameters"] == (
            "café <r> box\nNegative prompt: \n"
            "Steps: 25, Sampler: DPM++ 2M, CFG scale: 5.0, Seed: 4294967295, Size: 16x16, "
            "Model hash: abcdef0123, Model: base"
        )
    assert read_image_record(tmp_path / "007.png") == made


def test_an_image_of_another_program_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "other.png").write_bytes(encode_png(picture()))
    with pytest.raises(UserError, match="not one that relinv drew"):
        read_image_record(tmp_path / "other.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"text\.png' cannot be read"):
        read_image_record(tmp_path / "text.png")


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:300])])
def test_a_missing_or_damaged_picture_is_named(tmp_path: Path, damage: object) -> None:
    (tmp_path / "000.png").write_bytes(encode_png(picture()))
    damage(tmp_path / "000.png")
    with pytest.raises(UserError, match=r"000\.png' cannot be read"):
        read_pictures(tmp_path, [record(0)])


def test_writer_raises_what_went_wrong_with_a_file(tmp_path: Path) -> None:
    (tmp_path / "001.png").mkdir()  # in the way
    with pytest.raises(OSError), ImageWriter(tmp_path) as writer:
        writer.write(record(0), picture())
        writer.write(record(1), picture())
    assert (tmp_path / "000.png").read_bytes() == encode_png(picture(), record(0))


def test_writer_stops_at_a_file_that_went_wrong_before(tmp_path: Path) -> None:
    (tmp_path / "000.png").mkdir()  # in the way
    with pytest.raises(OSError, match=r"000\.png"), ImageWriter(tmp_path) as writer:
        writer.write(record(0), picture())
        wait(writer._pending)
        writer.write(record(1), picture())
    assert not (tmp_path / "001.png").exists()


def test_workspace_is_found_again_by_all_that_decides_the_images(tmp_path: Path) -> None:
    first = Workspace(tmp_path, [record(0)], "v1").folder
    assert Workspace(tmp_path, [record(0)], "v1").folder == first
    assert Workspace(tmp_path, [record(0)], "v2").folder != first
    assert Workspace(tmp_path, [record(0, settings={**SETTINGS, "steps": 50})], "v1").folder != first


def test_publishing_replaces_the_folder_and_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "images"
    target.mkdir()
    (target / "old.png").touch()
    records = [record(0), record(1)]
    workspace = Workspace(tmp_path / "scratch", records, "")
    assert not workspace.is_done(records)
    with ImageWriter(workspace.folder) as writer:
        for each in records:
            writer.write(each, picture(each.index))
    assert workspace.is_done(records)
    workspace.publish(target)
    assert sorted(path.name for path in target.iterdir()) == ["000.png", "001.png", RECORDS]
    assert read_records(target) == records
    assert list((tmp_path / "scratch").iterdir()) == []
