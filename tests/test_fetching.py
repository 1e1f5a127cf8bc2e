"""Exemplars from every source: copied, unpacked or downloaded whole, resumed, checked, and refused in sentences."""

from __future__ import annotations

import functools
import io
import json
import random
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from relinv import archives
from relinv.errors import UserError
from relinv.exemplars import read_exemplars
from relinv.fetching import fetch_exemplars, place_exemplars
from relinv.plugins import plugin_names
from relinv.settings import ExemplarSettings, ExemplarSource

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
        for path in sorted(folder.iterdir()):
            opened.write(path, f"{top}{folder.name}/{path.name}")
    return archive


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
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
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


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz"])
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
    with pytest.raises(UserError, match=r"'http://127\.0\.0\.1:9/x\.zip' cannot be downloaded"):
        fetch(from_("archive", "http://127.0.0.1:9/x.zip"), tmp_path)


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


def test_a_dataset_of_the_hub_is_fetched_relation_by_relation(
    exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def snapshot(name: str, **options: Any) -> None:
        asked.append({"name": name, **options})
        folder = Path(options["local_dir"]) / "data" / "inside"
        folder.mkdir(parents=True)
        for path in exemplar_folder.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    source = from_("hub", "someone/relations@abc123")
    assert fingerprint(fetch(source, tmp_path)) == fingerprint(exemplar_folder)
    fetch(source, tmp_path)
    place_exemplars("inside", varied(exemplar_folder, tmp_path), source, tmp_path / "scratch")
    assert fingerprint(fetch(source, tmp_path)) != fingerprint(exemplar_folder)
    assert len(asked) == 1
    assert (asked[0]["name"], asked[0]["revision"], asked[0]["repo_type"]) == ("someone/relations", "abc123", "dataset")


def test_a_hub_that_does_not_give_the_dataset_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dataset 'someone/relations'"):
        fetch(from_("hub", "someone/relations"), tmp_path)
