"""What the benchmark of training counts as memory: each thing once, in our training as in the published one."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.published import PublishedTrainer
from benchmarks.training import our_steps, state_bytes, stepping
from relinv.diffusion.bases import Base
from relinv.exemplars import read_exemplars
from relinv.learning.losses import steering

COUNT = 4  # bytes of AdamW's count of its steps


def test_ours_keeps_a_row_its_gradient_two_averages_and_the_latents(
    base: Base, exemplar_folder: Path, tmp_path: Path
) -> None:
    loop = our_steps(base, read_exemplars(exemplar_folder), tmp_path)
    with loop.method.attached():
        stepping(loop)()
    moments = [loop.draws.latents.mean, loop.draws.latents.deviation]
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


def test_the_published_table_has_a_gradient_in_a_step_alone(base: Base, exemplar_folder: Path) -> None:
    trainer = PublishedTrainer(base, read_exemplars(exemplar_folder))
    trainer.step()
    table = trainer.table.nbytes
    assert state_bytes(trainer.optimizer, trainer.original) == 4 * table + COUNT  # table, copy and two averages
    assert trainer.table.grad is None  # it counts in the step's peak
