"""The command `relinv` on a real checkout's files: a new relation, tokens in and out, an image made again."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pandas as pd
import pytest
import torch
from dvc.utils.hydra import apply_overrides
from PIL import Image
from safetensors.torch import load_file, save_file

from relinv.adapters.custom_diffusion import pretrained
from relinv.adapters.dreambooth import own_weights
from relinv.benchmark import load_benchmark
from relinv.diffusion.bases import Base, load_base
from relinv.diffusion.concept import load_concept
from relinv.errors import UserError
from relinv.generation import generate_folder
from relinv.images import read_image_record
from relinv.learning.inversion import invert_relation
from relinv.params import load_params
from relinv.settings import GenerateSettings
from stages.generate import generate
from stages.score import score
from tests.checkouts import ROOT, lay_out_checkout, run, warned
from tests.concepts import keep, made, read_token
from tests.conftest import draw_exemplars
from tests.fetching import renamed_by_an_old_camera
from tests.inverting import problem

SETTINGS = GenerateSettings(pairs="all", seed=3, steps=2, guidance_scale=5.0, scheduler="dpmpp", batch_size=3)


@pytest.fixture
def checkout(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml and a benchmark of one relation, for the tiny base; commands run in it."""
    monkeypatch.chdir(lay_out_checkout(tmp_path, tiny_base))
    return tmp_path


def test_a_relation_of_ones_own_is_laid_out_and_says_what_is_left_to_do(checkout: Path) -> None:
    (checkout / "pictures").mkdir()
    draw_exemplars(checkout / "pictures")
    Image.new("L", (64, 64)).save(checkout / "pictures" / "4.png")
    for name in ("IMG_4.HEIC", "notes.txt", ".DS_Store"):
        (checkout / "pictures" / name).write_bytes(b"no picture that Pillow reads")
    (checkout / "pictures/albums").mkdir()
    (checkout / "pictures/text.json").unlink()
    printed = run("new", "leaning_on", "pictures")
    captions = checkout / "data/exemplars/own/leaning_on/text.json"
    assert json.loads(captions.read_text())["0.png"] == ["HEAD {} TAIL"]
    assert "holds 5 pictures, without albums, notes.txt. What is left to do:\n" in printed
    assert "  - IMG_4.HEIC: left out, because only .bmp, .jpeg, .jpg" in printed
    assert "DS_Store" not in printed
    assert "still to be filled in" in printed and "4.png: its mode is L" in printed
    assert "relation.yaml: say what stands between" in printed
    relation = load_benchmark(checkout / "data/benchmark/miniature.yaml", captions.parent).relation("leaning_on")
    assert '"HEAD leaning on TAIL"' in captions.with_name("relation.yaml").read_text()
    assert (relation.words, relation.heads, relation.tails, relation.own) == (
        "leaning on", ("cat", "dog"), ("box", "cup"), True
    )  # fmt: skip
    assert "relation.yaml" not in run("new", "inside", "pictures")  # the benchmark has it
    assert not (checkout / "data/exemplars/own/inside/relation.yaml").exists()
    with pytest.raises(UserError, match="exists already"):
        run("new", "leaning_on", "pictures")
    with pytest.raises(UserError, match="no folder 'nowhere'"):
        run("new", "hugging", "nowhere")
    with pytest.raises(UserError, match=r"holds no pictures that can be read .* beside benchmark, exemplars: put four"):
        run("new", "hugging", "data")


