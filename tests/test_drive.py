"""Google Drive as gdown shows it: fetched file by file, asked again when it refuses, never the same twice."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import requests
from gdown.exceptions import DownloadError, FileURLRetrievalError

from relinv.errors import UserError
from relinv.fetching.downloads import RETRIES
from relinv.fetching.fetch import fetch_exemplars
from tests.fetching import SETTINGS, fetch, fingerprint, from_, masked


class Drive:
    """Google Drive as gdown shows it: a listing, and files until the limit is reached."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit, self.given = folder, limit, []
        self.refusals = 0  # how many of the next requests are refused
        self.empty = 0  # how many of the next listings show nothing
        self.listings = 0  # how often it was listed
        self.others: list[str] = []  # further paths that it lists

    def refuse(self, reason: str) -> None:
        if self.refusals:
            self.refusals -= 1
            raise DownloadError(reason)

    def download_folder(self, url: str, **options: Any) -> list[SimpleNamespace]:
        assert options["skip_download"]
        self.listings += 1
        self.refuse("Failed to retrieve folder contents (status code 429).")
        if self.empty:
            self.empty -= 1
            return []
        names = [path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()]
        listed = [SimpleNamespace(id=name, path=f"inside/{name}") for name in names]
        return [*listed, *(SimpleNamespace(id=path, path=path) for path in self.others)]

    def download(self, address: str, output: str, **options: Any) -> None:
        self.refuse("Cannot retrieve the public link of the file.")
        if len(self.given) >= self.limit:
            raise FileURLRetrievalError("Too many users have viewed or downloaded this file recently.")
        name = address.rpartition("=")[2]
        self.given.append(name)
        Path(output).write_bytes((self.folder / name).read_bytes())


@pytest.fixture
def drive(exemplar_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Drive:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)  # no waits between tries
    made = Drive(exemplar_folder, limit=100)
    monkeypatch.setattr("gdown.download_folder", made.download_folder)
    monkeypatch.setattr("gdown.download", made.download)
    return made


DRIVE = from_("drive", "https://drive.google.com/drive/folders/abc")


def test_drives_limit_is_met_with_the_missing_files_and_a_later_run_goes_on(
    drive: Drive, exemplar_folder: Path, tmp_path: Path
) -> None:
    names = sorted(path.name for path in exemplar_folder.iterdir())
    drive.limit = 2
    with pytest.raises(UserError) as caught:
        fetch(DRIVE, tmp_path)
    assert f"still missing: {', '.join(names[2:])}." in str(caught.value)
    assert "python -m stages.fetch inside --from FOLDER" in str(caught.value)
    assert not (tmp_path / "data" / "inside").exists()
    drive.limit = 100
    assert fingerprint(fetch(DRIVE, tmp_path)) == fingerprint(exemplar_folder)
    assert drive.given == names  # none twice


@pytest.mark.parametrize("listed", [False, True])
def test_what_drive_refuses_for_a_while_is_asked_for_again(
    listed: bool, drive: Drive, exemplar_folder: Path, tmp_path: Path
) -> None:
    if listed:
        drive.limit = 0
        with pytest.raises(UserError, match="still missing"):
            fetch(DRIVE, tmp_path)
        drive.limit = 100
    drive.refusals = RETRIES
    assert fingerprint(fetch(DRIVE, tmp_path)) == fingerprint(exemplar_folder)
    assert drive.listings == (1 if listed else RETRIES + 1)


@pytest.mark.parametrize("trouble", ["refusals", "empty"])
def test_a_listing_that_failed_or_is_empty_is_not_kept(
    trouble: str, drive: Drive, exemplar_folder: Path, tmp_path: Path
) -> None:
    setattr(drive, trouble, RETRIES + 1)
    with pytest.raises(UserError, match=r"cannot be listed \(.*\): try again later"):
        fetch(DRIVE, tmp_path)
    assert drive.listings == RETRIES + 1
    assert fingerprint(fetch(DRIVE, tmp_path)) == fingerprint(exemplar_folder)


