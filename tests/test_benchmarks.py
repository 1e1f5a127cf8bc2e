"""What the benchmark of training counts as memory: each thing once, in our training as in the published one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from benchmarks import training
from benchmarks.published import PublishedTrainer
from benchmarks.training import our_steps, state_bytes, stepping
from relinv.diffusion.bases import Base
from relinv.exemplars import read_exemplars
from relinv.learning.losses import steering
from relinv.params import load_params
from tests.conftest import tiny_settings

COUNT = 4  # bytes of AdamW's count of its steps


def test_ours_keeps_a_row_its_gradient_two_averages_and_the_latents(
    base: Base, exemplar_folder: Path, tmp_path: Path
) -> None:
    loop = our_steps(base, read_exemplars(exemplar_folder), tmp_path)
    with loop.method.attached():
        stepping(loop)()
    moments = [loop.batches.latents.mean, loop.batches.latents.deviation]
    row = base.table[0].nbytes
    assert state_bytes(loop.optimizer, *moments) == 4 * row + COUNT + sum(tensor.nbytes for tensor in moments)


def test_the_published_steering_is_ours_for_one_caption(base: Base, exemplar_folder: Path) -> None:
    trainer = PublishedTrainer(base, read_exemplars(exemplar_folder))
    row, positives, negatives = (
        trainer.table[trainer.tokenizer(text, add_special_tokens=False).input_ids]
        for text in ("<r>", "inside on", "cat box")
    )
    ours = steering(row[0], positives[None], negatives[None], torch.ones(1, 2, dtype=torch.bool), temperature=0.07)
    published = trainer._steer(trainer._ids(["cat <r> box"]), trainer._ids(["inside on"]))
    assert torch.allclose(published, ours, atol=1e-5)


def test_the_published_weights_are_laid_out_as_usual_and_ours_channels_last(base: Base, exemplar_folder: Path) -> None:
    trainer = PublishedTrainer(base, read_exemplars(exemplar_folder))
    for theirs, ours in ((trainer.unet, base.unet), (trainer.vae, base.vae)):
        assert all(weight.is_contiguous() for weight in theirs.parameters())
        assert all(
            weight.is_contiguous(memory_format=torch.channels_last) for weight in ours.parameters() if weight.dim() == 4
        )


def test_the_published_table_has_a_gradient_in_a_step_alone(base: Base, exemplar_folder: Path) -> None:
    trainer = PublishedTrainer(base, read_exemplars(exemplar_folder))
    trainer.step()
    table = trainer.table.nbytes
    assert state_bytes(trainer.optimizer, trainer.original) == 4 * table + COUNT  # table, copy and two averages
    assert trainer.table.grad is None  # it counts in the step's peak


def test_the_published_step_moves_the_tokens_row_alone(base: Base, exemplar_folder: Path) -> None:
    trainer = PublishedTrainer(base, read_exemplars(exemplar_folder))
    before = trainer.table.detach().clone()
    trainer.step()
    moved = (trainer.table.detach() != before).any(-1).nonzero().flatten().tolist()
    assert moved == trainer.tokenizer("<r>", add_special_tokens=False).input_ids


def test_the_benchmark_prints_what_it_compares(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params, model = load_params(), tiny_settings(tiny_base)
    monkeypatch.setattr(params, "model", lambda: model)
    monkeypatch.setattr(training, "load_params", lambda: params)
    training.main(rounds=2, steps=1, together=2)
    printed = capsys.readouterr().out
    assert re.search(r"ours is \d+\.\d\d times as fast \(\d+\.\d\d to \d+\.\d\d over 2 turns\)", printed)
    for name, samples in (("ours", 16), ("published", 8)):
        ms, rate = map(float, re.search(rf"^{name} +(\d+\.\d) +(\d+\.\d)", printed, re.MULTILINE).groups())
        assert rate == pytest.approx(1000 * samples / ms, rel=0.01)
    assert re.search(r"all memory beyond the frozen weights: \d+\.\d\d of the published", printed)
    assert "encode 10 exemplars" in printed and "save the concept" in printed
    assert re.search(r"one step, 4 relations +\d+\.\d ms, \d+ % of that rate", printed)
