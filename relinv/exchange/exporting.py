"""Concepts in the forms that other programs read: for diffusers, the web UIs, and a page on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import jinja2

from relinv.diffusion.concept import EMBEDDING, Concept, embedding_bytes
from relinv.errors import UserError, unknown
from relinv.files import atomic_write_bytes

CARD = Path(__file__).with_name("hub_card.md.jinja")
NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,49}"  # of a file; ComfyUI ends it at a space, InvokeAI accepts no other letters
SPELLINGS = {"A1111": "{}", "ComfyUI": "embedding:{}", "InvokeAI": "<{}>"}  # how prompts refer to NAME.safetensors


def export_concept(concept: Concept, form: str, folder: Path, name: str, overwrite: bool = False) -> list[Path]:
    """Write `concept` into `folder` in a form for other programs, as `name` if its files have one; return the files.

    diffusers: a folder that `pipe.load_textual_inversion` takes. webui: NAME.safetensors for A1111, ComfyUI and
    InvokeAI, whose prompts refer to it as `spellings` says. hub: a folder to upload, with a model card. Raises
    UserError for an unknown form, for an invalid name, for a concept without a token, without a single row for it or
    with weights beside it, and, unless `overwrite`, if a file with other content would be replaced.
    """
    if form not in WRITERS:
        raise unknown("form", form, WRITERS)
    if not re.fullmatch(NAME, name):
        raise UserError(
            f"'{name}' cannot name the token's file: pass --name with up to 50 of A to Z, a to z, 0 to 9, '_', '.' and "
            "'-', the first no '.' or '-'."
        )
    _require_one_row(concept)
    files = {Path(folder) / file: content for file, content in WRITERS[form](concept, name).items()}
    if not overwrite:
        _require_free(files)
    for path, content in files.items():
        atomic_write_bytes(path, content)
    return list(files)


def spellings(name: str) -> str:
    """Return in words how each web UI's prompts refer to the token in NAME.safetensors."""
    return ", ".join(f"{spelling.format(name)} in {program}" for program, spelling in SPELLINGS.items())


def _require_one_row(concept: Concept) -> None:
    """Raise UserError unless a concept is one token's single row and nothing else."""
    if concept.embedding is None:
        kind = (
            f"single row for {concept.token}, the one form that all other programs read" if concept.token else "token"
        )
        raise UserError(f"The method '{concept.method}' learned no {kind}: there is nothing to export.")
    if concept.weights:
        files = ", ".join(adapter["file"] for adapter in concept.adapters if adapter["file"])
        raise UserError(
            f"The method '{concept.method}' learned weights beside its token, which a file of a token cannot hold: use "
            f"{files} and {EMBEDDING} in its concept folder."
        )


def _require_free(files: Mapping[Path, bytes]) -> None:
    """Raise UserError if any of the files exists with other content."""
    taken = [f"'{path}'" for path, content in files.items() if path.exists() and path.read_bytes() != content]
    if taken:
        raise UserError(
            f"What is there as {' and '.join(taken)} would be lost: pass another --to, for webui another --name, or "
            "--overwrite."
        )


def _diffusers(concept: Concept, name: str) -> dict[str, bytes]:
    return {EMBEDDING: embedding_bytes(concept)}


def _webui(concept: Concept, name: str) -> dict[str, bytes]:
    return {f"{name}.safetensors": embedding_bytes(concept)}


def _hub(concept: Concept, name: str) -> dict[str, bytes]:
    page = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True).from_string(
        CARD.read_text(encoding="utf-8")
    )
    local = Path(concept.metadata["base"]).exists()  # a folder on this machine, which the hub does not know
    card = page.render(name=name, base_is_local=local, **concept.metadata)
    return {EMBEDDING: embedding_bytes(concept), "README.md": card.encode("utf-8")}


# Each form's files, {name: content}. The row is 1-D under one key: the only shape that all programs read.
WRITERS: dict[str, Callable[[Concept, str], dict[str, bytes]]] = {"diffusers": _diffusers, "webui": _webui, "hub": _hub}
