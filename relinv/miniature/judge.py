"""The miniature's judge: a small open_clip model trained on what the autoencoder makes of true scenes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from relinv.benchmark import Benchmark, is_held_out
from relinv.miniature.autoencoder import to_pixels
from relinv.miniature.loop import Schedule, train
from relinv.world.captions import WORDINGS, true_caption

CONTEXT = 16  # tokens: the judge reads bare phrases, "cat shaking hands with dog"
Triplet = tuple[str, str, str]


def judge_config(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """Return the judge's architecture as open_clip's JSON has it: a small ResNet and a causal text tower."""
    return {
        "embed_dim": 128,
        "vision_cfg": {
            "image_size": 64,
            "layers": [1, 1, 1, 1],
            "width": 24,
            "head_width": 32,
            "patch_size": None,
        },
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": len(tokenizer),
            "hf_tokenizer_name": "beside-the-weights",
            "width": 128,
            "heads": 4,
            "layers": 2,
        },
    }


def build_judge(tokenizer: CLIPTokenizer) -> nn.Module:
    """Return an untrained judge."""
    import open_clip

    return open_clip.CLIP(**judge_config(tokenizer))


def train_judge(
    images: np.ndarray,
    triplets: list[Triplet],
    benchmark: Benchmark,
    tokenizer: CLIPTokenizer,
    schedule: Schedule,
    folder: Path,
    *,
    seed: int,
    batch: int,
) -> nn.Module:
    """Return the judge trained contrastively on `images` (n, 64, 64, 3) uint8 and the true captions of `triplets`.

    Each picture must tell its caption from the batch's other captions and from hard negatives: the same entities in
    another relation, head and tail swapped, one entity replaced.
    """
    torch.manual_seed(seed)
    model = build_judge(tokenizer)
    wrong = Distractors(benchmark)

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        picks = torch.randint(len(images), (batch,), generator=generator).tolist()
        rng = np.random.default_rng((seed, step))
        shown = [triplets[i] for i in picks]
        captions = [true_caption(*triplet) for triplet in shown]
        captions += [true_caption(*t) for triplet in shown for t in wrong.draw(triplet, rng)]
        texts = list(dict.fromkeys(captions))
        ids = tokenizer(texts, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt").input_ids
        seen = model.encode_image(
            _varied(to_pixels(images[picks]), generator), normalize=True
        )  # (batch, dim)
        read = model.encode_text(ids, normalize=True)  # (texts, dim)
        logits = model.logit_scale.exp().clamp(max=100) * seen @ read.T  # (batch, texts)
        target = torch.tensor([texts.index(caption) for caption in captions[:batch]])
        # The same two beings the other way round show the same symmetric scene: not a wrong caption.
        twins = [texts.index(c) if (c := _twin(t, benchmark)) in texts else -1 for t in shown]
        for row, twin in enumerate(twins):
            if twin >= 0 and twin != target[row]:
                logits[row, twin] = -1e4
        value = F.cross_entropy(logits, target)
        return value, {"loss": value.item(), "right": (logits.argmax(1) == target).float().mean().item()}

    train("judge", model, loss, schedule, folder, seed=seed)
    return model.eval().requires_grad_(False)


class Distractors:
    """Draws wrong captions of a picture that only one who looks can tell from the right one."""

    def __init__(self, benchmark: Benchmark) -> None:
        self.benchmark = benchmark
        self.relations = list(WORDINGS)

    def draw(self, triplet: Triplet, rng: np.random.Generator) -> list[Triplet]:
        """Return up to five other triplets: two relations, swapped where that differs, another head, another tail."""
        head, relation, tail = triplet
        if relation == "alone":
            return []
        grid = self.benchmark.relations.get(relation)
        others = [r for r in self.benchmark.relations if r != relation]
        drawn = [(head, others[i], tail) for i in rng.choice(len(others), 2, replace=False)]
        if head != tail and grid is not None and grid.asymmetric:
            drawn.append((tail, relation, head))
        heads, tails = (grid.heads, grid.tails) if grid else (self._any, self._any)
        drawn.append((heads[rng.integers(len(heads))], relation, tail))
        drawn.append((head, relation, tails[rng.integers(len(tails))]))
        return [t for t in drawn if t != triplet and not self._held_out(*t)]

    def _held_out(self, head: str, relation: str, tail: str) -> bool:
        """Return whether a triplet is one never shown: met only as a wrong caption, it would be learned as wrong."""
        rule = self.benchmark.held_out
        return rule is not None and is_held_out(head, relation, tail, fraction=rule.fraction, seed=rule.seed)

    @property
    def _any(self) -> tuple[str, ...]:
        return self.benchmark.relations["hug"].heads


def save_judge(model: nn.Module, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the judge as a folder that open_clip loads by "local-dir:": its JSON, fp16 weights and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    look = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    config = {"model_cfg": judge_config(tokenizer), "preprocess_cfg": look}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "open_clip_model.safetensors")


def _twin(triplet: Triplet, benchmark: Benchmark) -> str | None:
    head, relation, tail = triplet
    grid = benchmark.relations.get(relation)
    return true_caption(tail, relation, head) if grid is not None and not grid.asymmetric else None


def _varied(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return pictures shifted by up to 4 pixels and changed in brightness, as generated ones differ from renders."""
    dx, dy = torch.randint(-4, 5, (2,), generator=generator).tolist()
    shifted = F.pad(pixels, (4, 4, 4, 4), mode="replicate")[..., 4 + dy : 68 + dy, 4 + dx : 68 + dx]
    gain = 1 + 0.1 * torch.randn(len(pixels), 1, 1, 1, generator=generator)
    return shifted * gain + 0.05 * torch.randn(len(pixels), 1, 1, 1, generator=generator)
