"""Running a stage as a command: a user's mistake ends in one sentence on stderr, a bug in a traceback.

Also, how many cores it may use.
"""

from __future__ import annotations

import errno
import io
import math
import os
import sys
from pathlib import Path

import typer

from relinv.errors import UserError, is_out_of_memory
from relinv.forking import run_forked

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
NO_COMPILER = ("InvalidCxxCompiler", "Failed to find C compiler")  # PyTorch's words, and Triton's
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # microseconds of CPU time and in how many, such as docker's --cpus sets


def stage_app() -> typer.Typer:
    """Return the Typer application that a stage, or `relinv`, registers its commands with."""
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def path(text: str) -> Path:
    """Return the path that an argument names; UserError if it is empty, which pathlib takes for the current folder."""
    if not text:
        raise UserError("A path is empty, as that of a shell variable without a value: name a file or folder.")
    return Path(text)


def cores() -> int:
    """Return how many cores this process may use, or as many as its container may keep busy if those are fewer."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, CPU_LIMIT.read_text().split())
    except (OSError, ValueError):  # no such file, or "max": no limit
        return bound
    return min(bound, math.ceil(quota / period))


def run(app: typer.Typer) -> None:
    """Run a stage's command line; exit with 1 and one sentence on stderr for an error that the user can fix."""
    status = run_forked()
    if status is not None:
        sys.exit(status)
    if isinstance(sys.stdout, io.TextIOWrapper):  # None if closed, and a notebook has its own
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a Windows pipe has no code for ↑ or −
    try:
        app()
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise  # a bug: its traceback helps most
        print(f"Error: {sentence}", file=sys.stderr)
        sys.exit(1)


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
            "older, as README.md says for a V100."
        )
    if type(error).__name__ == "AcceleratorError" and "assert" not in said:  # an assert that fails is a bug here
        return f"The GPU failed ({said}): run the same command again, and if it fails again, on another GPU."
    return None


def _number(error: Exception) -> int:
    """Return an error's errno, inferred from its words if a library repeats only those; 0 if it has none."""
    hidden = (number for words, number in HIDDEN.items() if words in str(error))
    return next(hidden, getattr(error, "errno", None) or 0)
