"""Archives are unpacked wherever the relation lies in them; nothing in one reaches outside, or fills the machine."""

from __future__ import annotations

import bz2
import io
import json
import random
import shutil
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from relinv.errors import UserError
from relinv.fetching import archives
from relinv.fetching.fetch import fetch_exemplars
from tests.fetching import SETTINGS, Server, fetch, fingerprint, from_, varied, zipped


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_an_archive_is_unpacked_wherever_the_relation_lies_in_it(
    kind: str, exemplar_folder: Path, tmp_path: Path
) -> None:
    archive = tmp_path / f"benchmark.{kind}"
    if kind == "zip":
        zipped(exemplar_folder, archive)
    else:
        with tarfile.open(archive, f"w:{kind.partition('.')[2]}") as opened:
            opened.add(exemplar_folder, "reversion/benchmark_v1/inside")
    assert fingerprint(fetch(from_("archive", archive), tmp_path)) == fingerprint(exemplar_folder)


OUTSIDE = ["../inside/0.png", "/inside/0.png", "inside/../../0.png", "C:/inside/0.png", "c:/inside/0.png",
           "..\\inside\\0.png"]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_that_leads_outside_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    archive = tmp_path / "evil"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as opened:
            opened.writestr(name, b"x")
    else:
        with tarfile.open(archive, "w") as opened:
            entry = tarfile.TarInfo(name)
            entry.size = 1
            opened.addfile(entry, io.BytesIO(b"x"))
    with pytest.raises(UserError, match="leads outside"):
        fetch(from_("archive", archive), tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == []


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_an_archive_are_refused(kind: bytes, tmp_path: Path) -> None:
    entry = tarfile.TarInfo("inside/text.json")
    entry.type, entry.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "links.tar", "w") as opened:
        opened.addfile(entry)
    with pytest.raises(UserError, match="a link"):
        fetch(from_("archive", tmp_path / "links.tar"), tmp_path)


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    entry = zipfile.ZipInfo("inside/text.json")
    entry.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "links.zip", "w") as opened:
        opened.writestr(entry, "/etc/passwd")
    with pytest.raises(UserError, match="a link"):
        fetch(from_("archive", tmp_path / "links.zip"), tmp_path)


def test_a_colon_in_a_name_is_no_drive_letter(exemplar_folder: Path, tmp_path: Path) -> None:
    archive = zipped(exemplar_folder, tmp_path / "good.zip")
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("notes/12:30.txt", b"x")
        opened.writestr("notes/a:b.txt", b"x")
    assert fingerprint(fetch(from_("archive", archive), tmp_path)) == fingerprint(exemplar_folder)


def test_names_in_a_macs_zip_are_utf8_though_it_does_not_say_so(exemplar_folder: Path, tmp_path: Path) -> None:
    given = Path(shutil.copytree(exemplar_folder, tmp_path / "given" / "inside"))
    captions = json.loads((given / "text.json").read_text())
    (given / "0.png").rename(given / "fête.png")
    (given / "text.json").write_text(json.dumps(captions | {"fête.png": captions.pop("0.png")}))
    archive = zipped(given, tmp_path / "mac.zip")
    content = archive.read_bytes()
    for start, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # where an entry's flags are, in both of its headers
        where = content.find(start)
        while where >= 0:
            flags = int.from_bytes(content[where + place : where + place + 2], "little") & ~0x800
            content = content[: where + place] + flags.to_bytes(2, "little") + content[where + place + 2 :]
            where = content.find(start, where + 4)
    archive.write_bytes(content)
    assert fingerprint(fetch(from_("archive", archive), tmp_path)) == fingerprint(given)