def test_captions_beside_the_pictures_are_taken_over(checkout: Path) -> None:
    (checkout / "pictures").mkdir()
    draw_exemplars(checkout / "pictures")
    given, own = checkout / "pictures/text.json", checkout / "data/exemplars/own"
    captions = json.loads(given.read_text())
    printed = run("new", "inside", "pictures")
    assert json.loads((own / "inside/text.json").read_text()) == captions
    assert "holds 4 pictures. What is left to do: nothing.\n" in printed
    given.write_text(json.dumps({"0.png": captions["0.png"], "9.png": ["cat {} box"]}))
    entry = "words: leans on\nasymmetric: true\nheads: [cat]\ntails: [box]\n"
    (checkout / "pictures/relation.yaml").write_text(entry.replace("asymmetric", "asymetric"))
    with pytest.raises(UserError, match=r"Unknown parameter 'asymetric'.*in pictures/relation\.yaml"):
        run("new", "leaning_on", "pictures")
    assert not (own / "leaning_on").exists()
    (checkout / "pictures/relation.yaml").write_text(entry)
    (checkout / "pictures/masks").mkdir()
    Image.new("L", (64, 64), 255).save(checkout / "pictures/masks/0.png")
    (checkout / "pictures/masks/1.png").symlink_to("gone.png")
    printed = run("new", "leaning_on", "pictures")
    assert json.loads((own / "leaning_on/text.json").read_text())["1.png"] == ["HEAD {} TAIL"]
    assert "text.json names '9.png', which is not there" in printed and "of 0.png" not in printed
    assert (own / "leaning_on/relation.yaml").read_text() == entry and "say what stands" not in printed
    assert [path.name for path in (own / "leaning_on/masks").iterdir()] == ["0.png"] and "without" not in printed
    shutil.rmtree(own / "inside")
    assert "holds 4 pictures, without relation.yaml. " in run("new", "inside", "pictures")  # the benchmark has one
    assert not (own / "inside/relation.yaml").exists()
    for text, reason in ("{", r"'pictures/text\.json' is not valid JSON"), ('["cat"]', r"pictures/text\.json must map"):
        given.write_text(text)
        with pytest.raises(UserError, match=reason):
            run("new", "kissing", "pictures")
    assert not (own / "kissing").exists()


def test_pictures_under_a_name_that_is_not_utf8_are_not_laid_out(checkout: Path) -> None:
    (checkout / "pictures").mkdir()
    renamed_by_an_old_camera(draw_exemplars(checkout / "pictures") / "0.png")
    with pytest.raises(UserError, match=r"'pictures' holds a name that is not UTF-8, 'caf\\udce9\.png': rename that"):
        run("new", "kissing", "pictures")


def test_nothing_is_laid_out_where_the_captions_could_not_be_counted(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "pictures").mkdir()
    draw_exemplars(checkout / "pictures")
    monkeypatch.setattr("relinv.commands.relations.base_tokenizer", MagicMock(side_effect=UserError("no tokenizer")))
    with pytest.raises(UserError, match="no tokenizer"):
        run("new", "kissing", "pictures")
    assert not (checkout / "data/exemplars/own/kissing").exists()


def test_commands_compute_on_as_many_threads_as_stages_do() -> None:  # else an image drawn again has other last bits
    told = "import relinv.commands, torch; print(torch.get_num_threads())"
    chosen = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    for given, threads in ({}, "1"), ({"OMP_NUM_THREADS": "2"}, "2"):
        done = subprocess.run(
            [sys.executable, "-c", told], env=chosen | given, capture_output=True, text=True, check=True, timeout=120
        )
        assert done.stdout.split() == [threads]


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name",
    ["../../evil", "Kissing People", "kissing-people", "kissing\n", "", "x" * 300, "2022", "true", "1e3", "null"],
)
def test_a_relation_that_params_cannot_name_is_not_laid_out(name: str, checkout: Path) -> None:
    (checkout / "pictures").mkdir()
    draw_exemplars(checkout / "pictures")
    before = files_below(checkout)
    with pytest.raises(UserError, match=r"cannot name a relation: (write up to 100 of a to|YAML takes it)"):
        run("new", name, "pictures")
    assert files_below(checkout) == before


