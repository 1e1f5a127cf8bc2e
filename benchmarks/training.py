"""Our training step against the published procedure's, in turns on one base in one process.

python -m benchmarks.training               the base in use, as params.yaml trains it
python -m benchmarks.training --sd15        the architecture of Stable Diffusion 1.5, random weights, on a GPU

The fastest on a GPU:                           --sd15 --compile --any-order
The fastest on a CPU with bf16 instructions:    --precision bf16 --attention eager --compile
The same for four relations in one batch:       the same, --together 4
The smallest, as fast as the published:         the first, --checkpointing --samples-per-pass 1
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from torch.profiler import ProfilerActivity, profile

from benchmarks.published import ACCUMULATION, MICRO_BATCH, PublishedTrainer
from benchmarks.rates import show_rates
from benchmarks.sd15 import build_sd15_base
from benchmarks.timing import synchronise, timed
from relinv.diffusion.bases import Base, load_base
from relinv.diffusion.concept import Concept, save_concept
from relinv.diffusion.sampling import decode
from relinv.exemplars import ExemplarSet, load_image, read_exemplars
from relinv.learning.checkpoints import Checkpoints
from relinv.learning.exemplar_latents import encode_pictures
from relinv.learning.problem import Problem, Task
from relinv.learning.training import Loop, numerics, take_step
from relinv.params import load_params
from relinv.plugins import find_plugin
from relinv.settings import DrawingSettings, ModelSettings, PreviewSettings
from relinv.world.exemplars import write_exemplars

RELATION = "inside"
SAMPLES = MICRO_BATCH * ACCUMULATION  # per step, in both
TOGETHER = 4  # relations that share a step where it is shown what that gains


def main(
    sd15: Annotated[
        bool, typer.Option("--sd15", help="Stable Diffusion 1.5's architecture with random weights.")
    ] = False,
    precision: Annotated[str | None, typer.Option(help="Ours: fp32 or bf16; else the base's own.")] = None,
    attention: Annotated[str | None, typer.Option(help="Ours: sdpa or eager; else the base's own.")] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Our UNet through torch.compile.")] = False,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Our UNet recomputes activations.")] = False,
    samples_per_pass: Annotated[int | None, typer.Option(help="Of ours at once; else as the base says.")] = None,
    any_order: Annotated[bool, typer.Option("--any-order", help="Our gradients differ in their last bits.")] = False,
    together: Annotated[int, typer.Option(min=1, help="Relations of ours that share a step.")] = 1,
    rounds: Annotated[int, typer.Option(min=2, help="Turns of each; medians are over these.")] = 7,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps in a turn.")] = 5,
) -> None:
    """Time our training and the published procedure in turns, and each phase of an inversion; print a table."""
    with tempfile.TemporaryDirectory() as scratch:
        params = load_params()
        model = build_sd15(Path(scratch)) if sd15 else params.model()
        trained = model if sd15 else params.trained_model()
        given = {"precision": precision, "attention": attention, "samples_per_pass": samples_per_pass}
        given |= {"compile": compiled or None, "gradient_checkpointing": checkpointing or None}
        given |= {"deterministic": False if any_order else None}
        changes = {name: value for name, value in given.items() if value is not None}
        began = time.perf_counter()
        base = load_base(ModelSettings(**(trained.model_dump() | changes)))
        _ = base.unet, base.vae, base.text_encoder, base.tokenizer, base.scheduler
        load = time.perf_counter() - began
        exemplars = render(Path(scratch) / RELATION)
        comparison = compare(base, model, exemplars, Path(scratch), together, rounds, steps)
        show(base, comparison)
        loops = [our_steps(base, exemplars, Path(scratch), attached=True) for _ in range(TOGETHER)]
        show_phases(base, exemplars, Path(scratch), loops[0], load, median(comparison.times["ours"]))
        drawing = params.section(f"bases.{'sd15' if sd15 else params.base()}.sampling", DrawingSettings)
        each = {1: stepping(*loops[:1]), TOGETHER: stepping(*loops)}
        show_rates(base, each, SAMPLES, drawing, rounds, steps)


@dataclass(frozen=True)
class Comparison:
    """Our step, of `together` relations, beside the published one; the names in each are "ours" and "published".

    times: seconds per step, by turn. states: bytes held between steps. peaks: the most bytes that a step holds at one
    moment beyond those.
    """

    times: dict[str, list[float]]
    states: dict[str, int]
    peaks: dict[str, int]
    together: int

    def ratios(self) -> list[float]:
        """Return how many times as many samples per second our step takes as the published, per turn, sorted."""
        pairs = zip(self.times["ours"], self.times["published"], strict=True)
        return sorted(self.together * published / ours for ours, published in pairs)

    def needs(self, name: str) -> int:
        """Return the bytes that one of them needs beyond the frozen weights."""
        return self.states[name] + self.peaks[name]


def compare(
    base: Base, model: ModelSettings, exemplars: ExemplarSet, scratch: Path, together: int, rounds: int, steps: int
) -> Comparison:
    """Return our step on `base` beside the published one, in fp32 but otherwise on `model`, taken in turns."""
    loops = [our_steps(base, exemplars, scratch, attached=together > 1) for _ in range(together)]
    ours = stepping(*loops)
    theirs = PublishedTrainer(load_base(model.model_copy(update={"precision": "fp32"})), exemplars)
    with loops[0].method.attached() if together == 1 else nullcontext():
        times = in_turns(base, {"ours": ours, "published": theirs.step}, rounds, steps)
        peaks = {"ours": peak_bytes(base, ours), "published": peak_bytes(base, theirs.step)}
    kept = [(loop.optimizer, loop.batches.latents.mean, loop.batches.latents.deviation) for loop in loops]
    states = {"ours": sum(state_bytes(*each) for each in kept),
              "published": state_bytes(theirs.optimizer, theirs.original)}  # fmt: skip
    return Comparison(times, states, peaks, together)


def in_turns(base: Base, each: dict[str, Callable[[], None]], rounds: int, steps: int) -> dict[str, list[float]]:
    """Return the seconds per call of each, one figure per turn of `steps` calls; a first turn warms up."""
    times: dict[str, list[float]] = {name: [] for name in each}
    for turn in range(rounds + 1):
        for name, step in each.items():
            seconds = timed(base, step, steps)
            if turn:
                times[name].append(seconds / steps)
    return times


def our_steps(base: Base, exemplars: ExemplarSet, scratch: Path, attached: bool = False) -> Loop:
    """Return our loop, set up for ReVersion with as many samples per step as the published procedure.

    attached: whether its steps open the block in which the token is known, as when relations are learned together.
    """
    plugin = find_plugin("relinv.methods", "reversion")
    values = load_params().section("invert.reversion", dict) | {"batch_size": SAMPLES}
    method = plugin.Method(base, "inside", plugin.Settings(**values), exemplars)
    preview = PreviewSettings(count=1, prompts=[], seed=0)
    problem = Problem(base, exemplars, "inside", "reversion", method.settings, 0, preview)
    task = Task(problem, method, Checkpoints(scratch, "benchmark", {}, interval=1e9))
    return Loop(task, method.attached if attached else nullcontext)


def stepping(*loops: Loop) -> Callable[[], None]:
    """Return a function that takes the loops' next step, together."""

    def step() -> None:
        """Take the step after those that the first loop has logged, as training does."""
        with numerics(loops[0].base):
            take_step(loops, len(loops[0].log.losses))

    return step


