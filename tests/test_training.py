"""What the training loop draws: each step a function of seed and step, each picture visited equally often."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from relinv.diffusion.bases import Base
from relinv.diffusion.randomness import generator
from relinv.exemplars import read_exemplars
from relinv.learning.checkpoints import Checkpoints
from relinv.learning.exemplar_latents import encode_exemplars, visits


def test_numbers_are_a_function_of_seed_purpose_and_step() -> None:
    def first(*arguments: object) -> float:
        return torch.rand(1, generator=generator(*arguments)).item()  # type: ignore[arg-type]

    assert first(0, "noise", 3) == first(0, "noise", 3)
    assert len({first(0, "noise", 3), first(1, "noise", 3), first(0, "data", 3), first(0, "noise", 4)}) == 4


def test_each_pass_visits_each_picture_once() -> None:
    shown = [picture for step in range(10) for picture in visits(4, 2, step, seed=0)]
    passes = [shown[start : start + 4] for start in range(0, 20, 4)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in passes)
    assert len({tuple(order) for order in passes}) > 1  # shuffled anew


def test_batches_larger_than_the_set_are_balanced_too() -> None:
    assert Counter(visits(4, 8, step=5, seed=1)) == {0: 2, 1: 2, 2: 2, 3: 2}


def test_latents_are_those_of_the_autoencoder(base: Base, exemplar_folder: Path) -> None:
    latents = encode_exemplars(base, read_exemplars(exemplar_folder))
    assert latents.mean.shape == latents.deviation.shape == (4, 4, 16, 16)
    drawn = torch.cat([latents.draw([2, 0], generator(0, "latents", step)) for step in range(400)])
    assert torch.allclose(drawn[::2].mean(0), latents.mean[2], atol=5 * latents.deviation.max().item() / 20)
    assert torch.allclose(drawn[1::2].std(0), latents.deviation[0], rtol=0.25)


def test_checkpoints_of_another_identity_are_not_taken_up(tmp_path: Path) -> None:
    Checkpoints(tmp_path, "run", {"seed": 0}).save({"done": 3})
    assert Checkpoints(tmp_path, "run", {"seed": 0}).load() == {"done": 3}
    assert Checkpoints(tmp_path, "run", {"seed": 1}).load() is None


def test_a_damaged_checkpoint_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "run", {})
    checkpoints.save({"done": 3})
    for damage in (b"", b"damaged", (checkpoints.folder / "state.pt").read_bytes()[:-40]):
        (checkpoints.folder / "state.pt").write_bytes(damage)
        assert checkpoints.load() is None


def test_a_second_writer_may_remove_the_folder_first(tmp_path: Path) -> None:
    first, second = (Checkpoints(tmp_path, "run", {}, interval=0.0) for _ in range(2))
    first.save({"done": 1})
    second.remove()
    assert first.load() is None and first.read_file("step_0001.png") is None
    first.save({"done": 2})
    first.remove()
    assert list(tmp_path.iterdir()) == []
