"""Multiresolution Textual Inversion's published pipelines: a text encoder, whose table ends in the learned rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from relinv.adapters.multires import Adapter
from relinv.diffusion.bases import Base
from relinv.diffusion.concept import load_concept
from relinv.diffusion.conditioning import Encodings, in_use
from relinv.diffusion.token_rows import ROWS
from relinv.errors import UserError
from relinv.exchange.importing import import_concept, read_published
from relinv.exchange.multires_folders import NORM, TABLE


def save_text_encoder(base: Base, folder: Path, learned: torch.Tensor) -> Path:
    """Save the base's text encoder with `learned` rows after its own, as the published trainer does; return the file.

    The rows before them differ from the base's by the trainer's weight decay.
    """
    state = {f"text_model.{name}": tensor for name, tensor in base.text_encoder.state_dict().items()}
    state[TABLE] = torch.cat([0.942 * base.table.detach().cpu(), learned])
    file = folder / "koala/text_encoder/pytorch_model.bin"
    file.parent.mkdir(parents=True)
    torch.save(state, file)
    return file


def test_its_rows_are_used_as_those_learned_here(base: Base, tmp_path: Path) -> None:
    learned = torch.randn(4, base.dim, generator=torch.Generator().manual_seed(0))
    import_concept(save_text_encoder(base, tmp_path, learned), "inside", "published", base, tmp_path / "concept")
    concept = load_concept(tmp_path / "concept", base)
    assert concept.metadata["imported"]["token"] == "<koala>"
    prompts, timesteps = ["cat <r> box", "cat <r|2|> box", "cat <r[3]> box", "cat box"], [0, 300, 999]
    own = Adapter(base, "<r>", {ROWS: learned}, {})
    with own.applied():
        expected = Encodings(base, [own], prompts, timesteps).of(prompts)
    with in_use(base, [concept]) as adapters:
        found = Encodings(base, adapters, prompts, timesteps).of(prompts)
        assert all(torch.equal(found(timestep), expected(timestep)) for timestep in timesteps)
    assert not torch.equal(found(0)[0], found(999)[0])


def test_it_is_named_after_its_folder_wherever_it_is_imported_from(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = save_text_encoder(base, tmp_path, torch.ones(2, base.dim))
    monkeypatch.chdir(file.parent)
    assert read_published(Path(file.name), base).name == "<koala>"


def test_other_text_encoders_with_more_rows_are_refused(base: Base, tmp_path: Path) -> None:
    """Those of DreamBooth's form hold no learned rows, and those of other programs rows of another meaning."""
    file = save_text_encoder(base, tmp_path, torch.zeros(4, base.dim))
    state = torch.load(file)
    for change in (
        {TABLE: torch.cat([base.table.detach().half().float(), torch.zeros(4, base.dim)])},  # no weight decay
        {f"text_model.{NORM}": state[f"text_model.{NORM}"] + 0.01},  # the whole encoder was trained
    ):
        torch.save(state | change, file)
        with pytest.raises(
            UserError, match="was not saved by Multiresolution Textual Inversion, but by its DreamBooth"
        ):
            import_concept(file, "inside", "published", base, tmp_path / "concept")


def test_one_of_another_width_is_told_as_such(base: Base, tmp_path: Path) -> None:
    file = save_text_encoder(base, tmp_path, torch.zeros(4, base.dim))
    torch.save({name: torch.cat([tensor, tensor], dim=-1) for name, tensor in torch.load(file).items()}, file)
    with pytest.raises(UserError, match=f"has {2 * base.dim} numbers and the base .* takes {base.dim}"):
        import_concept(file, "inside", "published", base, tmp_path / "concept")


@pytest.mark.parametrize("count", [0, 1])
def test_a_text_encoder_without_such_rows_is_refused(count: int, base: Base, tmp_path: Path) -> None:
    file, known = save_text_encoder(base, tmp_path, torch.zeros(count, base.dim)), len(base.table)
    with pytest.raises(UserError, match=f"is a text encoder with {known + count} rows, where the base .* has {known}"):
        import_concept(file, "inside", "published", base, tmp_path / "concept")
    assert not (tmp_path / "concept").exists()
