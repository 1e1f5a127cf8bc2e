"""ReVersion's training procedure, written from its published description, to measure ours against.

fp32, with weights in PyTorch's default layout; each visit to a picture reads and encodes it and tokenises its caption
anew; AdamW holds the whole token table, whose other rows are copied back after every micro-batch; four micro-batches of
two make one optimiser step.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable
from pathlib import Path

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
    """Trains one token's row; `step` takes an optimiser step of eight samples."""

    def __init__(self, base: Base, exemplars: ExemplarSet) -> None:
        self.base, self.device = base, base.device
        self.unet, self.vae = (  # ours are channels last
            copy.deepcopy(network).to(memory_format=torch.contiguous_format) for network in (base.unet, base.vae)
        )
        self.tokenizer = copy.deepcopy(base.tokenizer)
        self.tokenizer.add_tokens("<r>")
        self.encoder = copy.deepcopy(base.text_encoder).float()
        self.encoder.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
        table = self.encoder.get_input_embeddings().weight
        self.token = len(self.tokenizer) - 1
        with torch.no_grad():
            table[self.token] = table[self.tokenizer("and", add_special_tokens=False).input_ids[0]]
        self.table = table.requires_grad_(True)
        self.original = table.detach().clone()
        self.optimizer = torch.optim.AdamW([self.table], lr=2e-3, weight_decay=1e-2)
        self.exemplars = exemplars.exemplars
        self.special = [self.tokenizer.bos_token_id, self.tokenizer.eos_token_id]
        skipped = self.tokenizer([*STOP_WORDS, *PREPOSITIONS], add_special_tokens=False).input_ids
        self.stop = [piece for word in skipped for piece in word]
        steps = base.scheduler.config.num_train_timesteps
        self.probabilities = importance(steps, ALPHA).numpy()

    def step(self) -> None:
        """Take one optimiser step."""
        for micro_batch in range(ACCUMULATION):
            (self._loss() / ACCUMULATION).backward()
            if micro_batch == ACCUMULATION - 1:
                self.optimizer.step()
                self.optimizer.zero_grad()
            self._restore()

    def _loss(self) -> torch.Tensor:
        visited = random.choices(self.exemplars, k=MICRO_BATCH)
        pixels = torch.stack([self._pixels(exemplar.path) for exemplar in visited])  # (2, 3, side, side)
        ids = self._ids(random.choice(exemplar.templates).replace("{}", "<r>") for exemplar in visited)
        positives = self._ids(" ".join(random.sample(PREPOSITIONS, POSITIVES)) for _ in visited)
        with torch.no_grad():
            latents = self.vae.encode(pixels).latent_dist.sample() * self.vae.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.tensor(
            np.random.choice(len(self.probabilities), MICRO_BATCH, p=self.probabilities), device=self.device
        )
        noisy = self.base.scheduler.add_noise(latents, noise, timesteps)
        encodings = self.encoder(ids).last_hidden_state  # (2, tokens, dim)
        prediction = self.unet(noisy, timesteps, encoder_hidden_states=encodings).sample
        return F.mse_loss(prediction, noise) + STEER_WEIGHT * self._steer(ids, positives)

    def _steer(self, ids: torch.Tensor, positive_ids: torch.Tensor) -> torch.Tensor:
        embeddings = F.embedding(ids, self.table)  # (2, tokens, dim)
        with torch.no_grad():
            skipped = torch.isin(ids, torch.tensor([*self.stop, *self.special, self.token], device=self.device))
            kept = ~torch.isin(positive_ids, torch.tensor(self.special, device=self.device))
            positives = F.embedding(positive_ids, self.table)[kept]  # (words, dim)
            others = F.normalize(torch.cat([positives, embeddings[~skipped]]), dim=1)
        row = F.normalize(embeddings[0][ids[0] == self.token], dim=1)  # (1, dim)
        similarities = row @ others.T / TEMPERATURE
        return (similarities.logsumexp(1) - similarities[:, : len(positives)].logsumexp(1)).mean()

    def _restore(self) -> None:
        keep = torch.arange(len(self.table), device=self.device) != self.token
        with torch.no_grad():
            self.table[keep] = self.original[keep]

    def _ids(self, texts: Iterable[str]) -> torch.Tensor:
        """Return each text's ids, (texts, tokens), tokenised one by one as a data loader does."""
        rows = [self.tokenizer(text, padding="max_length", truncation=True).input_ids for text in texts]
        return torch.tensor(rows, device=self.device)

    def _pixels(self, path: Path) -> torch.Tensor:
        levels = torch.from_numpy(np.array(load_image(path, self.base.resolution)))
        return (levels.permute(2, 0, 1).float() / 127.5 - 1).to(self.device)
