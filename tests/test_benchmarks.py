"""What the benchmark of training counts as memory: each thing once, in our training as in the published one."""

from __future__ import annotations

import re
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch

from benchmarks import speed, training
from benchmarks.published import PublishedTrainer
from benchmarks.rates import measured
from benchmarks.training import Comparison, our_steps, state_bytes, stepping
from relinv.diffusion.bases import Base
from relinv.errors import UserError
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
    monkeypatch.setattr(params, "trained_model", lambda: model.model_copy(update={"samples_per_pass": 3}))
    loaded: list[int | None] = []
    load_base = training.load_base
    monkeypatch.setattr(
        training, "load_base", lambda settings: loaded.append(settings.samples_per_pass) or load_base(settings)
    )
    monkeypatch.setattr(training, "load_params", lambda: params)
    params._values["bases"]["miniature"]["sampling"] |= {"batch_size": 2, "steps": 2}  # of images, to spare time
    training.main(rounds=2, steps=1, together=2)
    printed = capsys.readouterr().out
    assert loaded == [3, None]  # ours as the base is trained, and the published one
    assert re.search(r"ours is \d+\.\d\d times as fast \(\d+\.\d\d to \d+\.\d\d over 2 turns\)", printed)
    for name, samples in (("ours", 16), ("published", 8)):
        ms, rate = map(float, re.search(rf"^{name} +(\d+\.\d) +(\d+\.\d)", printed, re.MULTILINE).groups())
        assert rate == pytest.approx(1000 * samples / ms, rel=0.01)
    assert re.search(r"all memory beyond the frozen weights: \d+\.\d\d of the published", printed)
    assert "encode 10 exemplars" in printed and "save the concept" in printed
    assert re.search(r"one step, 4 relations +\d+\.\d ms, \d+ % of that rate", printed)


@pytest.mark.parametrize("told_by", [None, UserError("The memory of 'cuda' is too small")])
def test_what_needs_more_memory_than_there_is_is_said(
    told_by: UserError | None, base: Base, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        if told_by:
            raise told_by from torch.OutOfMemoryError()
        raise torch.OutOfMemoryError

    assert measured(base, "draw", work, calls=1, rounds=2) is None
    assert capsys.readouterr().out.split() == ["draw", "needs", "more", "memory", "than", "there", "is"]
    with pytest.raises(UserError, match="other"):
        measured(base, "draw", MagicMock(side_effect=UserError("other")), calls=1, rounds=2)


def test_the_table_of_speeds_has_a_line_for_each_setting() -> None:
    mb = 2**20
    measured = [
        Comparison(
            {"ours": [0.05, 0.1, 0.1], "published": [0.2, 0.2, 0.3]},
            {"ours": mb, "published": 4 * mb},
            {"ours": 2 * mb, "published": 8 * mb},
            together,
        )
        for _, together in speed.SETTINGS
    ]
    lines = speed.page(measured, rounds=3, where="a CPU").splitlines()
    found = [line for line in lines if line.startswith("| ")][1:]  # the first names the columns
    assert found[0] == "| the default | 100 | 3.0 (2.0 to 4.0) | 3.0 | 0.25 |"
    assert found[2].endswith("`compile: true`; 4 relations in one batch | 100 | 12.0 (8.0 to 16.0) | 3.0 | 0.25 |")
    assert found[-1] == "| the published procedure | 200 to 200 | 1 | 12.0 | 1 |"
    assert len(found) == len(speed.SETTINGS) + 1


def test_a_setting_is_measured_on_the_base_in_use(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params, model = load_params(), tiny_settings(tiny_base)
    monkeypatch.setattr(params, "model", lambda: model)
    monkeypatch.setattr(params, "trained_model", lambda: model)
    monkeypatch.setattr(speed, "load_params", lambda: params)
    comparison = speed.measure({"samples_per_pass": 1, "gradient_checkpointing": True}, together=2, rounds=2, steps=1)
    assert [len(times) for times in comparison.times.values()] == [2, 2]
    assert comparison.needs("ours") > comparison.states["ours"] > 0
