"""Shared fixtures: a tiny base model and a folder of drawn exemplars, each made once a session; a web server."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any Hugging Face library is imported: tests never reach for the network

import errno
import json
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image, ImageDraw

import stages  # noqa: F401 - before torch: tests compute with as many threads as the stages do, to the same bytes

if TYPE_CHECKING:
    import pandas as pd

    from relinv.diffusion.bases import Base
    from relinv.settings import ModelSettings
    from tests.fetching import Server

SIDE = 64  # pixels


# Files that take a minute or more on one core: begun first, so that at the end no worker waits for another.
LONGEST = {"test_devices", "test_end_to_end", "test_methods_contract", "test_miniature", "test_reproducing",
           "test_running", "test_sd15", "test_study"}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("there is no GPU")


PAIRS = (
    ("cat", "box", "red"),
    ("dog", "basket", "blue"),
    ("rabbit", "bowl", "orange"),
    ("panda", "cup", "green"),
)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `StableDiffusionPipeline` folder of random weights for 64x64 images; see tests/tiny.py."""
    from tests.tiny import build_tiny_base

    return build_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def base(tiny_base: Path) -> Base:
    """The tiny base, loaded. Tests leave it as it is."""
    from relinv.diffusion.bases import load_base

    return load_base(tiny_settings(tiny_base))


def tiny_settings(folder: Path) -> ModelSettings:
    """Return how the base in `folder` is run in tests."""
    from relinv.settings import ModelSettings, Sampler

    preview = Sampler(steps=2, guidance_scale=5.0, scheduler="ddim")
    run = {"device": "cpu", "precision": "fp32", "resolution": SIDE, "preview": preview}
    return ModelSettings(source=str(folder), revision=None, **run)


@pytest.fixture(scope="session")
def exemplar_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid relation folder, `inside`: four drawn pictures and text.json with two templates for each."""
    folder = tmp_path_factory.mktemp("relations") / "inside"
    folder.mkdir()
    return draw_exemplars(folder)


def draw_exemplars(folder: Path) -> Path:
    """Draw a disc inside a box for each of `PAIRS` into `folder`, with text.json; return `folder`."""
    templates = {}
    for index, (head, tail, colour) in enumerate(PAIRS):
        picture = Image.new("RGB", (SIDE, SIDE), "ivory")
        draw = ImageDraw.Draw(picture)
        draw.rectangle((8, 24, 56, 60), fill="sienna")
        draw.ellipse((16 + 4 * index, 12, 36 + 4 * index, 36), fill=colour)
        picture.save(folder / f"{index}.png")
        templates[f"{index}.png"] = [f"{head} {{}} {tail}", f"a photo of a {head} {{}} a {tail} in the snow"]
    (folder / "text.json").write_text(json.dumps(templates, indent=2) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def study_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git and DVC repository with one committed run; tests leave it as it is. See tests/studying.py."""
    from tests.studying import write_repository

    root = tmp_path_factory.mktemp("template")
    write_repository(root)
    return root


@pytest.fixture(scope="module")
def surroundings() -> Iterator[None]:
    """What studies in temporary repositories need of the environment; see tests/studying.py."""
    from tests.studying import ENVIRONMENT

    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def repository(study_template: Path, surroundings: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the template that a module's tests share, in which studies can be run."""
    return shutil.copytree(study_template, tmp_path_factory.mktemp("studies") / "repository", symlinks=True)


@pytest.fixture
def own_repository(study_template: Path, surroundings: None, tmp_path: Path) -> Path:
    """A copy of the template for one test."""
    return shutil.copytree(study_template, tmp_path / "repository", symlinks=True)


@pytest.fixture
def checkout(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml and a benchmark of one relation, for the tiny base; commands run in it."""
    from tests.checkouts import lay_out_checkout

    monkeypatch.chdir(lay_out_checkout(tmp_path, tiny_base))
    return tmp_path


@pytest.fixture
def rows() -> pd.DataFrame:
    """Made-up score rows of two relations by three methods; see tests/reporting.py."""
    from tests.reporting import METHODS, RELATIONS, score_table, scored

    return scored(*(score_table(relation, method) for relation in RELATIONS for method in METHODS))


@pytest.fixture
def server(exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A web server of this machine with a zip of the exemplars, asked again without waits; see tests/fetching.py."""
    from tests.fetching import Server, zipped

    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)  # no waits between tries
    archive = zipped(exemplar_folder, tmp_path / "made.zip")
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("benchmark/film.bin", random.Random(0).randbytes(4_000_000))
    running = Server(archive.read_bytes())
    yield running
    running.http.shutdown()
    running.http.server_close()


@pytest.fixture
def make_unreadable(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Return what has the system refuse to open a file, as another user's: root, as in containers, may read any."""
    opened = Path.open
    refused: set[Path] = set()

    def refusing(path: Path, *arguments: Any, **options: Any) -> Any:
        if path in refused:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refusing)
    return refused.add
