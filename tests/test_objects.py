"""Objects the base has never seen: rendered as exemplars, valid, and asked for in scenes."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageChops

from relinv.benchmark import load_benchmark
from relinv.diffusion.concept import Concept
from relinv.errors import UserError
from relinv.exemplars import read_exemplars
from relinv.files import sha256_file, sha256_folder
from relinv.hub import base_tokenizer
from relinv.params import load_params
from relinv.settings import ValidateSettings
from relinv.validation import validate_folder
from relinv.world.entities import ENTITIES
from relinv.world.objects import COUNT, FOLDER, write_object_exemplars
from relinv.world.paint import SPRITE_FOLDER

BENCHMARK = load_benchmark("data/benchmark/objects.yaml")
OBJECTS = list(BENCHMARK.relations)


def test_there_are_three_that_no_training_scene_holds() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.webp")) == OBJECTS and len(OBJECTS) == 3
    assert not set(OBJECTS) & set(ENTITIES)
    seen = {sha256_file(path) for path in SPRITE_FOLDER.iterdir()}
    assert not seen & {sha256_file(path) for path in FOLDER.iterdir()}


@pytest.mark.parametrize("name", OBJECTS)
def test_exemplars_are_valid_and_differ(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    write_object_exemplars(name, folder, seed=0)
    params = load_params()
    settings = params.section("validate", ValidateSettings)
    verdict = validate_folder(folder, settings, base_tokenizer(params.model()), resolution=64)
    assert verdict.valid and verdict.errors == []
    pictures = [Image.open(exemplar.path) for exemplar in read_exemplars(folder).exemplars]
    assert len(pictures) == COUNT and 4 <= COUNT <= 6
    assert all(ImageChops.difference(pictures[0], other).getbbox() for other in pictures[1:])


def test_the_same_seed_gives_the_same_pictures(tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        write_object_exemplars("koala", tmp_path / name, seed=seed)
    first, again, other = (sha256_folder(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again != other


def test_an_unknown_object_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no object 'kola': there are koala, teapot, violin"):
        write_object_exemplars("kola", tmp_path, seed=0)


def test_its_scenes_are_asked_for_and_judged_without_a_head() -> None:
    scenario = BENCHMARK.scenarios("koala")[0]
    concept = Concept("<r>", None, {"template": "{head} <r> {tail}"})
    assert concept.prompt(scenario.head, scenario.tail) == "<r> inside box"
    assert BENCHMARK.relation("koala").phrase(scenario.head, scenario.tail) == "panda inside box"
