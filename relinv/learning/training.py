"""The one training loop, for every inversion method and for several trainings at once.

A step's batch is a function of seed and step number alone (relinv/learning/batches.py), so training that resumes from
any checkpoint gives byte-identical results. Only the method's own tensors get gradients; the base's weights get none.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from relinv.devices import deterministic, fp32_as_such
from relinv.diffusion.bases import Base
from relinv.diffusion.conditioning import Drawer
from relinv.diffusion.randomness import generator
from relinv.diffusion.sampling import encode_png, to_pictures
from relinv.errors import UserError, enough_memory
from relinv.learning.batches import Batch, Batches
from relinv.learning.losses import LossTerm, weighted_denoising, weighted_sum
from relinv.learning.method import InversionMethod, LossInputs
from relinv.learning.passes import accumulate_gradients, predict
from relinv.learning.problem import Task
from relinv.learning.training_log import LOSSES, TrainingLog

FEWER_SAMPLES = (  # what to do if memory runs out
    "set the base's training.samples_per_pass to fewer (1 is the least), its training.gradient_checkpointing to true "
    "or its model.precision to bf16, or train fewer relations together"
)
SHOWN_EVERY = 20  # steps between reading the loss, to show it and to detect divergence: each read stalls a GPU


def train(tasks: Sequence[Task], keep: bool = False) -> list[TrainingLog]:
    """Train the method of each task in place, from its last checkpoint if there is one; return their logs.

    Tasks share only the base and each step's passes of its UNet: each has its own state, optimiser, captions, timesteps
    and noise (the same numbers as another's if their seeds are equal), and learns the same as it would alone, up to
    rounding. Tests require that its rows agree within 1e-4, absolute and relative, in fp32 on a CPU, and have a cosine
    of 0.99 in bf16 on a GPU. `keep`: whether to save the final state as a checkpoint too, for another process. Raises
    UserError if one of several tasks changes the UNet, if the memory is too small, or if a loss diverged, in which case
    the other tasks finish first.
    """
    adapters = [adapter for task in tasks for adapter in task.method.adapters]
    if len(tasks) > 1 and not all(adapter.shares_unet for adapter in adapters):
        raise UserError("This method changes the UNet, so its relations cannot share one pass: train each alone.")
    with ExitStack() as stack:
        base = tasks[0].method.base
        stack.enter_context(numerics(base))
        # All tasks call their token `<r>`, so each of several is attached only while its part is computed.
        loops = [Loop(task, attached=nullcontext if len(tasks) == 1 else task.method.attached) for task in tasks]
        if len(tasks) == 1:
            stack.enter_context(tasks[0].method.attached())
        for loop in loops:
            if loop.done < loop.end:
                loop.tell_folder()
        begin, end = min(loop.done for loop in loops), max(loop.end for loop in loops)
        bar = tqdm(range(begin, end), initial=begin, total=end, unit="step")
        for step in bar:
            active = [loop for loop in loops if loop.done <= step < loop.end and not loop.failure]
            if not active:
                break  # all have stopped early or failed
            samples = sum(loop.method.batch_size + loop.method.prior_batch_size for loop in active)
            with enough_memory(active[0].base.device, f"training with {samples} samples", FEWER_SAMPLES):
                take_step(active, step)
                for loop in active:
                    loop.attempt(partial(loop.after, step))
            if step % SHOWN_EVERY == 0:
                bar.set_postfix(loss=f"{recent_loss(active):.4f}")
        for loop in loops:
            loop.attempt(partial(loop.finish, keep))
    if failures := [str(loop.failure) for loop in loops if loop.failure]:
        raise UserError("\n".join(failures))
    return [loop.log for loop in loops]


def numerics(base: Base) -> AbstractContextManager[None]:
    """Return the block in which steps give the same bits each time, unless the base's settings leave that to chance.

    Without it, torch.compile and convolutions choose their kernels by speed alone, and sums may be in any order.
    """
    return deterministic(base.device) if base.settings.deterministic else fp32_as_such(base.device, by_speed=True)


def uncompiled(base: Base) -> AbstractContextManager[Any]:
    """Return the block in which a compiled UNet runs as it is written.

    For the few passes without gradients, which take longer to compile than to run.
    """
    return torch.compiler.set_stance("force_eager") if base.settings.compile else nullcontext()


def recent_loss(loops: Sequence[Loop]) -> float:
    """Return the mean of the trainings' losses in the steps since it was last shown, since a single one is noisy."""
    totals = [losses[-1] for loop in loops for losses in loop.log.losses[-SHOWN_EVERY:]]
    return torch.stack(totals).mean().item()  # read from a GPU once


def optimizer_of(method: InversionMethod) -> torch.optim.Optimizer:
    """Return AdamW for what a method learns; on CUDA as one kernel, which needs no copies of all of it meanwhile."""
    return torch.optim.AdamW(method.groups(), fused=method.base.device.type == "cuda")


def take_step(loops: Sequence[Loop], step: int) -> None:
    """Take one optimiser step of each loop; their samples share the passes of the UNet."""
    batches = [loop.batch(step) for loop in loops]
    names = ("noisy", "timesteps", "conditioning", "target")
    joined = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in names}

    def loss(prediction: torch.Tensor) -> tuple[torch.Tensor, list[dict[str, LossTerm]]]:
        """Return the sum of the loops' losses, each with gradients for its own method alone, and their terms."""
        parts = prediction.split([len(batch.noisy) for batch in batches])
        terms = [loop.terms(step, batch, part) for loop, batch, part in zip(loops, batches, parts, strict=True)]
        return torch.stack([weighted_sum(each) for each in terms]).sum(), terms

    for loop in loops:
        loop.optimizer.zero_grad(set_to_none=True)
    terms = accumulate_gradients(loops[0].base, **joined, loss=loss)
    for loop, each in zip(loops, terms, strict=True):
        loop.log.add(each)
        loop.update(step)


