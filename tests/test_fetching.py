"""Exemplars from every source: copied, unpacked or downloaded whole, resumed, checked, and refused in sentences."""

from __future__ import annotations

import bz2
import errno
import functools
import io
import json
import random
import shutil
import socket
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from huggingface_hub.utils import filter_repo_objects
from PIL import Image
from ruamel.yaml import YAML

from relinv import archives
from relinv.downloads import cache_folder
from relinv.errors import UserError
from relinv.exemplars import read_exemplars
from relinv.fetching import fetch_exemplars, place_exemplars
from relinv.plugins import plugin_names
from relinv.settings import ExemplarSettings, ExemplarSource
from stages.fetch import fetch as fetch_stage
from stages.validate import validate as validate_stage
from tests.conftest import draw_exemplars

SETTINGS = ExemplarSettings(set="shared", seed=0)


def fetch(source: ExemplarSource, root: Path) -> Path:
    """Fetch "inside" from `source`; return its folder."""
    target = root / "data" / "inside"
    fetch_exemplars("inside", target, source, SETTINGS, root / "scratch")
    return target


def from_(kind: str, path: Path | str | None, manifest: Path | None = None) -> ExemplarSource:
    return ExemplarSource(source=kind, path=None if path is None else str(path), manifest=manifest)


def fingerprint(folder: Path) -> str:
    return read_exemplars(folder).fingerprint


def zipped(folder: Path, archive: Path, top: str = "benchmark/") -> Path:
    with zipfile.ZipFile(archive, "w") as opened:
        for path in sorted(folder.rglob("*")):
            opened.write(path, f"{top}{folder.name}/{path.relative_to(folder)}")
    return archive


def masked(folder: Path, root: Path) -> Path:
    """Return a copy of a relation's folder below `root` with a mask of its first picture, and a hidden file there."""
    copied = Path(shutil.copytree(folder, root / "masked" / folder.name))
    (copied / "masks").mkdir()
    Image.new("L", (64, 64), 255).save(copied / "masks" / "0.png")
    (copied / "masks" / ".DS_Store").write_bytes(b"x")
    return copied


def varied(folder: Path, root: Path) -> Path:
    """Return a copy of a relation's folder with another first picture, below `root`."""
    copied = Path(shutil.copytree(folder, root / "placed" / folder.name))
    (copied / "0.png").write_bytes((copied / "1.png").read_bytes())
    return copied


