"""Exemplars from a dataset on the Hugging Face hub, with one folder per relation."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from relinv.errors import UserError
from relinv.exemplars import CAPTIONS
from relinv.fetching.downloads import TIMEOUT, cache_folder
from relinv.fetching.relation_folders import copy_files, relation_folder, whole_folder
from relinv.hub import asking_hub
from relinv.settings import ExemplarSettings, ExemplarSource


def fill(relation: str, folder: Path, source: ExemplarSource, settings: ExemplarSettings, scratch: Path) -> None:
    """Download the relation's files and copy them into `folder`; `path` is "owner/name" or "owner/name@revision".

    Raises UserError if the dataset cannot be downloaded or lacks the relation.
    """
    from huggingface_hub import HfApi, snapshot_download

    cache = cache_folder(scratch, source)
    name, _, revision = source.location().partition("@")
    with asking_hub(f"The dataset '{source.location()}' cannot be downloaded from the hub", f"datasets/{name}"):
        # asked first, because a snapshot that is refused looks complete if its folder already has files
        commit = str(HfApi().dataset_info(name, revision=revision or None, timeout=TIMEOUT).sha)
        downloaded = cache / commit  # never two commits' files in one folder
        patterns = [f"{relation}/*", f"*/{relation}/*"]
        download = partial(
            snapshot_download, name, repo_type="dataset", revision=commit, allow_patterns=patterns, local_dir=downloaded
        )
        download(ignore_patterns=f"*{CAPTIONS}")
        download()  # captions last: a folder with them counts as complete, masks or not
    placed = relation_folder(downloaded, relation)
    if placed is None:
        raise UserError(
            f"The dataset '{source.location()}' has no {whole_folder(relation)}: correct exemplars.path in params.yaml."
        )
    copy_files(placed, folder)
