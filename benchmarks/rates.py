"""How much of a machine's speed in matrix products a training step and drawing reach."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import timed
from relinv.devices import deterministic
from relinv.diffusion.bases import Base
from relinv.diffusion.sampling import Sampler, initial_latents, sample, to_pictures

OFFICIAL = 3000 * 4 * 2  # samples: steps times micro-batches per step times samples in each


def show_rates(base: Base, step: Callable[[], object], samples: int, sampler: Sampler, batch: int) -> None:
    """Print what share of the measured matrix rate a training step reaches, and how fast images are drawn.

    samples: in one step. batch: images drawn at once, with guidance.
    """
    rate = matrix_rate(base)
    # several steps in a row, as in training: the CPU prepares one while the GPU still runs the last
    operations, seconds = count(step), median(timed(base, step, 5) / 5 for _ in range(5))
    draw = lambda: drawn(base, sampler, batch)  # noqa: E731
    draw_operations, draw_seconds = count(draw), min(timed(base, draw) for _ in range(2))
    used, draw_used = (
        100 * work / spent / rate for work, spent in ((operations, seconds), (draw_operations, draw_seconds))
    )
    print(f"{'matrix products':24}{rate / 1e12:10.3f} TFLOP/s in {base.settings.precision}")
    print(f"{'one step':24}{operations / 1e9:10.1f} GFLOP, {used:.0f} % of that rate")
    print(f"{'the official budget':24}{OFFICIAL / samples * seconds:10.0f} s, {OFFICIAL} samples")
    print(f"{f'draw in {sampler.steps} steps':24}{batch / draw_seconds:10.2f} images/s, {draw_used:.0f} % of that rate")


def matrix_rate(base: Base) -> float:
    """Return the operations per second of large square matrix products, in the base's precision and on its device."""
    side = 8192 if base.device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=base.device, dtype=base.dtype) for _ in range(2))
    product = lambda: left @ right  # noqa: E731
    product()  # warms up
    return 2 * side**3 / median(timed(base, product) for _ in range(9))


def count(work: Callable[[], object]) -> int:
    """Return the floating-point operations of matrix products, convolutions and attention in `work`, run once."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def drawn(base: Base, sampler: Sampler, batch: int) -> None:
    """Draw `batch` pictures of one prompt as generation does, decoded and moved to the CPU."""
    with torch.inference_mode():
        encodings = base.encode(base.tokenize(["cat inside box", ""]))  # (2, tokens, dim)
    prompt, empty = (encoding.expand(batch, -1, -1) for encoding in encodings)
    with deterministic(base.device, gradients=False):
        to_pictures(sample(base, prompt, empty, initial_latents(base, range(batch)), sampler))
