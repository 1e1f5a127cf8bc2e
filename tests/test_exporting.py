"""Exported tokens are what other programs read: diffusers by its own loader, web UIs by their published rules."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from relinv.diffusion.bases import Base
from relinv.diffusion.concept import Concept
from relinv.errors import UserError
from relinv.exchange.exporting import WRITERS, export_concept, spellings
from tests.concepts import made, read_token


@pytest.fixture
def concept(base: Base) -> Concept:
    return made(base)


@pytest.mark.parametrize("form", sorted(WRITERS))
def test_what_is_exported_can_be_imported_again(form: str, concept: Concept, tmp_path: Path) -> None:
    written = export_concept(concept, form, tmp_path / "out", "kissing")
    assert all(path.is_file() for path in written)
    assert torch.equal(read_token(written[0])[1], concept.embedding[None])


@pytest.mark.parametrize("form", ["diffusers", "hub"])
def test_diffusers_loads_the_folder(form: str, concept: Concept, tiny_base: Path, tmp_path: Path) -> None:
    export_concept(concept, form, tmp_path, "kissing")
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    pipeline.load_textual_inversion(str(tmp_path))
    index = pipeline.tokenizer.convert_tokens_to_ids("<r>")
    assert torch.equal(pipeline.text_encoder.get_input_embeddings().weight[index].detach(), concept.embedding)


def content_of(file: Path) -> dict[str, Any]:
    """Return what a file holds: by its name safetensors, or else what torch saves."""
    return load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)


def a1111(file: Path) -> torch.Tensor:
    """Return the rows that A1111 finds, (rows, dim): under string_to_param, or those of a file of one tensor."""
    content = content_of(file)
    content = content.get("string_to_param", content)
    (values,) = content.values()  # more than one term is an error there
    return values[None] if values.dim() == 1 else values


def comfyui(file: Path) -> torch.Tensor:
    """Return the rows that ComfyUI finds, (rows, dim): under string_to_param, or bundled, or the first tensor."""
    content = content_of(file)
    bundled = [values for name, values in content.items() if name.startswith("bundle_emb.")]
    content = content.get("string_to_param", content)
    values = torch.cat(bundled) if bundled else next(iter(content.values()))
    return values[None] if values.dim() == 1 else values


def invokeai(file: Path) -> torch.Tensor:
    """Return the rows that InvokeAI finds, (rows, dim); a bare tensor's *first* axis tells it the kind of base."""
    content = content_of(file)
    named = content.get("emb_params", next(iter(content.get("string_to_param", {}).values()), None))
    values = next(iter(content.values())) if named is None else named
    width = values.shape[0] if named is None else values.shape[-1]
    if width not in (768, 1024, 1280):  # Stable Diffusion 1, 2 and XL
        raise ValueError(f"unknown base of width {width}")
    return values[None] if values.dim() == 1 else values


@pytest.mark.parametrize("program", [a1111, comfyui, invokeai])
def test_web_uis_read_the_row_by_their_published_rules(
    program: Callable[[Path], torch.Tensor], concept: Concept, tmp_path: Path
) -> None:
    row = torch.randn(768, generator=torch.Generator().manual_seed(1))
    (path,) = export_concept(replace(concept, embedding=row), "webui", tmp_path, "kissing")
    assert path.name == "kissing.safetensors"  # by this name prompts call it
    assert torch.equal(program(path), row[None])
    torch.save({"string_to_param": {"*": row[None]}, "name": "kissing"}, tmp_path / "kissing.pt")
    assert torch.equal(program(tmp_path / "kissing.pt"), row[None])  # the rules read what A1111 itself writes


def test_prompts_call_the_file_as_each_web_ui_finds_it() -> None:
    said = "in.side_re-version in A1111, embedding:in.side_re-version in ComfyUI, <in.side_re-version> in InvokeAI"
    assert spellings("in.side_re-version") == said
    invokeai_trigger = r"<[a-zA-Z0-9., _-]+>"
    assert re.findall(invokeai_trigger, said) == ["<in.side_re-version>"]


