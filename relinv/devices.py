"""Devices that networks run on: found by name, and held to the same bits each time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from relinv.errors import UserError

if TYPE_CHECKING:
    import torch


def find_device(name: str) -> torch.device:
    """Return the device of that name; UserError where this machine has none such."""
    import torch

    usable = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kind, _, index = name.partition(":")
    if not usable.get(kind) or (kind == "cuda" and int(index or 0) >= torch.cuda.device_count()):
        raise UserError(f"The device '{name}' is not available on this machine: set that device to cpu in params.yaml.")
    return torch.device(name)


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Inside the block `device` gives the same bits each time, as far as PyTorch has kernels that do.

    A CPU does so anyway. cuBLAS must be told before its first product.
    """
    import torch

    enabled, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    if device.type != "cpu":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
