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

from relinv.benchmark import Benchmark
from relinv.miniature.autoencoder import to_pixels
from relinv.miniature.loop import Schedule, train
from relinv.world.captions import WORDINGS, true_caption
from relinv.world.entities import ENTITIES

CONTEXT = 10  # tokens: the judge reads bare phrases, "cat shaking hands with dog"
AND_RATE = 0.15  # captions that name the entities alone, "cat and dog"
NAMING_WEIGHT = 0.5
SYMMETRIC = ("beside", "and")  # beyond the benchmark's own
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


class Judge(nn.Module):
    """The open_clip model, `clip`, and what names an embedding's entities and relation (training aids, not kept)."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        import open_clip

        super().__init__()
        config = judge_config(tokenizer)
        self.clip = open_clip.CLIP(**config)
        self.entities = nn.Linear(config["embed_dim"], len(ENTITIES))
        self.relations = nn.Linear(config["embed_dim"], len(WORDINGS) + 1)

    def naming_loss(self, seen: torch.Tensor, triplets: list[Triplet]) -> torch.Tensor:
        """Return how badly the embeddings `seen` (batch, dim) tell which entities are shown and which relation."""
        shown = torch.zeros(len(triplets), len(ENTITIES))
        for row, (head, relation, tail) in enumerate(triplets):
            for name in (head,) if relation == "alone" else (head, tail):
                shown[row, ENTITIES.index(name)] = 1.0
        names = [*WORDINGS, "alone"]
        relation = torch.tensor([names.index(relation) for _, relation, _ in triplets])
        entities = F.binary_cross_entropy_with_logits(self.entities(seen).float(), shown, reduction="sum") / len(seen)
        return entities + F.cross_entropy(self.relations(seen).float(), relation)


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
    another relation, head and tail swapped, one entity replaced. Some captions are the entities' names alone.
    """
    torch.manual_seed(seed)
    model = Judge(tokenizer)
    wrong = Distractors(benchmark)

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of a step, a scalar, and its terms by the names they are logged under."""
        picks = torch.randint(len(images), (batch,), generator=generator).tolist()
        rng = np.random.default_rng((seed, step))
        shown = [triplets[i] for i in picks]
        named = [_entities_alone(t) if rng.random() < AND_RATE else t for t in shown]
        captions = [true_caption(*triplet) for triplet in named]
        captions += [true_caption(*t) for triplet in named for t in wrong.draw(triplet, rng)]
        texts = list(dict.fromkeys(captions))
        ids = tokenizer(texts, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt").input_ids
        seen = model.clip.encode_image(_varied(to_pixels(images[picks]), generator))  # (batch, dim)
        read = model.clip.encode_text(ids, normalize=True)  # (texts, dim)
        with torch.autocast("cpu", enabled=False):  # cosines times 100 are too coarse in bf16
            cosines = F.normalize(seen.float(), dim=-1) @ read.float().T  # (batch, texts)
        logits = model.clip.logit_scale.exp().clamp(max=100) * cosines
        target = torch.tensor([texts.index(caption) for caption in captions[:batch]])
        for row, triplet in enumerate(shown):
            also_true = [texts.index(c) for c in _true_captions(triplet, benchmark) if c in texts]
            logits[row, [i for i in also_true if i != target[row]]] = -1e4
        value = F.cross_entropy(logits, target)
        right = (logits.argmax(1) == target).float().mean().item()
        naming = model.naming_loss(seen, shown)
        return value + NAMING_WEIGHT * naming, {"loss": value.item(), "naming": naming.item(), "right": right}

    train("judge", model, loss, schedule, folder, seed=seed)
    return model.clip.eval().requires_grad_(False)


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
        usual = grid is not None and head in grid.heads and tail in grid.tails
        others = [r for r in self.benchmark.relations if r != relation]
        drawn = [(head, others[i], tail) for i in rng.choice(len(others), 2, replace=False)]
        if head != tail and grid is not None and grid.asymmetric:
            drawn.append((tail, relation, head))
        heads, tails = (grid.heads, grid.tails) if usual else (ENTITIES, ENTITIES)
        drawn.append((heads[rng.integers(len(heads))], relation, tail))
        drawn.append((head, relation, tails[rng.integers(len(tails))]))
        # A held-out triplet is never shown: met only as a wrong caption, it would be learned as wrong.
        return [t for t in drawn if t != triplet and not self.benchmark.is_held_out(*t)]


def save_judge(model: nn.Module, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the judge as a folder that open_clip loads by "local-dir:": its JSON, fp16 weights and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    look = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    config = {"model_cfg": judge_config(tokenizer), "preprocess_cfg": look}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "open_clip_model.safetensors")


def _entities_alone(triplet: Triplet) -> Triplet:
    head, relation, tail = triplet
    return triplet if relation == "alone" else (head, "and", tail)


def _true_captions(triplet: Triplet, benchmark: Benchmark) -> list[str]:
    """Return all that may be said of a picture; in a symmetric relation its entities may change places."""
    head, relation, tail = triplet
    triplets = [triplet]
    if relation != "alone":
        triplets += [(head, "and", tail), (tail, "and", head), (head, "alone", tail), (tail, "alone", head)]
    grid = benchmark.relations.get(relation)
    if relation in SYMMETRIC or (grid is not None and not grid.asymmetric):
        triplets.append((tail, relation, head))
    return [true_caption(*t) for t in triplets]


def _varied(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return pictures shifted by up to 4 pixels and changed in brightness, as generated ones differ from renders."""
    dx, dy = torch.randint(-4, 5, (2,), generator=generator).tolist()
    shifted = F.pad(pixels, (4, 4, 4, 4), mode="replicate")[..., 4 + dy : 68 + dy, 4 + dx : 68 + dx]
    gain = 1 + 0.1 * torch.randn(len(pixels), 1, 1, 1, generator=generator)
    return shifted * gain + 0.05 * torch.randn(len(pixels), 1, 1, 1, generator=generator)
