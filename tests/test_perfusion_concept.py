"""What a concept of Perfusion keeps: locked keys, outputs that never decay, and a small file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from relinv.adapters.perfusion import INPUT, Adapter
from relinv.diffusion.bases import Base
from relinv.diffusion.concept import save_concept
from relinv.diffusion.cross_attention import projections
from relinv.learning.second_moment import SecondMoment
from relinv.methods.perfusion import Method, encoding_in_place
from tests.inverting import build, problem, training
from tests.sd15 import wide_base


def method(base: Base, exemplar_folder: Path, **changes: Any) -> Method:
    learned = build(problem(base, exemplar_folder, "perfusion", **changes))
    assert isinstance(learned, Method)
    return learned


def test_keys_stay_locked_to_the_superclass_wherever_the_input_has_moved(base: Base, exemplar_folder: Path) -> None:
    learned = method(base, exemplar_folder, superclass="inside")
    edit, superclass = learned.edit, encoding_in_place(base, "inside", learned.exemplars)
    edit.tensors[INPUT].mul_(-2).add_(1)
    keys = {name: layer for name, layer in projections(base).items() if name.endswith("to_k")}
    assert keys and not edit.tensors.keys() & keys.keys()
    for name, layer in keys.items():
        torch.testing.assert_close(edit.output(name, layer), layer.weight @ superclass)


def test_the_outputs_never_decay(base: Base, exemplar_folder: Path) -> None:
    row, values = method(base, exemplar_folder, weight_decay=0.5, value_learning_rate=0.7).groups()
    assert (row["weight_decay"], values["weight_decay"]) == (0.5, 0.0)
    assert (row["lr"], values["lr"]) == (0.03, 0.7)
    assert len(row["params"]) == 1 and len(values["params"]) == len(projections(base)) // 2


def test_a_concept_of_stable_diffusion_takes_about_59_kilobytes(
    base: Base, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = SecondMoment(torch.eye(768, dtype=torch.float64), "unit")
    monkeypatch.setattr("relinv.methods.perfusion.second_moment", lambda *arguments: unit)
    task = training(problem(wide_base(base), exemplar_folder, "perfusion"), tmp_path)
    save_concept(tmp_path, task.concept(steps=1))
    numbers = 4 * (320 * 5 + 640 * 5 + 1280 * 6 + 3 * 768)  # 16 outputs, i, C^-1 i and the superclass, in float32
    header = (tmp_path / Adapter.FILE).stat().st_size - numbers
    assert numbers == 59_136 and 0 < header < 5_000