@pytest.mark.parametrize("first", ["masks", "masks/0.png"])
def test_a_file_called_masks_is_none_of_the_relations(first: str, exemplar_folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as opened:
        for name in sorted(["masks", "masks/0.png"], key=lambda name: name != first):
            opened.writestr(f"inside/{name}", (exemplar_folder / "0.png").read_bytes())
        for file in exemplar_folder.iterdir():
            opened.write(file, f"inside/{file.name}")
    assert (fetch(from_("archive", tmp_path / "both.zip"), tmp_path) / "masks/0.png").is_file()


def test_a_tar_that_ends_in_a_zip_is_a_tar(exemplar_folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "benchmark.tar", "w") as opened:
        opened.add(exemplar_folder, "benchmark/inside")
        opened.add(zipped(varied(exemplar_folder, tmp_path), tmp_path / "older.zip"), "older.zip")
    folder = fetch(from_("archive", tmp_path / "benchmark.tar"), tmp_path)
    assert fingerprint(folder) == fingerprint(exemplar_folder)


def header(kind: bytes, content: bytes) -> bytes:
    """Return a tar's header of a kind that tells of the file after it, with what it tells."""
    entry = tarfile.TarInfo("header")
    entry.type, entry.size = kind, len(content)
    return entry.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


@pytest.mark.parametrize("first", [b"", tarfile.TarInfo("notes.txt").tobuf()], ids=["at the start", "after a file"])
@pytest.mark.parametrize(
    "headers",
    [
        header(tarfile.GNUTYPE_LONGNAME, bytes(100_000)),
        header(tarfile.XHDTYPE, b"100000 comment=" + b"x" * 99_984 + b"\n"),
        b"".join(header(tarfile.XGLTYPE, b"1000 k%03d=" % i + b"x" * 989 + b"\n") for i in range(100)),
    ],
)
def test_headers_that_would_fill_the_memory_are_refused(
    headers: bytes, first: bytes, exemplar_folder: Path, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "good.tar", "w") as opened:
        opened.add(exemplar_folder, "inside")
    archive = tmp_path / "benchmark.tar.bz2"
    archive.write_bytes(bz2.compress(first + headers + (tmp_path / "good.tar").read_bytes()))
    with pytest.raises(UserError, match="more than 64 KiB of headers before a file"):
        fetch(from_("archive", archive), tmp_path)


def test_headers_may_add_up_over_many_files(exemplar_folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "benchmark.tar", "w") as opened:
        for index in range(100):
            opened.addfile(tarfile.TarInfo(f"{'x' * 200}/{'y' * 200}/{index}.png"))  # a header of 1 KiB for the name
        opened.add(exemplar_folder, "inside")
    folder = fetch(from_("archive", tmp_path / "benchmark.tar"), tmp_path)
    assert fingerprint(folder) == fingerprint(exemplar_folder)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_headers_of_many_files_are_not_all_kept_in_memory(kind: bytes, tmp_path: Path) -> None:
    records = [b"30000 k%03d=" % number + b"x" * 29_988 + b"\n" for number in range(100)]
    file = tarfile.TarInfo("notes.txt").tobuf()
    (tmp_path / "notes.tar").write_bytes(b"".join(header(kind, record) + file for record in records))
    tracemalloc.start()
    try:
        assert not archives.unpack(tmp_path / "notes.tar", "inside", tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000  # of 3,000,000 bytes of headers
    finally:
        tracemalloc.stop()


def test_a_file_in_a_tar_may_be_larger_than_all_headers_before_it(tmp_path: Path) -> None:
    content = random.Random(0).randbytes(archives.MAX_HEADERS + 1)
    entry = tarfile.TarInfo("inside/0.png")
    entry.size = len(content)
    with tarfile.open(tmp_path / "photographs.tar.gz", "w:gz") as opened:
        opened.addfile(entry, io.BytesIO(content))
    (tmp_path / "unpacked").mkdir()
    assert archives.unpack(tmp_path / "photographs.tar.gz", "inside", tmp_path / "unpacked")
    assert (tmp_path / "unpacked" / "0.png").read_bytes() == content


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "é" * 150 + ".png"])
def test_a_name_longer_than_a_file_may_have_is_refused(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "long.zip", "w") as opened:
        opened.writestr(f"inside/{name}", b"x")
    with pytest.raises(UserError, match="file name of more than 255 bytes"):
        fetch(from_("archive", tmp_path / "long.zip"), tmp_path)


def test_a_name_as_long_as_a_file_may_have_is_unpacked(exemplar_folder: Path, tmp_path: Path) -> None:
    archive = zipped(exemplar_folder, tmp_path / "long.zip")
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(f"notes/{'x' * 255}", b"x")
    assert fingerprint(fetch(from_("archive", archive), tmp_path)) == fingerprint(exemplar_folder)


