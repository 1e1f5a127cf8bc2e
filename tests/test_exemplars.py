"""Exemplar folders are read in name order, and pictures upright, unsquashed and unflipped."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image, ImageOps

from relinv.errors import UserError
from relinv.exemplars import load_image, open_upright, read_exemplars

LEFT_RED = np.zeros((8, 8, 3), np.uint8)
LEFT_RED[:, :4, 0] = 255


def test_folder_is_read_in_name_order(exemplar_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exemplar_folder, tmp_path / "inside"))
    captions = json.loads((folder / "text.json").read_text())
    (folder / "text.json").write_text(json.dumps(dict(reversed(captions.items()))))
    found = read_exemplars(folder)
    assert found.relation == "inside"
    assert [exemplar.path.name for exemplar in found.exemplars] == ["0.png", "1.png", "2.png", "3.png"]
    assert found.exemplars[0].templates == ("cat {} box", "a photo of a cat {} a box in the snow")


def test_fingerprint_follows_pictures_and_captions_alone(exemplar_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exemplar_folder, tmp_path / "copy"))
    expected = read_exemplars(exemplar_folder).fingerprint
    (folder / "notes.txt").write_text("not used")
    assert read_exemplars(folder).fingerprint == expected
    captions = (folder / "text.json").read_text()
    (folder / "text.json").write_text(captions.replace("cat", "dog"))
    assert read_exemplars(folder).fingerprint != expected
    (folder / "text.json").write_text(captions)
    (folder / "0.png").write_bytes((folder / "1.png").read_bytes())
    assert read_exemplars(folder).fingerprint != expected


@pytest.mark.parametrize("content", [["0.png"], {"0.png": "cat {} box"}, {"0.png": []}, {"0.png": [1]}])
def test_captions_of_another_form_are_refused(tmp_path: Path, content: object) -> None:
    (tmp_path / "text.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="must map each picture's file name to a list of captions"):
        read_exemplars(tmp_path)


def test_missing_pictures_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text('{"7.png": ["cat {} box"]}')
    with pytest.raises(UserError, match=r"not there: 7\.png"):
        read_exemplars(tmp_path)


@pytest.mark.parametrize("tag", [0x0100, 0x011A, 0x0128])  # a width and two numbers of resolution
def test_a_photograph_is_turned_whatever_else_a_camera_wrote_badly(tag: int, tmp_path: Path) -> None:
    entries = struct.pack("<HHII", tag, 2, 4, 0x00706474) + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)  # a text; turned
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)
    Image.fromarray(LEFT_RED).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(load_image(tmp_path / "a.png", 8)), np.rot90(LEFT_RED, -1))


def test_an_orientation_written_as_a_fraction_is_applied(tmp_path: Path) -> None:
    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHIIIII", 8, 1, 0x0112, 5, 1, 26, 0, 6, 1)
    Image.fromarray(LEFT_RED).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(load_image(tmp_path / "a.png", 8)), np.rot90(LEFT_RED, -1))


def test_a_mode_that_pillow_opens_and_cannot_convert_is_told_with_the_file(tmp_path: Path) -> None:
    Image.new("LA", (8, 8)).save(tmp_path / "a.tif")
    kind = struct.pack("<HHI", 338, 3, 1)  # the entry ExtraSamples, one number: 2 is alpha, 1 alpha multiplied in
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content.replace(kind + b"\2", kind + b"\1"))
    with pytest.raises(UserError, match=r"a\.tif' cannot be read .*: replace it"):
        open_upright(tmp_path / "a.tif")


@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("number", range(1, 9))
def test_each_exif_orientation_is_applied(number: int, kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = number
    picture = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    picture.save(tmp_path / f"a.{kind}", exif=exif)
    with Image.open(tmp_path / f"a.{kind}") as opened:
        assert open_upright(tmp_path / f"a.{kind}").tobytes() == ImageOps.exif_transpose(opened).tobytes()


def test_wide_picture_is_cropped_to_its_centre_and_not_flipped(tmp_path: Path) -> None:
    wide = np.pad(LEFT_RED, ((0, 0), (4, 4), (0, 0)), constant_values=90)
    Image.fromarray(wide).save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(load_image(tmp_path / "a.png", 8)), LEFT_RED)


def test_transparency_becomes_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert np.asarray(load_image(tmp_path / "a.png", 8)).min() == 255


def test_whatever_a_decoder_raises_names_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(LEFT_RED).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", MagicMock(side_effect=TypeError("no dimensions")))
    with pytest.raises(UserError, match=r"a\.png' cannot be read \(no dimensions\): replace it"):
        load_image(tmp_path / "a.png", 8)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", MagicMock(side_effect=MemoryError))
    with pytest.raises(MemoryError):  # not the picture's fault
        load_image(tmp_path / "a.png", 8)


@pytest.mark.filterwarnings("error")
def test_a_large_photograph_is_read_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(LEFT_RED).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 32)  # from which Pillow warns; it refuses more than twice as many
    assert load_image(tmp_path / "a.png", 8).size == (8, 8)
    with pytest.raises(Image.DecompressionBombWarning):  # as before
        Image.open(tmp_path / "a.png")


def test_undecodable_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n but no picture")
    with pytest.raises(UserError, match=r"a\.png' cannot be read"):
        load_image(tmp_path / "a.png", 8)
