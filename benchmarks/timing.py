"""Timing that includes a GPU's queued work."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from relinv.diffusion.bases import Base


def timed(base: Base, step: Callable[[], object], times: int = 1) -> float:
    """Return the seconds that `times` calls take, a GPU's work included."""
    synchronise(base)
    began = time.perf_counter()
    for _ in range(times):
        step()
    synchronise(base)
    return time.perf_counter() - began


def synchronise(base: Base) -> None:
    """Wait for a GPU to finish."""
    if base.device.type == "cuda":
        torch.cuda.synchronize(base.device)
