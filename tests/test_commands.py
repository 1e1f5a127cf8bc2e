"""The command `relinv` on a real checkout's files: a new relation, tokens in and out, an image made again."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from relinv.adapters.custom_diffusion import pretrained
from relinv.benchmark import load_benchmark
from relinv.commands import app
from relinv.diffusion.bases import load_base
from relinv.diffusion.concept import save_concept
from relinv.errors import UserError
from relinv.generation import generate_folder
from relinv.images import read_image_record
from relinv.importing import read_embedding
from relinv.settings import GenerateSettings, load_params
from stages.generate import generate
from stages.score import score
from tests.conftest import draw_exemplars
from tests.test_concept import made

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = GenerateSettings(pairs="all", seed=3, steps=2, guidance_scale=5.0, scheduler="dpmpp", batch_size=3)


@pytest.fixture
def checkout(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml and a benchmark of one relation, for the tiny base; commands run in it."""
    yaml = YAML(typ="safe", pure=True)
    params = yaml.load((ROOT / "params.yaml").read_text())
    params["bases"]["miniature"]["model"]["source"] = str(tiny_base)
    grid = {"words": "inside", "asymmetric": True, "heads": ["cat", "dog"], "tails": ["box", "cup"]}
    benchmark = {"name": "b", "held_out": None, "validation": {"fraction": 0, "seed": 0}, "relations": {"inside": grid}}
    (tmp_path / "data/benchmark").mkdir(parents=True)
    for path, content in {"params.yaml": params, "data/benchmark/miniature.yaml": benchmark}.items():
        with (tmp_path / path).open("w") as stream:
            yaml.dump(content, stream)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> str:
    """Run the command line; return what it prints, or raise what it raises."""
    return CliRunner().invoke(app, list(words), catch_exceptions=False).stdout


def test_a_relation_of_ones_own_is_laid_out_and_says_what_is_left_to_do(checkout: Path) -> None:
    (checkout / "pictures").mkdir()
    draw_exemplars(checkout / "pictures")
    for name in ("IMG_4.HEIC", "notes.txt", ".DS_Store"):
        (checkout / "pictures" / name).write_bytes(b"no picture that Pillow reads")
    printed = run("new", "kissing", "pictures")
    captions = checkout / "data/exemplars/own/kissing/text.json"
    assert json.loads(captions.read_text())["0.png"] == ["HEAD {} TAIL"]
    assert "IMG_4.HEIC, notes.txt, text.json: left out, for only .bmp, .jpeg, .jpg" in printed
    assert "DS_Store" not in printed
    assert "still to be filled in" in printed and "kissing:" in printed and "benchmark/miniature.yaml" in printed
    with pytest.raises(UserError, match="exists already"):
        run("new", "kissing", "pictures")
    with pytest.raises(UserError, match="no folder 'nowhere'"):
        run("new", "hugging", "nowhere")
    with pytest.raises(UserError, match="holds no pictures"):
        run("new", "hugging", "data")


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["../../evil", "Kissing People", "kissing-people", "kissing\n", "", "x" * 300])
def test_a_relation_that_params_cannot_name_is_not_laid_out(name: str, checkout: Path) -> None:
    (checkout / "pictures").mkdir()
    draw_exemplars(checkout / "pictures")
    before = files_below(checkout)
    with pytest.raises(UserError, match="cannot name a relation: write up to 100 of a to z, 0 to 9 and _"):
        run("new", name, "pictures")
    assert files_below(checkout) == before


def test_an_import_replaces_what_was_imported_and_nothing_else(checkout: Path) -> None:
    base = load_base(load_params().model())
    token = "learned_embeds.safetensors"
    save_file({"<R>": torch.ones(base.dim)}, checkout / token)
    learned, other = checkout / "data/concepts/inside/earlier", checkout / "data/concepts/inside/notes"
    for folder in (learned, other):
        folder.mkdir(parents=True)
    save_concept(learned, made(base))
    (other / "notes.txt").write_text("mine")
    before = files_below(checkout)
    for relation, method, reason in (
        ("..", "relations", r"'\.\.' cannot name a relation"),
        ("../../../x", "y", "cannot name a relation"),
        ("inside", "..", r"'\.\.' cannot name a method"),
        ("inside", str(checkout / "evil"), "cannot name a method"),
        ("inside", "reversion", "'reversion' is a method of this project"),
        ("inside", "earlier", "earlier' exists and was not imported"),
        ("inside", "notes", "notes' exists and was not imported"),
    ):
        with pytest.raises(UserError, match=reason):
            run("import", token, relation, method)
    assert files_below(checkout) == before
    row = checkout / "data/concepts/inside/published" / token
    for value in (1.0, 2.0):
        save_file({"<R>": torch.full((base.dim,), value)}, checkout / token)
        run("import", token, "inside", "published")
        assert torch.equal(load_file(row)["<r>"], torch.full((base.dim,), value))


