"""A learned token as another program's file holds it, read without running anything in the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relinv.errors import UserError
from relinv.exchange.tensor_files import rows

if TYPE_CHECKING:
    import torch

SDXL = {"clip_l", "clip_g"}


@dataclass(frozen=True)
class Published:
    """A token as another program's file holds it, with its adapter's options and weights, if any."""

    name: str  # the token's, such as "*"
    row: torch.Tensor | None  # (dim,) float32, or None if the adapter has the token's rows
    adapter: str = ""  # a file in relinv/adapters
    options: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)  # float32, by the names in the adapter's file
    token_file: Path | None = None  # the row's file, if separate


def token_in(content: Mapping[str, Any], file: Path) -> tuple[str, torch.Tensor]:
    """Return the token's name and rows, (rows, dim) float32, in the content of a textual-inversion file of any kind.

    That is diffusers' and ReVersion's `learned_embeds` (.safetensors or .bin), A1111's .pt, kohya's .safetensors.
    Raises UserError if `file` holds anything but one token.
    """
    import torch

    if set(content) >= SDXL:
        raise UserError(f"'{file}' is for SDXL, which has two text encoders: it does not fit a base with one.")
    if isinstance(content.get("string_to_param"), Mapping):  # A1111: {"*": rows}, with the name beside it
        name, content = str(content.get("name", file.stem)), content["string_to_param"]
    elif set(content) == {"emb_params"}:  # kohya and A1111 as safetensors: the file's name is the token's
        name = file.stem
    else:
        name = next(iter(content), "")
    tensors = [value for value in content.values() if isinstance(value, torch.Tensor)]
    if len(content) != 1 or len(tensors) != 1:
        held = ", ".join(map(str, content)) or "nothing"
        raise UserError(f"'{file}' holds {held}, not one learned token: name a file that holds one and nothing else.")
    return str(name), rows(tensors[0], str(name), file)
