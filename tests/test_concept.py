"""Concept folders: read as they were written, by us and by diffusers, and refused when something is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import save_file

from relinv.diffusion.bases import Base
from relinv.diffusion.concept import EMBEDDING, METADATA, Concept, load_concept, save_concept
from relinv.diffusion.embeddings import PlaceholderTokens
from relinv.errors import UserError
from relinv.files import sha256_folder
from tests.concepts import made, plain_words


@pytest.fixture
def folder(base: Base, tmp_path: Path) -> Path:
    save_concept(tmp_path, made(base))
    return tmp_path


def test_it_comes_back_as_it_was(base: Base, folder: Path) -> None:
    written, read = made(base), load_concept(folder, base)
    assert read.embedding is not None and torch.equal(read.embedding, written.embedding)
    assert read.metadata == written.metadata
    assert read.fingerprint == written.fingerprint
    assert read.prompt("toy truck", "box") == "toy truck <r> box"
    assert read.prompt("{tail}", "{head}") == "{tail} <r> {head}"


def test_another_row_or_another_word_of_metadata_is_another_concept(base: Base) -> None:
    concept = made(base)
    moved = Concept("<r>", concept.embedding + 1, concept.metadata)
    assert len({concept.fingerprint, moved.fingerprint, made(base, seed=1).fingerprint}) == 3


def test_other_weights_or_names_of_them_are_another_concept(base: Base) -> None:
    plain = made(base, adapters=[{"name": "custom_diffusion", "file": "weights.safetensors", "options": {}}])
    weights = [{"w": torch.zeros(3)}, {"w": torch.ones(3)}, {"v": torch.zeros(3)}]
    concepts = [Concept("<r>", plain.embedding, plain.metadata, {"custom_diffusion": each}) for each in weights]
    assert len({concept.fingerprint for concept in concepts}) == 3


def test_the_same_parts_in_another_order_are_the_same_concept(base: Base) -> None:
    plain = made(base)
    weights = {
        "custom_diffusion": {"v": torch.zeros(3), "w": torch.ones(3)},
        "dreambooth": {"v": torch.ones(3), "w": torch.zeros(3)},
    }
    turned = {name: dict(reversed(tensors.items())) for name, tensors in reversed(weights.items())}
    metadata = dict(reversed(plain.metadata.items()))
    concept = Concept("<r>", plain.embedding, plain.metadata, weights)
    assert Concept("<r>", plain.embedding, metadata, turned).fingerprint == concept.fingerprint


def test_weights_in_bf16_are_read_as_the_same_numbers_in_fp32(base: Base, tmp_path: Path) -> None:
    adapter = {"name": "custom_diffusion", "file": "weights.safetensors", "options": {}}
    weights = torch.linspace(-1, 1, 9, dtype=torch.bfloat16)
    plain = made(base, adapters=[adapter])
    save_concept(tmp_path, Concept("<r>", plain.embedding, plain.metadata, {"custom_diffusion": {"w": weights}}))
    read = load_concept(tmp_path, base)
    assert torch.equal(read.weights["custom_diffusion"]["w"], weights.float())
    assert read.fingerprint == Concept("<r>", plain.embedding, plain.metadata, read.weights).fingerprint


def test_the_tensor_file_is_what_other_programs_read(base: Base, folder: Path) -> None:
    with safe_open(folder / EMBEDDING, "pt") as file:
        assert list(file.keys()) == ["<r>"]
        row = file.get_tensor("<r>")
        assert row.dtype == torch.float32 and row.shape == (base.dim,)
        assert file.metadata()["method"] == "reversion" and file.metadata()["params"] == '{"steps": 3}'
    header = int.from_bytes((folder / EMBEDDING).read_bytes()[:8], "little")
    assert header % 8 == 0  # as the format has it, so that the numbers can be read where they lie


def test_diffusers_takes_the_folder_as_it_is(base: Base, folder: Path, tiny_base: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    pipeline.load_textual_inversion(folder)
    theirs, _ = pipeline.encode_prompt("a cat <r> box", "cpu", 1, False)
    concept = load_concept(folder, base)
    with torch.no_grad(), PlaceholderTokens(base, {"<r>": concept.embedding}).applied():
        ours = base.encode(base.tokenize(["a cat <r> box"]))
    assert torch.allclose(theirs, ours, atol=1e-6)


def test_saving_twice_gives_the_same_bytes(base: Base, folder: Path) -> None:
    before = sha256_folder(folder)
    save_concept(folder, made(base))
    assert sha256_folder(folder) == before


def test_plain_words_need_no_tensor(base: Base, tmp_path: Path) -> None:
    save_concept(tmp_path, plain_words(base, "{head} hanging from {tail}"))
    assert [path.name for path in tmp_path.iterdir()] == [METADATA]
    read = load_concept(tmp_path, base)
    assert read.prompt("bag", "hand") == "bag hanging from hand" and read.called("<s>").token is None


def test_a_foreign_base_is_refused(base: Base, tmp_path: Path) -> None:
    save_concept(tmp_path, made(base, base="another/model", base_hash="f" * 64))
    with pytest.raises(UserError, match=r"was learned for the base 'another/model' \(ffffffffffff\)"):
        load_concept(tmp_path, base)


def test_an_imported_concept_is_to_be_imported_again_and_not_inverted(base: Base, tmp_path: Path) -> None:
    imported = {"file": "learned_embeds.bin", "sha256": "0" * 64, "token": "<R>"}
    save_concept(tmp_path, made(base, method="published", imported=imported, base_hash="f" * 64))
    with pytest.raises(UserError, match=r": import it again with this base\.$"):
        load_concept(tmp_path, base)
    save_concept(tmp_path, Concept("<r>", torch.zeros(768), made(base, imported=imported).metadata))
    with pytest.raises(UserError, match=r"; import it again with this base\.$"):
        load_concept(tmp_path, base)
    (tmp_path / EMBEDDING).write_bytes(b"cut")
    with pytest.raises(UserError, match=r"is damaged .*: import it again\.$"):
        load_concept(tmp_path, base)
    (tmp_path / EMBEDDING).unlink()
    with pytest.raises(UserError, match=r"is missing: import it again\.$"):
        load_concept(tmp_path, base)


def test_a_row_of_another_width_is_refused(base: Base, tmp_path: Path) -> None:
    save_concept(tmp_path, Concept("<r>", torch.zeros(768), made(base).metadata))
    with pytest.raises(UserError, match=r"has 768 numbers and the base .* takes 32"):
        load_concept(tmp_path, base)


def test_a_damaged_file_is_named(base: Base, folder: Path) -> None:
    path = folder / EMBEDDING
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=rf"'{path}' is damaged .* invert the relation again"):
        load_concept(folder, base)


def test_a_concept_that_is_no_mapping_is_damaged(base: Base, folder: Path) -> None:
    (folder / METADATA).write_text("null")
    with pytest.raises(UserError, match=rf"{METADATA}' is damaged: invert the relation again"):
        load_concept(folder, base)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"template": 5}, r"'template' is 5 in .*: it must be a valid string"),
        ({"method": None}, r"'method' is null in .*: it must be a valid string"),
        ({"base_hash": ["b"]}, r"'base_hash' is \['b'\] in"),
        ({"adapters": {}}, r"'adapters' is \{\} in .*: it must be a valid list"),
        ({"adapters": [{}]}, r"'adapters\.0\.name' is missing from"),
        ({"adapters": [{"name": "layout", "file": 5, "options": {}}]}, r"'adapters\.0\.file' is 5 in"),
    ],
)
def test_metadata_of_another_kind_are_damaged(change: dict[str, Any], told: str, base: Base, tmp_path: Path) -> None:
    (tmp_path / METADATA).write_text(json.dumps({**made(base).metadata, **change}))
    with pytest.raises(UserError, match=rf"{METADATA}' is damaged: invert the relation again\. Parameter {told}"):
        load_concept(tmp_path, base)


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.complex64])
def test_a_row_of_numbers_of_another_kind_is_damaged(kind: torch.dtype, base: Base, folder: Path) -> None:
    save_file({"<r>": torch.ones(base.dim, dtype=kind)}, folder / EMBEDDING)
    with pytest.raises(UserError, match=r"The numbers of <r> in .* are not finite floating-point ones: invert the rel"):
        load_concept(folder, base)


def test_a_row_that_is_not_finite_is_damaged(base: Base, folder: Path) -> None:
    save_file({"<r>": torch.full((base.dim,), torch.nan)}, folder / EMBEDDING)
    with pytest.raises(UserError, match=r"The numbers of <r> in .* are not finite floating-point ones: invert the rel"):
        load_concept(folder, base)


def test_a_missing_file_is_named(base: Base, folder: Path) -> None:
    (folder / EMBEDDING).unlink()
    with pytest.raises(UserError, match=r"learned_embeds\.safetensors' is missing"):
        load_concept(folder, base)
    (folder / METADATA).unlink()
    with pytest.raises(UserError, match=r"concept\.json' does not exist"):
        load_concept(folder, base)


@pytest.mark.parametrize("tensors", [{"<x>": torch.zeros(32)}, {"<r>": torch.zeros(1, 32)}])
def test_a_file_of_another_kind_is_refused(base: Base, folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / EMBEDDING)
    with pytest.raises(UserError, match="not one row named <r>"):
        load_concept(folder, base)


def test_incomplete_metadata_is_refused(base: Base, folder: Path) -> None:
    (folder / METADATA).write_text('{"token": "<r>"}')
    with pytest.raises(UserError, match="lacks relation, method, base"):
        load_concept(folder, base)