def test_a_token_goes_in_is_drawn_with_and_scored_and_goes_out_again(checkout: Path, tiny_base: Path) -> None:
    (checkout / "data/miniature").symlink_to(ROOT / "data/miniature")
    params = checkout / "params.yaml"
    params.write_text(params.read_text().replace(str(tiny_base), "data/miniature/base"))
    base = load_base(load_params().model())
    save_file({"<R>": base.table[7].clone()}, checkout / "learned_embeds.safetensors")
    printed = run("import", "learned_embeds.safetensors", "inside", "published")
    assert "python -m stages.generate inside published" in printed
    generate("inside", "published")
    (checkout / "data/relations/inside").mkdir(parents=True)
    draw_exemplars(checkout / "data/relations/inside")
    score("inside", "published")
    rows = pd.read_csv("data/scores/inside/published.csv")
    assert list(rows["method"]) == ["published"] * 4 and rows["entity_accuracy"].isin([0, 1]).all()
    printed = run("export", "inside", "published", "--for", "webui", "--to", "out")
    assert Path(printed.strip()) == Path("out/inside_published.safetensors")  # "inside" is a word that prompts hold
    assert torch.equal(read_embedding(Path(printed.strip()))[1], base.table[7])
    printed = run("export", "inside", "published", "--for", "webui", "--to", "out", "--name", "within")
    assert Path(printed.strip()) == Path("out/within.safetensors")


def test_custom_diffusion_comes_from_two_files(checkout: Path) -> None:
    base = load_base(load_params().model())
    weights = "pytorch_custom_diffusion_weights.safetensors"
    save_file(dict(pretrained(base)), checkout / weights)
    torch.save({"<new1>": torch.ones(base.dim)}, checkout / "token.bin")
    with pytest.raises(UserError, match="pass it as --token FILE"):
        run("import", weights, "inside", "published")
    assert "holds <new1> as <r>" in run("import", weights, "inside", "published", "--token", "token.bin")
    assert (checkout / "data/concepts/inside/published" / weights).is_file()


def test_an_image_is_made_again_to_the_same_bytes(checkout: Path, tiny_base: Path) -> None:
    base = load_base(load_params().model())
    concept = made(base)
    save_concept_folder = checkout / "data/concepts/inside/reversion"
    save_concept_folder.mkdir(parents=True)
    save_concept(save_concept_folder, concept)
    scenarios = load_benchmark("data/benchmark/miniature.yaml").scenarios("inside")
    images = checkout / "my images/inside's"  # a shell would take the name apart
    generate_folder(base, concept, scenarios, SETTINGS, images, checkout / ".scratch")
    for name in ("001.png", "003.png"):  # among three, and alone in its batch
        printed = run("show", str(images / name))
        assert "Sampler: DPM++ 2M" in printed and "concept_sha256" in printed
        command = printed.strip().splitlines()[-1].partition(": relinv ")[2]
        run(*shlex.split(command))
        assert (checkout / "again.png").read_bytes() == (images / name).read_bytes()
    (checkout / "again.png").unlink()
    save_concept(save_concept_folder, made(base, seed=1))
    with pytest.raises(UserError, match="another concept than is here now"):
        run("draw", str(images / "001.png"), "again.png")
    assert not (checkout / "again.png").exists()


def test_an_image_is_shown_with_the_boxes_it_was_drawn_by(checkout: Path, tiny_base: Path) -> None:
    base, plain = load_base(load_params().model()), made(load_base(load_params().model()))
    options = load_params().section("invert.compositional.layout", dict[str, Any])
    adapter = {"name": "layout", "file": None, "options": options}
    concept = replace(plain, metadata={**plain.metadata, "method": "compositional", "adapters": [adapter]})
    scenarios = load_benchmark("data/benchmark/miniature.yaml").scenarios("inside")[:1]
    for each in (plain, concept):
        folder = checkout / "data/concepts/inside" / each.method
        folder.mkdir(parents=True)
        save_concept(folder, each)
        generate_folder(base, each, scenarios, SETTINGS, checkout / "images" / each.method, checkout / ".scratch")
    run("show", "images/compositional/000.png", "--boxes", "boxes.png")
    with Image.open("boxes.png") as marked, Image.open("images/compositional/000.png") as image:
        assert marked.size == image.size and marked.tobytes() != image.tobytes()
    with pytest.raises(UserError, match="reversion learned is drawn without boxes"):
        run("show", "images/reversion/000.png", "--boxes", "none.png")
    save_concept(folder, replace(concept, embedding=torch.zeros(base.dim)))
    with pytest.raises(UserError, match="drawn with another concept"):
        run("show", "images/compositional/000.png", "--boxes", "none.png")


def test_a_second_moment_is_measured_and_kept(checkout: Path) -> None:
    (checkout / "captions.txt").write_text("cat inside box\ndog\n")
    printed = run("second-moment", "captions.txt")
    assert "copy captions.txt into data/benchmark, and" in printed
    assert "set invert.perfusion.captions in params.yaml (or in the preset in use) to data/benchmark/cap" in printed
    assert "of data/benchmark/miniature.yaml, 32 x 32" in run("second-moment")
    assert len(list((checkout / ".scratch/second_moment").iterdir())) == 2


