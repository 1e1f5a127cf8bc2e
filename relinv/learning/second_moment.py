"""The second moment C of a text encoder's outputs, by which Perfusion measures encodings (Tewel et al. 2023).

C is the mean of e e^T, uncentred, over the real tokens of many captions: from the start token to the end token, no
padding. It is computed when first needed and kept below `.scratch`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from relinv.benchmark import load_benchmark
from relinv.devices import deterministic
from relinv.errors import UserError
from relinv.files import atomic_write_bytes, read_text, sha256_file, sha256_json

if TYPE_CHECKING:
    import torch

    from relinv.diffusion.bases import Base

CACHE = Path(".scratch/second_moment")  # git-ignored
CAPTIONS_READ = 100_000  # at most, of one file, as in the published code
CAPTIONS_AT_ONCE = 100
# Added to C's diagonal, as a share of its mean eigenvalue. With about 100,000 captions, the smallest eigenvalue for
# CLIP's text encoder is 0.06 of the mean: there the ridge reduces the inverse by a seventh, elsewhere by less, and it
# bounds the inverse if too few captions leave some directions unseen.
RIDGE = 0.01


@dataclass(frozen=True)
class SecondMoment:
    """The matrix C, (dim, dim) float64 on the CPU, and its `id`, a hash of the encoder, the captions and this file."""

    matrix: torch.Tensor
    id: str

    def inverse(self) -> torch.Tensor:
        """Return (C + ridge)^-1, (dim, dim) float64."""
        import torch

        mean = self.matrix.trace() / len(self.matrix)
        return torch.linalg.inv(self.matrix + RIDGE * mean * torch.eye(len(self.matrix), dtype=self.matrix.dtype))


def read_captions(file: Path) -> list[str]:
    """Return the captions in a text file, one per line, or the scenarios' prompts of a benchmark's YAML file.

    Raises UserError if the file is missing or holds no caption.
    """
    if file.suffix in {".yaml", ".yml"}:
        relations = load_benchmark(file).relations.values()
        return [f"{head} {r.words} {tail}" for r in relations for head in r.heads for tail in r.tails]
    captions = [line.strip() for line in read_text(file, "caption file").splitlines() if line.strip()]
    if not captions:
        raise UserError(f"The caption file '{file}' is empty: write a caption a line.")
    return captions[:CAPTIONS_READ]


def second_moment(base: Base, captions: Sequence[str], cache: Path = CACHE) -> SecondMoment:
    """Return C of a base's text encoder over `captions`, from the folder `cache` if it was computed before.

    What was computed by another processor or otherwise run, which rounds differently, is not used.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save

    facts = [encoder_hash(base), sha256_file(Path(__file__)), *captions]  # this file, because it determines what C is
    identity = hashlib.sha256("\n".join(facts).encode()).hexdigest()
    file = cache / f"{sha256_json([identity, base.numerics, base.processor])[:16]}.safetensors"
    try:
        matrix = load_file(file)["second_moment"]
    except (OSError, SafetensorError):  # missing or truncated
        matrix = measure(base, captions)
        atomic_write_bytes(file, save({"second_moment": matrix}))
    return SecondMoment(matrix, identity)


def measure(base: Base, captions: Sequence[str]) -> torch.Tensor:
    """Return the mean of e e^T over real tokens, (dim, dim) float64 on the CPU; long captions are truncated."""
    import torch

    total, count = torch.zeros(base.dim, base.dim, dtype=torch.float64), 0
    for start in range(0, len(captions), CAPTIONS_AT_ONCE):
        # Padding to the longest is enough: a token's encoding does not depend on later tokens.
        batch = base.tokenizer(
            list(captions[start : start + CAPTIONS_AT_ONCE]), padding=True, truncation=True, return_tensors="pt"
        )
        with torch.no_grad(), deterministic(base.device, backward=False):
            encodings = base.encode(batch.input_ids.to(base.device)).cpu().double()  # (captions, tokens, dim)
        real = encodings[batch.attention_mask.bool()]  # (tokens of all captions, dim)
        total += real.T @ real
        count += len(real)
    return total / count


def encoder_hash(base: Base) -> str:
    """Return one hex SHA-256 over the names and bytes of the text encoder's weights."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(base.text_encoder.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
