"""The distributions of timesteps against the closed-form values of ReVersion's relation-focal importance sampling."""

from __future__ import annotations

import pytest
import torch

from relinv.learning.timesteps import importance, require_probabilities, sample_timesteps

TOTAL = 1000


def test_importance_values() -> None:
    probabilities = importance(TOTAL, alpha=0.5)
    steps = torch.arange(TOTAL)
    assert probabilities.sum().item() == pytest.approx(1)
    assert TOTAL * probabilities[0].item() == pytest.approx(0.50025, abs=5e-6)
    assert TOTAL * probabilities[999].item() == pytest.approx(1.50075, abs=5e-6)
    assert (probabilities * steps).sum().item() == pytest.approx(600.87, abs=5e-3)
    assert probabilities[500:].sum().item() == pytest.approx(0.6592, abs=5e-5)


def test_importance_without_alpha_is_uniform() -> None:
    assert torch.equal(importance(TOTAL, alpha=0.0), torch.full((TOTAL,), 1 / TOTAL, dtype=torch.float64))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_draws_follow_the_distribution(alpha: float) -> None:
    probabilities = importance(TOTAL, alpha)
    source = torch.Generator().manual_seed(0)
    drawn = torch.stack([sample_timesteps(probabilities, 8, source) for _ in range(2000)])  # (batches, batch)
    assert drawn.min() >= 0 and drawn.max() == TOTAL - 1
    expected = (probabilities * torch.arange(TOTAL)).sum().item()
    assert drawn.double().mean().item() == pytest.approx(expected, abs=2)
    for place in range(8):  # each sample of a batch has the whole distribution, whatever its place
        share = (drawn[:, place] >= 500).double().mean().item()
        assert share == pytest.approx(probabilities[500:].sum().item(), abs=0.05)


def test_a_distribution_that_falls_short_of_one_by_rounding_still_ends_at_the_last_timestep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probabilities = torch.full((10,), 0.1, dtype=torch.float64)
    highest = torch.tensor([1 - 2**-53], dtype=torch.float64)  # that a draw can be
    assert probabilities.cumsum(0)[-1] <= highest
    monkeypatch.setattr(torch, "rand", lambda *size, **options: highest)
    assert sample_timesteps(probabilities, 1, torch.Generator()).tolist() == [9]


def test_a_batch_covers_the_whole_range() -> None:
    drawn = sample_timesteps(importance(TOTAL, alpha=0.0), 8, torch.Generator().manual_seed(1)).sort().values
    assert torch.equal(drawn // 125, torch.arange(8))


def test_the_same_generator_gives_the_same_draws() -> None:
    first, second = (sample_timesteps(importance(TOTAL, 0.5), 8, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "probabilities",
    [
        torch.full((1000,), float("nan")),
        torch.full((1000,), 0.1),
        torch.full((1000,), 0.0005),
        torch.full((500,), 1 / 500),
        torch.tensor([1.5, -0.5, *[0.0] * 998]),
    ],
)
def test_what_is_no_distribution_is_refused(probabilities: torch.Tensor) -> None:
    require_probabilities(importance(1000, 0.5), 1000)
    with pytest.raises(ValueError, match="must be 1000 numbers that sum to 1"):
        require_probabilities(probabilities, 1000)
