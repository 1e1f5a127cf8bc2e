"""How fast a training step is in each setting that trades time for memory or exactness.

python -m benchmarks.speed    writes reports/speed.md, in ten minutes; run nothing else meanwhile
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from tqdm import tqdm

from benchmarks.training import RELATION, SAMPLES, Comparison, compare, render
from relinv.diffusion.bases import load_base
from relinv.files import atomic_write_text
from relinv.params import load_params
from relinv.settings import ModelSettings

PAGE = Path("reports/speed.md")
TEXT = """# How fast a training step is

A step of {samples} samples per relation, in turns with the published procedure's on the same base: how many times as
many samples per second, median of {rounds} turns (lowest to highest). Memory is what a step holds beyond the frozen
weights. Made by `python -m benchmarks.speed` on {where}.

| the base's settings | ms | times as fast | memory, MB | of the published |
|---|---:|---:|---:|---:|
"""
FAST: dict[str, Any] = {"precision": "bf16", "attention": "eager", "compile": True}
SMALL: dict[str, Any] = {"gradient_checkpointing": True}
SETTINGS = (  # changes of the base's settings, and how many relations together
    ({}, 1),
    (FAST, 1),
    (FAST, 4),
    (FAST, 10),
    (FAST | SMALL, 1),
    (FAST | SMALL, 4),
    *((FAST | SMALL | {"samples_per_pass": samples}, 1) for samples in (4, 2, 1)),
)


def main(
    rounds: Annotated[int, typer.Option(min=2, help="Turns of each; medians are over these.")] = 7,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps in a turn.")] = 5,
) -> None:
    """Compare each setting with the published procedure, in a process of its own, and write the table."""
    measured = []
    for changes, together in tqdm(SETTINGS, unit="setting"):
        # compiled code and memory of one setting would tell on the next
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
            measured.append(alone.submit(measure, changes, together, rounds, steps).result())
    base = load_base(load_params().model())
    atomic_write_text(PAGE, page(measured, rounds, f"{base.id} ({base.processor})"))
    print(f"{PAGE} holds the table.")


def measure(changes: Mapping[str, Any], together: int, rounds: int, steps: int) -> Comparison:
    """Return our step with these changes of the base's settings, beside the published one."""
    params = load_params()
    model = params.model()
    base = load_base(ModelSettings(**(params.trained_model().model_dump() | dict(changes))))
    with tempfile.TemporaryDirectory() as scratch:
        exemplars = render(Path(scratch) / RELATION)
        return compare(base, model, exemplars, Path(scratch), together, rounds, steps)


def page(measured: Sequence[Comparison], rounds: int, where: str) -> str:
    """Return the comparisons of `SETTINGS` as a Markdown page; `where` names base and processor."""
    times = sorted(1000 * median(comparison.times["published"]) for comparison in measured)
    needs = measured[0].needs("published") / 2**20
    lines = [line(*setting, comparison) for setting, comparison in zip(SETTINGS, measured, strict=True)]
    lines.append(f"| the published procedure | {times[0]:.0f} to {times[-1]:.0f} | 1 | {needs:.1f} | 1 |")
    return TEXT.format(samples=SAMPLES, rounds=rounds, where=where) + "\n".join(lines) + "\n"


def line(changes: Mapping[str, Any], together: int, comparison: Comparison) -> str:
    """Return one line of the table."""
    name = ", ".join(f"`{name}: {str(value).lower()}`" for name, value in changes.items()) or "the default"
    ratios, needs = comparison.ratios(), comparison.needs("ours")
    cells = (
        f"{name}; {together} relations in one batch" if together > 1 else name,
        f"{1000 * median(comparison.times['ours']):.0f}",
        f"{median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})",
        f"{needs / 2**20:.1f}",
        f"{needs / comparison.needs('published'):.2f}",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    typer.run(main)