@pytest.mark.parametrize("command", ["new", "masks", "import", "export", "second-moment", "show", "draw", "imagine"])
def test_help_shows_an_example(command: str) -> None:
    done = subprocess.run([sys.executable, "-m", "relinv.commands", command, "--help"], capture_output=True, text=True)
    assert f"Example: relinv {command}" in done.stdout


def test_concepts_from_several_files_stand_in_one_prompt(checkout: Path) -> None:
    base = load_base(load_params().model())
    for relation in ("inside", "koala"):
        folder = checkout / "data/concepts" / relation / "reversion"
        folder.mkdir(parents=True)
        save_concept(
            folder, made(base) if relation == "inside" else replace(made(base), embedding=-made(base).embedding)
        )
    both = ["--use", "r=inside/reversion", "--use", "koala=koala/reversion"]
    for name, words in (("both", both), ("again", both), ("swapped", [*both[2:], *both[:2]])):
        run("imagine", "<koala> <r> box", f"{name}.png", *words, "--seed", "5")
    run("imagine", "<koala> <r> box", "other.png", "--use", "r=koala/reversion", "--use", "koala=inside/reversion")
    first, again, swapped, other = (Image.open(f"{n}.png").tobytes() for n in ("both", "again", "swapped", "other"))
    assert first == again == swapped != other
    printed = run("show", "both.png")
    assert printed.startswith("<koala> <r> box") and "koala=koala/reversion" in printed
    run("draw", "both.png", "drawn.png")
    assert Path("drawn.png").read_bytes() == Path("both.png").read_bytes()
    save_concept(Path("data/concepts/koala/reversion"), made(base, seed=1))
    with pytest.raises(UserError, match=r"both\.png was drawn with another concept than is here now"):
        run("draw", "both.png", "drawn.png")
    with pytest.raises(UserError, match="prompt of its own"):
        run("show", "both.png", "--boxes", "boxes.png")
    with pytest.raises(UserError, match=r"names <koala>, which no concept in use has learned"):
        run("imagine", "<koala> <r> box", "out.png", "--use", "r=inside/reversion")
    with pytest.raises(UserError, match=r"'inside/reversion' names no token"):
        run("imagine", "<r> box", "out.png", "--use", "inside/reversion")
    with pytest.raises(UserError, match=r"'perfusion=1' is no option"):
        run("imagine", "<r> box", "out.png", "--use", "r=inside/reversion", "--with", "perfusion=1")
    with pytest.raises(UserError, match=r"Unknown adapter 'prefusion'\. Did you mean 'perfusion'"):
        run("imagine", "<r> box", "out.png", "--use", "r=inside/reversion", "--with", "prefusion.beta=1")
    assert not Path("out.png").exists()


def test_what_is_chosen_at_drawing_is_seen_in_the_picture_and_in_what_it_says(checkout: Path) -> None:
    concept = made(load_base(load_params().model()))
    folder = checkout / "data/concepts/inside/reversion"
    folder.mkdir(parents=True)
    save_concept(folder, concept)
    layout = load_params().section("invert.compositional.layout", dict[str, Any]) | {"threshold": 0.0}
    options = [word for name, value in layout.items() for word in ("--with", f"layout.{name}={value}")]
    use = ("cat <r> box", "--use", "r=inside/reversion")
    run("imagine", *use[:1], "plain.png", *use[1:])
    run("imagine", *use[:1], "boxes.png", *use[1:], *options)
    assert Image.open("plain.png").tobytes() != Image.open("boxes.png").tobytes()
    assert read_image_record(Path("boxes.png")).settings["adapters"]["layout"]["threshold"] == 0.0
    run("draw", "boxes.png", "again.png")
    assert Path("again.png").read_bytes() == Path("boxes.png").read_bytes()
    run("imagine", *use[:1], "small.png", *use[1:], *options, "--with", "layout.scale=1e-3")  # a number in YAML 1.2
    assert read_image_record(Path("small.png")).settings["adapters"]["layout"]["scale"] == 0.001
    with pytest.raises(UserError, match=r"The value in 'layout\.head=\[0' is not valid YAML"):
        run("imagine", *use[:1], "out.png", *use[1:], "--with", "layout.head=[0")
    with pytest.raises(UserError, match=r"'generate\.adapters\.layout\.threshold' is 2"):
        run("imagine", *use[:1], "out.png", *use[1:], *options, "--with", "layout.threshold=2")


def test_an_image_is_not_made_again_by_a_base_that_runs_otherwise(checkout: Path) -> None:
    base = load_base(load_params().model())
    folder = checkout / "data/concepts/inside/reversion"
    folder.mkdir(parents=True)
    save_concept(folder, made(base))
    run("imagine", "cat <r> box", "cat.png", "--use", "r=inside/reversion")
    file = checkout / "params.yaml"
    file.write_text(file.read_text().replace("precision: fp32", "precision: bf16"))
    with pytest.raises(UserError, match=r"cat\.png was drawn with another library or way to run the base"):
        run("draw", "cat.png", "again.png")