def test_a_name_that_is_not_utf8_is_refused_before_anything_is_written(exemplar_folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "old.tar"
    with tarfile.open(archive, "w") as opened:
        opened.addfile(tarfile.TarInfo("caf\udce9/caf\udce9.png"))  # no file of the relation: left alone
        opened.add(exemplar_folder, "inside")
    assert fingerprint(fetch(from_("archive", archive), tmp_path)) == fingerprint(exemplar_folder)
    with tarfile.open(archive, "a") as opened:
        opened.addfile(tarfile.TarInfo("inside/caf\udce9.png"))
    (tmp_path / "unpacked").mkdir()
    with pytest.raises(
        UserError, match=r"old\.tar' holds a name that is not UTF-8, 'caf\\udce9\.png': rename that file\."
    ):
        archives.unpack(archive, "inside", tmp_path / "unpacked")
    assert list((tmp_path / "unpacked").iterdir()) == []


@pytest.mark.parametrize(("limit", "value"), [("MAX_FILES", 3), ("MAX_BYTES", 1000)])
def test_an_archive_beyond_the_limits_is_refused(
    limit: str, value: int, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, limit, value)
    with pytest.raises(UserError, match="unpacks to more than"):
        fetch(from_("archive", zipped(exemplar_folder, tmp_path / "big.zip")), tmp_path)


def test_an_archive_at_the_limits_is_unpacked(
    exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = list(exemplar_folder.iterdir())
    monkeypatch.setattr(archives, "MAX_FILES", len(files))
    monkeypatch.setattr(archives, "MAX_BYTES", sum(path.stat().st_size for path in files))
    archive = zipped(exemplar_folder, tmp_path / "big.zip")
    assert fingerprint(fetch(from_("archive", archive), tmp_path)) == fingerprint(exemplar_folder)


def test_an_archive_with_two_folders_of_the_relation_is_refused(exemplar_folder: Path, tmp_path: Path) -> None:
    archive = zipped(exemplar_folder, tmp_path / "two.zip", top="new/")
    with zipfile.ZipFile(archive, "a") as opened:
        opened.write(exemplar_folder / "0.png", "old/inside/9.png")
    with pytest.raises(UserError, match=r"two\.zip' has two folders of 'inside', new/inside and old/inside\."):
        fetch(from_("archive", archive), tmp_path)


@pytest.mark.parametrize("lost", ["text.json", "2.png"])
def test_an_archive_without_all_of_the_relation_is_refused_and_not_put_on_record(
    lost: str, server: Server, exemplar_folder: Path, tmp_path: Path
) -> None:
    good, part = server.content, Path(shutil.copytree(exemplar_folder, tmp_path / "part" / "inside"))
    (part / lost).unlink()
    server.content = zipped(part, tmp_path / "part.zip").read_bytes()
    source = from_("archive", f"{server.address}/benchmark.zip", tmp_path / "manifest")
    with pytest.raises(UserError, match=rf"'inside' in the archive '.*' is incomplete: correct it\. .*{lost}\.$"):
        fetch(source, tmp_path)
    assert not (tmp_path / "data" / "inside").exists() and not (tmp_path / "manifest").exists()
    server.content = good
    assert fingerprint(fetch(source, tmp_path)) == fingerprint(exemplar_folder)


def encrypted(content: bytes) -> bytes:
    """Return a zip whose entries say that they are encrypted, which none of Python's own can write."""
    for header, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        first, *parts = content.split(header)
        content = header.join([first, *(part[: flags - 4] + b"\1" + part[flags - 3 :] for part in parts)])
    return content


def test_damaged_missing_and_other_archives_are_named(exemplar_folder: Path, tmp_path: Path) -> None:
    good = zipped(exemplar_folder, tmp_path / "good.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(good[: len(good) // 2])
    (tmp_path / "locked.zip").write_bytes(encrypted(good))
    (tmp_path / "unpacked").mkdir()
    reasons = {
        "cut.zip": "is damaged or of an unknown kind .*: fetch it again",
        "locked.zip": "is encrypted: unpack it with its password, and name that folder instead",
        "none.zip": "does not exist: correct exemplars.path",
        "unpacked": "is a folder: set exemplars.source to folder",
    }
    for name, reason in reasons.items():
        with pytest.raises(UserError, match=f"{name}' {reason}"):
            fetch(from_("archive", tmp_path / name), tmp_path)
    with pytest.raises(UserError, match=r"^'ftp://x/y\.zip' cannot be downloaded: only http and https addresses "):
        fetch(from_("archive", "ftp://x/y.zip"), tmp_path)
    assert (tmp_path / "cut.zip").exists()  # the user's own is never removed
    with pytest.raises(UserError, match="no folder 'hug'"):
        fetch_exemplars("hug", tmp_path / "hug", from_("archive", tmp_path / "good.zip"), SETTINGS, tmp_path)
