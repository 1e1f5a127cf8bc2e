"""Concepts in the forms that other programs read: diffusers, the web UIs, and a page of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import jinja2

from relinv.diffusion.concept import EMBEDDING, Concept, embedding_bytes
from relinv.errors import UserError, unknown
from relinv.files import atomic_write_bytes, atomic_write_text

CARD = Path(__file__).with_name("hub_card.md.jinja")
NAME = r"\w[\w .-]{0,49}"  # of a file, and in prompts


def export_concept(concept: Concept, form: str, folder: Path, name: str) -> list[Path]:
    """Write `concept` into `folder` for a program, under `name` where its files bear one; return the files.

    diffusers: a folder that `pipe.load_textual_inversion` takes. webui: NAME.safetensors for A1111, ComfyUI and
    InvokeAI, whose prompts say NAME. hub: a folder to upload, with a model card. Raises UserError for another form,
    for a name that is no file's, and for a concept that learned no token, no single row for it, or weights beside it.
    """
    if form not in FORMS:
        raise unknown("form", form, FORMS)
    if not re.fullmatch(NAME, name):
        raise UserError(
            f"'{name}' cannot name the token's file: pass --name with up to 50 letters, digits, spaces, '.', '_' or "
            "'-', the first a letter or digit."
        )
    if concept.embedding is None:
        kind = f"single row for {concept.token}, which is all that other programs read" if concept.token else "token"
        raise UserError(f"The method '{concept.method}' learned no {kind}: there is nothing to export.")
    if concept.weights:
        files = ", ".join(adapter["file"] for adapter in concept.adapters if adapter["file"])
        raise UserError(
            f"The method '{concept.method}' learned weights beside its token, which a file of a token cannot hold: use "
            f"{files} and {EMBEDDING} in its concept folder."
        )
    return FORMS[form](concept, Path(folder), name)


def _diffusers(concept: Concept, folder: Path, name: str) -> list[Path]:
    return [_embedding(concept, folder / EMBEDDING)]


def _webui(concept: Concept, folder: Path, name: str) -> list[Path]:
    return [_embedding(concept, folder / f"{name}.safetensors")]


def _hub(concept: Concept, folder: Path, name: str) -> list[Path]:
    page = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True).from_string(
        CARD.read_text(encoding="utf-8")
    )
    card = folder / "README.md"
    atomic_write_text(card, page.render(name=name, base_is_local=_is_local(concept), **concept.metadata))
    return [_embedding(concept, folder / EMBEDDING), card]


def _is_local(concept: Concept) -> bool:
    """Return whether the concept's base is a folder here, which the hub knows nothing of."""
    return Path(concept.metadata["base"]).exists()


def _embedding(concept: Concept, path: Path) -> Path:
    """Write the row under one key, 1-D: the only shape that all these programs read."""
    atomic_write_bytes(path, embedding_bytes(concept))
    return path


FORMS: dict[str, Callable[[Concept, Path, str], list[Path]]] = {"diffusers": _diffusers, "webui": _webui, "hub": _hub}
