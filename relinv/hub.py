"""The Hugging Face hub: models downloaded if they are not local, and its refusals put in one sentence."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from relinv.errors import UserError, is_out_of_memory, reason

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

    from relinv.settings import NetworkSettings

TOKENIZER = ("tokenizer/*.json", "tokenizer/*.txt")  # the files of a base that make up its tokenizer
OF_DISKS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS}  # no fault of the hub
CONVERT = (  # makes a folder of another form of Stable Diffusion: the call that loads that, and the new folder
    'convert it with `python -c "from diffusers import StableDiffusionPipeline as P; '
    "P.{}.save_pretrained('{}')\"`, and name that folder"
)
BASE = "base model"
OFFLINE = "Without internet access here, run `relinv download` first where there is some."


def find_model(source: str, revision: str | None, patterns: Sequence[str], kind: str = BASE) -> Path:
    """Return the folder `source`, or one with those files of the hub id `source` that match `patterns`.

    Raises UserError, which calls it a `kind` and says how to get access, if it is neither a folder nor available from
    the hub.
    """
    require_place(source, kind)
    folder = Path(source)
    return folder if folder.is_dir() else _download(source, revision, patterns, kind)


def require_place(source: str, kind: str = BASE) -> None:
    """Raise UserError unless `source` is a folder or may be a hub id."""
    folder = Path(source)
    if folder.is_file():
        convert = CONVERT.format(f"from_single_file('{source}')", folder.with_name(f"{folder.stem}-diffusers"))
        remedy = f"if it is a Stable Diffusion, {convert}" if kind == BASE else "name the folder of the whole model"
        raise UserError(f"The {kind} '{source}' is a single file, not a folder: {remedy}.")
    may_be_id = len(folder.parts) == 2 and not folder.is_absolute() and not source.startswith(".")
    if not folder.is_dir() and not may_be_id:
        raise UserError(f"There is no {kind} folder '{source}': build it, or name a folder or hub id that exists.")


def require_tokenizer(folder: Path) -> None:
    """Raise UserError unless a folder has a tokenizer's files: without them transformers makes one of single bytes."""
    if not (folder / "tokenizer.json").is_file() and not all(
        (folder / name).is_file() for name in ("vocab.json", "merges.txt")
    ):
        raise UserError(f"The tokenizer in '{folder}' lacks tokenizer.json, or vocab.json and merges.txt: restore it.")


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """Return the tokenizer in a base's folder `tokenizer`. Raises UserError if a file is missing or damaged."""
    from transformers import CLIPTokenizer  # takes tokenizer.json, or vocab.json + merges.txt; imports no torch
    from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

    require_tokenizer(folder)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a damaged file can make the libraries below raise many kinds
        if is_out_of_memory(error) or isinstance(error, PermissionError):
            raise  # nothing is wrong with the folder
        raise UserError(f"The tokenizer in '{folder}' cannot be loaded ({reason(error)}): restore it.") from error
    if tokenizer.model_max_length >= VERY_LARGE_INTEGER:  # by which transformers fills in what the files do not say
        raise UserError(
            f"The tokenizer in '{folder}' does not say how many tokens a prompt may have: restore "
            "tokenizer_config.json, with model_max_length."
        )
    return tokenizer


def base_tokenizer(model: NetworkSettings) -> CLIPTokenizer:
    """Return a base's tokenizer, whose files alone are downloaded; UserError as `find_model` and `load_tokenizer`."""
    return load_tokenizer(find_model(model.source, model.revision, TOKENIZER) / "tokenizer")


def find_tokenizer(source: str, revision: str | None) -> Path | None:
    """Return the tokenizer's folder of a base, as `find_model` finds it, if it is on this machine; else None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    folder = Path(source)
    try:
        if not folder.is_dir():
            # without patterns, a cache that lacks any file of the model, needed here or not, counts as incomplete
            folder = Path(
                snapshot_download(source, revision=revision, allow_patterns=list(TOKENIZER), local_files_only=True)
            )
        require_tokenizer(folder / "tokenizer")
    except (LocalEntryNotFoundError, HFValidationError, UserError):  # the last if a download has not come to it
        return None
    return folder / "tokenizer"


def _download(source: str, revision: str | None, patterns: Sequence[str], kind: str) -> Path:
    """Return the local folder of a hub id; the variants of weights called fp16 and non_ema are left out."""
    from huggingface_hub import snapshot_download

    variants = ["*.fp16.safetensors", "*.non_ema.safetensors"]
    refusal = f"The {kind} '{source}' is not a local folder and cannot be downloaded from the hub"
    with asking_hub(refusal, source, OFFLINE):
        return Path(
            snapshot_download(source, revision=revision, allow_patterns=list(patterns), ignore_patterns=variants)
        )


@contextmanager
def asking_hub(refusal: str, page: str, offline: str = "") -> Iterator[None]:
    """Turn any error of the hub's client in the block, except a disk's, into a UserError: `refusal` and the reason.

    page: the path on the hub of what is asked for, such as "owner/model" or "datasets/owner/name". offline: what to do
    without internet access.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    login = "log in with `hf auth login`"
    try:
        yield
    except GatedRepoError as error:
        licence = f"accept its licence at https://huggingface.co/{page}, then {login}"
        raise UserError(f"{refusal}: the repository is gated; {licence}.") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{refusal}: no repository has that name, or it is private; correct the name, or {login}."
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{refusal}: there is no such revision; correct the revision.") from error
    except Exception as error:  # the client raises many kinds: no network, a broken answer
        if isinstance(error, OSError) and error.errno in OF_DISKS:
            raise  # the command line says what to do
        raise UserError(f"{refusal}: {reason(error).rstrip('.')}. {offline}".rstrip()) from error
