"""Stages forked from a process that has the libraries: they run as they would by themselves, and die as they would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from relinv import forking
from relinv.forking import ADDRESS, fork_server

COMMAND = """
import os, sys, time
import typer
from relinv import cli
from relinv.errors import UserError

app = cli.stage_app()

@app.command()
def run(what: str) -> None:
    print(os.getpid(), os.getppid(), os.getcwd(), os.environ.get("TOLD"), *sys.argv[1:], sys.stdin.read(), flush=True)
    if what == "fail":
        raise UserError("It fails.")
    if what == "crash":
        raise ValueError("a bug")
    if what == "exit":
        raise typer.Exit(7)
    if what == "die":
        os.kill(os.getpid(), 9)
    if what == "sleep":
        time.sleep(600)

if __name__ == "__main__":
    cli.run(app)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a stage's command in it, `python -m command`; nothing heavy is imported for it."""
    (tmp_path / "command.py").write_text(COMMAND)
    monkeypatch.setenv("PYTHONPATH", str(Path(forking.__file__).parents[1]))
    return tmp_path


@pytest.fixture
def server(project: Path) -> Iterator[None]:
    with fork_server(project):
        yield


def run(project: Path, what: str) -> subprocess.CompletedProcess[str]:
    command, environment = [sys.executable, "-m", "command", what], os.environ | {"TOLD": "a secret"}
    return subprocess.run(
        command, cwd=project, env=environment, input="typed", capture_output=True, text=True, check=False
    )


def test_a_fork_has_the_commands_arguments_environment_folder_and_streams(project: Path, server: None) -> None:
    done = run(project, "well")
    assert done.returncode == 0 and done.stderr == ""
    process, parent, *rest = done.stdout.split()
    assert rest == [str(project), "a", "secret", "well", "typed"]
    assert ADDRESS in os.environ and int(parent) != os.getpid()
    again = run(project, "well").stdout.split()
    assert again[1] == parent and again[0] != process  # one server, a fork each


def test_it_ends_as_the_command_would_by_itself(project: Path, server: None) -> None:
    forked = {what: run(project, what) for what in ("fail", "crash", "exit", "die")}
    assert {what: done.returncode for what, done in forked.items()} == {"fail": 1, "crash": 1, "exit": 7, "die": 1}
    assert forked["fail"].stderr == "Error: It fails.\n"
    assert "ValueError: a bug" in forked["crash"].stderr
    assert "command was killed before its end" in forked["die"].stderr
    assert run(project, "well").returncode == 0


def test_a_killed_command_takes_its_fork_along(project: Path, server: None) -> None:
    command = [sys.executable, "-m", "command", "sleep"]
    with subprocess.Popen(command, cwd=project, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        fork = int(process.stdout.readline().split()[0])
        assert fork != process.pid
        process.kill()
    deadline = time.monotonic() + 30
    while is_alive(fork):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_without_a_server_a_command_runs_by_itself(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(project, "well").stdout.split()[1] == str(os.getpid())
    monkeypatch.setenv(ADDRESS, str(project / "nobody"))
    assert run(project, "well").stdout.split()[1] == str(os.getpid())


def test_a_server_dies_with_who_wanted_it(project: Path) -> None:
    code = "import os, sys, time; from relinv.forking import *\nwith fork_server(Path.cwd()):\n time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=project) as owner:
        deadline = time.monotonic() + 60
        while not (children := children_of(owner.pid)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        owner.send_signal(signal.SIGKILL)
    while any(is_alive(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children_of(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
