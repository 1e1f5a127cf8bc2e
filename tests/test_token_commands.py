"""`relinv import`, `export` and `second-moment` on a real checkout's files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from relinv.adapters.custom_diffusion import pretrained
from relinv.diffusion.bases import load_base
from relinv.diffusion.concept import load_concept
from relinv.errors import UserError
from relinv.params import load_params
from stages.generate import generate
from stages.score import score
from tests.checkouts import ROOT, files_below, name_a_gpu_that_is_not_here, run, warned
from tests.concepts import keep, made, read_token
from tests.conftest import draw_exemplars


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
    assert "\n  python -m stages.fetch inside && python -m stages.generate inside published && " in printed
    generate("inside", "published")
    (checkout / "data/relations/inside").mkdir(parents=True)
    draw_exemplars(checkout / "data/relations/inside")
    again = run("import", "learned_embeds.safetensors", "inside", "published")
    assert "\n  python -m stages.generate inside published && " in again  # its exemplars are here now
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
    own = checkout / "data/exemplars/own/kissing"
    own.mkdir(parents=True)
    (own / "relation.yaml").write_text("words: kissing\nasymmetric: false\nheads: [cat]\ntails: [dog]\n")
    assert warned("import", "koala.safetensors", "kissing", "published") == ""  # which has scenarios too


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


def test_what_an_export_leaves_behind_is_told(checkout: Path) -> None:
    layout = {"name": "layout", "file": None, "options": {}}
    keep(checkout, made(load_base(load_params().model()), method="compositional", adapters=[layout]))
    told = warned("export", "inside", "compositional", "--for", "webui", "--to", "out")
    assert told == "Warning: its layout stays behind: other programs draw without it.\n"


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


def test_a_second_moment_is_measured_and_kept(checkout: Path) -> None:
    (checkout / "captions.txt").write_text("cat inside box\ndog\n")
    printed = run("second-moment", "captions.txt")
    assert "copy captions.txt into data/benchmark, and" in printed
    assert "set invert.perfusion.captions in params.yaml (or in the preset in use) to data/benchmark/cap" in printed
    printed = run("second-moment")
    assert "of data/benchmark/miniature.yaml, 32 x 32" in printed and "copy" not in printed
    assert len(list((checkout / ".scratch/second_moment").iterdir())) == 2