def test_an_import_replaces_what_was_imported_and_nothing_else(checkout: Path) -> None:
    base = load_base(load_params().model())
    token = "learned_embeds.safetensors"
    save_file({"<R>": torch.ones(base.dim)}, checkout / token)
    other = keep(checkout, made(base, method="earlier")).with_name("notes")
    other.mkdir()
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
    file, said = run("export", "inside", "published", "--for", "webui", "--to", "out").splitlines()
    assert Path(file) == Path("out/inside_published.safetensors")  # "inside" is a word that prompts hold
    assert "embedding:inside_published in ComfyUI, <inside_published> in InvokeAI" in said
    assert torch.equal(read_token(Path(file))[1], base.table[7][None])
    file, said = run("export", "inside", "published", "--for", "webui", "--to", "out", "--name", "within").splitlines()
    assert Path(file) == Path("out/within.safetensors") and said.startswith("Prompts say within in A1111")


@pytest.mark.parametrize(
    ("relation", "method", "reason"),
    [
        ("inside", "reversoin", r"Unknown method 'reversoin'\. Did you mean 'reversion'"),
        ("inside", "reversion/", r"Unknown method 'reversion/'\. Did you mean 'reversion'"),
        ("inside", "../inside/reversion", r"Unknown method '\.\./inside/reversion'\. Did you mean 'reversion'"),
        ("insdie", "reversion", r"Unknown relation 'insdie'\. Did you mean 'inside'"),
        ("insdie", "published", r"Unknown relation 'insdie'\. Did you mean 'inside'"),
        ("coala", "reversion", r"Unknown relation 'coala'\. Did you mean 'koala'\? Available: inside, koala"),
        ("koala", "multires", r"There is no 'data/concepts/koala/multires' yet: make it with `python -m stages\.inv"),
    ],
)
def test_a_misspelt_relation_or_method_is_told_with_the_closest(
    relation: str, method: str, reason: str, checkout: Path
) -> None:
    keep(checkout, made(load_base(load_params().model()), relation="koala"))
    with pytest.raises(UserError, match=reason):
        run("export", relation, method, "--for", "hub", "--to", "out")


def test_a_relation_without_scenarios_is_imported_without_the_commands_that_need_some(checkout: Path) -> None:
    save_file({"<R>": torch.ones(load_base(load_params().model()).dim)}, checkout / "koala.safetensors")
    assert "stages.generate" not in run("import", "koala.safetensors", "insides", "published")
    told = warned("import", "koala.safetensors", "insides", "published")
    assert told.startswith("Warning: Unknown relation 'insides'. Did you mean 'inside'?")
    assert "by `relinv imagine --use r=insides/published`" in told
    assert (
        "imported" in load_concept(Path("data/concepts/insides/published"), load_base(load_params().model())).metadata
    )
    assert warned("import", "koala.safetensors", "inside", "published") == ""


@pytest.mark.parametrize(
    "words",
    [
        ("new", "kissing", ""),
        ("masks", "", "cat"),
        ("export", "inside", "reversion", "--for", "webui", "--to="),
        ("import", "", "inside", "published"),
        ("import", "text.json", "inside", "published", "--token", ""),
        ("second-moment", ""),
    ],
    ids=" ".join,
)
def test_an_empty_path_is_not_the_current_folder(words: tuple[str, ...], checkout: Path) -> None:
    draw_exemplars(checkout)
    keep(checkout, made(load_base(load_params().model())))
    before = files_below(checkout)
    with pytest.raises(UserError, match=r"^A path is empty, .*: name a file or folder\.$"):
        run(*words)
    assert files_below(checkout) == before


def name_a_gpu_that_is_not_here() -> None:
    apply_overrides(Path("params.yaml"), ["bases.miniature.model.device=cuda:99"])


