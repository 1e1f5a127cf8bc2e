"""`relinv new`: the folder of a relation of one's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from PIL import Image

from relinv.benchmark import load_benchmark
from relinv.errors import UserError
from tests.checkouts import files_below, run
from tests.conftest import draw_exemplars
from tests.fetching import renamed_by_an_old_camera


def test_a_relation_of_ones_own_is_laid_out_and_says_what_is_left_to_do(checkout: Path) -> None:
    (checkout / "pictures").mkdir()
    draw_exemplars(checkout / "pictures")
    Image.new("L", (64, 64)).save(checkout / "pictures" / "4.png")
    for name in ("IMG_4.HEIC", "notes.txt", ".DS_Store"):
        (checkout / "pictures" / name).write_bytes(b"no picture that Pillow reads")
    (checkout / "pictures/albums").mkdir()
    (checkout / "pictures/text.json").unlink()
    printed = run("new", "leaning_on", "pictures")
    captions = checkout / "data/exemplars/own/leaning_on/text.json"
    assert json.loads(captions.read_text())["0.png"] == ["HEAD {} TAIL"]
    assert "holds 5 pictures, without albums, notes.txt. What is left to do:\n" in printed
    assert "  - IMG_4.HEIC: left out, because only .bmp, .jpeg, .jpg" in printed
    assert "DS_Store" not in printed
    assert "still to be filled in" in printed and "4.png: its mode is L" in printed
    assert "relation.yaml: say what stands between" in printed
    relation = load_benchmark(checkout / "data/benchmark/miniature.yaml", captions.parent).relation("leaning_on")
    assert '"HEAD leaning on TAIL"' in captions.with_name("relation.yaml").read_text()
    assert (relation.words, relation.heads, relation.tails, relation.own) == (
        "leaning on", ("cat", "dog"), ("box", "cup"), True
    )  # fmt: skip
    assert "relation.yaml" not in run("new", "inside", "pictures")  # the benchmark has it
    assert not (checkout / "data/exemplars/own/inside/relation.yaml").exists()
    with pytest.raises(UserError, match="exists already"):
        run("new", "leaning_on", "pictures")
    with pytest.raises(UserError, match="no folder 'nowhere'"):
        run("new", "hugging", "nowhere")
    with pytest.raises(UserError, match=r"holds no pictures that can be read .* beside benchmark, exemplars: put four"):
        run("new", "hugging", "data")


def test_captions_beside_the_pictures_are_taken_over(checkout: Path) -> None:
    (checkout / "pictures").mkdir()
    draw_exemplars(checkout / "pictures")
    given, own = checkout / "pictures/text.json", checkout / "data/exemplars/own"
    captions = json.loads(given.read_text())
    printed = run("new", "inside", "pictures")
    assert json.loads((own / "inside/text.json").read_text()) == captions
    assert "holds 4 pictures. What is left to do: nothing.\n" in printed
    given.write_text(json.dumps({"0.png": captions["0.png"], "9.png": ["cat {} box"]}))
    entry = "words: leans on\nasymmetric: true\nheads: [cat]\ntails: [box]\n"
    (checkout / "pictures/relation.yaml").write_text(entry.replace("asymmetric", "asymetric"))
    with pytest.raises(UserError, match=r"Unknown parameter 'asymetric'.*in pictures/relation\.yaml"):
        run("new", "leaning_on", "pictures")
    assert not (own / "leaning_on").exists()
    (checkout / "pictures/relation.yaml").write_text(entry)
    (checkout / "pictures/masks").mkdir()
    Image.new("L", (64, 64), 255).save(checkout / "pictures/masks/0.png")
    (checkout / "pictures/masks/1.png").symlink_to("gone.png")
    printed = run("new", "leaning_on", "pictures")
    assert json.loads((own / "leaning_on/text.json").read_text())["1.png"] == ["HEAD {} TAIL"]
    assert "text.json names '9.png', which is not there" in printed and "of 0.png" not in printed
    assert (own / "leaning_on/relation.yaml").read_text() == entry and "say what stands" not in printed
    assert [path.name for path in (own / "leaning_on/masks").iterdir()] == ["0.png"] and "without" not in printed
    shutil.rmtree(own / "inside")
    assert "holds 4 pictures, without relation.yaml. " in run("new", "inside", "pictures")  # the benchmark has one
    assert not (own / "inside/relation.yaml").exists()
    for text, reason in ("{", r"'pictures/text\.json' is not valid JSON"), ('["cat"]', r"pictures/text\.json must map"):
        given.write_text(text)
        with pytest.raises(UserError, match=reason):
            run("new", "kissing", "pictures")
    assert not (own / "kissing").exists()


def test_pictures_under_a_name_that_is_not_utf8_are_not_laid_out(checkout: Path) -> None:
    (checkout / "pictures").mkdir()
    renamed_by_an_old_camera(draw_exemplars(checkout / "pictures") / "0.png")
    with pytest.raises(UserError, match=r"'pictures' holds a name that is not UTF-8, 'caf\\udce9\.png': rename that"):
        run("new", "kissing", "pictures")


def test_nothing_is_laid_out_where_the_captions_could_not_be_counted(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "pictures").mkdir()
    draw_exemplars(checkout / "pictures")
    monkeypatch.setattr("relinv.commands.relations.base_tokenizer", MagicMock(side_effect=UserError("no tokenizer")))
    with pytest.raises(UserError, match="no tokenizer"):
        run("new", "kissing", "pictures")
    assert not (checkout / "data/exemplars/own/kissing").exists()


@pytest.mark.parametrize(
    "name",
    ["../../evil", "Kissing People", "kissing-people", "kissing\n", "", "x" * 300, "2022", "true", "1e3", "null"],
)
def test_a_relation_that_params_cannot_name_is_not_laid_out(name: str, checkout: Path) -> None:
    (checkout / "pictures").mkdir()
    draw_exemplars(checkout / "pictures")
    before = files_below(checkout)
    with pytest.raises(UserError, match=r"cannot name a relation: (write up to 100 of a to|YAML takes it)"):
        run("new", name, "pictures")
    assert files_below(checkout) == before
