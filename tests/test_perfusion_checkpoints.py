"""Perfusion's published checkpoints: layers renamed, the concept drawn with, and nothing in them run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from relinv.adapters.perfusion import DIRECTION, INPUT, Adapter, projections
from relinv.diffusion.bases import Base
from relinv.diffusion.concept import load_concept
from relinv.diffusion.conditioning import in_use
from relinv.errors import UserError
from relinv.exchange.importing import import_concept, read_published
from relinv.exchange.perfusion_checkpoints import diffusers_name
from relinv.files import sha256_file
from relinv.learning.inversion import invert_relation
from relinv.methods.imported import Settings
from tests.concepts import parameters_of_old
from tests.exploits import Exploit
from tests.inverting import problem
from tests.tiny import TOKENS


def original_name(name: str) -> str:
    """Return the published code's name of a projection of diffusers' UNet, by the table of its blocks."""
    side, block, _, attention, rest = name.split(".", 4) if not name.startswith("mid") else ("mid", "", "", "", name)
    if side == "mid":
        return "model.diffusion_model.middle_block.1." + name.removeprefix("mid_block.attentions.0.") + ".target_output"
    index = 3 * int(block) + int(attention) + (side == "down_blocks")
    kind = "input" if side == "down_blocks" else "output"
    return f"model.diffusion_model.{kind}_blocks.{index}.1.{rest}.target_output"


@pytest.fixture
def content(base: Base) -> dict[str, Any]:
    """What the published trainer saves, at the tiny base's sizes."""
    source = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=source)  # noqa: E731
    layers = projections(base).items()
    return {
        "global_step": 400,
        "C_inv": torch.eye(base.dim) * 2,
        "target_input": draw(base.dim),
        "embedding": {
            "initializer_words": ["with"],
            "string_to_token": {"*": 265},
            "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(draw(1, base.dim))}),
        },
        "target_output": {original_name(name): draw(TOKENS, layer.out_features) for name, layer in layers},
    }


def test_a_checkpoint_is_known_by_an_ending_in_capitals_too(
    base: Base, content: dict[str, Any], tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "TEDDY.CKPT")
    assert read_published(tmp_path / "TEDDY.CKPT", base).adapter == "perfusion"


@pytest.mark.parametrize(
    ("original", "diffusers"),
    [
        ("input_blocks.1.1", "down_blocks.0.attentions.0"),
        ("input_blocks.2.1", "down_blocks.0.attentions.1"),
        ("input_blocks.8.1", "down_blocks.2.attentions.1"),
        ("middle_block.1", "mid_block.attentions.0"),
        ("output_blocks.3.1", "up_blocks.1.attentions.0"),
        ("output_blocks.11.1", "up_blocks.3.attentions.2"),
    ],
)
def test_blocks_have_the_names_of_diffusers(original: str, diffusers: str) -> None:
    rest = "transformer_blocks.0.attn2.to_v"
    assert diffusers_name(f"model.diffusion_model.{original}.{rest}.target_output") == f"{diffusers}.{rest}"


def test_a_checkpoint_becomes_a_concept_that_edits_as_it_says(
    base: Base, content: dict[str, Any], tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "teddy.ckpt")
    import_concept(tmp_path / "teddy.ckpt", "inside", "published", base, tmp_path / "concept")
    concept = load_concept(tmp_path / "concept", base)
    assert torch.equal(concept.embedding, content["embedding"]["string_to_param"]["*"][0].detach())  # type: ignore[arg-type]
    assert concept.metadata["imported"]["token"] == "*"
    at_concept = content["target_input"].expand(1, TOKENS, base.dim)
    with in_use(base, [concept]) as (adapter,):
        assert isinstance(adapter, Adapter) and adapter.options["superclass"] == "with"
        assert adapter.options["locking"] == "local"
        assert torch.equal(adapter.tensors[DIRECTION], 2 * adapter.tensors[INPUT])
        for name, layer in projections(base).items():
            expected = torch.sigmoid(torch.tensor(2.0)) * content["target_output"][original_name(name)]
            torch.testing.assert_close(layer(at_concept)[0], expected)


