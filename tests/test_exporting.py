"""Exported tokens are what other programs read: diffusers by its own loader, web UIs by their published rules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from relinv.diffusion.bases import Base
from relinv.diffusion.concept import Concept
from relinv.errors import UserError
from relinv.exporting import FORMS, export_concept
from relinv.importing import read_embedding
from tests.test_concept import made


@pytest.fixture
def concept(base: Base) -> Concept:
    return made(base)


@pytest.mark.parametrize("form", sorted(FORMS))
def test_what_is_exported_can_be_imported_again(form: str, concept: Concept, tmp_path: Path) -> None:
    written = export_concept(concept, form, tmp_path / "out", "kissing")
    assert all(path.is_file() for path in written)
    assert torch.equal(read_embedding(written[0])[1], concept.embedding)


@pytest.mark.parametrize("form", ["diffusers", "hub"])
def test_diffusers_loads_the_folder(form: str, concept: Concept, tiny_base: Path, tmp_path: Path) -> None:
    export_concept(concept, form, tmp_path, "kissing")
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    pipeline.load_textual_inversion(str(tmp_path))
    index = pipeline.tokenizer.convert_tokens_to_ids("<r>")
    assert torch.equal(pipeline.text_encoder.get_input_embeddings().weight[index].detach(), concept.embedding)


def test_web_uis_take_the_only_tensor_and_the_files_name(concept: Concept, tmp_path: Path) -> None:
    (path,) = export_concept(concept, "webui", tmp_path, "kissing")
    assert path.name == "kissing.safetensors"
    content = load_file(path)
    # A1111: a file of one tensor is the embedding, a row without a leading axis is given one. ComfyUI: the first value.
    # InvokeAI: the first value, which must be 1-D for one row.
    (values,) = content.values()
    assert values.shape == concept.embedding.shape


def test_the_hubs_card_says_what_it_is_and_how_to_use_it(concept: Concept, tmp_path: Path) -> None:
    export_concept(concept, "hub", tmp_path, "kissing")
    card = (tmp_path / "README.md").read_text()
    head, body = card.removeprefix("---\n").split("\n---\n")
    assert "base_model" not in head  # the tiny base is a folder, which the hub does not know
    assert "textual_inversion" in head
    assert "learned by reversion\nwith relinv in 3 steps" in body and "[ReVersion](https://arxiv.org/abs/2303" in body
    assert "cat <r> box" in body and "| steps | 3 |" in body


def test_the_hubs_card_links_a_base_that_the_hub_has(concept: Concept, tmp_path: Path) -> None:
    of_hub = replace(concept, metadata={**concept.metadata, "base": "owner/model"})
    export_concept(of_hub, "hub", tmp_path, "kissing")
    assert (tmp_path / "README.md").read_text().startswith("---\nbase_model: owner/model\nlibrary_name: diffusers\n")


@pytest.mark.parametrize("name", ["../evil", "a/b", "a\\b", "..", "", "a\nb", "x" * 300])
@pytest.mark.parametrize("form", sorted(FORMS))
def test_a_name_that_leads_elsewhere_is_refused(form: str, name: str, concept: Concept, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot name the token's file: pass --name"):
        export_concept(concept, form, tmp_path / "to", name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", sorted(FORMS))
def test_weights_beside_the_token_are_not_dropped_in_silence(form: str, concept: Concept, tmp_path: Path) -> None:
    adapter = {"name": "custom_diffusion", "file": "weights.safetensors", "options": {}}
    heavier = replace(
        concept, metadata={**concept.metadata, "adapters": [adapter]}, weights={"w": {"w": torch.ones(2)}}
    )
    with pytest.raises(UserError, match=r"weights beside its token.*use weights\.safetensors and learned_embeds"):
        export_concept(heavier, form, tmp_path / "out", "kissing")
    assert not (tmp_path / "out").exists()


def test_another_form_and_a_concept_without_a_token_are_refused(base: Base, concept: Concept, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Unknown form 'webgui'. Did you mean 'webui'"):
        export_concept(concept, "webgui", tmp_path, "x")
    words = Concept(None, None, {**concept.metadata, "method": "relation_words"})
    with pytest.raises(UserError, match="'relation_words' learned no token"):
        export_concept(words, "webui", tmp_path, "x")
