"""Exemplars from every source, or placed by hand: whole, held to checksums once recorded, refused in sentences."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides
from PIL import Image
from typer.testing import CliRunner

from relinv.errors import UserError
from relinv.exemplars import read_captions, read_exemplars
from relinv.fetching.fetch import _discard, fetch_exemplars, place_exemplars
from relinv.fetching.relation_folders import copy_files, relation_folder
from relinv.plugins import plugin_names
from relinv.settings import ExemplarSettings
from relinv.world.scene import BACKGROUNDS
from stages.fetch import app
from stages.fetch import fetch as fetch_stage
from stages.validate import validate as validate_stage
from tests.checkouts import lay_out_checkout
from tests.conftest import draw_exemplars
from tests.fetching import (
    SETTINGS,
    Hub,
    Server,
    fetch,
    fingerprint,
    from_,
    masked,
    renamed_by_an_old_camera,
    varied,
    zipped,
)


@pytest.fixture(autouse=True)
def _placed_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relinv.fetching.fetch.PLACED", tmp_path / "exemplars" / "placed")


def test_placed_folder_is_copied_as_it_is(exemplar_folder: Path, tmp_path: Path) -> None:
    assert fingerprint(fetch(from_("folder", exemplar_folder.parent), tmp_path)) == fingerprint(exemplar_folder)


def test_of_several_folders_of_the_relation_the_shallowest_is_taken(exemplar_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(varied(exemplar_folder, tmp_path), tmp_path / "given" / "a" / "backup" / "inside")
    shutil.copytree(exemplar_folder, tmp_path / "given" / "b" / "inside")
    assert fingerprint(fetch(from_("folder", tmp_path / "given"), tmp_path)) == fingerprint(exemplar_folder)


def test_of_two_folders_of_the_relation_neither_is_chosen(exemplar_folder: Path, tmp_path: Path) -> None:
    given = tmp_path / "given"
    for name in ("a", "b"):
        shutil.copytree(exemplar_folder, given / name / "inside")
    assert fingerprint(fetch(from_("folder", given), tmp_path)) == fingerprint(exemplar_folder)  # they are the same
    (given / "b/inside/0.png").write_bytes((given / "b/inside/1.png").read_bytes())
    with pytest.raises(
        UserError, match=rf"'{given}/a/inside' and '{given}/b/inside' of 'inside' differ: leave only one"
    ):
        fetch(from_("folder", given), tmp_path)


def test_captions_of_pictures_elsewhere_are_told(exemplar_folder: Path, tmp_path: Path) -> None:
    given = Path(shutil.copytree(exemplar_folder, tmp_path / "given" / "inside"))
    captions = json.loads((given / "text.json").read_text())
    (given / "text.json").write_text(json.dumps({"../inside/0.png": captions.pop("0.png"), **captions}))
    with pytest.raises(UserError, match=r"text\.json names '\.\./inside/0\.png', and not by its name alone"):
        read_captions(given)


def test_absent_folder_says_where_to_place_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no exemplars of 'inside': place its pictures and text\.json in '.*inside'"):
        fetch(from_("folder", tmp_path), tmp_path)
    assert not (tmp_path / "data" / "inside").exists()


@pytest.mark.parametrize("place", [".", "masks"])
def test_a_name_that_is_not_utf8_is_refused_before_anything_is_copied(
    place: str, exemplar_folder: Path, tmp_path: Path
) -> None:
    given, target = masked(exemplar_folder, tmp_path), tmp_path / "copied"
    renamed_by_an_old_camera(given / place / "0.png")
    target.mkdir()
    with pytest.raises(
        UserError, match=r"inside' holds a name that is not UTF-8, 'caf\\udce9\.png': rename that file\."
    ):
        copy_files(given, target)
    assert list(target.iterdir()) == []


def test_captions_that_name_a_picture_in_no_utf8_are_refused(exemplar_folder: Path, tmp_path: Path) -> None:
    given = Path(shutil.copytree(exemplar_folder, tmp_path / "given" / "inside"))
    captions = (given / "text.json").read_text().replace("0.png", "caf\\udce9.png")  # as Python's json writes it
    (given / "text.json").write_text(captions)
    with pytest.raises(
        UserError, match=r"lays them out\. The caption file 'text\.json' .* holds a value that cannot be"
    ):
        fetch(from_("folder", given.parent), tmp_path)


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_what_windows_leaves_in_folders_is_no_file_of_a_relation(
    kind: str, exemplar_folder: Path, tmp_path: Path
) -> None:
    given = masked(exemplar_folder, tmp_path)
    for name in ("Thumbs.db", "desktop.ini", "masks/Thumbs.db"):
        (given / name).write_bytes(b"x")
    path = given.parent if kind == "folder" else zipped(given, tmp_path / "made.zip")
    folder = fetch(from_(kind, path, tmp_path / "manifest"), tmp_path)
    pictures = {path.name for path in exemplar_folder.iterdir()}
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")} == {*pictures, "masks/0.png"}
    assert set(json.loads((tmp_path / "manifest" / "inside.json").read_text())) == {*pictures, "masks/0.png"}


@pytest.mark.parametrize("kind", ["folder", "archive", "drive", "hub"])
def test_a_source_without_a_path_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"source '{kind}' but no path"):
        fetch(from_(kind, None), tmp_path)


def test_unknown_source_is_answered_with_the_closest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'folder'"):
        fetch(from_("foldr", tmp_path), tmp_path)


@pytest.mark.parametrize("exemplar_set", ["shared", "varied"])
def test_world_renders_ten_pictures_alike_each_time(tmp_path: Path, exemplar_set: str) -> None:
    settings = ExemplarSettings.model_validate({"set": exemplar_set, "seed": 0, "count": None})
    for name in ("first", "second"):
        fetch_exemplars("inside", tmp_path / name / "inside", from_("world", None), settings, tmp_path)
    first, second = (read_exemplars(tmp_path / name / "inside") for name in ("first", "second"))
    assert len(first.exemplars) == 10
    assert first.fingerprint == second.fingerprint


def test_the_world_renders_the_set_that_the_parameters_name(tmp_path: Path) -> None:
    named = {}
    for exemplar_set in ("shared", "varied"):
        settings = ExemplarSettings.model_validate({"set": exemplar_set, "seed": 0, "count": None})
        fetch_exemplars("inside", tmp_path / exemplar_set / "inside", from_("world", None), settings, tmp_path)
        named[exemplar_set] = (tmp_path / exemplar_set / "inside/text.json").read_text().count(BACKGROUNDS["beach"])
    assert named["shared"] == 0 < named["varied"]


@pytest.mark.parametrize(("kind", "name"), [("world", "inside"), ("objects", "koala")])
def test_another_seed_renders_other_exemplars(kind: str, name: str, tmp_path: Path) -> None:
    for seed in (0, 1):
        settings = ExemplarSettings(set="shared", seed=seed, count=None)
        fetch_exemplars(name, tmp_path / str(seed) / name, from_(kind, None), settings, tmp_path)
    assert fingerprint(tmp_path / "0" / name) != fingerprint(tmp_path / "1" / name)


def test_checksums_are_recorded_once_and_kept_to(server: Server, exemplar_folder: Path, tmp_path: Path) -> None:
    source = from_("archive", f"{server.address}/benchmark.zip", tmp_path / "manifest")
    fetch(source, tmp_path)
    record = tmp_path / "manifest" / "inside.json"
    sums = json.loads(record.read_text())
    assert set(sums) == {path.name for path in exemplar_folder.iterdir()}
    record.write_text(json.dumps({**sums, "text.json": "0" * 64}))
    before = record.read_text()
    asked = len(server.asked)
    with pytest.raises(UserError, match=r"not those on record in '.*inside\.json': text\.json"):
        fetch(source, tmp_path)
    assert record.read_text() == before
    record.write_text("[]")
    with pytest.raises(UserError, match=r"in .*inside\.json: it must be a section of named values"):
        fetch(source, tmp_path)
    record.write_text(json.dumps(sums))
    fetch(source, tmp_path)
    assert len(server.asked) == asked + 1  # what was wrong is not kept


def test_a_download_with_a_picture_that_cannot_be_read_is_not_recorded(
    server: Server, exemplar_folder: Path, tmp_path: Path
) -> None:
    good, broken = server.content, masked(exemplar_folder, tmp_path)
    for name in ("1.png", "masks/0.png"):
        (broken / name).write_bytes(b"<html>Too many requests</html>")
    server.content = zipped(broken, tmp_path / "broken.zip").read_bytes()
    source = from_("archive", f"{server.address}/benchmark.zip", tmp_path / "manifest")
    damaged = r"exemplars of 'inside' are damaged: masks/0\.png \(unreadable\), 1\.png \(unreadable\)\. "
    with pytest.raises(UserError, match=f"{damaged}Fetch them again"):
        fetch(source, tmp_path)
    with pytest.raises(UserError, match=f"{damaged}Place the right ones"):
        place_exemplars("inside", broken, source, tmp_path / "scratch")
    assert not (tmp_path / "manifest").exists()
    server.content = good
    assert fingerprint(fetch(source, tmp_path)) == fingerprint(exemplar_folder)  # asked for again
    assert (tmp_path / "manifest" / "inside.json").is_file()


def test_a_download_that_is_off_the_record_counts_as_none(exemplar_folder: Path, tmp_path: Path) -> None:
    """Whatever is wrong with it, be it a file that no caption names."""
    shutil.copytree(exemplar_folder, tmp_path / "relations/inside")
    assert relation_folder(tmp_path, "inside") == tmp_path / "relations/inside"
    _discard("inside", tmp_path, {"masks/0.png": "changed"})
    assert relation_folder(tmp_path, "inside") is None


def test_an_archive_of_relations_that_are_fetched_in_parallel_is_downloaded_once(
    server: Server, exemplar_folder: Path, tmp_path: Path
) -> None:
    source = from_("archive", f"{server.address}/benchmark.zip")
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda name: fetch(source, tmp_path / name, tmp_path / "scratch"), ("one", "two")))
    assert [fingerprint(folder) for folder in folders] == [fingerprint(exemplar_folder)] * 2
    assert len(server.asked) == 1


def test_masks_are_unpacked_and_held_to_the_checksums(server: Server, exemplar_folder: Path, tmp_path: Path) -> None:
    given = masked(exemplar_folder, tmp_path)
    server.content = zipped(given, tmp_path / "masked.zip").read_bytes()
    source = from_("archive", f"{server.address}/benchmark.zip", tmp_path / "manifest")
    folder = fetch(source, tmp_path)
    assert fingerprint(folder) == fingerprint(given) != fingerprint(exemplar_folder)
    assert [path.name for path in (folder / "masks").iterdir()] == ["0.png"]
    record = tmp_path / "manifest" / "inside.json"
    assert set(json.loads(record.read_text())) == {path.name for path in exemplar_folder.iterdir()} | {"masks/0.png"}
    placed = masked(exemplar_folder, tmp_path / "other")
    Image.new("L", (64, 64), 100).save(placed / "masks" / "0.png")
    with pytest.raises(UserError, match=r"not those on record in '.*inside\.json': masks/0\.png \(changed\)\. "):
        place_exemplars("inside", placed, source, tmp_path / "scratch")
    assert fingerprint(fetch(source, tmp_path)) == fingerprint(given)  # what was wrong is not kept


def test_zips_of_a_folder_as_a_browser_gets_it_from_drive_are_placed(exemplar_folder: Path, tmp_path: Path) -> None:
    downloads, source = tmp_path / "Downloads", from_("folder", tmp_path / "nowhere")
    downloads.mkdir()
    given = masked(exemplar_folder, tmp_path)
    (downloads / "inside_out.zip").write_bytes(b"of another kind")
    (downloads / "._inside-20251125T101112Z-001.zip").write_bytes(b"what macOS writes beside it on other disks")
    part = Path(shutil.copytree(given, tmp_path / "part" / "inside"))
    (part / "text.json").unlink()
    zipped(part, downloads / "inside-20251125T101112Z-001.zip", top="")
    with pytest.raises(
        UserError,
        match=r"nor a zip of it .*: complete it\. In inside-.*\.zip: It has no text\.json\.",
    ) as caught:
        place_exemplars("inside", downloads, source, tmp_path / "scratch")
    assert "inside_out.zip' is damaged" in str(caught.value) and "._inside" not in str(caught.value)
    with zipfile.ZipFile(downloads / "inside-20251125T101112Z-002.zip", "w") as opened:
        opened.write(given / "text.json", "inside/text.json")
    place_exemplars("inside", downloads, source, tmp_path / "scratch")
    assert fingerprint(fetch(source, tmp_path)) == fingerprint(given)


def test_a_zip_of_the_relation_comes_before_others_and_the_latest_before_older(
    exemplar_folder: Path, tmp_path: Path
) -> None:
    downloads, source = tmp_path / "Downloads", from_("folder", tmp_path / "nowhere")
    downloads.mkdir()
    other = varied(exemplar_folder, tmp_path)
    zipped(other, downloads / "reversion_benchmark_v1-20251126T101112Z-1-001.zip", top="reversion_benchmark_v1/")
    (downloads / "inside-20251127T101112Z-001.zip").write_bytes(b"broken off")
    place_exemplars("inside", downloads, source, tmp_path / "scratch")
    assert fingerprint(fetch(source, tmp_path)) == fingerprint(other)
    zipped(other, downloads / "inside-20251124T101112Z-001.zip", top="")
    zipped(exemplar_folder, downloads / "inside-20251125T101112Z-001.zip", top="")
    place_exemplars("inside", downloads, source, tmp_path / "scratch")
    assert fingerprint(fetch(source, tmp_path)) == fingerprint(exemplar_folder)


def test_a_zip_is_placed_by_its_own_name(exemplar_folder: Path, tmp_path: Path) -> None:
    source = from_("folder", tmp_path / "nowhere")
    archive = zipped(exemplar_folder, tmp_path / "any name.zip")
    place_exemplars("inside", archive, source, tmp_path / "scratch")
    assert fingerprint(fetch(source, tmp_path)) == fingerprint(exemplar_folder)
    with pytest.raises(UserError, match=r"any name\.zip' holds no folder 'hug' with a text\.json"):
        place_exemplars("hug", archive, source, tmp_path / "scratch")
    with pytest.raises(UserError, match=r"^'.*none\.zip' does not exist: name the folder of 'inside'"):
        place_exemplars("inside", tmp_path / "none.zip", source, tmp_path / "scratch")


@pytest.mark.parametrize("kind", plugin_names("relinv.sources"))
def test_files_placed_by_hand_take_the_place_of_any_source(kind: str, exemplar_folder: Path, tmp_path: Path) -> None:
    source = from_(kind, None if kind in {"world", "objects"} else tmp_path / "nowhere")
    place_exemplars("inside", exemplar_folder.parent, source, tmp_path / "scratch")
    assert fingerprint(fetch(source, tmp_path)) == fingerprint(exemplar_folder)
    with pytest.raises(UserError, match="holds no folder 'hug'"):
        place_exemplars("hug", exemplar_folder, source, tmp_path / "scratch")


def test_files_placed_by_hand_win_over_a_source_that_has_the_relation(
    server: Server, exemplar_folder: Path, tmp_path: Path
) -> None:
    source = from_("archive", f"{server.address}/benchmark.zip", tmp_path / "manifest")
    before = fingerprint(fetch(source, tmp_path))
    placed = varied(exemplar_folder, tmp_path)
    with pytest.raises(
        UserError, match=r"not those on record in '.*inside\.json': 0\.png \(changed\)\. Place the right"
    ):
        place_exemplars("inside", placed, source, tmp_path / "scratch")  # held to the checksums as a download is
    record = (tmp_path / "manifest" / "inside.json").rename(tmp_path / "inside.json")
    place_exemplars("inside", placed, source, tmp_path / "scratch")
    assert fingerprint(fetch(source, tmp_path)) == fingerprint(placed) != before
    record.rename(tmp_path / "manifest" / "inside.json")
    for _ in range(2):  # they stay until a person removes them
        with pytest.raises(
            UserError, match=r"0\.png \(changed\)\. Place the right ones, or remove '.*placed/\w+/inside'"
        ):
            fetch(source, tmp_path)
    shutil.rmtree(tmp_path / "exemplars" / "placed")
    assert fingerprint(fetch(source, tmp_path)) == before


def test_what_is_placed_with_a_relation_yaml_is_on_record_without_it(exemplar_folder: Path, tmp_path: Path) -> None:
    given = Path(shutil.copytree(exemplar_folder, tmp_path / "given" / "inside"))
    (given / "relation.yaml").write_text("words: within\nasymmetric: true\nheads: [cat]\ntails: [dog]\n")
    names = [path.name for path in exemplar_folder.iterdir()]
    source = from_("archive", tmp_path / "nowhere", tmp_path / "manifest")
    for _ in range(2):  # the second time, held to the record that the first made
        place_exemplars("inside", given, source, tmp_path / "scratch")
        assert sorted(json.loads((tmp_path / "manifest/inside.json").read_text())) == sorted(names)
        assert fingerprint(fetch(source, tmp_path)) == fingerprint(exemplar_folder)


def test_what_is_fetched_with_a_relation_yaml_is_on_record_without_it(exemplar_folder: Path, tmp_path: Path) -> None:
    given = Path(shutil.copytree(exemplar_folder, tmp_path / "given" / "inside"))
    (given / "relation.yaml").write_text("words: within\nasymmetric: true\nheads: [cat]\ntails: [dog]\n")
    folder = fetch(from_("folder", given.parent, tmp_path / "manifest"), tmp_path)
    names = sorted(path.name for path in exemplar_folder.iterdir())
    assert sorted(path.name for path in folder.iterdir()) == names
    assert sorted(json.loads((tmp_path / "manifest/inside.json").read_text())) == names


def test_what_was_placed_and_is_no_longer_whole_is_told_and_not_replaced_by_the_source(
    exemplar_folder: Path, tmp_path: Path
) -> None:
    source = from_("folder", exemplar_folder.parent)
    place_exemplars("inside", exemplar_folder, source, tmp_path / "scratch")
    (placed,) = (tmp_path / "exemplars" / "placed").glob("*/inside")
    (placed / "2.png").unlink()
    with pytest.raises(UserError, match=rf"^'{placed}' is incomplete: complete it, or remove it\. .*2\.png"):
        fetch(source, tmp_path)


def test_files_that_are_not_as_recorded_are_told_apart(exemplar_folder: Path, tmp_path: Path) -> None:
    given = varied(exemplar_folder, tmp_path)
    source = from_("folder", given.parent, tmp_path / "manifest")
    fetch(from_("folder", exemplar_folder.parent, tmp_path / "manifest"), tmp_path)
    record = tmp_path / "manifest" / "inside.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "9.png": "0" * 64}))
    (given / "notes.txt").write_text("mine")
    with pytest.raises(UserError) as caught:
        fetch(source, tmp_path)
    assert str(caught.value) == (
        f"The exemplars of 'inside' are not those on record in '{record}': 0.png (changed), 9.png (missing), notes.txt "
        "(extra). Fetch them again, or set right where they come from; if that is on purpose, delete "
        f"'{record}' and run this again."
    )


@pytest.mark.parametrize("relation", ["kissing", "inside"])
def test_a_relation_of_ones_own_comes_before_the_source_and_is_valid(
    relation: str, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lay_out_checkout(tmp_path, tiny_base))
    own = Path("data/exemplars/own") / relation
    own.mkdir(parents=True)
    draw_exemplars(own)
    if relation == "kissing":  # the benchmark lacks it
        with pytest.raises(UserError, match="Unknown relation 'kissing'"):
            fetch_stage(relation)
        (own / "relation.yaml").write_text("words: kissing\nasymmetric: true\nheads: [cat]\ntails: [dog]\n")
    apply_overrides(Path("params.yaml"), [f"relations=[{relation}]"])  # which is checked before anything is fetched
    with pytest.raises(UserError, match=rf"^'data/exemplars/own/{relation}' comes before anything that is placed"):
        fetch_stage(relation, own.parent)
    fetch_stage(relation)
    validate_stage(relation)
    assert fingerprint(Path("data/relations") / relation) == fingerprint(own)
    verdict = json.loads(Path(f"data/verdicts/{relation}.json").read_text())
    assert (verdict["valid"], verdict["images"], verdict["warnings"]) == (True, 4, [])


@pytest.mark.parametrize("own", [False, True])
def test_so_many_exemplars_are_kept_as_the_parameters_count(
    own: bool, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = masked(exemplar_folder, tmp_path)
    if own:
        monkeypatch.setattr("relinv.fetching.fetch.OWN", whole.parent)
    source, record = from_("folder", whole.parent, tmp_path / "manifests"), tmp_path / "manifests" / "inside.json"
    kept = {}
    for count in (1, 3, 9, None):
        settings = SETTINGS.model_copy(update={"count": count})
        fetch_exemplars("inside", tmp_path / "kept", source, settings, tmp_path / "scratch")
        kept[count] = read_exemplars(tmp_path / "kept")
        names = [exemplar.path.name for exemplar in kept[count].exemplars]
        assert sorted(path.name for path in (tmp_path / "kept").glob("*.png")) == names
    every = read_exemplars(whole)
    assert [len(some.exemplars) for some in kept.values()] == [1, 3, 4, 4]
    for some in kept.values():
        assert [one.templates for one in some.exemplars] == [one.templates for one in every.exemplars][
            : len(some.exemplars)
        ]
    assert kept[None].fingerprint == kept[9].fingerprint == every.fingerprint
    assert own or "3.png" in json.loads(record.read_text())  # what is recorded is what the source has


@pytest.mark.parametrize("name", ["{root}/mine.txt", "../mine.txt"])
def test_a_strangers_captions_remove_nothing_outside_the_folder(
    name: str, exemplar_folder: Path, tmp_path: Path
) -> None:
    given = Path(shutil.copytree(exemplar_folder, tmp_path / "given" / "inside"))
    captions = json.loads((given / "text.json").read_text())
    for mine in (tmp_path / "mine.txt", given.parent / "mine.txt", tmp_path / "data" / "mine.txt"):
        mine.parent.mkdir(exist_ok=True)
        mine.write_text("mine")
    captions[name.format(root=tmp_path)] = ["cat {} box"]
    (given / "text.json").write_text(json.dumps(captions))
    settings = SETTINGS.model_copy(update={"count": 2})
    with suppress(UserError):
        fetch_exemplars("inside", tmp_path / "data" / "inside", from_("folder", given.parent), settings, tmp_path)
    assert len(list(tmp_path.rglob("mine.txt"))) == 3


def test_a_flawed_folder_of_ones_own_is_left_to_validation(
    exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path(shutil.copytree(exemplar_folder, tmp_path / "own" / "inside"))
    (own / "text.json").unlink()
    monkeypatch.setattr("relinv.fetching.fetch.OWN", own.parent)
    settings = SETTINGS.model_copy(update={"count": 2})
    fetch_exemplars("inside", tmp_path / "kept", from_("folder", None), settings, tmp_path)
    assert len(list((tmp_path / "kept").glob("*.png"))) == 4


@pytest.mark.parametrize("linked", ["own", "inside", "masks"])
def test_a_link_of_ones_own_whose_changes_dvc_would_not_see_is_refused(
    linked: str, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, own = masked(exemplar_folder, tmp_path), tmp_path / "own"
    place, folder = {"own": (own, real.parent), "inside": (own / "inside", real),
                     "masks": (own / "inside" / "masks", real / "masks")}[linked]  # fmt: skip
    shutil.copytree(real.parent, own)
    shutil.rmtree(place)
    place.symlink_to(folder)
    monkeypatch.setattr("relinv.fetching.fetch.OWN", own)
    with pytest.raises(UserError, match=rf"'{place}' is a link: put the folder itself in its place"):
        fetch_exemplars("inside", tmp_path / "kept", from_("folder", None), SETTINGS, tmp_path)


def test_a_mask_goes_with_its_picture(exemplar_folder: Path, tmp_path: Path) -> None:
    whole = masked(exemplar_folder, tmp_path)
    (whole / "masks" / "0.png").rename(whole / "masks" / "2.png")
    source = from_("folder", whole.parent)
    for count, masks in ((3, ["2.png"]), (2, [])):
        settings = SETTINGS.model_copy(update={"count": count})
        fetch_exemplars("inside", tmp_path / "kept", source, settings, tmp_path / "scratch")
        assert [path.name for path in (tmp_path / "kept" / "masks").glob("*")] == masks


def test_what_another_source_says_of_a_relations_grid_is_left_out(
    exemplar_folder: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lay_out_checkout(tmp_path, tiny_base))
    given = Path(shutil.copytree(exemplar_folder, tmp_path / "given" / "inside"))
    (given / "relation.yaml").write_text("words: within\nasymmetric: true\nheads: [cat]\ntails: [dog]\n")
    fetch_stage("inside", given)
    validate_stage("inside")  # which would else find the relation in two places
    assert fingerprint(Path("data/relations/inside")) == fingerprint(exemplar_folder)


def test_files_placed_by_hand_outlive_the_scratch_folder(
    exemplar_folder: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lay_out_checkout(tmp_path, tiny_base))
    fetch_stage("inside", exemplar_folder)
    shutil.rmtree(".scratch")
    fetch_stage("inside")
    assert fingerprint(Path("data/relations/inside")) == fingerprint(exemplar_folder)


def test_an_empty_path_is_not_the_folder_of_files_placed_by_hand(
    exemplar_folder: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lay_out_checkout(tmp_path, tiny_base))
    shutil.copytree(exemplar_folder, "data/relations/inside")
    with pytest.raises(UserError, match="A path is empty"):
        CliRunner().invoke(app, ["inside", "--from", ""], catch_exceptions=False)
    assert not (tmp_path / "exemplars/placed").exists()


@pytest.fixture
def hub(exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in for the hub, which its client asks: someone/relations has `inside`, with a mask, in data/."""
    shutil.copytree(masked(exemplar_folder, tmp_path), tmp_path / "hub" / "data" / "inside")
    running = Hub(tmp_path / "hub")
    for name, value in {
        "HF_HUB_OFFLINE": False,
        "ENDPOINT": running.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": running.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    yield running
    running.http.shutdown()
    running.http.server_close()


HUB = from_("hub", "someone/relations@v1")


def test_a_dataset_of_the_hub_is_fetched_relation_by_relation(hub: Hub, exemplar_folder: Path, tmp_path: Path) -> None:
    given = hub.folder / "data" / "inside"
    hub.refused, hub.status = "masks", 404
    with pytest.raises(UserError, match="The dataset 'someone/relations@v1' cannot be downloaded"):
        fetch(HUB, tmp_path)
    hub.refused = "nothing"
    assert fingerprint(fetch(HUB, tmp_path)) == fingerprint(given)
    hub.refused = "/"  # it is not asked again
    fetch(HUB, tmp_path)
    place_exemplars("inside", varied(exemplar_folder, tmp_path), HUB, tmp_path / "scratch")
    assert fingerprint(fetch(HUB, tmp_path)) not in (fingerprint(given), fingerprint(exemplar_folder))


def test_of_a_dataset_the_relations_own_files_alone_are_downloaded(hub: Hub, tmp_path: Path) -> None:
    shutil.copytree(hub.folder / "data/inside", hub.folder / "data/hug")
    fetch(HUB, tmp_path)
    assert list((tmp_path / "scratch").rglob("inside")) and not list((tmp_path / "scratch").rglob("hug"))


def test_of_a_dataset_no_revision_but_the_one_that_is_named_is_asked_for(hub: Hub, tmp_path: Path) -> None:
    hub.refused = "/main"
    assert fingerprint(fetch(HUB, tmp_path)) == fingerprint(hub.folder / "data/inside")


def test_a_dataset_that_changes_between_two_tries_is_of_one_commit(hub: Hub, tmp_path: Path) -> None:
    hub.refused = "text.json"
    with pytest.raises(UserError, match="cannot be downloaded"):
        fetch(HUB, tmp_path)  # the pictures and the mask are here by then
    hub.refused, hub.commit = "nothing", "decade" + "0" * 34
    shutil.rmtree(hub.folder / "data/inside/masks")
    assert fingerprint(fetch(HUB, tmp_path)) == fingerprint(hub.folder / "data/inside")


def test_a_listing_that_the_hub_refuses_is_no_dataset_without_the_relation(hub: Hub, tmp_path: Path) -> None:
    hub.refused = "/resolve/"
    with pytest.raises(UserError, match="cannot be downloaded"):
        fetch(HUB, tmp_path)  # which leaves files of the client's own
    hub.refused, hub.status, hub.commit = "/tree/", 403, "decade" + "0" * 34
    with pytest.raises(UserError, match=r"cannot be downloaded from the hub: .*403"):
        fetch(HUB, tmp_path)


def test_a_dataset_without_the_relation_is_named(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset 'someone/relations@v1' has no folder 'hug' with a text\.json"):
        fetch_exemplars("hug", tmp_path / "hug", HUB, SETTINGS, tmp_path)


@pytest.mark.parametrize(
    ("refused", "code", "reason"),
    [
        ("/api/", "RepoNotFound", "no repository has that name, or it is private; correct the name, or log in"),
        ("/revision/v1", "RevisionNotFound", "there is no such revision; correct the revision"),
        (
            "/resolve/",
            "GatedRepo",
            "the repository is gated; accept its licence at https://huggingface.co/datasets/someone/",
        ),
    ],
)
def test_what_the_hub_refuses_is_told_as_it_is(refused: str, code: str, reason: str, hub: Hub, tmp_path: Path) -> None:
    hub.refused, hub.code = refused, code
    told = f"^The dataset 'someone/relations@v1' cannot be downloaded from the hub: {reason}"
    with pytest.raises(UserError, match=told):
        fetch(HUB, tmp_path)


def test_a_hub_out_of_reach_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'someone/relations@v1' cannot be downloaded .*offline mode is enabled"):
        fetch(HUB, tmp_path)
