"""How much of a machine's speed in matrix products a training step and drawing reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import timed
from relinv.devices import deterministic
from relinv.diffusion.bases import Base
from relinv.diffusion.conditioning import Drawer
from relinv.diffusion.sampling import to_pictures
from relinv.errors import is_out_of_memory
from relinv.settings import SamplingSettings

OFFICIAL = 3000 * 4 * 2  # samples: steps times micro-batches per step times samples in each


def show_rates(base: Base, steps: Mapping[int, Callable[[], object]], samples: int, drawing: SamplingSettings) -> None:
    """Print what share of the measured matrix rate training steps reach, and how fast images are drawn.

    steps: by how many relations take them at once, with `samples` each; of one for which the memory is too small, that
    is said. drawing: how images are drawn, and how many at once.
    """
    rate = matrix_rate(base)
    print(f"{'matrix products':24}{rate / 1e12:10.3f} TFLOP/s in {base.settings.precision}")
    speed, seconds = measured(base, partial(drawn, base, drawing), calls=1, rounds=3)
    name = f"draw in {drawing.steps} steps"
    print(f"{name:24}{drawing.batch_size / seconds:10.2f} images/s, {100 * speed / rate:.0f} % of that rate")
    for relations, step in steps.items():
        name = "one step" if relations == 1 else f"one step, {relations} relations"
        try:  # several steps in a row, as in training: the CPU prepares one while the GPU still runs the last
            speed, seconds = measured(base, step, calls=5, rounds=5)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            print(f"{name:24} needs more memory than there is")
            continue
        print(f"{name:24}{1000 * seconds:10.1f} ms, {100 * speed / rate:.0f} % of that rate")
        alone = OFFICIAL / samples / relations * seconds
        print(f"{'the official budget':24}{alone:10.0f} s a relation, {OFFICIAL} samples")


def measured(base: Base, work: Callable[[], object], calls: int, rounds: int) -> tuple[float, float]:
    """Return the operations per second of `work` and its seconds, the median over `rounds` of `calls` in a row.

    A compiled base is compiled anew, as in a process of its own: after another batch size, it would be for any size.
    """
    torch.compiler.reset()
    operations = count(work)  # does not compile
    work()  # compiles
    seconds = median(timed(base, work, calls) / calls for _ in range(rounds))
    return operations / seconds, seconds


def matrix_rate(base: Base) -> float:
    """Return the operations per second of large square matrix products, in the base's precision and on its device."""
    side = 8192 if base.device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=base.device, dtype=base.dtype) for _ in range(2))
    product = partial(torch.matmul, left, right)
    product()  # warms up
    return 2 * side**3 / median(timed(base, product) for _ in range(9))


def count(work: Callable[[], object]) -> int:
    """Return the floating-point operations of matrix products, convolutions and attention in `work`, run once."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def drawn(base: Base, drawing: SamplingSettings) -> None:
    """Draw a batch of pictures of one prompt as generation does, decoded and moved to the CPU."""
    prompts = ["cat inside box"] * drawing.batch_size
    with deterministic(base.device, backward=False):
        to_pictures(Drawer(base, [], prompts, drawing).draw(prompts, range(drawing.batch_size)))
