"""Errors meant for the person at the keyboard: one sentence that says what, where and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in input, parameters or files; the command line prints its text alone and exits with 1."""


def unknown(kind: str, name: str, available: Iterable[str]) -> UserError:
    """Return the error for a `name` that is not among `available`, naming the closest match first."""
    names = sorted(available)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return UserError(f"Unknown {kind} '{name}'.{hint} Available: {', '.join(names) or 'none'}.")
