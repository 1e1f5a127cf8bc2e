"""Files of tensors from strangers: read without running anything they hold, each tensor looked at before it is used."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relinv.errors import UserError

if TYPE_CHECKING:
    import torch

PICKLES = (b"PK", b"\x80")  # how torch's files begin, a zip or a bare pickle
POINTER = b"version https://git-lfs"
NOT_TEXT = bytes({*range(32)} - {*b"\t\n\f\r"})


def load_content(file: Path) -> Mapping[str, Any]:
    """Return what a file of tensors holds; UserError where it is missing, damaged, or would run code.

    Its first bytes say what it is, for a safetensors file may be called .bin. A ParameterDict in it, as A1111's and
    Perfusion's trainers save one, comes as a plain dict. torch's own words are not repeated: they advise to open such a
    file all the same.
    """
    import torch
    from safetensors.torch import load_file

    start = _start(file)
    _refuse_text(start, file)
    try:
        if start[8:9] == b"{":  # safetensors: the header's length in 8 bytes, then the header as JSON
            return load_file(file)
        # A stream, for torch goes by a name where it is told one.
        with torch.serialization.safe_globals([torch.nn.ParameterDict]), file.open("rb") as stream:
            content = _plain_dicts(torch.load(stream, "cpu", weights_only=True))
    except Exception as error:  # a damaged pickle fails in whatever way its bytes say
        named_safe = file.suffix.lower() == ".safetensors" and not start.startswith(PICKLES)
        if isinstance(error, pickle.UnpicklingError) and not named_safe:
            raise UserError(
                f"'{file}' is no plain file of tensors and might run code: it was not opened; ask for it as "
                ".safetensors."
            ) from None
        raise UserError(f"'{file}' is damaged, or no file of tensors that may be opened: fetch it again.") from None
    if not isinstance(content, Mapping):
        raise UserError(f"'{file}' holds a {type(content).__name__}, no learned token.")
    return content


def _plain_dicts(value: Any) -> Any:
    """Return `value` with plain dicts for the mappings and ParameterDicts in it."""
    import torch

    if isinstance(value, torch.nn.ParameterDict):
        parts = vars(value)  # torch up to 1.11 saved no `_keys`, which its methods need now
        value = dict(value.items()) if "_keys" in parts else parts["_parameters"]
    if isinstance(value, Mapping):
        return {name: _plain_dicts(inner) for name, inner in value.items()}
    return value


def _start(file: Path) -> bytes:
    """Return the first bytes of a file; UserError where it cannot be read."""
    try:
        with file.open("rb") as stream:
            return stream.read(512)
    except FileNotFoundError:
        raise UserError(f"The file '{file}' does not exist.") from None
    except OSError as error:
        raise UserError(f"The file '{file}' cannot be read ({error.strerror}).") from None


def _refuse_text(start: bytes, file: Path) -> None:
    """Raise UserError where a file starts as that does which a download often leaves instead of the one meant."""
    if start.startswith(POINTER):
        raise UserError(
            f"'{file}' is a Git LFS pointer, which only tells where the file lies: download the file itself "
            "(in its repository: `git lfs pull`)."
        )
    if start and len(start.translate(None, NOT_TEXT)) == len(start):
        raise UserError(
            f"'{file}' is text, such as a web page, and no file of tensors: download the file itself, not the page "
            "that shows it."
        )


def row(value: Any, name: str, file: Path) -> torch.Tensor:
    """Return a learned row, (dim,) float32 from (dim,) or (1, dim); UserError as `floats`, and for another shape."""
    tensor = _plain(value, name, file)
    count = tensor.numel()
    if tuple(tensor.shape) not in {(count,), (1, count)}:
        shape = tuple(tensor.shape)
        raise UserError(f"'{file}' holds {shape} numbers, and a relation is one row: it cannot be imported.")
    return floats(tensor, name, file).reshape(-1)


def floats(value: Any, name: str, file: Path) -> torch.Tensor:
    """Return what stands under `name` in a file as float32 of the same shape, in memory of its own.

    Raises UserError where it is no plain tensor of floating-point numbers, or not all of them are finite.
    """
    import torch

    # A copy: a view would drag the storage of a whole table along.
    numbers = _plain(value, name, file).detach().to(torch.float32, copy=True)
    if not numbers.isfinite().all():
        raise UserError(f"The numbers of {name} in '{file}' are not finite: their training diverged.")
    return numbers


def _plain(value: Any, name: str, file: Path) -> torch.Tensor:
    """Return `value` where it is a tensor whose numbers all lie in memory, each in its place; else raise UserError."""
    import torch

    if not isinstance(value, torch.Tensor):
        raise UserError(f"'{file}' holds a {type(value).__name__} as {name}, no tensor: it cannot be imported.")
    kinds = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    stored = value.dtype in kinds and value.layout == torch.strided and value.device.type == "cpu"
    # A tensor that repeats few numbers by its strides may claim more than fit into memory.
    if not stored or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        kind = f"{value.dtype}, {value.layout}, on {value.device}".replace("torch.", "")
        raise UserError(
            f"'{file}' holds {name} in a form of its own ({kind}), not as one floating-point number after the other: "
            "it cannot be imported."
        )
    return value
