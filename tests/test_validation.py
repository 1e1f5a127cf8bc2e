"""Validation finds each fault of an exemplar folder, all at once, and says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides
from PIL import Image, ImageEnhance

from relinv import validation
from relinv.diffusion import bases
from relinv.errors import UserError
from relinv.exemplars import OWN
from relinv.miniature.vocabulary import miniature_tokenizer
from relinv.results import Verdict
from relinv.settings import ValidateSettings
from relinv.validation import validate_folder, write_verdict
from stages.validate import validate
from tests.checkouts import lay_out_checkout

SETTINGS = ValidateSettings(minimum_images=4, minimum_side=32, duplicate_difference=4.0)


def judge(folder: Path, settings: ValidateSettings = SETTINGS, resolution: int = 64) -> Verdict:
    return validate_folder(folder, settings, miniature_tokenizer(), resolution)


@pytest.fixture
def folder(exemplar_folder: Path, tmp_path: Path) -> Path:
    """A valid relation folder that a test may spoil."""
    return Path(shutil.copytree(exemplar_folder, tmp_path / "inside"))


def edit_captions(folder: Path, **changes: list[str] | None) -> None:
    """Set (or with None remove) the captions of pictures, named by their number as `p0`."""
    file = folder / "text.json"
    captions = json.loads(file.read_text())
    for key, templates in changes.items():
        name = f"{key[1:]}.png"
        captions.pop(name) if templates is None else captions.update({name: templates})
    file.write_text(json.dumps(captions))


def test_valid_folder_has_neither_errors_nor_warnings(folder: Path) -> None:
    assert judge(folder).to_json() == {
        "relation": "inside", "images": 4, "captions": 8, "errors": [], "warnings": [], "valid": True,
    }  # fmt: skip


def _truncate(folder: Path) -> None:
    data = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(data[: len(data) // 2])


def _turn(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(folder / "0.png").save(folder / "0.png", exif=exif)


def _resave(
    folder: Path, change: Callable[[Image.Image], Image.Image], source: str = "0", target: str = "0", end: str = ".png"
) -> None:
    with Image.open(folder / f"{source}.png") as opened:
        change(opened.copy()).save(folder / f"{target}{end}")


def _mask(folder: Path, mode: str, end: str = ".png") -> None:
    (folder / "masks").mkdir()
    _resave(folder, lambda picture: picture.convert(mode), "0", "masks/0", end)


def _animate(folder: Path) -> None:
    with Image.open(folder / "0.png") as first, Image.open(folder / "1.png") as second:
        first.copy().save(folder / "0.png", save_all=True, append_images=[second])


ERRORS: dict[str, tuple[Callable[[Path], object], str]] = {
    "damaged": (_truncate, "2.png' cannot be read"),
    "small": (lambda f: _resave(f, lambda p: p.resize((16, 40))), "0.png: its shorter side has 16 pixels"),
    "deep": (lambda f: _resave(f, lambda p: p.convert("I;16")), "0.png: its mode is I;16: save it in 8-bit RGB."),
    "one bit": (lambda f: _resave(f, lambda p: p.convert("1")), "0.png: its mode is 1: save it in 8-bit RGB."),
    "32 bits": (lambda f: _resave(f, lambda p: p.convert("I"), end=".tif"), "0.tif: its mode is I: save it in 8-bit"),
    "fractions": (lambda f: _resave(f, lambda p: p.convert("F"), end=".tif"), "0.tif: its mode is F: save it in 8-bi"),
    "identical": (lambda f: _resave(f, lambda p: p, "0", "1"), "1.png is an exact duplicate of 0.png: remove"),
    "unlisted": (lambda f: edit_captions(f, p0=None), "0.png has no captions in text.json: add"),
    "absent": (lambda f: edit_captions(f, p9=["cat {} box"]), "names '9.png', which is not there: add"),
    "accents": (
        lambda f: ((f / "0.png").rename(f / "e\u0301.png"), edit_captions(f, **{"p\u00e9": ["cat {} box"]})),
        "names '\u00e9.png', which is not there: a picture's name differs from it by how accents are stored",
    ),
    "no slot": (lambda f: edit_captions(f, p0=["cat inside box"]), "'cat inside box' of 0.png has 0 '{}': write"),
    "two slots": (lambda f: edit_captions(f, p0=["cat {} {} box"]), "of 0.png has 2 '{}': write exactly one"),
    "braces": (lambda f: edit_captions(f, p0=["cat {} {box}"]), "has braces besides its '{}': remove them"),
    "one brace": (lambda f: edit_captions(f, p0=["cat {} {box"]), "has braces besides its '{}': remove them"),
    "another brace": (lambda f: edit_captions(f, p0=["cat {} box}"]), "has braces besides its '{}': remove them"),
    "long": (lambda f: edit_captions(f, p0=["cat " * 21 + "{} box"]), "takes 25 tokens, and the text encoder reads 2"),
    "half filled in": (lambda f: edit_captions(f, p0=["HEAD {} box"]), "'HEAD {} box' of 0.png is still to be filled"),
    "another token": (lambda f: edit_captions(f, p0=["cat {} <box>"]), "of 0.png names <box>, as prompts do"),
    "deep mask": (lambda f: _mask(f, "I;16"), "masks/0.png: its mode is I;16: save it in 8-bit grey."),
    "one mask for two": (
        lambda f: (_mask(f, "L"), _resave(f, lambda p: p, "3", "0", ".jpg")),
        "masks/0.png would be the mask of two pictures: rename one",
    ),
    "few": (lambda f: (f / "3.png").unlink(), "There are 3 pictures, and at least 4 are needed: add more."),
    "no captions": (lambda f: (f / "text.json").unlink(), "text.json' does not exist: write it, or fetch"),
    "broken captions": (lambda f: (f / "text.json").write_text("{"), "text.json' is not valid JSON"),
}

WARNINGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "turned": (_turn, "0.png: its EXIF orientation is 6 and is applied: save it upright"),
    "grey": (lambda f: _resave(f, lambda p: p.convert("L")), "0.png: its mode is L and is converted to RGB"),
    "transparent": (lambda f: _resave(f, lambda p: p.convert("RGBA")), "with transparency, which is laid on white"),
    "transparent mask": (lambda f: _mask(f, "RGBA"), "masks/0.png: what is transparent in it counts in full, as white"),
    "unread mask": (lambda f: _mask(f, "L", ".jpg"), "masks/0.jpg belongs to no picture: name it as its picture"),
    "long picture": (lambda f: _resave(f, lambda p: p.resize((64, 160))), "more than twice as long as wide"),
    "moving": (_animate, "0.png: it holds 2 frames and only the first is used: save that one alone"),
    "enlarged": (lambda f: _resave(f, lambda p: p.resize((48, 48))), "has 48 pixels and is enlarged to 64"),
    "brighter": (lambda f: _resave(f, lambda p: ImageEnhance.Brightness(p).enhance(0.99), "0", "1"),
                 "1.png is nearly the same picture as 0.png"),
    "resized": (lambda f: _resave(f, lambda p: p.resize((80, 80)), "0", "1"), "1.png is nearly the same picture"),
    "four levels brighter": (
        lambda f: [Image.new("RGB", (64, 64), (grey,) * 3).save(f / f"{n}.png") for n, grey in enumerate((9, 13))],
        "1.png is nearly the same picture as 0.png",
    ),
    "same colour in another shape": (
        lambda f: [Image.new("RGB", size).save(f / name) for name, size in (("0.png", (64, 80)), ("1.png", (80, 64)))],
        "1.png is nearly the same picture as 0.png",
    ),
    "same caption": (lambda f: edit_captions(f, p0=["cat {} box"] * 2), "0.png has the same caption twice"),
    "other file": (lambda f: (f / "notes.txt").write_text(""), "notes.txt is not a picture and is not used: remove"),
}  # fmt: skip


AT_A_LIMIT: dict[str, Callable[[Path], object]] = {
    "twice as long as wide": lambda f: _resave(f, lambda p: p.resize((64, 128))),
    "a caption of 24 tokens": lambda f: edit_captions(f, p0=["cat " * 20 + "{} box"]),
    "a mask of one bit": lambda f: _mask(f, "1"),
}


@pytest.mark.parametrize("change", AT_A_LIMIT.values(), ids=AT_A_LIMIT.keys())
def test_what_is_just_allowed_is_no_matter(folder: Path, change: Callable[[Path], object]) -> None:
    change(folder)
    verdict = judge(folder, SETTINGS.model_copy(update={"minimum_side": 64}))  # as many pixels as the pictures have
    assert verdict.errors == verdict.warnings == []


@pytest.mark.parametrize(("spoil", "sentence"), ERRORS.values(), ids=ERRORS.keys())
def test_fault_is_an_error(folder: Path, spoil: Callable[[Path], object], sentence: str) -> None:
    spoil(folder)
    verdict = judge(folder)
    assert not verdict.valid
    assert any(sentence in error for error in verdict.errors), verdict.errors


@pytest.mark.parametrize(("spoil", "sentence"), WARNINGS.values(), ids=WARNINGS.keys())
def test_oddity_is_a_warning(folder: Path, spoil: Callable[[Path], object], sentence: str) -> None:
    spoil(folder)
    verdict = judge(folder)
    assert verdict.valid, verdict.errors
    assert any(sentence in warning for warning in verdict.warnings), verdict.warnings


def test_a_copy_is_to_be_corrected_where_it_comes_from(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_captions(folder, p0=["cat box"])
    told = r"cannot be used\. They are copies: correct them "
    with pytest.raises(
        UserError, match=f"{told}where they come from, or in a copy of them in '{OWN / folder.name}', then"
    ):
        write_verdict(judge(folder), folder, tmp_path / "verdict.json")
    monkeypatch.chdir(tmp_path)
    (own := OWN / folder.name).mkdir(parents=True)
    with pytest.raises(UserError, match=f"{told}in '{own}', then fetch"):
        write_verdict(judge(folder), folder, tmp_path / "verdict.json")


def test_placeholders_are_found_as_prompts_are_read() -> None:
    assert validation.PLACEHOLDER == bases.PLACEHOLDER


def test_captions_may_begin_with_a_byte_order_mark(folder: Path) -> None:
    file = folder / "text.json"
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert judge(folder).errors == []


def test_hidden_files_are_no_matter(folder: Path) -> None:
    (folder / ".DS_Store").write_text("")
    (folder / "._0.png").write_text("what macOS writes beside each file on other disks")
    (folder / "masks").mkdir()
    (folder / "masks/.DS_Store").write_text("")
    assert judge(folder).warnings == judge(folder).errors == []


def test_missing_folder_is_an_error(tmp_path: Path) -> None:
    assert "does not exist: make it with `python -m stages.fetch none`." in judge(tmp_path / "none").errors[0]


def test_all_problems_are_listed_at_once_and_the_verdict_is_written(folder: Path, tmp_path: Path) -> None:
    edit_captions(folder, p0=["cat box"], p9=["cat {} box"])
    _truncate(folder)
    file = tmp_path / "verdict.json"
    with pytest.raises(UserError) as caught:
        write_verdict(judge(folder), folder, file)
    assert str(caught.value).count("\n  - ") == 3
    verdict = json.loads(file.read_text())
    assert not verdict["valid"]
    assert len(verdict["errors"]) == 3


def test_the_stage_compares_pictures_with_what_the_base_works_on(
    folder: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _resave(folder, lambda picture: picture.resize((48, 48)))
    monkeypatch.chdir(lay_out_checkout(tmp_path, tiny_base))
    apply_overrides(Path("params.yaml"), ["validate.minimum_side=32"])
    shutil.copytree(folder, "data/relations/inside")
    validate("inside")
    (warning,) = json.loads(Path("data/verdicts/inside.json").read_text())["warnings"]
    assert warning.startswith("0.png: its shorter side has 48 pixels and is enlarged to 64: ")


@pytest.mark.parametrize("relation", ["insde", "../inside"])
def test_a_relation_that_the_benchmark_does_not_have_leaves_no_verdict(relation: str) -> None:
    with pytest.raises(UserError, match=r"Unknown relation '.*insi?de'.*'inside'"):
        validate(relation)
    assert not (Path("data/verdicts") / f"{relation}.json").exists()
