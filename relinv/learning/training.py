"""The one training loop, for every inversion method.

A step is a function of seed and step number alone: which pictures, timesteps, captions and noise it takes
comes from generators made for it (relinv/diffusion/randomness.py). So training goes on from any checkpoint to the very
bytes it would have reached straight through. Gradients reach the method's own tensors; the base's weights
have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from relinv.devices import deterministic
from relinv.diffusion.randomness import generator
from relinv.diffusion.sampling import Sampler, initial_latents, sample, to_pictures
from relinv.errors import UserError
from relinv.images import encode_png
from relinv.learning.exemplar_latents import ExemplarLatents, encode_exemplars, visits
from relinv.learning.timesteps import draw
from relinv.methods import InversionMethod, Visit

if TYPE_CHECKING:
    from relinv.exemplars import ExemplarSet
    from relinv.learning.checkpoints import Checkpoints
    from relinv.settings import PreviewSettings

SHOWN_EVERY = 20  # steps between two figures in the progress bar: reading one makes a GPU wait


@dataclass
class Training:
    """What training leaves beside the method's state: losses by step, and preview pictures by name."""

    names: list[str] = field(default_factory=list)  # of the loss terms; the total comes last
    losses: list[torch.Tensor] = field(default_factory=list)  # one vector a step, in the order of `names`
    previews: dict[str, bytes] = field(default_factory=dict)  # PNG

    def files(self) -> dict[str, bytes]:
        """Return the content of losses.csv and of each preview, by their paths in a concept folder."""
        previews = {f"previews/{name}": data for name, data in self.previews.items()}
        return {"losses.csv": self.losses_csv().encode(), **previews}

    def losses_csv(self) -> str:
        """Return the loss log as CSV: step and one column a term, six digits."""
        lines = [",".join(["step", *self.names])]
        for step, values in enumerate(self.losses, start=1):
            lines.append(",".join([str(step), *(f"{value:.6g}" for value in values.tolist())]))
        return "\n".join(lines) + "\n"


def train(
    method: InversionMethod,
    exemplars: ExemplarSet,
    seed: int,
    preview: PreviewSettings,
    checkpoints: Checkpoints,
) -> Training:
    """Train `method` in place on `exemplars`, from the last checkpoint where there is one; return the log.

    Raises UserError where the loss diverged.
    """
    with deterministic(method.base.device), method.attached():
        loop = _Loop(method, exemplars, seed)
        loop.resume(checkpoints)
        bar = tqdm(range(loop.done, method.steps), initial=loop.done, total=method.steps, unit="step")
        for step in bar:
            loop.step(step)
            if step % SHOWN_EVERY == 0:
                bar.set_postfix(loss=f"{loop.log.losses[-1][-1].item():.4f}")
            if (step + 1) % preview.every == 0 and preview.prompts:
                loop.preview(step + 1, preview, checkpoints)
            if checkpoints.is_due():
                loop.save(step + 1, checkpoints)
    if not torch.stack(loop.log.losses).isfinite().all():
        raise UserError("The loss is no longer a finite number: lower the method's learning_rate, or raise precision.")
    return loop.log