def state_bytes(optimizer: torch.optim.Optimizer, *others: torch.Tensor) -> int:
    """Return the bytes held between two steps besides the frozen weights: what is learned, its averages, `others`.

    A gradient counts if a step leaves it; one that a step makes and frees is part of that step's `peak_bytes`.
    """
    learned = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    gradients = [tensor.grad for tensor in learned if tensor.grad is not None]
    averages = [value for state in optimizer.state.values() for value in state.values()]
    return sum(tensor.nbytes for tensor in (*learned, *gradients, *averages, *others))


def peak_bytes(base: Base, step: Callable[[], object]) -> int:
    """Return the most bytes that a step holds at one moment beyond those held before it."""
    if base.device.type == "cuda":
        synchronise(base)
        before = torch.cuda.memory_allocated(base.device)
        torch.cuda.reset_peak_memory_stats(base.device)
        step()
        synchronise(base)
        return torch.cuda.max_memory_allocated(base.device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    changes = [event.nbytes() for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(changes))


def show(base: Base, comparison: Comparison) -> None:
    """Print both steps, the ratio of their samples per second, and the memory of both."""
    threads, together = torch.get_num_threads(), comparison.together
    samples = {"ours": together * SAMPLES, "published": SAMPLES}
    print(f"{base.id} on {base.gpu or 'CPU'}, {threads} threads, {base.settings.precision}")
    print(f"{SAMPLES} samples a step for each relation; of ours, {together} together")
    print(f"{'':12}{'step, ms':>10}{'samples/s':>12}{'state, KB':>12}{'peak, MB':>12}")
    for name, times in comparison.times.items():
        seconds = median(times)
        state, peak = comparison.states[name] / 2**10, comparison.peaks[name] / 2**20
        print(f"{name:12}{1000 * seconds:10.1f}{samples[name] / seconds:12.1f}{state:12.0f}{peak:12.1f}")
    ratios = comparison.ratios()
    print(f"ours is {median(ratios):.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f} over {len(ratios)} turns)")
    share = comparison.states["published"] / comparison.states["ours"]
    print(f"and holds 1/{share:.1f} of the state; peak: what a step holds for a moment")
    share = comparison.needs("ours") / comparison.needs("published")
    print(f"state and peak, all memory beyond the frozen weights: {share:.2f} of the published")


def show_phases(base: Base, exemplars: ExemplarSet, scratch: Path, loop: Loop, load: float, step: float) -> None:
    """Print where an inversion's time goes."""
    pictures = [load_image(exemplar.path, base.resolution) for exemplar in exemplars.exemplars]
    encode = timed(base, lambda: encode_pictures(base, pictures))
    with torch.inference_mode():
        images = timed(base, lambda: decode(base, loop.batches.latents.mean[:1]))
    concept = Concept("<r>", loop.method.embedding(), {"relation": RELATION, "method": "reversion"})
    save = timed(base, lambda: save_concept(scratch, concept))
    phases = {"load the base": load, f"encode {len(exemplars.exemplars)} exemplars": encode, "one step": step,
              "decode one image": images, "save the concept": save}  # fmt: skip
    for name, seconds in phases.items():
        print(f"{name:24}{1000 * seconds:10.1f} ms")


def render(folder: Path) -> ExemplarSet:
    """Return ten exemplars of the miniature's world; any other pictures would take the same time."""
    folder.mkdir()
    write_exemplars(RELATION, folder, exemplar_set="shared", seed=0)
    return read_exemplars(folder)


def build_sd15(folder: Path) -> ModelSettings:
    """Return a base of Stable Diffusion 1.5's architecture with random weights, on the GPU if there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = str(build_sd15_base(folder / "sd15", full=True))
    return ModelSettings(
        source=source, revision=None, device=device, precision="bf16" if device == "cuda" else "fp32", resolution=512
    )


if __name__ == "__main__":
    typer.run(main)