@pytest.mark.parametrize(
    "gone",
    [
        requests.HTTPError("404 Client Error", response=MagicMock(status_code=404)),
        requests.HTTPError("403 Client Error", response=MagicMock(status_code=403)),
        FileURLRetrievalError("Cannot retrieve the public link of the file."),
    ],
)
def test_files_that_are_gone_from_where_they_were_listed_are_listed_anew(
    gone: Exception, drive: Drive, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive.limit = 2
    with pytest.raises(UserError, match="Too many users"):
        fetch(DRIVE, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("gdown.download", MagicMock(side_effect=gone))
        with pytest.raises(UserError, match="still missing"):
            fetch(DRIVE, tmp_path)
    assert drive.listings == 1
    drive.limit = 100
    assert fingerprint(fetch(DRIVE, tmp_path)) == fingerprint(exemplar_folder)
    assert drive.listings == 2


def test_a_refused_listing_names_the_relation_and_the_files_on_record(
    drive: Drive, exemplar_folder: Path, tmp_path: Path
) -> None:
    source = from_("drive", DRIVE.path, tmp_path / "manifest")
    fetch(from_("folder", exemplar_folder.parent, tmp_path / "manifest"), tmp_path)
    drive.refusals = 2 * (RETRIES + 1)
    by_hand = r"by hand: python -m stages\.fetch inside --from FOLDER$"
    with pytest.raises(UserError, match=rf"of 'inside' \(0\.png, 1\.png, 2\.png, 3\.png, text\.json\) {by_hand}"):
        fetch(source, tmp_path)
    with pytest.raises(UserError, match=rf"or place the files of 'inside' {by_hand}"):
        fetch(DRIVE, tmp_path)


def test_what_gdown_itself_tried_again_and_what_will_not_pass_are_not_tried_again(
    drive: Drive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    exhausted = DownloadError("Download failed after 6 retries")
    exhausted.__cause__ = requests.ConnectionError("no route to host")
    for error in (exhausted, requests.exceptions.SSLError("the certificate is another's"), ValueError("a bug")):
        download = MagicMock(side_effect=error)
        monkeypatch.setattr("gdown.download", download)
        with pytest.raises(UserError, match=r"still missing: 0\.png"):
            fetch(DRIVE, tmp_path)
        assert download.call_count == 1


def test_masks_come_along_before_the_captions_that_make_a_folder_whole(
    drive: Drive, exemplar_folder: Path, tmp_path: Path
) -> None:
    drive.folder = masked(exemplar_folder, tmp_path)
    drive.limit = 5
    with pytest.raises(UserError, match=r"still missing: text\.json\."):
        fetch(DRIVE, tmp_path)
    assert "masks/0.png" in drive.given
    drive.limit = 100
    assert fingerprint(fetch(DRIVE, tmp_path)) == fingerprint(drive.folder) != fingerprint(exemplar_folder)


def test_a_mask_on_record_that_drive_lacked_is_looked_for_anew(
    drive: Drive, exemplar_folder: Path, tmp_path: Path
) -> None:
    given, manifest = masked(exemplar_folder, tmp_path), tmp_path / "manifest"
    fetch(from_("folder", given.parent, manifest), tmp_path)
    with pytest.raises(UserError, match=r"masks/0\.png \(missing\)\. Fetch them again"):
        fetch(from_("drive", DRIVE.path, manifest), tmp_path)
    drive.folder = given
    assert fingerprint(fetch(from_("drive", DRIVE.path, manifest), tmp_path)) == fingerprint(given)


@pytest.mark.parametrize(
    ("other", "reason"),
    [("older/inside/9.png", "two folders of 'inside', inside and older/inside"), ("inside/0.png", "of one name")],
)
def test_two_drive_folders_of_the_relation_are_refused(other: str, reason: str, drive: Drive, tmp_path: Path) -> None:
    drive.others = [other]
    for listings in (1, 2):  # looked at anew, for someone may have tidied up
        with pytest.raises(UserError, match=reason):
            fetch(DRIVE, tmp_path)
        assert drive.listings == listings
    assert drive.given == []
    drive.others = ["older/1/2.png", "inside/older/2.png"]
    fetch(DRIVE, tmp_path)


def test_a_drive_folder_without_the_relation_is_named_and_looked_at_anew(drive: Drive, tmp_path: Path) -> None:
    for listings in (1, 2):
        with pytest.raises(UserError, match=r"no folder 'hug' with a text\.json"):
            fetch_exemplars("hug", tmp_path / "hug", DRIVE, SETTINGS, tmp_path)
        assert drive.listings == listings
