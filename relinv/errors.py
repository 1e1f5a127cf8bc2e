"""Errors for the user: one sentence that says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# What CUDA, Metal, the CPU, cuBLAS and cuDNN say when PyTorch has no class for the error. The last two say that cuDNN
# found no way to convolve; too little room is the usual cause.
NO_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "ALLOCATION_FAILED",
             "unable to find an engine to execute", "find a valid cuDNN algorithm")  # fmt: skip
LISTED = 25  # names in a message, at most
IN_THE_WAY = "A file is where the path{} needs a folder: move it away"
NO_RIGHT = "You have no permission to read or write{}: grant it (chmod, chown)"
REMEDIES = {  # by errno: what is wrong, {} for the path, and what to do
    errno.ENOSPC: "The disk is full while writing{}: free some space",
    errno.EDQUOT: "Your share of the disk is used up while writing{}: free some space",
    errno.EROFS: "The disk may be read, but not written to{}: mount it for writing, or work on another,",
    errno.EACCES: NO_RIGHT,
    errno.EPERM: NO_RIGHT,
    errno.EEXIST: IN_THE_WAY,
    errno.ENOTDIR: IN_THE_WAY,
    errno.ENAMETOOLONG: "The path{} is longer than the disk allows: name a shorter one",
    errno.EISDIR: "A folder is where the path{} needs a file: name a file, or move it away,",
}
HIDDEN = {"No space left on device": errno.ENOSPC, "Disk quota exceeded": errno.EDQUOT}  # repeated without errno
# PyTorch's words; Triton's; and what Triton could not compile if Python's headers are missing
NO_COMPILER = ("InvalidCxxCompiler", "Failed to find C compiler", "backends/nvidia/driver.c")


class UserError(Exception):
    """A mistake in input, parameters or files; the command line prints only its text and exits with 1."""


def unknown(kind: str, name: str, available: Iterable[str], where: str = "") -> UserError:
    """Return the error for a `name` that is not among `available`, naming the closest match first.

    where: what the name stands in, such as a file. Of more than `LISTED` names only the closest are listed.
    """
    names = sorted(available)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    listed, heading = names, "Available"
    if len(names) > LISTED:
        listed, heading = difflib.get_close_matches(name, names, n=8, cutoff=0), f"The closest of {len(names)}"
    place = f" in {where}" if where else ""
    return UserError(f"Unknown {kind} '{name}'{place}.{hint} {heading}: {', '.join(listed) or 'none'}.")


@contextmanager
def within(place: str) -> Iterator[None]:
    """Inside the block, a UserError begins with `place`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


@contextmanager
def told_as(sentence: str) -> Iterator[None]:
    """Inside the block, a UserError is raised as `sentence`, followed by its own first line."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{sentence} {str(error).splitlines()[0]}") from None


def reason(error: Exception) -> str:
    """Return an error's message on one line of at most 300 characters, or its class name if it is empty."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether `error` says that a GPU's or this machine's memory ran out, without importing PyTorch."""
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    told = isinstance(error, RuntimeError) and any(sign in str(error) for sign in NO_MEMORY)
    return named or told or isinstance(error, MemoryError)


@contextmanager
def enough_memory(device: object, purpose: str, remedy: str) -> Iterator[None]:
    """Inside the block, a lack of the device's memory is a UserError: it is too small for `purpose`, so `remedy`.

    What an error says that was only taken for a lack of memory is told with it.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        doubt = "" if type(error).__name__ == "OutOfMemoryError" else f" (taken from: {reason(error)})"
        raise UserError(f"The memory of '{device}' is too small for {purpose}{doubt}: {remedy}.") from error


def explain(error: Exception) -> str | None:
    """Return what to tell the user, or None if `error` is a bug in this project."""
    if isinstance(error, UserError):
        return str(error)
    if remedy := REMEDIES.get(_number(error)):
        place = f" '{path}'" if (path := getattr(error, "filename", None)) else ""
        return f"{remedy.format(place)} and run the same command again."
    if any(words in str(error) for words in NO_COMPILER):
        return (
            "torch.compile needs a compiler, such as g++, and on a GPU gcc and Python's headers: install them, or set "
            "compile to false in params.yaml."
        )
    if "is not owned by current user" in str(error):  # libgit2's words
        return (
            "The repository belongs to another user, so git does not trust it: run `git config --global --add "
            f"safe.directory '{Path.cwd()}'`, then the same command again."
        )
    if is_out_of_memory(error):  # code that knows its batch gives a better message itself
        return (
            "The memory ran out: in params.yaml set bases.NAME.model.precision to bf16 if it is fp32, lower its "
            "resolution or the batch_size of what ran (bases.NAME.sampling, invert.METHOD, score), or set the device "
            "to cpu."
        )
    said = str(error).partition("\n")[0]  # PyTorch adds lines on debugging, which speak of asserts too
    if "no kernel image is available" in said:
        return (
            f"This PyTorch has no code for this GPU ({said}): install a newer one for a newer GPU, an older one for an "
            "older, as docs/stable-diffusion.md says for a V100."
        )
    if type(error).__name__ == "AcceleratorError" and "assert" not in said:  # an assert that fails is a bug here
        return f"The GPU failed ({said}): run the same command again, and if it fails again, on another GPU."
    return None


def _number(error: Exception) -> int:
    """Return an error's errno, inferred from its words if a library repeats only those; 0 if it has none."""
    hidden = (number for words, number in HIDDEN.items() if words in str(error))
    return next(hidden, getattr(error, "errno", None) or 0)
