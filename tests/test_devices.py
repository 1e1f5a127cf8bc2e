"""Devices: held to the same bits inside a block, and as they were after it."""

from __future__ import annotations

import pytest
import torch
from torch.utils import deterministic as settings

from relinv.devices import deterministic


def flags() -> tuple[bool, bool, bool, bool]:
    """Return whether algorithms must be deterministic, may not be with a warning, fill memory, and round to TF32."""
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        settings.fill_uninitialized_memory,
        torch.backends.cudnn.allow_tf32,
    )


@pytest.mark.parametrize(
    ("device", "gradients", "inside"),
    [
        ("cuda", True, (True, False, False, False)),
        ("cuda", False, (True, True, False, False)),  # cuDNN's attention may be used, whose forward is deterministic
        ("mps", True, (True, True, False, False)),
    ],
)
def test_the_same_bits_each_time_on_a_gpu_and_as_it_was_after_it(
    device: str, gradients: bool, inside: tuple[bool, ...]
) -> None:
    before = flags()
    with pytest.raises(KeyboardInterrupt), deterministic(torch.device(device), gradients):
        assert flags() == inside
        raise KeyboardInterrupt
    assert flags() == before


def test_a_cpu_is_left_as_it_is() -> None:
    before = flags()
    with deterministic(torch.device("cpu")):
        assert flags() == before