def test_an_export_replaces_a_file_of_ones_own_only_when_told_and_needs_no_gpu(checkout: Path) -> None:
    keep(checkout, made(load_base(load_params().model())))
    name_a_gpu_that_is_not_here()
    (checkout / "README.md").write_text("mine")
    words = ("export", "inside", "reversion", "--for", "hub", "--to", ".")
    with pytest.raises(UserError, match=r"'README\.md' would be lost"):
        run(*words)
    assert (checkout / "README.md").read_text() == "mine"
    assert run(*words, "--overwrite").splitlines() == ["learned_embeds.safetensors", "README.md"]
    assert (checkout / "README.md").read_text().startswith("---\n")


def test_custom_diffusion_comes_from_two_files_without_a_gpu(checkout: Path) -> None:
    base = load_base(load_params().model())
    name_a_gpu_that_is_not_here()
    weights = "pytorch_custom_diffusion_weights.safetensors"
    save_file(dict(pretrained(base)), checkout / weights)
    torch.save({"<new1>": torch.ones(base.dim)}, checkout / "token.bin")
    with pytest.raises(UserError, match="name it, as --token FILE"):
        run("import", weights, "inside", "published")
    assert "holds <new1> as <r>" in run("import", weights, "inside", "published", "--token", "token.bin")
    assert (checkout / "data/concepts/inside/published" / weights).is_file()


def test_an_image_is_made_again_to_the_same_bytes(checkout: Path, tiny_base: Path) -> None:
    base = load_base(load_params().model())
    concept = made(base)
    keep(checkout, concept)
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
    keep(checkout, made(base, seed=1))
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
        keep(checkout, each)
        generate_folder(base, each, scenarios, SETTINGS, checkout / "images" / each.method, checkout / ".scratch")
    name_a_gpu_that_is_not_here()  # nor needed
    run("show", "images/compositional/000.png", "--boxes", "boxes.png")
    with Image.open("boxes.png") as marked, Image.open("images/compositional/000.png") as image:
        assert marked.size == image.size and marked.tobytes() != image.tobytes()
    run("show", "images/compositional/000.png", "--boxes", "boxes.png")  # over the one of before
    told = warned("export", "inside", "compositional", "--for", "webui", "--to", "out")
    assert told == "Warning: its layout stays behind: other programs draw without it.\n"
    with pytest.raises(UserError, match="reversion learned is drawn without boxes"):
        run("show", "images/reversion/000.png", "--boxes", "none.png")
    keep(checkout, replace(concept, embedding=torch.zeros(base.dim)))
    with pytest.raises(UserError, match="drawn with another concept"):
        run("show", "images/compositional/000.png", "--boxes", "none.png")


@pytest.mark.parametrize("name", ["out.jpg", "out", "out.png.webp"])
def test_a_png_is_not_written_by_another_name(name: str, checkout: Path) -> None:
    keep(checkout, made(load_base(load_params().model())))
    run("imagine", "cat <r> box", "cat.PNG", "--use", "r=inside/reversion")
    for words in (
        ("imagine", "cat <r> box", name, "--use", "r=inside/reversion"),
        ("draw", "cat.PNG", name),
        ("show", "cat.PNG", "--boxes", name),
    ):
        with pytest.raises(UserError, match=rf"The image '{name}' would be a PNG .* let its name end in \.png\."):
            run(*words)
    assert not Path(name).exists()


def test_a_picture_that_was_not_drawn_here_is_not_written_over(checkout: Path) -> None:
    run("imagine", "cat in box", "cat.png")
    Image.new("RGB", (8, 8)).save("photo.png")
    Path("notes_1.png").write_text("mine")
    before = files_below(checkout)
    for words in (
        ("imagine", "cat in box", "photo.png"),
        ("imagine", "cat in box", "notes.png", "--images", "2"),
        ("draw", "cat.png", "photo.png"),
        ("show", "cat.png", "--boxes", "photo.png"),
    ):
        with pytest.raises(UserError, match=r"'(photo|notes_1)\.png' exists, and .* to write, or remove it\.$"):
            run(*words)
    assert files_below(checkout) == before
    run("imagine", "cat on box", "cat.png")
    assert files_below(checkout) != before