class Loop:
    """The state of one training: method, optimiser, log. Create it outside `method.attached()`, on the unchanged base.

    `attached` returns the block in which the token is known; a caller that takes the steps inside that block omits it.
    """

    def __init__(self, task: Task, attached: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        self.task, self.problem, self.method, self.checkpoints = task, task.problem, task.method, task.checkpoints
        self.base, self.attached = self.method.base, attached
        pictures = self.method.training_pictures(self.checkpoints.scratch)
        self.batches = Batches(self.method, pictures, self.problem.seed)
        self.optimizer = optimizer_of(self.method)
        self.log = TrainingLog()
        self.done, self.end = 0, self.method.steps
        self.stopping = self.method.early_stopping()
        self.failure: UserError | None = None
        self._resume()
        with self.method.attached(), torch.no_grad():  # fail now for a prompt, not after much training
            self.batches.check_captions()
            if self.problem.preview.prompts:
                self._drawer()

    def tell_folder(self) -> None:
        """Say on stderr where to look while it trains; the folder is removed at the end."""
        relation, folder = self.problem.exemplars.relation, self.checkpoints.folder
        print(f"The losses and previews of '{relation}' so far are kept in '{folder}'.", file=sys.stderr)

    def batch(self, step: int) -> Batch:
        """Return a step's batch."""
        with self.attached():
            return self.batches.of_step(step)

    def terms(self, step: int, batch: Batch, prediction: torch.Tensor) -> dict[str, LossTerm]:
        """Return the terms of a step's loss by name."""
        inputs = LossInputs(
            prompts=batch.prompts,
            timesteps=batch.timesteps,
            prediction=prediction,
            target=batch.target,
            generator=generator(self.problem.seed, "method", step),
            masks=batch.masks,
        )
        with self.attached():
            return self.method.losses(inputs)

    def update(self, step: int) -> None:
        """Clip gradients if the method says so, take the optimiser's step and call the method's `after_step`."""
        if self.method.max_grad_norm is not None:
            tensors = [tensor for group in self.optimizer.param_groups for tensor in group["params"]]
            torch.nn.utils.clip_grad_norm_(tensors, self.method.max_grad_norm)
        self.optimizer.step()
        self.method.after_step()

    def require_finite(self) -> None:
        """Raise UserError if a loss, or anything learned, is no longer a finite number."""
        found = [torch.stack(self.log.losses), *self.method.state().values()]
        if not torch.stack([tensor.isfinite().all() for tensor in found]).all():  # read from a GPU once
            place = f", first in {diverged}" if (diverged := self.log.first_diverged()) else ""
            wider = "" if self.base.settings.precision == "fp32" else ", or set the model's precision to fp32"
            raise UserError(
                f"The loss of '{self.problem.exemplars.relation}' is no longer a finite number{place}: lower the "
                f"method's learning_rate{wider}."
            )

    def attempt(self, work: Callable[[], None]) -> None:
        """Do `work` unless this training has failed; store a UserError, so that it does not end the other trainings."""
        if not self.failure:
            try:
                work()
            except UserError as error:
                self.failure = error

    def finish(self, keep: bool) -> None:
        """Save the final state if `keep` says so. Raises UserError if the loss diverged."""
        self.require_finite()
        if keep:
            self.save(self.end)

    def after(self, step: int) -> None:
        """Make the preview and the checkpoint if due after a step; set the training's end if it may stop early.

        Raises UserError if the loss diverged.
        """
        if step % SHOWN_EVERY == 0:
            self.require_finite()
        if self.stopping and self.stopping.is_due(step + 1):
            self.stopping.losses.append(self._fixed_loss())
            if self.stopping.is_over():
                self.end = step + 1
        preview = self.problem.preview
        due = (step + 1) * preview.count // self.end > step * preview.count // self.end
        if preview.prompts and due:
            self.require_finite()  # otherwise the error would blame the pictures
            with uncompiled(self.base), self.attached():
                self._preview(step + 1)
        if self.checkpoints.is_due():
            self.save(step + 1)

    @torch.no_grad()
    def _fixed_loss(self) -> float:
        """Return the denoising loss on the fixed batch, which changes only with what is learned."""
        with uncompiled(self.base), self.attached():
            batch = self.batches.fixed()
            prediction = predict(self.base, batch.noisy, batch.timesteps, batch.conditioning)
        return weighted_denoising(prediction, batch.target, batch.masks).item()

    def _preview(self, step: int) -> None:
        """Store a strip of pictures, one per prompt, from the same noise at every step, and the row if it is all."""
        preview = self.problem.preview
        seeds = range(preview.seed, preview.seed + len(preview.prompts))
        images = self._drawer().draw(preview.prompts, seeds)  # (prompts, 3, side, side)
        strip = torch.cat(list(images), dim=-1)[None]  # (1, 3, side, prompts * side)
        files = {"png": encode_png(to_pictures(strip)[0]), "safetensors": self.task.token_file(step)}
        for ending, data in files.items():
            if data:
                name = f"step_{step:04d}.{ending}"
                self.log.previews[name] = data
                self.checkpoints.write_file(name, data)

    def _drawer(self) -> Drawer:
        """Return what draws previews of the current state. Raises UserError for a prompt that cannot be drawn."""
        return Drawer(self.base, self.method.adapters, self.problem.preview.prompts, self.base.settings.preview)

    def save(self, done: int) -> None:
        """Save everything that the remaining steps and the log depend on, and the losses so far, to be looked at."""
        contents = {
            "done": done,
            "state": {name: tensor.detach() for name, tensor in self.method.state().items()},
            "optimizer": self.optimizer.state_dict(),
            "names": self.log.names,
            "losses": torch.stack(self.log.losses),  # (steps, terms)
            "previews": list(self.log.previews),
            "fixed_losses": self.stopping.losses if self.stopping else [],
        }
        self.checkpoints.save(contents)
        self.checkpoints.write_file(LOSSES, self.log.losses_csv().encode())

    def _resume(self) -> None:
        """Load the last checkpoint, if there is a complete one."""
        saved: dict[str, Any] | None = self.checkpoints.load()
        if saved is None:
            return
        previews = {name: self.checkpoints.read_file(name) for name in saved["previews"]}
        if gone := [name for name, data in previews.items() if data is None]:
            self.checkpoints.tell_unreadable(gone[0])
            return
        with torch.no_grad():
            for name, tensor in self.method.state().items():
                tensor.copy_(saved["state"][name])
        self.optimizer.load_state_dict(saved["optimizer"])
        losses = list(saved["losses"].to(self.base.device))
        self.log = TrainingLog(saved["names"], losses, {name: data for name, data in previews.items() if data})
        self.done = saved["done"]
        if self.stopping:
            self.stopping.losses = saved["fixed_losses"]
            if self.stopping.is_over():
                self.end = self.done
