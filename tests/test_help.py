"""Every stage and every command of `relinv` shows an example in its help, and one that it takes."""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from relinv.commands import app

STAGES = Path(__file__).resolve().parents[1] / "stages"
COMMANDS = [  # the module, the command's name in there if it is one of several, and what a person types
    *((f"stages.{file.stem}", [], f"python -m stages.{file.stem}") for file in sorted(STAGES.glob("[!_]*.py"))),
    *(("relinv.commands", [name], f"relinv {name}") for name in typer.main.get_command(app).commands),  # type: ignore[attr-defined]
]


@pytest.mark.parametrize(("module", "name", "typed"), COMMANDS, ids=[typed for *_, typed in COMMANDS])
def test_help_shows_an_example(module: str, name: list[str], typed: str) -> None:
    command = import_module(module).app
    result = CliRunner().invoke(command, [*name, "--help"], catch_exceptions=False, terminal_width=1000)
    assert result.exit_code == 0
    printed = " ".join(result.stdout.split())
    assert f"Example: {typed}" in printed
    given = arguments(typer.main.get_command(command), name, printed.partition(f"Example: {typed}")[2])
    if not name:  # a stage is of what the pipeline has; `relinv` takes what is still to come, too
        assert given.get("relation", "inside") == "inside" and given.get("method", "reversion") == "reversion"


def arguments(command: Any, name: list[str], example: str) -> dict[str, Any]:
    """Return how a command understands the first example of its help; an error where that is not one it takes."""
    for end in (" (or, ", "; or ", " && "):
        example = example.partition(end)[0]
    for each in name:
        command = command.commands[each]
    return command.make_context(command.name, shlex.split(example)).params


@pytest.mark.parametrize(
    ("command", "example"),
    [
        ([sys.executable, "-m", "stages.validate"], "python -m stages.validate inside"),
        ([str(Path(sys.executable).with_name("relinv")), "new"], "relinv new kissing"),
    ],
    ids=["stage", "relinv"],
)
def test_a_process_prints_its_help(command: list[str], example: str) -> None:
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True, timeout=120)
    assert f"Example: {example}" in done.stdout