def test_the_image_that_is_read_is_not_written_over(checkout: Path) -> None:
    keep(checkout, made(load_base(load_params().model())))
    run("imagine", "cat <r> box", "cat.png", "--use", "r=inside/reversion")
    before = files_below(checkout)
    for words in (("draw", "cat.png", f"{checkout}/cat.png"), ("show", "cat.png", "--boxes", "./cat.png")):
        with pytest.raises(UserError, match=r"cat\.png' is the image that is read, .*: name another file to write\.$"):
            run(*words)
    assert files_below(checkout) == before


def test_an_image_of_scenarios_that_are_no_more_is_not_made_again(checkout: Path) -> None:
    base = load_base(load_params().model())
    keep(checkout, made(base))
    scenarios = load_benchmark("data/benchmark/miniature.yaml").scenarios("inside")[:1]
    validation = SETTINGS.model_copy(update={"pairs": "validation"})  # the benchmark has none of these now
    generate_folder(base, made(base), scenarios, validation, checkout / "images", checkout / ".scratch")
    with pytest.raises(UserError, match=r"000\.png was drawn with another benchmark than is here now"):
        run("draw", "images/000.png", "again.png")


def test_an_image_is_drawn_again_in_the_precision_that_is_set_for_drawing(checkout: Path) -> None:
    apply_overrides(Path("params.yaml"), ["bases.miniature.sampling.precision=bf16"])
    keep(checkout, made(load_base(load_params().model())))
    run("imagine", "cat <r> box", "cat.png", "--use", "r=inside/reversion")
    assert '"precision": "bf16"' in run("show", "cat.png")
    run("draw", "cat.png", "again.png")
    assert Path("again.png").read_bytes() == Path("cat.png").read_bytes()


def test_a_second_moment_is_measured_and_kept(checkout: Path) -> None:
    (checkout / "captions.txt").write_text("cat inside box\ndog\n")
    printed = run("second-moment", "captions.txt")
    assert "copy captions.txt into data/benchmark, and" in printed
    assert "set invert.perfusion.captions in params.yaml (or in the preset in use) to data/benchmark/cap" in printed
    printed = run("second-moment")
    assert "of data/benchmark/miniature.yaml, 32 x 32" in printed and "copy" not in printed
    assert len(list((checkout / ".scratch/second_moment").iterdir())) == 2


def test_a_model_and_a_judge_are_downloaded_where_there_is_no_gpu(
    checkout: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"model.source": "some/model", "model.device": "cuda:99", "judge.device": "cuda:99"}
    changes |= {"judge.model": str(ROOT / "data/miniature/judge")}
    apply_overrides(Path("params.yaml"), [f"bases.miniature.{name}={value}" for name, value in changes.items()])
    from_hub = MagicMock(return_value=str(tiny_base))
    monkeypatch.setattr("huggingface_hub.snapshot_download", from_hub)
    assert "some/model and " in run("download")
    assert "unet/*.safetensors" in from_hub.call_args.kwargs["allow_patterns"]
    vqa = "{model: some/other, revision: abc, precision: bf16}"
    apply_overrides(Path("params.yaml"), [f"bases.miniature.judge.vqa={vqa}"])
    assert "judge and some/other are here" in run("download")
    assert from_hub.call_args.args == ("some/other",) and from_hub.call_args.kwargs["revision"] == "abc"


# Concepts from several files in one prompt

INSIDE, KOALA = ("--use", "r=inside/reversion"), ("--use", "koala=koala/reversion")


@pytest.fixture
def both(checkout: Path) -> Base:
    """The base of two concepts that are in the checkout: of `inside`, and of a `koala` that is its opposite."""
    base = load_base(load_params().model())
    keep(checkout, made(base))
    keep(checkout, replace(made(base, relation="koala"), embedding=-made(base).embedding))
    return base


