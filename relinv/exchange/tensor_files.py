"""Untrusted files of tensors: read without running anything in them, each tensor checked before it is used."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relinv.errors import UserError

if TYPE_CHECKING:
    import torch

ZIP = b"PK"
PICKLES = (ZIP, b"\x80")  # how torch's files begin, a zip or a bare pickle
POINTER = b"version https://git-lfs"
NOT_TEXT = bytes({*range(32)} - {*b"\t\n\f\r"})


def load_content(file: Path) -> Mapping[str, Any]:
    """Return what a file of tensors holds; UserError if it is missing, damaged, packed, or would run code.

    Its first bytes decide its kind, because a safetensors file may be called .bin. A ParameterDict in it, as A1111's
    and Perfusion's trainers save, becomes a plain dict. torch's own message is not repeated: it advises opening such
    a file anyway.
    """
    import torch
    from safetensors.torch import load_file

    start = _start(file)
    _refuse_text(start, file)
    try:
        if start[8:9] == b"{":  # safetensors: the header's length in 8 bytes, then the header as JSON
            return load_file(file)
        if start.startswith(ZIP):
            _refuse_packed(file)
        # A stream, because torch goes by the file's name if given one.
        with torch.serialization.safe_globals([torch.nn.ParameterDict]), file.open("rb") as stream:
            content = _plain_dicts(torch.load(stream, "cpu", weights_only=True))
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        named_safe = file.suffix.lower() == ".safetensors" and not start.startswith(PICKLES)
        if isinstance(error, pickle.UnpicklingError) and not named_safe:
            raise UserError(
                f"'{file}' is not a plain file of tensors and might run code, so it was not opened: ask for it as "
                ".safetensors."
            ) from None
        raise UserError(f"'{file}' is damaged, or not a file of tensors that may be opened: fetch it again.") from None
    if not isinstance(content, Mapping):
        raise UserError(f"'{file}' holds a {type(content).__name__}, not a learned token.")
    return content


def _refuse_packed(file: Path) -> None:
    """Raise UserError if a zip unpacks to more than its own size, which torch's never do: it might fill the memory."""
    with zipfile.ZipFile(file) as opened:
        if sum(part.file_size for part in opened.infolist()) > file.stat().st_size:
            raise UserError(f"'{file}' is compressed, which torch's files never are: ask for it as .safetensors.")


def _plain_dicts(value: Any) -> Any:
    """Return `value` with plain dicts in place of the mappings and ParameterDicts in it."""
    import torch

    if isinstance(value, torch.nn.ParameterDict):
        parts = vars(value)  # torch up to 1.11 saved no `_keys`, which its methods need now
        value = dict(value.items()) if "_keys" in parts else parts["_parameters"]
    if isinstance(value, Mapping):
        return {name: _plain_dicts(inner) for name, inner in value.items()}
    return value


def _start(file: Path) -> bytes:
    """Return the first bytes of a file; UserError if it cannot be read."""
    try:
        with file.open("rb") as stream:
            return stream.read(512)
    except FileNotFoundError:
        raise UserError(f"The file '{file}' does not exist.") from None
    except OSError as error:
        raise UserError(f"The file '{file}' cannot be read ({error.strerror}).") from None
    except ValueError:  # it holds a NUL, which YAML can write
        raise UserError(f"The file has a path that no file can have, {str(file)!r}: correct it.") from None


def _refuse_text(start: bytes, file: Path) -> None:
    """Raise UserError if a file is text or a Git LFS pointer, which downloads often leave instead of the real file."""
    if start.startswith(POINTER):
        raise UserError(
            f"'{file}' is a Git LFS pointer, which only tells where the file lies: download the file itself "
            "(in its repository: `git lfs pull`)."
        )
    if start and len(start.translate(None, NOT_TEXT)) == len(start):
        raise UserError(
            f"'{file}' is text, such as a web page, not a file of tensors: download the file itself, not the page "
            "that shows it."
        )


def rows(value: Any, name: str, file: Path) -> torch.Tensor:
    """Return a token's rows, (rows, dim) float32, of (dim,) too; UserError as `floats`, or for another shape."""
    tensor = floats(value, name, file)
    if tensor.dim() not in {1, 2} or not tensor.numel():
        raise UserError(
            f"'{file}' holds {tuple(tensor.shape)} numbers, not the rows of a token: it cannot be imported."
        )
    return tensor.reshape(-1, tensor.shape[-1])


def row(value: Any, name: str, file: Path) -> torch.Tensor:
    """Return a token's only row, (dim,) float32; UserError as `rows`, or if there are several."""
    found = rows(value, name, file)
    if len(found) != 1:
        raise UserError(f"'{file}' holds {len(found)} rows for {name}, which should have one: it cannot be imported.")
    return found[0]


def floats(value: Any, name: str, file: Path) -> torch.Tensor:
    """Return `value`, found under `name` in `file`, as a float32 copy of the same shape.

    Raises UserError if it is not a CPU tensor of floating-point numbers, each stored separately and finite.
    """
    import torch

    if not isinstance(value, torch.Tensor):
        raise UserError(f"'{file}' holds a {type(value).__name__} as {name}, not a tensor: it cannot be imported.")
    kinds = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    stored = value.dtype in kinds and value.layout == torch.strided and value.device.type == "cpu"
    # A tensor that repeats a few numbers through its strides may claim more than fits in memory.
    if not stored or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        kind = f"{value.dtype}, {value.layout}, on {value.device}".replace("torch.", "")
        raise UserError(
            f"'{file}' holds {name} in a form of its own ({kind}), not as one floating-point number after the other: "
            "it cannot be imported."
        )
    # A copy: a view would keep the storage of a whole table alive.
    numbers = value.detach().to(torch.float32, copy=True)
    if not numbers.isfinite().all():
        raise UserError(f"The numbers of {name} in '{file}' are not finite: their training diverged.")
    return numbers