class Server:
    """A web server of this machine that serves `content`, and misbehaves as its fields say."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.cuts = 0  # how many of the next answers break off in the middle
        self.busy = 0  # how many of the next are "too many requests"
        self.ranges = True  # whether a Range is heeded
        self.asked: list[str | None] = []  # the Range of each request
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, self))
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.http.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, server: Server, *arguments: Any) -> None:
        self.state = server
        super().__init__(*arguments)

    def log_message(self, *arguments: Any) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        state = self.state
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/benchmark.zip")
            self.end_headers()
            return
        wanted = self.headers.get("Range")
        state.asked.append(wanted)
        if state.busy:
            state.busy -= 1
            self.send_error(429)
            return
        wanted = wanted if state.ranges else None
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if wanted and start >= len(state.content):
            self.send_error(416)
            return
        part = state.content[start:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(part)))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}")
        self.end_headers()
        if state.cuts:
            state.cuts -= 1
            self.wfile.write(part[: len(part) // 2])
            self.wfile.flush()
            self.connection.close()
        else:
            self.wfile.write(part)


@pytest.fixture
def server(exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)  # no waits between tries
    archive = zipped(exemplar_folder, tmp_path / "made.zip")
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("benchmark/film.bin", random.Random(0).randbytes(4_000_000))
    running = Server(archive.read_bytes())
    yield running
    running.http.shutdown()


def test_placed_folder_is_copied_as_it_is(exemplar_folder: Path, tmp_path: Path) -> None:
    assert fingerprint(fetch(from_("folder", exemplar_folder.parent), tmp_path)) == fingerprint(exemplar_folder)


def test_absent_folder_says_where_to_place_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no exemplars of 'inside': place its pictures and text\.json in '.*inside'"):
        fetch(from_("folder", tmp_path), tmp_path)
    assert not (tmp_path / "data" / "inside").exists()


@pytest.mark.parametrize("kind", ["folder", "archive", "drive", "hub"])
def test_a_source_without_a_path_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"source '{kind}' but no path"):
        fetch(from_(kind, None), tmp_path)


def test_unknown_source_is_answered_with_the_closest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'folder'"):
        fetch(from_("foldr", tmp_path), tmp_path)


@pytest.mark.parametrize("exemplar_set", ["shared", "varied"])
def test_world_renders_ten_pictures_alike_each_time(tmp_path: Path, exemplar_set: str) -> None:
    settings = ExemplarSettings.model_validate({"set": exemplar_set, "seed": 0})
    for name in ("first", "second"):
        fetch_exemplars("inside", tmp_path / name / "inside", from_("world", None), settings, tmp_path)
    first, second = (read_exemplars(tmp_path / name / "inside") for name in ("first", "second"))
    assert len(first.exemplars) == 10
    assert first.fingerprint == second.fingerprint


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


@pytest.mark.parametrize("name", ["../inside/0.png", "/inside/0.png", "inside/../../0.png", "C:/inside/0.png"])
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
    assert fingerprint(fetch(from_("archive", archive), tmp_path)) == fingerprint(exemplar_folder)


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


@pytest.mark.parametrize(
    "headers",
    [
        header(tarfile.GNUTYPE_LONGNAME, bytes(100_000)),
        header(tarfile.XHDTYPE, b"100000 comment=" + b"x" * 99_984 + b"\n"),
        b"".join(header(tarfile.XGLTYPE, b"1000 k%03d=" % i + b"x" * 989 + b"\n") for i in range(100)),
    ],
)
def test_headers_that_would_fill_the_memory_are_refused(headers: bytes, exemplar_folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "good.tar", "w") as opened:
        opened.add(exemplar_folder, "inside")
    archive = tmp_path / "benchmark.tar.bz2"
    archive.write_bytes(bz2.compress(headers + (tmp_path / "good.tar").read_bytes()))
    with pytest.raises(UserError, match="more than 64 KiB of headers before a file"):
        fetch(from_("archive", archive), tmp_path)


def test_headers_may_add_up_over_many_files(exemplar_folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "benchmark.tar", "w") as opened:
        for index in range(100):
            opened.addfile(tarfile.TarInfo(f"{'x' * 200}/{'y' * 200}/{index}.png"))  # a header of 1 KiB for the name
        opened.add(exemplar_folder, "inside")
    folder = fetch(from_("archive", tmp_path / "benchmark.tar"), tmp_path)
    assert fingerprint(folder) == fingerprint(exemplar_folder)


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "é" * 150 + ".png"])
def test_a_name_longer_than_a_file_may_have_is_refused(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "long.zip", "w") as opened:
        opened.writestr(f"inside/{name}", b"x")
    with pytest.raises(UserError, match="file name of more than 255 bytes"):
        fetch(from_("archive", tmp_path / "long.zip"), tmp_path)


@pytest.mark.parametrize(("limit", "value"), [("MAX_FILES", 3), ("MAX_BYTES", 1000)])
def test_an_archive_beyond_the_limits_is_refused(
    limit: str, value: int, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, limit, value)
    with pytest.raises(UserError, match="unpacks to more than"):
        fetch(from_("archive", zipped(exemplar_folder, tmp_path / "big.zip")), tmp_path)


def test_damaged_missing_and_other_archives_are_named(exemplar_folder: Path, tmp_path: Path) -> None:
    good = zipped(exemplar_folder, tmp_path / "good.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(good[: len(good) // 2])
    for name, reason in {"cut.zip": "damaged", "none.zip": "does not exist"}.items():
        with pytest.raises(UserError, match=reason):
            fetch(from_("archive", tmp_path / name), tmp_path)
    with pytest.raises(UserError, match="no folder 'hug'"):
        fetch_exemplars("hug", tmp_path / "hug", from_("archive", tmp_path / "good.zip"), SETTINGS, tmp_path)


def broken_bz2(root: Path) -> bytes:
    content = bytearray(bz2.compress(random.Random(0).randbytes(100_000)))
    content[50_000] ^= 1
    return bytes(content)


def zip_with_wrong_utf8(root: Path) -> bytes:
    with zipfile.ZipFile(root / "names.zip", "w") as opened:
        opened.writestr("inside/é.png", b"x")
    return (root / "names.zip").read_bytes().replace("é".encode(), b"\xff\xfe")


def tar_with_a_negative_size(root: Path) -> bytes:
    entry = tarfile.TarInfo("inside/0.png")
    entry.size = -(2**20)
    return entry.tobuf(tarfile.GNU_FORMAT)


def tar_with_nul(root: Path) -> bytes:
    entry = tarfile.TarInfo()
    entry.pax_headers = {"path": "inside/0\0.png"}
    return entry.tobuf(tarfile.PAX_FORMAT)


@pytest.mark.parametrize("damage", [broken_bz2, zip_with_wrong_utf8, tar_with_nul, tar_with_a_negative_size])
def test_a_damaged_download_is_one_sentence_and_fetched_anew(
    damage: Callable[[Path], bytes], server: Server, exemplar_folder: Path, tmp_path: Path
) -> None:
    good, server.content = server.content, damage(tmp_path)
    source = from_("archive", f"{server.address}/benchmark.zip")
    with pytest.raises(UserError, match=r"^The archive '.*' is damaged or of an unknown kind \(.+\): fetch it again.$"):
        fetch(source, tmp_path)
    server.content = good
    assert fingerprint(fetch(source, tmp_path)) == fingerprint(exemplar_folder)


def test_a_full_disk_is_no_damage(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("shutil.copyfileobj", MagicMock(side_effect=full))
    source = from_("archive", f"{server.address}/benchmark.zip")
    with pytest.raises(OSError, match="No space left") as caught:
        fetch(source, tmp_path)
    assert caught.value is full
    assert (cache_folder(tmp_path / "scratch", source) / "archive").read_bytes() == server.content


def test_a_download_that_breaks_off_starts_again_where_the_server_gives_no_parts(
    server: Server, exemplar_folder: Path, tmp_path: Path
) -> None:
    server.cuts, server.ranges = 1, False
    folder = fetch(from_("archive", f"{server.address}/benchmark.zip"), tmp_path)
    assert fingerprint(folder) == fingerprint(exemplar_folder)


def test_a_part_that_was_whole_when_the_run_was_killed_does_no_harm(
    server: Server, exemplar_folder: Path, tmp_path: Path
) -> None:
    source = from_("archive", f"{server.address}/benchmark.zip")
    cache = cache_folder(tmp_path / "scratch", source)
    (cache / "archiveabcdefgh.part").write_bytes(server.content)
    assert fingerprint(fetch(source, tmp_path)) == fingerprint(exemplar_folder)
    assert f"bytes={len(server.content)}-" in server.asked
    assert not list(cache.glob("*.part"))


def test_a_download_that_breaks_off_goes_on_where_it_was(server: Server, exemplar_folder: Path, tmp_path: Path) -> None:
    server.cuts = 2
    folder = fetch(from_("archive", f"{server.address}/benchmark.zip"), tmp_path)
    assert fingerprint(folder) == fingerprint(exemplar_folder)
    assert server.asked[0] is None and len(server.asked) == 3
    assert all(wanted and wanted != "bytes=0-" for wanted in server.asked[1:])


def test_a_download_follows_redirects_waits_for_a_busy_server_and_is_kept(
    server: Server, exemplar_folder: Path, tmp_path: Path
) -> None:
    server.busy = 2
    source = from_("archive", f"{server.address}/moved")
    assert fingerprint(fetch(source, tmp_path)) == fingerprint(exemplar_folder)
    asked = len(server.asked)
    fetch(source, tmp_path)
    assert len(server.asked) == asked


def test_an_address_without_a_server_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(UserError, match=rf"'http://127\.0\.0\.1:{port}/x\.zip' cannot be downloaded"):
        fetch(from_("archive", f"http://127.0.0.1:{port}/x.zip"), tmp_path)


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
    record.write_text(json.dumps(sums))
    fetch(source, tmp_path)
    assert len(server.asked) == asked + 1  # what was wrong is not kept


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
    place_exemplars("inside", placed, source, tmp_path / "scratch")
    with pytest.raises(UserError, match=r"not those on record in '.*inside\.json': masks/0\.png\. "):
        fetch(source, tmp_path)
    assert fingerprint(fetch(source, tmp_path)) == fingerprint(given)  # what was wrong is not kept


def test_zips_of_a_folder_as_a_browser_gets_it_from_drive_are_placed(exemplar_folder: Path, tmp_path: Path) -> None:
    downloads, source = tmp_path / "Downloads", from_("folder", tmp_path / "nowhere")
    downloads.mkdir()
    given = masked(exemplar_folder, tmp_path)
    (downloads / "inside_out.zip").write_bytes(b"of another kind")
    part = Path(shutil.copytree(given, tmp_path / "part" / "inside"))
    (part / "text.json").unlink()
    zipped(part, downloads / "inside-20251125T101112Z-001.zip", top="")
    with pytest.raises(UserError, match=r"no folder 'inside' with .*, nor a zip of it, 'inside-\*\.zip'"):
        place_exemplars("inside", downloads, source, tmp_path / "scratch")
    with zipfile.ZipFile(downloads / "inside-20251125T101112Z-002.zip", "w") as opened:
        opened.write(given / "text.json", "inside/text.json")
    place_exemplars("inside", downloads, source, tmp_path / "scratch")
    assert fingerprint(fetch(source, tmp_path)) == fingerprint(given)


@pytest.mark.parametrize("kind", plugin_names("relinv.sources"))
def test_files_placed_by_hand_take_the_place_of_any_source(kind: str, exemplar_folder: Path, tmp_path: Path) -> None:
    source = from_(kind, None if kind in {"world", "objects"} else tmp_path / "nowhere")
    place_exemplars("inside", exemplar_folder.parent, source, tmp_path / "scratch")
    assert fingerprint(fetch(source, tmp_path)) == fingerprint(exemplar_folder)
    with pytest.raises(UserError, match="holds no folder 'hug'"):
        place_exemplars("hug", exemplar_folder.parent, source, tmp_path / "scratch")


def test_files_placed_by_hand_win_over_a_source_that_has_the_relation(
    server: Server, exemplar_folder: Path, tmp_path: Path
) -> None:
    source = from_("archive", f"{server.address}/benchmark.zip", tmp_path / "manifest")
    before = fingerprint(fetch(source, tmp_path))
    placed = varied(exemplar_folder, tmp_path)
    place_exemplars("inside", placed, source, tmp_path / "scratch")
    with pytest.raises(UserError, match=r"not those on record in '.*inside\.json': 0\.png"):
        fetch(source, tmp_path)  # they are held to the checksums as a download is
    shutil.rmtree(tmp_path / "manifest")
    place_exemplars("inside", placed, source, tmp_path / "scratch")
    assert fingerprint(fetch(source, tmp_path)) == fingerprint(placed) != before


@pytest.mark.parametrize("relation", ["kissing", "inside"])
def test_a_relation_of_ones_own_comes_before_the_source_and_is_valid(
    relation: str, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    yaml = YAML(typ="safe", pure=True)
    params = yaml.load(Path("params.yaml").read_text())
    params["bases"]["miniature"]["model"]["source"] = str(tiny_base)
    grid = {"words": relation, "asymmetric": True, "heads": ["cat", "dog"], "tails": ["box", "cup"]}
    benchmark = {"name": "b", "held_out": None, "validation": {"fraction": 0, "seed": 0}, "relations": {relation: grid}}
    monkeypatch.chdir(tmp_path)
    Path("data/benchmark").mkdir(parents=True)
    yaml.dump(params, Path("params.yaml"))
    yaml.dump(benchmark, Path("data/benchmark/miniature.yaml"))
    own = Path("data/exemplars/own") / relation
    own.mkdir(parents=True)
    draw_exemplars(own)
    fetch_stage(relation)
    validate_stage(relation)
    assert fingerprint(Path("data/relations") / relation) == fingerprint(own)
    verdict = json.loads(Path(f"data/verdicts/{relation}.json").read_text())
    assert verdict["valid"] and verdict["images"] == 4


def test_a_dataset_of_the_hub_is_fetched_relation_by_relation(
    exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    given = masked(exemplar_folder, tmp_path)
    cut_off = True

    def snapshot(name: str, **options: Any) -> None:
        asked.append({"name": name, **options})
        allowed, ignored = options["allow_patterns"], options.get("ignore_patterns")
        names = [path.relative_to(given).as_posix() for path in given.rglob("*") if path.is_file()]
        for name in filter_repo_objects(sorted(names, key=lambda name: "/" in name), ignore_patterns=ignored):
            assert list(filter_repo_objects([f"data/inside/{name}"], allow_patterns=allowed))
            if cut_off and name.startswith("masks"):
                raise ConnectionError("the connection was lost")
            target = Path(options["local_dir"]) / "data" / "inside" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(given / name, target)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    source = from_("hub", "someone/relations@abc123")
    with pytest.raises(UserError, match="the connection was lost"):
        fetch(source, tmp_path)
    cut_off = False
    assert fingerprint(fetch(source, tmp_path)) == fingerprint(given)
    count = len(asked)
    fetch(source, tmp_path)
    place_exemplars("inside", varied(exemplar_folder, tmp_path), source, tmp_path / "scratch")
    assert fingerprint(fetch(source, tmp_path)) not in (fingerprint(given), fingerprint(exemplar_folder))
    assert len(asked) == count
    assert (asked[0]["name"], asked[0]["revision"], asked[0]["repo_type"]) == ("someone/relations", "abc123", "dataset")


def test_a_hub_that_does_not_give_the_dataset_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dataset 'someone/relations'"):
        fetch(from_("hub", "someone/relations"), tmp_path)
