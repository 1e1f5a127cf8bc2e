"""The resumable training loop that the miniature's autoencoder, denoiser and judge share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from tqdm import tqdm

from relinv.learning.checkpoints import load_state, save_state

CHECKPOINT_EVERY = 250
Loss = Callable[[int, torch.Generator], tuple[torch.Tensor, dict[str, float]]]


@dataclass(frozen=True)
class Schedule:
    """How long, how fast and how exact: in each period a rise to `learning_rate`, then a cosine to a hundredth of it.

    A later period starts from the averaged weights of the one before it (Loshchilov and Hutter, SGDR: Stochastic
    Gradient Descent with Warm Restarts, 2017), so that a training can be prolonged after a look at what it gave.
    """

    periods: tuple[int, ...]  # steps of each
    learning_rate: float
    precision: Literal["fp32", "bf16"] = "fp32"  # of the products in a step; the weights are fp32 always
    warmup: int = 200
    weight_decay: float = 1e-2
    average: float = 0.999  # decay of the exponential moving average of the weights, which is what is kept

    @property
    def steps(self) -> int:
        """Return the number of steps in all."""
        return sum(self.periods)

    @property
    def restarts(self) -> set[int]:
        """Return the steps at which a later period begins."""
        return set(accumulate(self.periods[:-1]))

    def begun(self, step: int) -> list[int]:
        """Return the lengths of the periods that the first `step` steps lie in, which is what they depend on."""
        ends = accumulate(self.periods)
        return [length for length, end in zip(self.periods, ends, strict=True) if end - length < step]

    def rate(self, step: int) -> float:
        """Return the learning rate's factor at `step`."""
        begin = max((restart for restart in self.restarts if restart <= step), default=0)
        length = self.periods[sorted({0, *self.restarts}).index(begin)]
        step -= begin
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, length - self.warmup)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


class Average:
    """The exponential moving average of a model's floating-point state."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model's weights; early on the average forgets faster, so that its start does not stay."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[key].lerp_(value, 1 - decay)
            else:
                self.state[key].copy_(value)


def train(name: str, model: nn.Module, loss: Loss, schedule: Schedule, folder: Path, *, seed: int) -> None:
    """Train `model` in place and leave it with its averaged weights.

    `loss(step, generator)` returns the scalar to minimise and numbers to show. Each step's randomness is a function
    of (seed, step) alone, so a run that was stopped goes on from its last checkpoint in `folder` as if it had not been.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.learning_rate, weight_decay=schedule.weight_decay, fused=True)
    average = Average(model, schedule.average)
    checkpoint = folder / f"{name}.pt"
    start = _restore(checkpoint, schedule, model, optimizer, average)
    shown: dict[str, float] = {}
    bar = tqdm(range(start, schedule.steps), desc=name, initial=start, total=schedule.steps, mininterval=2.0)
    for step in bar:
        if step in schedule.restarts:
            model.load_state_dict(average.state)
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * schedule.rate(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=schedule.precision == "bf16"):
            value, numbers = loss(step, torch.Generator().manual_seed(seed * 1_000_003 + step))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update(model, step)
        shown = {k: 0.98 * shown.get(k, v) + 0.02 * v for k, v in numbers.items()}
        bar.set_postfix({k: f"{v:.4f}" for k, v in shown.items()}, refresh=False)
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == schedule.steps:
            _save(checkpoint, step + 1, schedule, model, optimizer, average)
            print(f"{name} {step + 1}: " + " ".join(f"{k} {v:.4f}" for k, v in shown.items()), flush=True)
    model.load_state_dict(average.state)


def _save(
    path: Path,
    step: int,
    schedule: Schedule,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average,
) -> None:
    state = {
        "step": step,
        "periods": schedule.begun(step),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.state,
    }
    save_state(path, state)


def _restore(
    path: Path, schedule: Schedule, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average
) -> int:
    """Take up the checkpoint and return its step, or 0 where there is none of this schedule that can be read."""
    state = load_state(path)
    if state is None or state["periods"] != schedule.begun(state["step"]):
        return 0
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    average.state = state["average"]
    return int(state["step"])
