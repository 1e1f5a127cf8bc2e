"""Custom Diffusion's files as diffusers saves them: cross-attention weights, and the token in a separate file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from relinv.adapters.custom_diffusion import pretrained
from relinv.diffusion.adapter import require_fit
from relinv.diffusion.bases import Base
from relinv.errors import UserError
from relinv.exchange.tensor_files import floats, load_content, row
from relinv.exchange.token_files import Published, token_in

MARK = "_custom_diffusion"
UNUSED = tuple(f".{part}{MARK}." for part in ("to_q", "to_out"))
TOKEN_FILES = ("<*>.bin", "<*>.safetensors")  # named after the token, such as <new1>.bin


def is_custom_diffusion(names: Iterable[str]) -> bool:
    """Return whether names in a file are those of Custom Diffusion's weights."""
    return any(MARK in str(name) for name in names)


def read_custom_diffusion(content: Mapping[str, Any], file: Path, base: Base, token_file: Path | None) -> Published:
    """Return the concept with the weights in `content` of `file`; its token is in `token_file` or a file beside it.

    Raises UserError if the weights are not plain, finite keys and values of this base, or if the token is missing,
    ambiguous or unreadable.
    """
    learned = {str(name): value for name, value in content.items() if not _is_empty(value)}
    if any(part in name for name in learned for part in UNUSED):
        raise UserError(
            f"'{file}' holds queries and outputs too, because all of the cross-attention was trained: only keys and "
            "values can be imported, as `--freeze_model crossattn_kv` trains them."
        )
    tensors = {name: floats(value, name, file) for name, value in learned.items()}
    require_fit(base, tensors, pretrained(base))
    token_file = token_file or _token_beside(file)
    name, rows = token_in(load_content(token_file), token_file)
    own = row(rows, name, token_file)
    return Published(name, own, adapter="custom_diffusion", tensors=tensors, token_file=token_file)


def _is_empty(value: Any) -> bool:
    """Return whether a value is the empty mapping that a .bin holds for each self-attention."""
    return isinstance(value, Mapping) and not value


def _token_beside(file: Path) -> Path:
    """Return the only token file in the weights' folder; UserError if there is none or more than one."""
    found = sorted(path for pattern in TOKEN_FILES for path in file.parent.glob(pattern))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(
            f"'{file}' needs its token, which is a file of its own such as '<new1>.bin', and beside it there is "
            f"{names}: name it, as --token FILE or as `token` in params.yaml."
        )
    return found[0]
