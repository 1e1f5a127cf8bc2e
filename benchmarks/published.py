"""The published training procedure of ReVersion, as its description has it: what ours is measured against.

fp32; the pictures encoded anew at every visit; the whole token table in AdamW, its other rows copied back after every
micro-batch; four micro-batches of two accumulated into an optimiser step; ids and word lists built anew each time.
"""

from __future__ import annotations

import copy
import random

import numpy as np
import torch
from torch.nn import functional as F

from relinv.diffusion.bases import Base
from relinv.exemplars import ExemplarSet, load_image
from relinv.learning.timesteps import importance
from relinv.learning.words import PREPOSITIONS, STOP_WORDS

MICRO_BATCH, ACCUMULATION = 2, 4
POSITIVES, TEMPERATURE, STEER_WEIGHT, ALPHA = 4, 0.07, 0.01, 0.5


class PublishedTrainer:
    """Trains one token's row; `step` takes one optimiser step of eight samples."""

    def __init__(self, base: Base, exemplars: ExemplarSet) -> None:
        self.base, self.device = base, base.device
        self.tokenizer = copy.deepcopy(base.tokenizer)
        self.tokenizer.add_tokens("<r>")
        self.encoder = copy.deepcopy(base.text_encoder).float()
        self.encoder.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
        table = self.encoder.get_input_embeddings().weight
        self.token = len(self.tokenizer) - 1
        with torch.no_grad():
            table[self.token] = table[self._ids(["and"])[0][0]]
        self.table = table.requires_grad_(True)
        self.original = table.detach().clone()
        self.optimizer = torch.optim.AdamW([self.table], lr=2e-3, weight_decay=1e-2)
        self.pictures = [self._pixels(exemplar.path) for exemplar in exemplars.exemplars]
        self.templates = [exemplar.templates for exemplar in exemplars.exemplars]
        steps = base.scheduler.config.num_train_timesteps
        self.law = importance(steps, ALPHA).numpy()

    def step(self) -> None:
        """Take one optimiser step."""
        for _ in range(ACCUMULATION):
            (self._loss() / ACCUMULATION).backward()
            self._restore()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._restore()

    def _loss(self) -> torch.Tensor:
        picks = [random.randrange(len(self.pictures)) for _ in range(MICRO_BATCH)]
        captions = [random.choice(self.templates[pick]).replace("{}", "<r>") for pick in picks]
        with torch.no_grad():
            pixels = torch.stack([self.pictures[pick] for pick in picks])  # (2, 3, side, side)
            latents = self.base.vae.encode(pixels).latent_dist.sample() * self.base.vae.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.tensor(np.random.choice(len(self.law), MICRO_BATCH, p=self.law), device=self.device)
        noisy = self.base.scheduler.add_noise(latents, noise, timesteps)
        ids = torch.tensor(
            self.tokenizer(captions, padding="max_length", truncation=True).input_ids, device=self.device
        )
        encodings = self.encoder(ids).last_hidden_state  # (2, tokens, dim)
        prediction = self.base.unet(noisy, timesteps, encoder_hidden_states=encodings).sample
        return F.mse_loss(prediction, noise) + STEER_WEIGHT * self._steer(ids)

    def _steer(self, ids: torch.Tensor) -> torch.Tensor:
        special = torch.tensor(self.tokenizer.all_special_ids, device=self.device)
        words = self._ids([*PREPOSITIONS, *STOP_WORDS])
        skipped = torch.tensor([piece for word in words for piece in word] + [self.token], device=self.device)
        content = ids[~torch.isin(ids, special) & ~torch.isin(ids, skipped)]
        drawn = self._ids(random.sample(PREPOSITIONS, POSITIVES * MICRO_BATCH))
        positives = self.table[torch.tensor([piece for word in drawn for piece in word], device=self.device)].detach()
        row = self.table[self.token][None]
        near = F.cosine_similarity(row, positives) / TEMPERATURE
        far = F.cosine_similarity(row, self.table[content].detach()) / TEMPERATURE
        return torch.cat([near, far]).logsumexp(0) - near.logsumexp(0)

    def _restore(self) -> None:
        keep = torch.arange(len(self.table), device=self.device) != self.token
        with torch.no_grad():
            self.table[keep] = self.original[keep]

    def _ids(self, words: list[str]) -> list[list[int]]:
        return [self.tokenizer(word, add_special_tokens=False).input_ids for word in words]

    def _pixels(self, path: object) -> torch.Tensor:
        levels = torch.from_numpy(np.array(load_image(path, self.base.resolution)))
        return (levels.permute(2, 0, 1).float() / 127.5 - 1).to(self.device)
