"""Random numbers as functions of a seed, a purpose and a step: no draw depends on how many came before it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def generator(seed: int, purpose: str, step: int) -> torch.Generator:
    """Return a fresh CPU generator; another seed, purpose or step gives independent numbers."""
    digest = hashlib.sha256(f"{seed}|{purpose}|{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)  # a seed has 63 bits


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Inside the block `device` gives the same bits each time, as far as PyTorch has kernels that do.

    A CPU does so anyway. cuBLAS must be told before its first product.
    """
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
