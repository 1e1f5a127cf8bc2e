"""Image folders: the same pixels give the same bytes, folders appear whole, and damage is named."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from relinv.diffusion.sampling import encode_png
from relinv.errors import UserError
from relinv.generation import write_image
from relinv.images import (
    RECORDS,
    parameters,
    png_texts,
    publish,
    read_image_record,
    read_pictures,
    read_records,
    workspace,
    write_records,
)
from tests.records import SETTINGS, record


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    records = [record(0), record(1, head="ca\u2028fé", held_out=True)]  # a line's end, but not in JSON
    write_records(tmp_path, records)
    assert read_records(tmp_path) == records
    lines = (tmp_path / RECORDS).read_text(encoding="utf-8").rstrip().split("\n")
    assert [json.loads(line)["index"] for line in lines] == [0, 1]


def line(**changes: Any) -> str:
    """Return a line of records.jsonl; `changes` are to its fields."""
    return json.dumps(asdict(record(0)) | changes) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged"),
        ('{"file": "0.png"}\n', "damaged"),
        ("", "empty"),
        ("[1]\n", "damaged"),
        ("null\n", "damaged"),
        (line(file=5), r"damaged: .* 'records\.0\.file' is 5 in .*must be a valid string"),
        (
            line(index=0) + line(index="first"),
            r"damaged: .* 'records\.1\.index' is 'first' in .*must be a valid integer",
        ),
        (line(seed=None), r"damaged: .* 'records\.0\.seed' is null in .*must be a valid integer"),
        (line(relation=["inside"]), r"damaged: .* 'records\.0\.relation' is \['inside'\] in .*must be a valid string"),
        (line(author="me"), r"damaged: .* 'records\.0\.author' is 'me' in .*: no such name"),
        (line(head="\ud83d"), "damaged"),
        ("[" * 100_000, "damaged"),
    ],
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
    (tmp_path / "007.png").write_bytes(encode_png(picture(), png_texts(made)))
    with Image.open(tmp_path / "007.png") as opened:
        assert opened.text["parameters"] == (
            "café <r> box\nNegative prompt: \n"
            "Steps: 25, Sampler: DPM++ 2M, CFG scale: 5.0, Seed: 4294967295, Size: 16x16, "
            "Model hash: abcdef0123, Model: base"
        )
    assert read_image_record(tmp_path / "007.png") == made


def test_a_model_whose_name_would_end_its_own_setting_is_quoted_as_web_uis_do() -> None:
    made = record(7)
    for name, written in {"real, v2": '"real, v2"', "v2: sharp": '"v2: sharp"', 'the "best"': 'the "best"'}.items():
        text = parameters(replace(made, settings={**made.settings, "base": f"models/{name}"}))
        assert text.endswith(f", Model: {written}")


def test_an_image_of_another_program_is_told_apart(tmp_path: Path) -> None:
    for name in ("other.png", "photo.jpg"):
        picture().save(tmp_path / name)
        with pytest.raises(UserError, match="not one that relinv drew"):
            read_image_record(tmp_path / name)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"text\.png' cannot be read"):
        read_image_record(tmp_path / "text.png")


def saying(path: Path, text: str) -> Path:
    """Write a PNG whose record is `text`."""
    texts = PngInfo()
    texts.add_itxt("relinv", text)
    picture().save(path, pnginfo=texts)
    return path


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"settings": {}}, r"Parameter 'record\.settings\.pairs' is missing from .*: add it"),
        ({"settings": None}, r"Parameter 'record\.settings' is null in .*a section of named values"),
        (
            {"settings": SETTINGS | {"scheduler": "fast"}},
            r"'record\.settings\.scheduler' is 'fast' .*'ddim', 'pndm' or",
        ),
        (
            {"settings": SETTINGS | {"base_sha256": 7}},
            r"'record\.settings\.base_sha256' is 7 in .*must be a valid string",
        ),
        ({"settings": SETTINGS | {"concepts": ["r"]}}, r"'record\.settings\.concepts' is \['r'\] in"),
        ({"seed": 2**32}, r"'record\.seed' is 4294967296 in .*less than 4294967296"),
        ({"prompt": None}, r"'record\.prompt' is null in .*must be a valid string"),
        ({"author": "me"}, r"'record\.author' is 'me' in .*: no such name"),
    ],
)
def test_a_record_that_is_not_of_this_version_is_refused_in_a_sentence(
    change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    path = saying(tmp_path / "odd.png", json.dumps(asdict(record(0)) | change))
    with pytest.raises(UserError, match=rf"odd\.png' does not say .*this version does: generate .*{reason}") as caught:
        read_image_record(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", r"The record in the image '.*odd\.png' is not valid JSON"),
        ("[" * 100_000, r"The record in the image '.*odd\.png' nests too deeply"),
        ("[1]", r"odd\.png' does not say .*Parameter 'record' is \[1\] in"),
        ("null", r"odd\.png' does not say .*Parameter 'record' is null in"),
    ],
)
def test_what_is_no_record_is_refused_in_a_sentence(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        read_image_record(saying(tmp_path / "odd.png", text))


def test_a_picture_too_large_to_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "000.png").write_bytes(encode_png(picture(), png_texts(record(0))))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # of 256 it has; Pillow's own is 89 million
    with pytest.raises(UserError, match=r"000\.png' has too many pixels, more than 20: save it smaller"):
        read_image_record(tmp_path / "000.png")
    with pytest.raises(UserError, match=r"000\.png' has too many pixels, more than 20: save it smaller"):
        read_pictures(tmp_path, [record(0)])


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:300])])
def test_a_missing_or_damaged_picture_is_named(tmp_path: Path, damage: object) -> None:
    (tmp_path / "000.png").write_bytes(encode_png(picture()))
    damage(tmp_path / "000.png")
    with pytest.raises(UserError, match=r"000\.png' cannot be read"):
        read_pictures(tmp_path, [record(0)])


def test_a_picture_is_there_only_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.replace", MagicMock(side_effect=KeyboardInterrupt))  # once all is written
    with pytest.raises(KeyboardInterrupt):
        write_image(tmp_path, record(0), picture())
    assert [*tmp_path.iterdir()] == []  # what resumes this run takes a file that is there for a picture


def test_a_second_run_waits_for_the_workspace(tmp_path: Path) -> None:
    def second() -> list[Path]:
        with workspace(tmp_path, [record(0)], "v1") as folder:
            return [*folder.iterdir()]

    with ThreadPoolExecutor(1) as pool, workspace(tmp_path, [record(0)], "v1") as folder:
        waiting = pool.submit(second)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.3)
        write_image(folder, record(0), picture())
        publish(folder, [record(0)], tmp_path / "images")
    assert waiting.result() == []
    assert (tmp_path / "images/000.png").read_bytes() == encode_png(picture(), png_texts(record(0)))


def test_workspace_is_found_again_by_all_that_decides_the_images(tmp_path: Path) -> None:
    def name_of(settings: dict[str, Any], code: str) -> str:
        with workspace(tmp_path, [record(0, settings=settings)], code) as folder:
            return folder.name

    other = SETTINGS | {"steps": 50}
    assert name_of(SETTINGS, "v1") == name_of(SETTINGS, "v1")
    assert len({name_of(SETTINGS, "v1"), name_of(SETTINGS, "v2"), name_of(other, "v1")}) == 3


def test_publishing_replaces_the_folder_and_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "images"
    target.mkdir()
    (target / "old.png").touch()
    records = [record(0), record(1)]
    with workspace(tmp_path / "scratch", records, "") as folder:
        for each in records:
            write_image(folder, each, picture(each.index))
        publish(folder, records, target)
    assert sorted(path.name for path in target.iterdir()) == ["000.png", "001.png", RECORDS]
    assert read_records(target) == records
    assert [path.suffix for path in (tmp_path / "scratch").iterdir()] == [".lock"]