class _Loop:
    """The state of one training: method, optimiser, log."""

    def __init__(self, method: InversionMethod, exemplars: ExemplarSet, seed: int) -> None:
        self.method, self.base, self.seed = method, method.base, seed
        self.templates = [exemplar.templates for exemplar in exemplars.exemplars]
        self.latents: ExemplarLatents = encode_exemplars(self.base, exemplars)
        self.law = method.timestep_law(self.base.scheduler.config.num_train_timesteps)
        self.optimizer = torch.optim.AdamW(method.groups())
        self.ids: dict[str, torch.Tensor] = {}  # of each prompt, tokenised once
        self.log = Training()
        self.done = 0

    def step(self, step: int) -> None:
        """Take one optimiser step."""
        visit = self._visit(step)
        terms = self.method.losses(visit)
        total = torch.stack([term.weight * term.value for term in terms.values()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        self.method.after_step()
        self.log.names = [*terms, "total"]
        self.log.losses.append(torch.stack([*(term.value.detach() for term in terms.values()), total.detach()]))

    def _visit(self, step: int) -> Visit:
        """Return a step's draws and the UNet's answer to them: timesteps first, for captions may depend on them."""
        source = partial(generator, self.seed, step=step)
        pictures = visits(len(self.templates), self.method.batch_size, step, self.seed)
        timesteps = draw(self.law, len(pictures), source("timesteps"))
        prompts = self._captions(pictures, timesteps, source("captions"))
        clean = self.latents.draw(pictures, source("latents"))  # (batch, channels, h, w)
        noise = torch.randn(clean.shape, generator=source("noise")).to(clean.device)
        timesteps = timesteps.to(clean.device)
        prediction, target = self._denoise(clean, noise, timesteps, self._conditioning(prompts))
        return Visit(step, prompts, timesteps, prediction, target, source("method"))

    def _captions(self, pictures: Sequence[int], timesteps: torch.Tensor, source: torch.Generator) -> list[str]:
        """Return one prompt a sample, from a template of its picture chosen at random."""
        prompts = []
        for picture, timestep in zip(pictures, timesteps.tolist(), strict=True):
            templates = self.templates[picture]
            template = templates[int(torch.randint(len(templates), (1,), generator=source))]
            prompts.append(self.method.caption(template, timestep, source))
        return prompts

    def _conditioning(self, prompts: Sequence[str]) -> torch.Tensor:
        """Return the prompts' encodings, (batch, tokens, dim); each distinct prompt is encoded once."""
        distinct = list(dict.fromkeys(prompts))
        for prompt in distinct:
            if prompt not in self.ids:
                self.ids[prompt] = self.base.tokenize([prompt])[0]
        encodings = self.method.conditioning(torch.stack([self.ids[prompt] for prompt in distinct]))
        index = torch.tensor([distinct.index(prompt) for prompt in prompts], device=encodings.device)
        return encodings[index]

    def _denoise(
        self, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, conditioning: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the UNet's prediction for the noised latents, and its target: the noise, or the velocity."""
        scheduler = self.base.scheduler
        noisy = scheduler.add_noise(clean, noise, timesteps).to(self.base.dtype)
        prediction = self.base.unet(noisy, timesteps, encoder_hidden_states=conditioning).sample
        if scheduler.config.prediction_type == "v_prediction":
            return prediction, scheduler.get_velocity(clean, noise, timesteps)
        return prediction, noise

    def preview(self, step: int, settings: PreviewSettings, checkpoints: Checkpoints) -> None:
        """Keep a strip of pictures, one a prompt, from the same noise at every step."""
        base = self.base
        with torch.no_grad():
            texts = self.method.conditioning(base.tokenize(settings.prompts))
            empty = self.method.conditioning(base.tokenize([""])).expand_as(texts)
        sampler = Sampler(settings.steps, settings.guidance_scale)
        seeds = [settings.seed + index for index in range(len(settings.prompts))]
        images = sample(base, texts, empty, initial_latents(base, seeds), sampler)  # (prompts, 3, side, side)
        strip = torch.cat(list(images), dim=-1)[None]  # (1, 3, side, prompts * side)
        name = f"step_{step:04d}.png"
        self.log.previews[name] = encode_png(to_pictures(strip)[0])
        checkpoints.write_file(name, self.log.previews[name])

    def save(self, done: int, checkpoints: Checkpoints) -> None:
        """Save all that the remaining steps and the log depend on."""
        state = {name: tensor.detach().clone() for name, tensor in self.method.state().items()}
        losses = torch.stack(self.log.losses)  # (steps, terms)
        log = {"names": self.log.names, "losses": losses, "previews": list(self.log.previews)}
        checkpoints.save({"done": done, "state": state, "optimizer": self.optimizer.state_dict(), **log})

    def resume(self, checkpoints: Checkpoints) -> None:
        """Take up the last checkpoint, where there is a whole one."""
        saved: dict[str, Any] | None = checkpoints.load()
        previews = {name: checkpoints.read_file(name) for name in (saved or {}).get("previews", [])}
        if saved is None or None in previews.values():
            return
        with torch.no_grad():
            for name, tensor in self.method.state().items():
                tensor.copy_(saved["state"][name])
        self.optimizer.load_state_dict(saved["optimizer"])
        losses = list(saved["losses"].to(self.base.device))
        self.log = Training(saved["names"], losses, {name: data for name, data in previews.items() if data})
        self.done = saved["done"]