def imagine(target: str, *options: str, seed: int = 5) -> bytes:
    """Draw a prompt of two tokens into the file `target`; return the picture's bytes."""
    run("imagine", "<koala> <r> box", target, *options, "--seed", str(seed))
    with Image.open(target) as image:
        return image.tobytes()


def test_concepts_stand_in_one_prompt_by_their_names_whatever_their_order(both: Base) -> None:
    first = imagine("out.png", *INSIDE, *KOALA)
    assert imagine("out.png", *INSIDE, *KOALA) == first
    assert imagine("out.png", *KOALA, *INSIDE) == first
    assert imagine("out.png", *INSIDE, *KOALA, seed=6) != first
    assert imagine("out.png", "--use", "r=koala/reversion", "--use", "koala=inside/reversion") != first


def test_an_image_of_several_concepts_is_shown_and_drawn_again(both: Base) -> None:
    imagine("both.png", *INSIDE, *KOALA)
    printed = run("show", "both.png")
    assert printed.startswith("<koala> <r> box") and "koala=koala/reversion" in printed
    run("draw", "both.png", "drawn.png")
    assert Path("drawn.png").read_bytes() == Path("both.png").read_bytes()
    with pytest.raises(UserError, match="prompt of its own"):
        run("show", "both.png", "--boxes", "boxes.png")


def test_a_negative_prompt_changes_the_image_and_is_shown_and_drawn_again(both: Base) -> None:
    negative = ("--negative", "big <r> vase")  # which may have a concept in it
    plain, without = imagine("plain.png", *INSIDE, *KOALA), imagine("without.png", *INSIDE, *KOALA, *negative)
    assert plain != without
    assert "\nNegative prompt: \nSteps" in run("show", "plain.png")
    assert "\nNegative prompt: big <r> vase\nSteps" in run("show", "without.png")
    for name in ("plain", "without"):
        run("draw", f"{name}.png", "drawn.png")
        assert Path("drawn.png").read_bytes() == Path(f"{name}.png").read_bytes()
    with pytest.raises(UserError, match="negative prompt would change nothing at a guidance scale of 1 or less"):
        imagine("out.png", *INSIDE, *KOALA, *negative, "--guidance-scale", "1")
    assert not Path("out.png").exists()


def test_concepts_whose_order_matters_are_drawn_again_as_they_were(checkout: Path, both: Base) -> None:
    adapters = [{"name": "dreambooth", "file": "diffusion_pytorch_model.safetensors", "options": {"weights": "full"}}]
    for relation, factor in (("inside", 0.9), ("koala", 1.1)):  # two UNets, of which the last in use counts
        weights = {"dreambooth": {name: weight * factor for name, weight in own_weights(both).items()}}
        keep(checkout, replace(made(both, relation=relation, adapters=adapters), weights=weights))
    first = imagine("both.png", *INSIDE, *KOALA)
    run("draw", "both.png", "drawn.png")
    assert Path("drawn.png").read_bytes() == Path("both.png").read_bytes()
    assert imagine("both.png", *KOALA, *INSIDE) == first


def test_an_image_of_several_concepts_is_not_drawn_again_with_another(checkout: Path, both: Base) -> None:
    imagine("both.png", *INSIDE, *KOALA)
    keep(checkout, made(both, relation="koala", seed=1))
    with pytest.raises(UserError, match=r"both\.png was drawn with another concept than is here now"):
        run("draw", "both.png", "drawn.png")


