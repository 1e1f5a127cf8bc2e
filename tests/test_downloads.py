"""Downloads that are cut off, redirected, throttled or damaged: resumed, asked for again, or refused in a sentence."""

from __future__ import annotations

import bz2
import errno
import random
import socket
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import requests

from relinv.errors import UserError
from relinv.fetching.downloads import cache_folder, download, is_address, retried
from relinv.settings import ExemplarSource
from tests.fetching import Server, fetch, fingerprint, from_


def test_each_source_has_a_folder_of_downloads_of_its_own(tmp_path: Path) -> None:
    paths = ("https://one.example/relations.zip", "https://two.example/relations.zip", None)
    sources = [ExemplarSource(source=kind, path=path, manifest=None) for kind in ("archive", "drive") for path in paths]
    assert len({cache_folder(tmp_path, source) for source in sources}) == 6
    recorded = sources[0].model_copy(update={"manifest": Path("data/manifest")})
    assert cache_folder(tmp_path, recorded) == cache_folder(tmp_path, sources[0])  # which does not say where they are


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


@pytest.mark.parametrize("name", ["archive", "cat [1].png"])
def test_a_part_that_was_whole_when_the_run_was_killed_does_no_harm(name: str, server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{name}abcdefgh.part").write_bytes(server.content)
    (tmp_path / f".{name}.version").write_text(f"{server.etag}  {len(server.content)}")
    download(f"{server.address}/benchmark.zip", tmp_path / name, later=True)
    assert (tmp_path / name).read_bytes() == server.content
    assert f"bytes={len(server.content)}-" in server.asked
    assert {path.name for path in tmp_path.iterdir()} == {name, "made.zip"}


@pytest.mark.parametrize("change", ["etag", "silence", "silence at first too", "not later"])
def test_a_part_of_what_may_be_another_file_is_not_gone_on_with(change: str, server: Server, tmp_path: Path) -> None:
    file, later = tmp_path / "archive", change != "not later"
    server.cuts, server.etag = 100, "" if change == "silence at first too" else '"1"'
    with pytest.raises(UserError):
        download(f"{server.address}/benchmark.tar", file, later=True)
    assert list(tmp_path.glob("*.part"))
    server.content, server.cuts, failed = bytes(reversed(server.content)), 0, len(server.asked)
    server.etag = {"etag": '"2"', "not later": '"1"'}.get(change, "")
    download(f"{server.address}/benchmark.tar", file, later=later)
    assert file.read_bytes() == server.content and server.asked[failed] in (None, "bytes=0-")
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "made.zip"}


def test_a_part_is_kept_while_the_server_cannot_be_asked(server: Server, tmp_path: Path) -> None:
    server.cuts = 100
    with pytest.raises(UserError):
        download(f"{server.address}/benchmark.tar", tmp_path / "archive", later=True)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    server.refused = True
    with pytest.raises(UserError, match="cannot be downloaded: 503"):
        download(f"{server.address}/benchmark.tar", tmp_path / "archive", later=True)
    with pytest.raises(UserError, match="cannot be downloaded: "):
        download("http://127.0.0.1:9/benchmark.tar", tmp_path / "archive", later=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept and len(kept) == 3


def test_an_address_that_is_none_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'https://\[::1/x\.zip' cannot be downloaded: "):
        fetch(from_("archive", "https://[::1/x.zip"), tmp_path)


def test_a_download_that_breaks_off_goes_on_where_it_was(server: Server, exemplar_folder: Path, tmp_path: Path) -> None:
    server.cuts = 2
    folder = fetch(from_("archive", f"{server.address}/benchmark.zip"), tmp_path)
    assert fingerprint(folder) == fingerprint(exemplar_folder)
    assert server.asked[0] is None and len(server.asked) == 3
    assert all(wanted and wanted != "bytes=0-" for wanted in server.asked[1:])


@pytest.mark.parametrize("path", ["benchmark.zip", "moved"])
def test_a_download_that_fails_goes_on_in_a_later_run_where_it_was(
    path: str, server: Server, exemplar_folder: Path, tmp_path: Path
) -> None:
    source = from_("archive", f"{server.address}/{path}")
    server.cuts = 100
    with pytest.raises(UserError, match=r"announced \d+ bytes\. Run the same command again\.$"):
        fetch(source, tmp_path)
    server.cuts, failed = 0, len(server.asked)
    assert fingerprint(fetch(source, tmp_path)) == fingerprint(exemplar_folder)
    *_, wanted = server.asked[failed:]
    assert wanted and wanted != "bytes=0-"


def test_waits_before_further_tries_double(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []
    monkeypatch.setattr("random.uniform", lambda low, high: waits.append((low, high)) or 0.0)
    with pytest.raises(requests.Timeout):
        retried(MagicMock(side_effect=requests.Timeout))
    assert waits == [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (0, 32)]


def answered(status: int) -> requests.HTTPError:
    return requests.HTTPError(f"{status}", response=MagicMock(status_code=status))


@pytest.mark.parametrize(
    "error", [*map(answered, (429, 500, 502, 503, 504)), requests.Timeout(), requests.ConnectionError()], ids=repr
)
def test_what_may_pass_is_tried_again(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)
    assert retried(MagicMock(side_effect=[error, "done"])) == "done"


@pytest.mark.parametrize(
    "error",
    [*map(answered, (401, 403, 404)), requests.exceptions.SSLError(), requests.exceptions.ProxyError(), ValueError()],
    ids=repr,
)
def test_what_will_not_pass_is_told_at_once(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)
    with pytest.raises(type(error)):
        retried(asked := MagicMock(side_effect=error))
    asked.assert_called_once()


@pytest.mark.parametrize(("path", "there"), [("HTTPS://a.example/b.zip", True), ("http.zip", False), ("s3://a", False)])
def test_an_address_is_one_in_capitals_too(path: str, there: bool) -> None:
    assert is_address(path) == there


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
