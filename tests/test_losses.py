"""The losses against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from relinv.learning.losses import anchor, denoising, steering

DIM = 6
ALL = torch.ones(1, 3, dtype=torch.bool)


def rows(count: int, captions: int = 1) -> torch.Tensor:
    return torch.randn(captions, count, DIM, generator=torch.Generator().manual_seed(count))


def test_denoising_is_the_mean_squared_error() -> None:
    prediction, target = torch.zeros(2, 4, 2, 2), torch.full((2, 4, 2, 2), 3.0)
    assert denoising(prediction, target).item() == 9


@pytest.mark.parametrize(("positives", "negatives"), [(4, 3), (1, 3), (8, 3)])
def test_steering_at_equal_cosines_counts_the_rows(positives: int, negatives: int) -> None:
    row = torch.eye(DIM)[0]
    same = torch.tensor([1.0, 1, 0, 0, 0, 0])
    near, far = same.expand(1, positives, DIM), 5 * same.expand(1, negatives, DIM)  # length does not matter
    value = steering(row, near, far, ALL, temperature=0.07)
    assert value.item() == pytest.approx(math.log((positives + negatives) / positives), abs=1e-6)


def test_steering_by_hand() -> None:
    row = torch.tensor([1.0, 0])
    near, far = torch.tensor([[[1.0, 0]]]), torch.tensor([[[0, 1.0]]])  # cosines 1 and 0
    value = steering(row, near, far, torch.ones(1, 1, dtype=torch.bool), temperature=0.5)
    assert value.item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_steering_without_negatives_is_zero() -> None:
    absent = torch.zeros(1, 3, dtype=torch.bool)
    assert steering(rows(1)[0, 0], rows(4), rows(3), absent, temperature=0.07).item() == 0
    assert steering(rows(1)[0, 0], rows(4), torch.empty(1, 0, DIM), absent[:, :0], temperature=0.07).item() == 0


def test_steering_ignores_padding() -> None:
    present = torch.tensor([[True, True, False]])
    padded = steering(rows(1)[0, 0], rows(4), rows(3), present, temperature=0.07)
    cut = steering(rows(1)[0, 0], rows(4), rows(3)[:, :2], present[:, :2], temperature=0.07)
    assert padded.item() == cut.item()


def test_steering_is_the_mean_over_captions() -> None:
    row, near, far = rows(1)[0, 0], rows(4, captions=2), rows(3, captions=2)
    single = [steering(row, near[i : i + 1], far[i : i + 1], ALL, 0.07).item() for i in range(2)]
    both = steering(row, near, far, ALL.expand(2, 3), 0.07)
    assert both.item() == pytest.approx(sum(single) / 2)


def test_steering_of_a_row_for_each_caption_is_of_its_own() -> None:
    own, near, far = rows(2)[0], rows(4, captions=2), rows(3, captions=2)
    single = [steering(own[i], near[i : i + 1], far[i : i + 1], ALL, 0.07).item() for i in range(2)]
    assert steering(own, near, far, ALL.expand(2, 3), 0.07).item() == pytest.approx(sum(single) / 2)


def test_steering_moves_the_row_alone_and_towards_the_positives() -> None:
    row, near, far = (tensor.clone().requires_grad_() for tensor in (rows(1)[0, 0], rows(4), rows(3)))
    before = steering(row, near, far, ALL, temperature=0.07)
    before.backward()
    assert near.grad is None and far.grad is None and row.grad is not None
    moved = row.detach() - 1e-3 * row.grad
    assert steering(moved, near, far, ALL, temperature=0.07) < before


def test_steering_gradient_is_the_numerical_one() -> None:
    row = rows(1)[0, 0].double().requires_grad_()
    near, far = rows(4).double(), rows(3).double()
    assert torch.autograd.gradcheck(lambda r: steering(r, near, far, ALL, 0.5), row)


def test_the_anchor_is_the_squared_distance_over_tokens_and_dim() -> None:
    row, word = torch.zeros(768, requires_grad=True), torch.full((768,), 2.0, requires_grad=True)
    loss = anchor(row, word, 77)
    assert loss.item() == pytest.approx(4 / 77)
    loss.backward()
    assert torch.allclose(row.grad, torch.full((768,), -4 / (77 * 768))) and word.grad is None
