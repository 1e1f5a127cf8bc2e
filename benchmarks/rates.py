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


def show_rates(
    base: Base,
    each: Mapping[int, Callable[[], object]],
    samples: int,
    drawing: SamplingSettings,
    rounds: int,
    steps: int,
) -> None:
    """Print what share of the measured matrix rate training steps reach, and how fast images are drawn.

    each: a training step, by how many relations take it at once with `samples` each. drawing: how images are drawn, and
    how many at once. Each is timed `rounds` times, training by several `steps` in a row: the CPU prepares one while the
    GPU still runs the last.
    """
    rate = matrix_rate(base)
    print(f"{'matrix products':24}{rate / 1e12:10.3f} TFLOP/s in {base.settings.precision}")
    name = f"draw in {drawing.steps} steps"
    if found := measured(base, name, partial(drawn, base, drawing), calls=1, rounds=rounds):
        speed, seconds = found
        print(f"{name:24}{drawing.batch_size / seconds:10.2f} images/s, {100 * speed / rate:.0f} % of that rate")
    for relations, step in each.items():
        name = "one step" if relations == 1 else f"one step, {relations} relations"
        if found := measured(base, name, step, calls=steps, rounds=rounds):
            speed, seconds = found
            print(f"{name:24}{1000 * seconds:10.1f} ms, {100 * speed / rate:.0f} % of that rate")
            alone = OFFICIAL / samples / relations * seconds
            print(f"{'the official budget':24}{alone:10.0f} s a relation, {OFFICIAL} samples")


def measured(base: Base, name: str, work: Callable[[], object], calls: int, rounds: int) -> tuple[float, float] | None:
    """Return the operations per second of `work` and its seconds, the median over `rounds` of `calls` in a row.

    If the memory is too small for it, this is printed, and None is returned. A compiled base is compiled anew, as in a
    process of its own: after another batch size, it would be for any size.
    """
    torch.compiler.reset()
    try:
        operations = count(work)  # does not compile
        work()  # compiles
        seconds = median(timed(base, work, calls) / calls for _ in range(rounds))
    except Exception as error:
        if not is_out_of_memory(error) and not is_out_of_memory(error.__cause__):
            raise
        print(f"{name:24} needs more memory than there is")
        return None
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
