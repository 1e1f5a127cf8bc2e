"""Learned tokens from other programs, read without running anything in their files, and turned into concepts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relinv.diffusion.bases import Base
from relinv.diffusion.concept import METADATA, Concept, save_concept
from relinv.diffusion.embeddings import TOKEN
from relinv.diffusion.token_rows import ROWS
from relinv.errors import UserError
from relinv.exchange.custom_diffusion_files import is_custom_diffusion, read_custom_diffusion
from relinv.exchange.multires_folders import is_text_encoder, read_multires
from relinv.exchange.perfusion_checkpoints import read_perfusion
from relinv.exchange.tensor_files import load_content
from relinv.exchange.token_files import Published, token_in
from relinv.files import atomic_folder, read_json, require_utf8, sha256_file
from relinv.plugins import find_plugin, plugin_names
from relinv.settings import require_name

LUCIDRAINS = {"embed_params", "key_value_params"}


def import_concept(
    file: Path, relation: str, method: str, base: Base, folder: Path, token_file: Path | None = None
) -> Concept:
    """Write the token in `file` to `folder` as a concept of `relation` for `base`, under the method's name; return it.

    Prompts use it as `<r>`, whatever it was called. An earlier import there is replaced. Raises UserError as
    `read_published` does, if a name is not allowed, or if `folder` is taken or holds `file`.
    """
    require_name(relation, "relation")
    require_name(method, "method")
    _require_free(folder, method)
    published = read_published(file, base, token_file)
    for path in filter(None, (file, published.token_file)):
        if path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"'{path}' lies in '{folder}', which is to be replaced: move the file elsewhere first.")
        require_utf8(path.name, f"'{path.parent}'")
    require_utf8(published.name, f"'{file}'", "rename that token")
    weights = {published.adapter: published.tensors} if published.adapter else {}
    concept = Concept(TOKEN, published.row, _metadata(file, relation, method, base, published), weights)
    with atomic_folder(folder) as new:
        save_concept(new, concept)
    return concept


def _require_fit(published: Published, file: Path, base: Base) -> None:
    """Raise UserError unless the token's rows are as wide as the base's and a prompt has room for them."""
    rows = published.tensors[ROWS] if published.row is None else published.row[None]  # (rows, dim)
    count, dim = rows.shape
    if dim != base.dim:
        raise UserError(
            f"The token in '{published.token_file or file}' has {dim} numbers and the base '{base.id}' takes "
            f"{base.dim}: it was learned for another kind of base."
        )
    limit = base.tokenizer.model_max_length
    if (
        published.adapter == "vectors" and count > limit - 4
    ):  # minus a prompt's start and end tokens and two entities of a token each
        raise UserError(
            f"The token in '{file}' takes {count} tokens of a prompt, and '{base.id}' reads {limit} with its two "
            "entities and its ends: it cannot be used here."
        )


def _metadata(file: Path, relation: str, method: str, base: Base, published: Published) -> dict[str, Any]:
    """Return an imported concept's metadata: where it is from, with its unknown training left empty."""
    imported = {"file": file.name, "sha256": sha256_file(file), "token": published.name}
    if own := published.token_file:
        imported |= {"token_file": own.name, "token_sha256": sha256_file(own)}
    metadata: dict[str, Any] = {
        "relation": relation,
        "method": method,
        "token": TOKEN,
        "template": f"{{head}} {TOKEN} {{tail}}",
        "params": {},
        "seed": None,
        "steps": None,
        "base": base.id,
        "base_hash": base.fingerprint,
        "exemplars_hash": None,
        "versions": {},
        "imported": imported,
    }
    if kind := published.adapter:
        weights = find_plugin("relinv.adapters", kind).Adapter.FILE
        metadata["adapters"] = [{"name": kind, "file": weights, "options": dict(published.options)}]
    return metadata


def _require_free(folder: Path, method: str) -> None:
    """Raise UserError if a method of the project has that name, or `folder` holds anything not imported."""
    if method in plugin_names("relinv.methods"):
        raise UserError(
            f"'{method}' is a method of this project, whose results have that name: name another METHOD, such as "
            "published."
        )
    if folder.exists() and not _is_imported(folder):
        raise UserError(f"'{folder}' exists and was not imported: name another METHOD, or move it away first.")


def _is_imported(folder: Path) -> bool:
    file = folder / METADATA
    metadata = read_json(file, "concept") if file.is_file() else None
    return isinstance(metadata, Mapping) and "imported" in metadata


def sha256_of(file: Path, token_file: Path | None) -> str:
    """Return the hex SHA-256 of a token's file, or of the weights' bytes followed by its own file's, if separate."""
    digest = hashlib.sha256()
    for path in filter(None, (file, token_file)):
        with path.open("rb") as stream:
            hashlib.file_digest(stream, lambda: digest)
    return digest.hexdigest()


def read_published(file: Path, base: Base, token_file: Path | None = None) -> Published:
    """Return what `file` holds, for use with `base`.

    `token_file` is for Custom Diffusion, whose token is in a separate file. Raises UserError as `load_content` does,
    if the file's kind is unknown, or if the base or its prompts have no room for the token.
    """
    published = _read(file, base, token_file)
    _require_fit(published, file, base)
    return published


def _read(file: Path, base: Base, token_file: Path | None) -> Published:
    """Return what `file` holds: kinds are told by the names inside, else a .ckpt is Perfusion's."""
    content = load_content(file)
    if is_custom_diffusion(content):
        return read_custom_diffusion(content, file, base, token_file)
    if token_file:
        raise UserError(f"'{file}' holds its token itself: leave '{token_file}' out.")
    if file.suffix.lower() == ".ckpt":
        return read_perfusion(content, file, base)
    if is_text_encoder(content):
        return read_multires(content, file, base)
    if content.keys() >= LUCIDRAINS:
        raise UserError(
            f"'{file}' is a concept of lucidrains' perfusion-pytorch, which does not say to which layer each of its "
            "parameters belongs: it cannot be imported."
        )
    name, rows = token_in(content, file)
    if name == ROWS:
        raise UserError(
            f"'{file}' is part of a concept of this project, and concept.json, beside it, says how its rows are used: "
            "copy their folder into data/concepts instead."
        )
    if len(rows) == 1:
        return Published(name, rows[0])
    return Published(name, None, adapter="vectors", tensors={ROWS: rows})