def test_the_rules_of_web_uis_leave_one_shape(tmp_path: Path) -> None:
    rows = torch.zeros(1, 768)
    save_file({"<r>": rows}, tmp_path / "rows.safetensors")
    with pytest.raises(ValueError, match="width 1"):
        invokeai(tmp_path / "rows.safetensors")
    save_file({"<r>": rows[0], "<s>": rows[0] + 1}, tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match="too many values"):
        a1111(tmp_path / "two.safetensors")


def test_the_hubs_card_says_what_it_is_and_how_to_use_it(concept: Concept, tmp_path: Path) -> None:
    export_concept(concept, "hub", tmp_path, "kissing")
    card = (tmp_path / "README.md").read_text()
    head, body = card.removeprefix("---\n").split("\n---\n")
    assert "base_model" not in head  # the tiny base is a folder, which the hub does not know
    assert "textual_inversion" in head
    assert "learned by reversion\nwith relinv in 3 steps" in body and "[ReVersion](https://arxiv.org/abs/2303" in body
    assert "cat <r> box" in body and "| steps | 3 |" in body


def test_the_hubs_card_says_what_stays_behind(concept: Concept, tmp_path: Path) -> None:
    boxes = {"name": "layout", "file": None, "options": {}}
    export_concept(replace(concept, metadata={**concept.metadata, "adapters": [boxes]}), "hub", tmp_path, "kissing")
    assert "What it has besides in relinv, its layout, is not in this file.\n" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("origin", [{"method": "published", "imported": {"file": "a.bin"}}, {"method": "imported"}])
def test_the_hubs_card_claims_no_training_of_a_token_from_a_file(
    origin: dict[str, Any], concept: Concept, tmp_path: Path
) -> None:
    imported = replace(concept, metadata={**concept.metadata, **origin, "params": {"tokens": {}}, "steps": None})
    export_concept(imported, "hub", tmp_path, "kissing")
    card = (tmp_path / "README.md").read_text()
    assert "taken with relinv from the file of a learned token. Relations as tokens" in card
    assert "learned by" not in card and "| setting |" not in card and "cat <r> box" in card


def test_the_hubs_card_links_a_base_that_the_hub_has(concept: Concept, tmp_path: Path) -> None:
    of_hub = replace(concept, metadata={**concept.metadata, "base": "owner/model"})
    export_concept(of_hub, "hub", tmp_path, "kissing")
    assert (tmp_path / "README.md").read_text().startswith("---\nbase_model: owner/model\nlibrary_name: diffusers\n")


def test_a_name_may_have_fifty_letters(concept: Concept, tmp_path: Path) -> None:
    (path,) = export_concept(concept, "webui", tmp_path, "x" * 50)
    assert path.stem == "x" * 50


@pytest.mark.parametrize("name", ["../evil", "a/b", "a\\b", "..", "", "a\nb", "x" * 51, "a b", "küssen", ".a", "-a"])
@pytest.mark.parametrize("form", sorted(WRITERS))
def test_a_name_that_leads_elsewhere_or_that_no_prompt_can_say_is_refused(
    form: str, name: str, concept: Concept, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="cannot name the token's file: pass --name"):
        export_concept(concept, form, tmp_path / "to", name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("form", "taken"),
    [
        ("diffusers", "learned_embeds.safetensors"),
        ("webui", "kissing.safetensors"),
        ("hub", "learned_embeds.safetensors"),
        ("hub", "README.md"),
    ],
)
def test_what_is_there_already_is_kept_and_nothing_written_unless_told(
    form: str, taken: str, concept: Concept, tmp_path: Path
) -> None:
    (tmp_path / taken).write_text("mine")
    with pytest.raises(UserError, match=rf"{taken}' would be lost: pass another --to, .*--name, or --overwrite"):
        export_concept(concept, form, tmp_path, "kissing")
    assert [path.name for path in tmp_path.iterdir()] == [taken] and (tmp_path / taken).read_text() == "mine"
    written = export_concept(concept, form, tmp_path, "kissing", overwrite=True)
    before = {path: path.read_bytes() for path in written}
    assert before[tmp_path / taken] != b"mine"
    export_concept(concept, form, tmp_path, "kissing")  # the same bytes take nothing away
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("form", sorted(WRITERS))
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