@pytest.mark.parametrize(
    ("prompt", "options", "reason"),
    [
        ("<koala> <r> box", INSIDE, r"names <koala>, .* has learned: .* --use koala=RELATION/METHOD`\), or leave"),
        (
            "<r> box",
            ("--use", "inside/reversion"),
            r"'inside/reversion' names no concept: write --use TOKEN=RELATION/METHOD",
        ),
        ("<r> box", ("--use", "r=inside"), r"'r=inside' names no concept: write --use TOKEN"),
        ("<r> box", ("--use", "r=inside/reversion/x"), r"'r=inside/reversion/x' names no concept: write --use TOKEN"),
        ("<r> box", ("--use", "r=inside/reversoin"), r"Unknown method 'reversoin'\. Did you mean 'reversion'"),
        ("<r> box", ("--use", "r=inside/multires"), r"no 'data/concepts/inside/multires' yet: make it with"),
        ("<r> box", ("--use", "<r>=inside/reversion"), r"a token that prompts cannot name: write what stands between"),
        ("<My cat> box", ("--use", "my cat=inside/reversion"), r"a token that prompts cannot name: .* without spaces"),
        ("<> box", ("--use", "=inside/reversion"), r"a token that prompts cannot name"),
        ("<r> box", ("--use", "r> <k=inside/reversion"), r"a token that prompts cannot name"),
        ("caf\udce9 <r> box", INSIDE, r"The prompt is not UTF-8 text"),
        ("<r> box", (*INSIDE, "--with", "perfusion=1"), r"'perfusion=1' is not an option"),
        ("<r> box", (*INSIDE, "--with", "perfusion.beta"), r"'perfusion\.beta' is not an option"),
        ("<r> box", (*INSIDE, "--with", "prefusion.beta=1"), r"Unknown adapter 'prefusion'\. Did you mean 'perfusion'"),
        (
            "<r> box",
            (*INSIDE, "--with", "perfusion.beta=0.5"),
            r"'perfusion\.beta=0\.5' would change nothing, .* adapter 'perfusion' \(they have none\): leave it out\.$",
        ),
        ("<r> box", (*INSIDE, "--with", "layout.scale=1"), r"'generate\.adapters\.layout\.head' is missing from --w"),
    ],
)
def test_what_cannot_be_imagined_is_refused(prompt: str, options: tuple[str, ...], reason: str, both: Base) -> None:
    with pytest.raises(UserError, match=reason):
        run("imagine", prompt, "out.png", *options)
    assert not Path("out.png").exists()


def test_a_token_that_the_prompt_does_not_say_is_told(both: Base) -> None:
    told = warned("imagine", "<koala> <r box", "out.png", "--use", "R=inside/reversion", *KOALA)
    assert told == (
        "Warning: The prompt '<koala> <r box' does not say <r>: write it where R=inside/reversion is to be shown.\n"
    )
    assert Path("out.png").is_file()


def test_a_token_of_several_rows_is_said_in_all_its_forms(checkout: Path, exemplar_folder: Path) -> None:
    learned = problem(load_base(load_params().model()), exemplar_folder, "multires", steps=1)
    invert_relation(learned, checkout / "data/concepts/inside/multires", checkout / ".scratch")
    for form in ("<r>", "<r[3]>", "<R(3)>", "<r|3|>", "<r[0.5]>"):
        assert warned("imagine", f"cat {form} box", "out.png", "--use", "r=inside/multires") == ""
    with pytest.raises(UserError, match=r"r\[99\]"):
        run("imagine", "cat <r[99]> box", "out.png", "--use", "r=inside/multires")


def test_a_token_is_read_alike_in_capitals(both: Base) -> None:
    first = imagine("out.png", *INSIDE, *KOALA)
    assert imagine("out.png", "--use", "R=inside/reversion", "--use", "Koala=koala/reversion") == first
    assert warned("imagine", "<Koala> <R> box", "out.png", *INSIDE, *KOALA) == ""


def test_several_images_are_those_of_the_seeds_that_follow_and_none_needs_a_concept(checkout: Path) -> None:
    run("imagine", "cat in box", "cat.png", "--seed", "3", "--images", "2")
    run("imagine", "cat in box", "last.png", "--seed", "4")
    assert not Path("cat.png").exists() and Image.open("cat_3.png").tobytes() != Image.open("cat_4.png").tobytes()
    assert Image.open("cat_4.png").tobytes() == Image.open("last.png").tobytes()
    run("draw", "cat_4.png", "again.png")
    assert Path("again.png").read_bytes() == Path("cat_4.png").read_bytes()
    with pytest.raises(UserError, match="2 images from seed 4294967295 on take seeds beyond 4294967295"):
        run("imagine", "cat in box", "cat.png", "--seed", "4294967295", "--images", "2")


