"""Concepts: what an inversion writes to disk, and the only code that reads and writes that folder.

`learned_embeds.safetensors` holds one key, "<r>", with a 1-D float32 row: the form that diffusers, A1111,
ComfyUI and InvokeAI all read. `concept.json` holds that file's metadata in readable form, even if no row was learned.
Anything else that was learned is in the files of the concept's adapters (relinv/adapters), which the metadata list as
{"name", "file", "options"}.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from relinv.checking import parse
from relinv.errors import UserError, told_as
from relinv.files import atomic_file, atomic_write_bytes, read_json, write_json
from relinv.settings import Settings

if TYPE_CHECKING:
    import torch

    from relinv.diffusion.bases import Base

EMBEDDING = "learned_embeds.safetensors"
METADATA = "concept.json"


class _Described(Settings):
    """An adapter's entry in the metadata."""

    name: str
    file: str | None
    options: dict[str, Any]


class _Metadata(Settings, extra="ignore"):
    """The least that a concept's metadata hold."""

    relation: str
    method: str
    base: str
    base_hash: str
    exemplars_hash: str | None
    token: str | None
    template: str
    params: dict[str, Any]
    seed: int | None
    steps: int | None
    versions: dict[str, Any]
    adapters: list[_Described] = Field(default_factory=list)


REQUIRED = tuple(name for name, field in _Metadata.model_fields.items() if field.is_required())


@dataclass(frozen=True)
class Concept:
    """A learned relation: its token and row, if it has them, and where it came from.

    weights: the tensors of each adapter that has any, by the adapter's name and then by the names in its file.
    """

    token: str | None
    embedding: torch.Tensor | None  # (dim,) float32 on the CPU
    metadata: Mapping[str, Any]
    weights: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)  # on the CPU

    @property
    def method(self) -> str:
        """Return the name of the method that learned it."""
        return self.metadata["method"]

    @property
    def adapters(self) -> Sequence[Mapping[str, Any]]:
        """Return each adapter's entry in the metadata: its name, its file if it has one, its options."""
        return self.metadata.get("adapters", [])

    @property
    def fingerprint(self) -> str:
        """Return a hex SHA-256 over metadata, row and weights."""
        digest = hashlib.sha256(json.dumps(dict(self.metadata), sort_keys=True).encode())
        if self.embedding is not None:
            digest.update(self.embedding.numpy().tobytes())
        for _, tensors in sorted(self.weights.items()):
            for name, tensor in sorted(tensors.items()):
                digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def called(self, token: str) -> Concept:
        """Return the same concept under another token, so that several can be used in one prompt."""
        return replace(self, token=token) if self.token else self

    def prompt(self, head: str, tail: str) -> str:
        """Return the prompt for two entities, such as "cat <r> box"; either may be empty."""
        words = {"{head}": head, "{tail}": tail}
        return re.sub("{head}|{tail}", lambda place: words[place[0]], self.metadata["template"]).strip()


def save_concept(folder: Path, concept: Concept) -> None:
    """Write a concept into an existing `folder`; the same concept gives the same bytes."""
    if concept.embedding is not None:
        atomic_write_bytes(folder / EMBEDDING, embedding_bytes(concept))
    for adapter in concept.adapters:
        if adapter["file"]:
            with atomic_file(folder / adapter["file"]) as stream:
                stream.writelines(_parts(concept.weights[adapter["name"]], concept.metadata))
    write_json(folder / METADATA, dict(concept.metadata))


def embedding_bytes(concept: Concept) -> bytes:
    """Return the learned row as a safetensors file: one 1-D tensor and the metadata; same concept, same bytes."""
    return b"".join(_parts({str(concept.token): concept.embedding}, concept.metadata))  # type: ignore[dict-item]  # it has one


def _parts(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> tuple[bytes, memoryview]:
    """Return the two parts of a safetensors file: its header, which includes the metadata, and all tensors."""
    from safetensors.torch import save

    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    return _ordered(save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata=texts))


def _ordered(data: bytes) -> tuple[bytes, memoryview]:
    """Return the parts of safetensors `data` with the header's keys sorted: the library writes them in any order.

    The format: the header's length as 8 bytes, little-endian; the header as JSON, padded with spaces to a
    multiple of 8; the tensors, at offsets from the header's end.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header, memoryview(data)[end:]  # no copy: a UNet's would be gigabytes


def read_metadata(folder: Path, make: str) -> dict[str, Any]:
    """Return a concept's metadata, all that are `REQUIRED` included.

    Raises UserError if the file is missing, with what to do in `make`, or if it is damaged.
    """
    file = folder / METADATA
    metadata = read_json(file, "concept", make)
    if not isinstance(metadata, dict):
        raise UserError(f"The concept '{file}' is damaged: invert the relation again.")
    if missing := [name for name in REQUIRED if name not in metadata]:
        raise UserError(f"The concept '{file}' lacks {', '.join(missing)}: {remedy_for(metadata)}.")
    with told_as(f"The concept '{file}' is damaged: {remedy_for(metadata)}."):
        parse(_Metadata, metadata, "", file)
    return metadata


def remedy_for(metadata: Mapping[str, Any]) -> str:
    """Return what to do about a concept that cannot be used."""
    return "import it again" if "imported" in metadata else "invert the relation again"


def load_concept(folder: Path, base: Base) -> Concept:
    """Return the concept in `folder`, to be used with `base`.

    Raises UserError if a file is missing or damaged, or if the concept was learned for another base, since rows of one
    token table mean nothing in another.
    """
    folder = Path(folder)
    metadata = read_metadata(folder, "learn or import it first")
    remedy = remedy_for(metadata)
    token = metadata["token"]
    adapters = metadata.get("adapters", [])
    weights = {adapter["name"]: _read(folder / adapter["file"], remedy) for adapter in adapters if adapter["file"]}
    has_row = token and (not adapters or (folder / EMBEDDING).is_file())  # an adapter may hold the rows instead
    embedding = _read_row(folder / EMBEDDING, token, remedy) if has_row else None
    if embedding is not None and len(embedding) != base.dim:
        raise UserError(
            f"The concept in '{folder}' has {len(embedding)} numbers and the base '{base.id}' takes {base.dim}: "
            f"it was learned for '{metadata['base']}'; {remedy} with this base."
        )
    if metadata["base_hash"] != base.fingerprint:
        raise UserError(
            f"The concept in '{folder}' was learned for the base '{metadata['base']}' ({metadata['base_hash'][:12]}), "
            f"not for '{base.id}' ({base.fingerprint[:12]}): {remedy} with this base."
        )
    return Concept(token, embedding, metadata, weights)


def _read_row(path: Path, token: str, remedy: str) -> torch.Tensor:
    """Return the row stored under `token`, (dim,) float32. Raises UserError if the file is missing or another kind."""
    tensors = _read(path, remedy)
    if list(tensors) != [token] or tensors[token].dim() != 1:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        raise UserError(f"'{path}' holds {shapes}, not one row named {token}: it is not a concept of this project.")
    return tensors[token]


def _read(path: Path, remedy: str) -> dict[str, torch.Tensor]:
    """Return the tensors in a concept's file as float32, whatever their precision there.

    Raises UserError, with the remedy, if it is missing or damaged, or if its numbers are of another kind or not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise UserError(f"The learned token '{path}' is missing: {remedy}.") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"The learned token '{path}' is damaged ({error}): {remedy}.") from None
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.float().isfinite().all():
            raise UserError(f"The numbers of {name} in '{path}' are not finite floating-point ones: {remedy}.")
    return {name: tensor.float() for name, tensor in tensors.items()}
