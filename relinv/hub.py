"""Base models found: a folder on this machine, or files of the Hugging Face hub, downloaded where they are not here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from relinv.errors import UserError, reason


def find_model(source: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Return the folder `source`, or the one that holds the files of the hub id `source` that match `patterns`.

    Raises UserError, which says how to get access, where it is neither a folder nor to be had from the hub.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or len(folder.parts) != 2:
        raise UserError(f"There is no base model folder '{source}': build it, or name a folder or hub id that exists.")
    return _download(source, revision, patterns)


def require_tokenizer(folder: Path) -> None:
    """Raise UserError unless a folder has a tokenizer's files: without them transformers makes one of single bytes."""
    if not (folder / "tokenizer.json").is_file() and not all(
        (folder / name).is_file() for name in ("vocab.json", "merges.txt")
    ):
        raise UserError(f"The tokenizer in '{folder}' lacks tokenizer.json, or vocab.json and merges.txt: restore it.")


def _download(source: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Return the local folder of a hub id; a second dot in a weight file's name marks a variant, which is not used."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError

    variants = ["*.fp16.safetensors", "*.non_ema.safetensors"]
    try:
        return Path(
            snapshot_download(source, revision=revision, allow_patterns=list(patterns), ignore_patterns=variants)
        )
    except GatedRepoError as error:
        raise UserError(
            f"The base model '{source}' is gated: accept its licence at https://huggingface.co/{source}, then log in "
            "with `hf auth login`."
        ) from error
    except Exception as error:  # the hub's client raises many kinds: no network, no such id, no access
        text = f"The base model '{source}' is no folder, and the hub does not give it: {reason(error)}"
        raise UserError(text) from error
