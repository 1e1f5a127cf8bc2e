"""Tokens of other programs take part in the pipeline: what they draw, and what of their files DVC watches."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dvc.utils.hydra import apply_overrides
from safetensors.torch import save_file

from relinv.adapters.custom_diffusion import pretrained
from relinv.diffusion.bases import Base, load_base
from relinv.diffusion.concept import EMBEDDING, load_concept
from relinv.diffusion.token_rows import ROWS
from relinv.errors import UserError
from relinv.exchange.importing import import_concept
from relinv.files import sha256_file
from relinv.imagining import imagine
from relinv.learning.inversion import invert_relation
from relinv.learning.problem import Problem
from relinv.methods.imported import Method, Settings
from relinv.params import load_params
from relinv.preflight import check_settings
from relinv.results import Verdict
from relinv.settings import GenerateSettings
from stages.invert import invert
from tests.checkouts import lay_out_checkout, run
from tests.concepts import keep, made
from tests.inverting import problem, token_elsewhere

DRAWN = GenerateSettings(pairs="all", seed=0, steps=2, guidance_scale=4.0, scheduler="ddim", batch_size=2)


def taking(base: Base, exemplar_folder: Path, **source: Any) -> Problem:
    """Return the problem of importing a token of `inside`; `source` is what params.yaml says of it."""
    return replace(problem(base, exemplar_folder, "imported"), settings=Settings(tokens={"inside": source}))


def test_the_token_of_an_earlier_step_is_imported_and_compared(
    base: Base, exemplar_folder: Path, tmp_path: Path
) -> None:
    invert_relation(problem(base, exemplar_folder, "reversion"), tmp_path / "whole", tmp_path / "scratch")
    file = tmp_path / "whole/previews/step_0003.safetensors"
    import_concept(file, "inside", "step3", base, tmp_path / "beside")
    source = {"file": str(file), "sha256": sha256_file(file)}
    invert_relation(taking(base, exemplar_folder, **source), tmp_path / "taken", tmp_path / "scratch")
    invert_relation(problem(base, exemplar_folder, "reversion", steps=3), tmp_path / "short", tmp_path / "scratch")
    names = ("short", "beside", "taken", "whole")
    short, *others, whole = (load_concept(tmp_path / name, base).embedding for name in names)
    assert all(torch.equal(other, short) for other in others) and not torch.equal(whole, short)


@pytest.mark.parametrize("kind", ["one row", "several rows", "custom diffusion"])
def test_it_draws_what_the_concept_of_the_same_file_draws(
    kind: str, base: Base, exemplar_folder: Path, tmp_path: Path
) -> None:
    file, rows = tmp_path / "token.safetensors", torch.randn(3, base.dim, generator=torch.Generator().manual_seed(0))
    save_file({"<R>": rows if kind == "several rows" else rows[0]}, file)
    source = {"file": str(file), "sha256": sha256_file(file)}
    if kind == "custom diffusion":
        weights = tmp_path / "weights.safetensors"
        save_file({name: 1.5 * tensor.detach().contiguous() for name, tensor in pretrained(base).items()}, weights)
        (tmp_path / "both").write_bytes(weights.read_bytes() + file.read_bytes())
        source = {"file": str(weights), "sha256": sha256_file(tmp_path / "both"), "token": str(file)}
    invert_relation(taking(base, exemplar_folder, **source), tmp_path / "taken", tmp_path / "scratch")
    given = source.get("token")
    import_concept(Path(source["file"]), "inside", "published", base, tmp_path / "beside", given and Path(given))
    taken, beside = (load_concept(tmp_path / name, base) for name in ("taken", "beside"))
    assert list(taken.adapters) == list(beside.adapters) and (ROWS in str(taken.weights)) == (kind == "several rows")
    one, other, bare = (
        imagine(base, concepts, prompt, DRAWN, 7).tobytes()
        for concepts, prompt in (([taken], "cat <r> box"), ([beside], "cat <r> box"), ([], "cat box"))
    )
    assert one == other != bare


def test_it_depends_on_its_own_file_wherever_that_lies(base: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    here = token_elsewhere(base, tmp_path)
    there = here | {"file": str(Path(shutil.copytree(tmp_path, tmp_path / "there")) / Path(here["file"]).name)}
    both = Settings.model_validate({"tokens": {"inside": there, "hug": here}})
    for name, settings in (("a", Settings.model_validate({"tokens": {"inside": here}})), ("b", both)):
        task = replace(taking(base, exemplar_folder, **here), settings=Method.settings_for("inside", settings))
        invert_relation(task, tmp_path / name, tmp_path / "scratch")
    assert (tmp_path / "a/concept.json").read_bytes() == (tmp_path / "b/concept.json").read_bytes()
    assert str(tmp_path) not in (tmp_path / "a/concept.json").read_text()


def test_another_file_than_params_says_is_refused_with_its_number(
    base: Base, exemplar_folder: Path, tmp_path: Path
) -> None:
    source = token_elsewhere(base, tmp_path)
    told = f"SHA-256 {source['sha256']}, and params.yaml says {'0' * 64}: if .* invert.imported.tokens.inside.sha256 to"
    with pytest.raises(UserError, match=told):
        invert_relation(taking(base, exemplar_folder, **source | {"sha256": "0" * 64}), tmp_path / "c", tmp_path / "s")
    assert not (tmp_path / "c").exists()


def test_what_does_not_fit_the_base_is_refused(base: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    wide = tmp_path / "wide.safetensors"
    save_file({"<R>": torch.ones(base.dim + 1)}, wide)
    for file, told in (
        (wide, f"has {base.dim + 1} numbers"),
        (tmp_path / "none.bin", "but there is no such file: put it there"),
    ):
        task = taking(base, exemplar_folder, file=str(file), sha256="0" * 64)
        with pytest.raises(UserError, match=told):
            invert_relation(task, tmp_path / "c", tmp_path / "s")


@pytest.mark.parametrize("name", ["learned embeds.safetensors", "o'brien's, {1}=${x}.safetensors", "weights.bin"])
def test_the_command_that_import_prints_brings_the_token_into_the_pipeline(
    name: str, tiny_base: Path, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lay_out_checkout(tmp_path, tiny_base))
    base = load_base(load_params().model())
    Path(token_elsewhere(base, tmp_path)["file"]).rename("blob")
    Path(name).symlink_to("blob")  # as in the hub's cache, where only the link has the file's name
    if name == "weights.bin":
        Path("blob").rename("<r>.safetensors")
        torch.save({key: tensor.detach() for key, tensor in pretrained(base).items()}, "blob")
    *_, line, warning = run("import", name, "inside", "published").splitlines()
    assert warning.startswith("Leave 'published' itself out of the methods")
    command = shlex.split(line)
    assert command[:3] == ["dvc", "exp", "run"] and command[3::2] == ["-S"] * 3
    another = f"{{file:of_another_relation.bin,sha256:'{'0' * 64}'}}"
    apply_overrides(Path("params.yaml"), [f"+invert.imported.tokens.hug={another}"])
    apply_overrides(Path("params.yaml"), command[4::2])
    params = load_params()
    assert (params.relations(), params.methods()) == (["inside"], ["relation_words", "reversion", "imported"])
    shutil.copytree(exemplar_folder, "data/relations/inside")
    Path("data/verdicts").mkdir()
    verdict = Verdict("inside", images=4, captions=8, errors=[], warnings=[])
    Path("data/verdicts/inside.json").write_text(json.dumps(verdict.to_json()))
    invert("inside", "imported")
    taken, beside = (load_concept(Path("data/concepts/inside") / each, base) for each in ("imported", "published"))
    assert torch.equal(taken.embedding, beside.embedding) and taken.weights.keys() == beside.weights.keys()
    (only,) = taken.metadata["params"]["tokens"].items()
    assert only[0] == "inside" and only[1]["file"] == name
    Path(name).unlink()
    with pytest.raises(UserError, match=f"{re.escape(name)}', but there is no such file"):
        invert("inside", "imported")
    check_settings(params)  # as what was learned from it may still be drawn


def test_what_dvc_may_remove_is_to_be_copied_first(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lay_out_checkout(tmp_path, tiny_base))
    file = keep(tmp_path, made(load_base(load_params().model()))) / EMBEDDING
    *_, advice, _ = run("import", str(file), "inside", "step40").splitlines()
    assert advice.startswith(f"Copy {file} out of data/concepts first, and name the copy: DVC removes it")
