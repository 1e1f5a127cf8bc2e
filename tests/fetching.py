"""Exemplars to fetch: from a source, copies that differ, zips, a web server that misbehaves, a hub that refuses."""

from __future__ import annotations

import functools
import json
import shutil
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from relinv.exemplars import read_exemplars
from relinv.fetching.fetch import fetch_exemplars
from relinv.settings import ExemplarSettings, ExemplarSource

SETTINGS = ExemplarSettings(set="shared", seed=0, count=None)


def fetch(source: ExemplarSource, root: Path, scratch: Path | None = None) -> Path:
    """Fetch "inside" from `source` below `root`, with downloads in `scratch` or there too; return its folder."""
    target = root / "data" / "inside"
    fetch_exemplars("inside", target, source, SETTINGS, scratch or root / "scratch")
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


def renamed_by_an_old_camera(picture: Path) -> Path:
    """Return a picture under a name that is not UTF-8; the test is skipped where the file system takes none such."""
    try:
        return picture.rename(picture.with_name("caf\udce9.png"))
    except OSError:
        pytest.skip("This file system takes no name that is not UTF-8.")


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
        self.etag = '"1"'  # of the content; "" to say nothing
        self.refused = False  # whether it says that it is not available, whatever it is asked
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

    def do_HEAD(self) -> None:
        if self.state.refused:
            self.send_error(503)
        elif not self.has_moved():
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.state.content)))
            self.say_etag()
            self.end_headers()

    def has_moved(self) -> bool:
        if moved := self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/benchmark.zip")
            self.end_headers()
        return moved

    def say_etag(self) -> None:
        if self.state.etag:
            self.send_header("ETag", self.state.etag)

    def do_GET(self) -> None:
        state = self.state
        if self.has_moved():
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
        self.say_etag()
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


class Hub:
    """A stand-in for the Hugging Face hub, of one dataset, the files in `folder`; it refuses as its fields say."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commit = "c0ffee" + "0" * 34
        self.refused = "nothing"  # what part of an address is not answered
        self.status, self.code = 401, ""  # and how: the hub's own code says more than the status
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_HubHandler, self))
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.http.server_port}"


class _HubHandler(BaseHTTPRequestHandler):
    def __init__(self, hub: Hub, *arguments: Any) -> None:
        self.hub = hub
        super().__init__(*arguments)

    def log_message(self, *arguments: Any) -> None:
        """Stay silent."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, content = self.hub, b""
        names = [path.relative_to(hub.folder).as_posix() for path in hub.folder.rglob("*") if path.is_file()]
        if hub.refused in self.path:
            self.send_response(hub.status)
            self.send_header("X-Error-Code", hub.code)
        else:
            if "/tree/" in self.path:
                files = [{"type": "file", "path": name, "size": 1, "oid": name} for name in names]
                content = json.dumps(files).encode()
            elif "/resolve/" in self.path:
                content = (hub.folder / self.path.partition(f"{hub.commit}/")[2]).read_bytes()
            else:
                content = json.dumps({"id": "someone/relations", "sha": hub.commit, "siblings": []}).encode()
            self.send_response(200)
            self.send_header("ETag", f'"{self.path.rpartition("/")[2]}"')
            self.send_header("X-Repo-Commit", hub.commit)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
