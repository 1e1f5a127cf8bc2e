"""Errors for the user: one sentence that says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# What CUDA, Metal, the CPU and cuBLAS say when PyTorch has no class for the error.
NO_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


LISTED = 25  # names in a message, at most


class UserError(Exception):
    """A mistake in input, parameters or files; the command line prints only its text and exits with 1."""


def unknown(kind: str, name: str, available: Iterable[str]) -> UserError:
    """Return the error for a `name` that is not among `available`, naming the closest match first.

    Of more than `LISTED` names only the closest are listed.
    """
    names = sorted(available)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    listed, heading = names, "Available"
    if len(names) > LISTED:
        listed, heading = difflib.get_close_matches(name, names, n=8, cutoff=0), f"The closest of {len(names)}"
    return UserError(f"Unknown {kind} '{name}'.{hint} {heading}: {', '.join(listed) or 'none'}.")


def reason(error: Exception) -> str:
    """Return an error's message on one line of at most 300 characters, or its class name if it is empty."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def is_out_of_memory(error: Exception) -> bool:
    """Return whether `error` says that a GPU's or this machine's memory ran out, without importing PyTorch."""
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    told = isinstance(error, RuntimeError) and any(sign in str(error) for sign in NO_MEMORY)
    return named or told or isinstance(error, MemoryError)
