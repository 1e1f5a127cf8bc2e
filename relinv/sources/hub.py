"""Exemplars from a dataset on the Hugging Face hub, one folder a relation."""

from __future__ import annotations

from pathlib import Path

from relinv.downloads import cache_folder, copy_files, relation_folder
from relinv.errors import UserError, reason
from relinv.exemplars import CAPTIONS
from relinv.settings import ExemplarSettings, ExemplarSource


def fill(relation: str, folder: Path, source: ExemplarSource, settings: ExemplarSettings, scratch: Path) -> None:
    """Download the relation's files and copy them into `folder`; `path` is "owner/name" or "owner/name@revision".

    Raises UserError where the hub does not give the dataset, or it lacks the relation.
    """
    from huggingface_hub import snapshot_download

    cache = cache_folder(scratch, source)
    name, _, revision = source.location().partition("@")
    patterns = [f"{relation}/*", f"*/{relation}/*"]
    options = {"repo_type": "dataset", "revision": revision or None, "allow_patterns": patterns, "local_dir": cache}
    try:
        snapshot_download(name, ignore_patterns=f"*{CAPTIONS}", **options)
        snapshot_download(name, **options)  # last, for what has captions is taken for whole, masks or not
    except Exception as error:  # the hub's client raises many kinds: no network, no such id, no access
        raise UserError(f"The hub does not give the dataset '{source.location()}': {reason(error)}") from error
    placed = relation_folder(cache, relation)
    if placed is None:
        raise UserError(f"The dataset '{source.location()}' has no folder '{relation}' with a {CAPTIONS}.")
    copy_files(placed, folder)
