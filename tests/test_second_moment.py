"""The second moment of a text encoder: real tokens only, invertible from few captions, computed once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from relinv.diffusion.bases import Base
from relinv.errors import UserError
from relinv.learning import second_moment as module
from relinv.learning.second_moment import SecondMoment, measure, read_captions, second_moment

CAPTIONS = ["cat inside box", "dog", "a photo of a red cup"]


@pytest.mark.parametrize("at_once", [100, 2])
def test_it_is_the_mean_over_real_tokens(at_once: int, base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CAPTIONS_AT_ONCE", at_once)
    encodings = base.encode(base.tokenize(CAPTIONS)).double()
    lengths = [5, 3, 8]  # with both ends
    real = torch.cat([encoding[:length] for encoding, length in zip(encodings, lengths, strict=True)])
    torch.testing.assert_close(measure(base, CAPTIONS), real.T @ real / len(real), rtol=1e-5, atol=1e-6)


def test_captions_too_long_for_the_base_are_cut(base: Base) -> None:
    assert measure(base, ["cat " * 100]).isfinite().all()


@pytest.mark.parametrize("dim", [128, 768])
def test_few_captions_leave_it_invertible(dim: int) -> None:
    seen = torch.randn(10, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moment = SecondMoment(seen.T @ seen, "of ten tokens")
    ridge = 0.01 * moment.matrix.trace() / dim * torch.eye(dim, dtype=torch.float64)
    torch.testing.assert_close(moment.inverse() @ (moment.matrix + ridge), torch.eye(dim, dtype=torch.float64))
    scaled = SecondMoment(250 * moment.matrix, "the same by another unit")
    torch.testing.assert_close(scaled.inverse() * 250, moment.inverse())  # the ridge scales along


def test_it_is_computed_once_for_an_encoder_and_its_captions(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = second_moment(base, CAPTIONS, tmp_path)
    monkeypatch.setattr(module, "measure", lambda *_: pytest.fail("computed again"))
    again = second_moment(base, CAPTIONS, tmp_path)
    assert again.id == first.id and torch.equal(again.matrix, first.matrix)
    monkeypatch.undo()
    assert second_moment(base, CAPTIONS[:2], tmp_path).id != first.id
    with monkeypatch.context() as edited:
        edited.setattr(module, "sha256_file", lambda path: "of other code")
        assert second_moment(base, CAPTIONS, tmp_path).id != first.id
    table, *_, last = base.text_encoder.parameters()
    for weight in (table.data[0], last.data):
        kept = weight[0].item()
        weight[0] = kept + 1
        changed = second_moment(base, CAPTIONS, tmp_path).id
        weight[0] = kept
        assert changed != first.id and second_moment(base, CAPTIONS, tmp_path).id == first.id


def test_what_another_processor_or_another_way_to_run_it_computed_is_not_used(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = second_moment(base, CAPTIONS, tmp_path)
    monkeypatch.setattr(Base, "processor", "AVX2, threads: 3")
    assert second_moment(base, CAPTIONS, tmp_path).id == first.id and len([*tmp_path.iterdir()]) == 2
    monkeypatch.setattr(base, "numerics", base.numerics | {"attention": "eager"})
    assert second_moment(base, CAPTIONS, tmp_path).id == first.id and len([*tmp_path.iterdir()]) == 3


def test_a_damaged_file_is_computed_again(base: Base, tmp_path: Path) -> None:
    first = second_moment(base, CAPTIONS, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(second_moment(base, CAPTIONS, tmp_path).matrix, first.matrix)


def test_captions_are_a_benchmarks_prompts_or_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = read_captions(Path("data/benchmark/miniature.yaml"))
    assert len(prompts) == 1000 and "man hugging child" in prompts and "man inside box" in prompts
    (tmp_path / "captions.txt").write_text("cat inside box\n\n dog \n")
    assert read_captions(tmp_path / "captions.txt") == ["cat inside box", "dog"]
    monkeypatch.setattr(module, "CAPTIONS_READ", 1)
    assert read_captions(tmp_path / "captions.txt") == ["cat inside box"]
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match="is empty: write a caption a line"):
        read_captions(tmp_path / "empty.txt")