def test_what_is_chosen_at_drawing_is_seen_in_the_picture_and_in_what_it_says(checkout: Path) -> None:
    keep(checkout, made(load_base(load_params().model())))
    layout = load_params().section("invert.compositional.layout", dict[str, Any]) | {"threshold": 0.0}
    options = [word for name, value in layout.items() for word in ("--with", f"layout.{name}={value}")]
    use = ("cat <r> box", "--use", "r=inside/reversion")
    run("imagine", *use[:1], "plain.png", *use[1:])
    run("imagine", *use[:1], "boxes.png", *use[1:], *options)
    assert Image.open("plain.png").tobytes() != Image.open("boxes.png").tobytes()
    assert read_image_record(Path("boxes.png")).settings["adapters"]["layout"]["threshold"] == 0.0
    run("draw", "boxes.png", "again.png")
    assert Path("again.png").read_bytes() == Path("boxes.png").read_bytes()
    apply_overrides(Path("params.yaml"), [f"+generate.adapters.layout.{name}={layout[name]}" for name in layout])
    run("imagine", *use[:1], "boxes.png", *use[1:])
    assert Path("again.png").read_bytes() == Path("boxes.png").read_bytes()
    run("imagine", *use[:1], "small.png", *use[1:], *options, "--with", "layout.scale=1e-3")  # a number in YAML 1.2
    assert read_image_record(Path("small.png")).settings["adapters"]["layout"]["scale"] == 0.001
    with pytest.raises(UserError, match=r"The value in 'layout\.head=\[0' is not valid YAML"):
        run("imagine", *use[:1], "out.png", *use[1:], "--with", "layout.head=[0")
    with pytest.raises(UserError, match=r"'generate\.adapters\.layout\.threshold' is 2 in --with"):
        run("imagine", *use[:1], "out.png", *use[1:], *options, "--with", "layout.threshold=2")


def test_steps_guidance_scale_and_scheduler_may_be_the_pictures_own(checkout: Path) -> None:
    before = Path("params.yaml").read_bytes()
    run("imagine", "cat in box", "as_params.png")
    for options in (("--steps", "3"), ("--guidance-scale", "0"), ("--scheduler", "ddim")):
        run("imagine", "cat in box", "own.png", *options)
        assert Image.open("own.png").tobytes() != Image.open("as_params.png").tobytes()
        settings = read_image_record(Path("own.png")).settings
        name, value = options
        assert settings[name[2:].replace("-", "_")] == (int(value) if value.isdigit() else value)
        run("draw", "own.png", "again.png")
        assert Path("again.png").read_bytes() == Path("own.png").read_bytes()
    assert Path("params.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--steps", "501", "'steps' is 501 in the command: it must be less than or equal to 500"),
        ("--images", "4294967297", "4294967297 images from seed 0 on take seeds beyond"),
        ("--guidance-scale", "nan", "'guidance_scale' is nan in the command: it must be a finite number"),
    ],
)
def test_what_no_picture_can_be_drawn_with_is_refused(checkout: Path, option: str, value: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        run("imagine", "cat in box", "out.png", option, value)
    assert not Path("out.png").exists()


def test_an_image_is_not_made_again_by_a_base_that_runs_otherwise(checkout: Path) -> None:
    keep(checkout, made(load_base(load_params().model())))
    run("imagine", "cat <r> box", "cat.png", "--use", "r=inside/reversion")
    file = checkout / "params.yaml"
    file.write_text(file.read_text().replace("precision: fp32", "precision: bf16"))
    with pytest.raises(UserError, match=r"cat\.png was drawn with another library, GPU or way to run the base"):
        run("draw", "cat.png", "again.png")
