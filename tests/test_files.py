"""Files appear whole or not at all, and hash by content alone."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from relinv import files
from relinv.errors import UserError


def test_text_is_written_with_its_folder(tmp_path: Path) -> None:
    files.atomic_write_text(tmp_path / "a" / "b.txt", "é\n")
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"\xc3\xa9\n"


def test_a_name_that_is_not_utf8_is_refused_in_a_sentence() -> None:
    with pytest.raises(
        UserError, match=r"^'there' holds a name that is not UTF-8, 'caf\\udce9\.png': rename that file"
    ):
        files.require_utf8("caf\udce9.png", "'there'")
    files.require_utf8("café.png", "'there'")


def test_half_a_character_in_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text('{"0.png": ["caf\\ud83d {} box"]}')
    with pytest.raises(UserError, match=r"text\.json' nests too deeply, or holds a value that cannot be read"):
        files.read_json(tmp_path / "text.json")
    (tmp_path / "text.json").write_text('{"0.png": ["\\ud83d\\ude00 {} box"]}')  # both halves of one
    assert files.read_json(tmp_path / "text.json") == {"0.png": ["\U0001f600 {} box"]}


def test_a_name_that_stands_twice_in_json_is_refused_for_one_value_would_be_lost(tmp_path: Path) -> None:
    text = '{"0.png": ["cat {} box"], "1.png": ["dog {} box"], "1.png": ["dog {} red box"]}'
    with pytest.raises(UserError, match=r"^The caption file '.*t\.json' holds '1\.png' twice: join the two, or "):
        files.read_json(_write(tmp_path / "t.json", text), "caption file")
    with pytest.raises(UserError, match="holds 'b' twice"):
        files.read_json(_write(tmp_path / "t.json", '[{"a": {"b": 1, "b": 1}}]'))


def test_a_path_that_no_file_can_have_is_refused() -> None:
    with pytest.raises(UserError, match=r"^The benchmark has a path that no file can have, 'a\\x00b': correct it\.$"):
        files.read_text(Path("a\0b"), "benchmark")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="only Linux has such a folder")
@pytest.mark.parametrize("write", [files.atomic_file, files.atomic_folder])
def test_a_place_where_no_folder_can_be_made_is_refused(write: Callable[[Path], Any]) -> None:
    with (
        pytest.raises(UserError, match=r"^No folder can be made as '/proc/x': name another place\.$"),
        write(Path("/proc/x/y")),
    ):
        pass


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr("os.fsync", lambda number: done.append(f"sync {os.fstat(number).st_size}"))
    replace = os.replace
    monkeypatch.setattr("os.replace", lambda old, new: done.append("rename") or replace(old, new))
    files.atomic_write_bytes(tmp_path / "file", b"content")
    assert done == ["sync 7", "rename"]


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "result.txt"
    target.write_text("old")
    with pytest.raises(OSError, match="No space") as caught, files.atomic_file(target) as stream:
        stream.write(b"n")
        raise OSError(errno.ENOSPC, "No space left on device")  # write() names no file
    assert caught.value.filename == str(target)
    assert [path.name for path in tmp_path.iterdir()] == ["result.txt"]
    assert target.read_text() == "old"


def test_two_writers_of_one_file_do_not_get_in_each_others_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "result.txt"
    with files.atomic_file(target) as stream:
        stream.write(b"first")
        with monkeypatch.context() as patch:
            patch.setattr("os.getpid", lambda: 0)  # another process
            files.atomic_write_text(target, "second")
        assert target.read_text() == "second"
    assert target.read_text() == "first"


def test_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "stale.txt").write_text("stale")
    with files.atomic_folder(target) as folder:
        (folder / "new.txt").write_text("new")
    assert [path.name for path in target.iterdir()] == ["new.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "usual").mkdir()
    assert target.stat().st_mode == (tmp_path / "usual").stat().st_mode  # others of the group may read it as usual


def test_failed_folder_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "kept.txt").write_text("kept")
    with pytest.raises(ZeroDivisionError), files.atomic_folder(target) as folder:
        (folder / "half.txt").write_text("half")
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "kept.txt"]


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "kept.txt").write_text("kept")
    replace = os.replace

    def refuse(source: Path, place: Path) -> None:
        if source.name == "new":
            raise OSError("the disk is gone")
        replace(source, place)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="the disk is gone"), files.atomic_folder(target):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "kept.txt"]


def test_hashes_follow_names_and_bytes(tmp_path: Path) -> None:
    assert files.sha256_file(_write(tmp_path / "x", "abc")).startswith("ba7816bf8f01cfea")
    first = files.sha256_folder(tmp_path)
    (tmp_path / "x").rename(tmp_path / "y")
    assert files.sha256_folder(tmp_path) != first
    (tmp_path / "y").rename(tmp_path / "x")
    assert files.sha256_folder(tmp_path) == first


def test_the_hash_of_a_folder_does_not_depend_on_how_its_files_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = [_write(tmp_path / name, name) for name in "abc"]
    monkeypatch.setattr(Path, "rglob", lambda *_: listed)
    first = files.sha256_folder(tmp_path)
    listed.reverse()
    assert files.sha256_folder(tmp_path) == first


def test_the_hash_of_files_is_that_of_their_listing_as_sha256sum_prints_it(tmp_path: Path) -> None:
    _write(tmp_path / "b", "abc")
    _write(tmp_path / "a", "")
    listing = "".join(f"{files.sha256_file(tmp_path / name)}  {name}\n" for name in ("b", "a"))
    assert files.sha256_files(tmp_path, ["b", "a"]) == hashlib.sha256(listing.encode()).hexdigest()


def test_the_hash_of_files_takes_names_that_are_not_utf8(tmp_path: Path) -> None:
    listing = b"0" * 64 + b"  caf\xe9.png\n"
    found = files.sha256_files(tmp_path, ["caf\udce9.png"], hash_of=lambda path: "0" * 64)
    assert found == hashlib.sha256(listing).hexdigest()


def test_the_hash_of_a_value_is_that_of_its_json_with_sorted_names() -> None:
    assert files.sha256_json({"b": 1, "a": None}) == hashlib.sha256(b'{"a": null, "b": 1}').hexdigest()
    assert files.sha256_json(Path("x"), default=str) == hashlib.sha256(b'"x"').hexdigest()
    with pytest.raises(TypeError):
        files.sha256_json(Path("x"))


def test_the_hash_of_code_follows_python_and_yaml_alone(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    hashes = []
    for name in ("a.py", "part/b.py", "part/c.yaml", "part/notes.txt"):
        _write(tmp_path / name, "x")
        hashes.append(files.code_hash(tmp_path, ["a.py", "part"]))
    (tmp_path / "part" / ".#b.py").symlink_to("someone@host")  # by which an editor locks a file that it has changed
    assert files.code_hash(tmp_path, ["a.py", "part"]) == hashes[3]
    assert len(set(hashes)) == 3 and hashes[2] == hashes[3]


def test_json_survives_a_round_trip(tmp_path: Path) -> None:
    files.write_json(tmp_path / "v.json", {"b": [1, None], "a": "é"})
    assert files.read_json(tmp_path / "v.json") == {"b": [1, None], "a": "é"}
    assert (tmp_path / "v.json").read_text().endswith("}\n")
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "n.json", {"undefined": float("nan")})
    assert not (tmp_path / "n.json").exists()


def test_broken_files_are_named_with_the_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"The verdict '.*v\.json' is not valid JSON .*line 2"):
        files.read_json(_write(tmp_path / "v.json", '{\n"a" 1}'), "verdict")
    with pytest.raises(UserError, match=r"The benchmark '.*b\.yaml' is not valid YAML .*line 2\)"):
        files.read_yaml(_write(tmp_path / "b.yaml", "a: 1\nb: ]\nc: 2\n"), "benchmark")
    with pytest.raises(UserError, match=r"The concept '.*none\.json' does not exist: learn it\."):
        files.read_json(tmp_path / "none.json", "concept", "learn it")
    with pytest.raises(UserError, match=r"The plan '.*none\.yaml' does not exist: write it\."):
        files.read_yaml(tmp_path / "none.yaml", "plan", "write it")
    (tmp_path / "latin.json").write_bytes(b'"\xe9"')
    with pytest.raises(UserError, match="not UTF-8"):
        files.read_json(tmp_path / "latin.json")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 10_000])
def test_json_that_python_cannot_hold_is_refused_in_a_sentence(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^The caption file '.*t\.json' nests too deeply, or .*: correct it\.$"):
        files.read_json(_write(tmp_path / "t.json", text), "caption file")


@pytest.mark.parametrize("text", ["[" * 10_000, "1" * 10_000, "2026-99-99"])
def test_yaml_that_python_cannot_hold_is_refused_in_a_sentence(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^The plan '.*p\.yaml' nests too deeply, or .*: correct it\.$"):
        files.read_yaml(_write(tmp_path / "p.yaml", text), "plan")


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