def test_the_pipeline_takes_from_a_checkpoint_what_an_import_does(
    base: Base, content: dict[str, Any], exemplar_folder: Path, tmp_path: Path
) -> None:
    torch.save(content, file := tmp_path / "teddy.ckpt")
    tokens = {"inside": {"file": str(file), "sha256": sha256_file(file)}}
    task = replace(problem(base, exemplar_folder, "imported"), settings=Settings.model_validate({"tokens": tokens}))
    invert_relation(task, tmp_path / "taken", tmp_path / "scratch")
    import_concept(file, "inside", "published", base, tmp_path / "beside")
    taken, beside = (load_concept(tmp_path / name, base) for name in ("taken", "beside"))
    assert list(taken.adapters) == list(beside.adapters) and torch.equal(taken.embedding, beside.embedding)  # type: ignore[arg-type]
    assert taken.weights["perfusion"].keys() == beside.weights["perfusion"].keys()
    for name, tensor in beside.weights["perfusion"].items():
        assert torch.equal(taken.weights["perfusion"][name], tensor), name


def test_checkpoints_by_another_second_moment_are_told_apart(
    base: Base, content: dict[str, Any], tmp_path: Path
) -> None:
    found = []
    for factor in (1.0, 1.0, 2.0):
        torch.save(content | {"C_inv": factor * content["C_inv"]}, tmp_path / "teddy.ckpt")
        found.append(read_published(tmp_path / "teddy.ckpt", base).options["second_moment"])
    assert found[0] == found[1] != found[2]


def test_a_checkpoint_of_an_old_torch_is_read_too(base: Base, content: dict[str, Any], tmp_path: Path) -> None:
    row = torch.randn(1, base.dim, generator=torch.Generator().manual_seed(1))
    old = content | {"embedding": content["embedding"] | {"string_to_param": parameters_of_old(row)}}
    torch.save(old, tmp_path / "teddy.ckpt")
    concept = import_concept(tmp_path / "teddy.ckpt", "inside", "published", base, tmp_path / "concept")
    assert torch.equal(concept.embedding, row[0])  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused(base: Base, content: dict[str, Any], tmp_path: Path) -> None:
    file, token = tmp_path / "other.ckpt", content["embedding"]
    for change, reason in (
        ({"target_input": None}, "holds a NoneType as target_input"),
        ({"embedding": {}}, "not a checkpoint of Perfusion"),
        ({"target_output": {"model.attn1.to_k": torch.zeros(3)}}, "not a checkpoint of Perfusion"),
        ({"target_output": {}}, "do not fit the base"),
        ({"target_input": torch.ones(base.dim).to_sparse()}, "in a form of its own .*sparse_coo"),
        ({"C_inv": torch.eye(base.dim) * torch.inf}, "C_inv .* not finite"),
        ({"embedding": token | {"initializer_words": []}}, "names no word"),
        ({"embedding": token | {"initializer_words": [" "]}}, "names no word"),
        ({"embedding": token | {"initializer_words": [7]}}, "names no word"),
        ({"embedding": token | {"initializer_words": "cat " * (base.tokenizer.model_max_length - 1)}}, "names no word"),
        ({"embedding": token | {"string_to_param": {}}}, "not a checkpoint of Perfusion"),
        (
            {"embedding": token | {"string_to_param": {"*": torch.tensor(1.0)}}},
            r"\(\) numbers",
        ),
        ({"embedding": token | {"string_to_param": {"*": torch.zeros(0, base.dim)}}}, "not the rows of a token"),
        ({"embedding": token | {"string_to_param": {"*": torch.zeros(2, base.dim)}}}, "2 rows .* should have one"),
        ({"embedding": token | {"string_to_param": {"*": torch.ones(3)}}}, "has 3 numbers and the base"),
        ({"embedding": token | {"string_to_param": {"*": "row"}}}, "holds a str as "),
    ):
        torch.save(content | change, file)
        with pytest.raises(UserError, match=reason):
            import_concept(file, "inside", "published", base, tmp_path / "concept")
    assert not (tmp_path / "concept").exists()


def test_code_in_a_checkpoint_is_never_run(base: Base, content: dict[str, Any], tmp_path: Path) -> None:
    exploit = Exploit(tmp_path / "was-run")
    torch.save(content | {"global_step": exploit}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match="might run code"):
        import_concept(tmp_path / "evil.ckpt", "inside", "published", base, tmp_path / "concept")
    assert not exploit.marker.exists()
