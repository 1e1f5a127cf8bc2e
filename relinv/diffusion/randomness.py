"""Random numbers as functions of a seed, a purpose and a step: no draw depends on how many came before it."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, purpose: str, step: int) -> torch.Generator:
    """Return a fresh CPU generator; another seed, purpose or step gives independent numbers."""
    digest = hashlib.sha256(f"{seed}|{purpose}|{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)  # 63 bits fit, of which 32 count
