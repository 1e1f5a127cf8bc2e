"""Stages forked from a process that has the libraries: they run as they would by themselves, and die as they would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from relinv import forking
from relinv.cli import cores
from relinv.forking import ADDRESS, can_serve, fork_server
from stages.reproduce import _slots_on_cpu, reproduce
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(not can_serve(), reason="processes have no handles here: no Linux, or an old one")
SAID = "said.txt"
COMMAND = """
import atexit, gc, os, sys, threading, time
if "import" in sys.argv and "RELINV_FORK_SERVER" not in os.environ:
    print(os.getpid(), "begun", sep="\\n", flush=True)
    time.sleep(600)
import typer
from relinv import cli
from relinv.errors import UserError

app = cli.stage_app()

@app.command()
def run(what: str) -> None:
    print(os.getpid(), os.getppid(), os.getcwd(), os.environ.get("TOLD"), *sys.argv[1:], sys.stdin.read(), flush=True)
    atexit.register(print, "the end")
    threading.Thread(target=lambda: (time.sleep(0.3), print("a thread's"))).start()
    if what == "fail":
        raise UserError("It fails.")
    if what == "crash":
        raise ValueError("a bug")
    if what == "exit":
        raise typer.Exit(7)
    if what == "die":
        os.kill(os.getpid(), 9)
    if what == "shared":
        print(gc.get_freeze_count(), gc.isenabled())
    if what == "sleep":
        try:
            print("begun", flush=True)
            time.sleep(600)
        finally:
            time.sleep(0.5)
            print("tidied up", flush=True)

if __name__ == "__main__":
    cli.run(app)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a stage's command in it, `python -m command`."""
    (tmp_path / "command.py").write_text(COMMAND)
    monkeypatch.setenv("PYTHONPATH", str(Path(forking.__file__).parents[1]))
    monkeypatch.delenv(ADDRESS, raising=False)
    return tmp_path


@pytest.fixture
def warm_server(project: Path) -> Iterator[None]:
    """A server that has imported next to nothing."""
    with fork_server(project, ["json"]):
        yield


def run(project: Path, what: str) -> subprocess.CompletedProcess[str]:
    command, environment = [sys.executable, "-m", "command", what], os.environ | {"TOLD": "a secret"}
    streams = {"input": "typed", "capture_output": True, "text": True}
    return subprocess.run(command, cwd=project, env=environment, check=False, timeout=120, **streams)


def begin(project: Path, what: str = "sleep") -> tuple[subprocess.Popen[str], int]:
    """Start a command that sleeps and writes to the file `SAID`; return it and the id of what runs in its place."""
    command, said = [sys.executable, "-m", "command", what], project / SAID
    with said.open("w") as stream:
        streams = {"stdin": subprocess.DEVNULL, "stdout": stream, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, cwd=project, text=True, **streams)
    wait_until(lambda: "begun\n" in said.read_text() or process.poll() is not None)
    assert process.poll() is None
    worker = int(said.read_text().split()[0])
    assert worker != process.pid
    return process, worker


def is_alive(process: int) -> bool:
    """Return whether a process runs: one that has ended may be kept until its parent asks for its status."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children_of(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_a_worker_has_the_commands_arguments_environment_folder_and_streams(project: Path, warm_server: None) -> None:
    done = run(project, "well")
    assert done.returncode == 0 and done.stderr == ""
    process, parent, *rest = done.stdout.split()
    assert rest == [str(project), "a", "secret", "well", "typed", "a", "thread's", "the", "end"]
    assert os.getpid() not in (int(parent), int(process))
    wait_until(lambda: not is_alive(int(process)) and not is_alive(int(parent)))


def test_it_ends_as_the_command_would_by_itself(project: Path, warm_server: None) -> None:
    forked = {what: run(project, what) for what in ("fail", "crash", "exit", "die")}
    assert {what: done.returncode for what, done in forked.items()} == {"fail": 1, "crash": 1, "exit": 7, "die": 1}
    assert forked["fail"].stderr == "Error: It fails.\n"
    assert "ValueError: a bug" in forked["crash"].stderr
    assert "command was killed before its end" in forked["die"].stderr
    assert run(project, "well").returncode == 0


def test_a_worker_looks_for_garbage_among_its_own_objects_alone(project: Path, warm_server: None) -> None:
    shared, enabled = run(project, "shared").stdout.splitlines()[1].split()
    assert int(shared) > 1000 and enabled == "True"


def test_ctrl_c_while_a_stage_imports_is_not_taken_for_a_lack_of_memory(project: Path, warm_server: None) -> None:
    process, worker = begin(project, "import")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "memory" not in errors
    wait_until(lambda: not is_alive(worker))


def test_ctrl_c_reaches_the_worker_once_and_it_tidies_up(project: Path, warm_server: None) -> None:
    process, worker = begin(project)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "tidied up" in (project / SAID).read_text() and "Traceback" not in errors
    assert process.returncode == 130
    assert not is_alive(worker)


def test_ctrl_c_of_a_terminal_comes_to_a_worker_once(project: Path) -> None:
    """A terminal sends it to all: to the command, to the server, and to who wanted both."""
    code = (
        "import signal, subprocess, sys; from relinv.forking import *\n"
        "signal.signal(signal.SIGINT, lambda *_: None)\n"
        "with fork_server(Path.cwd(), ['json']):\n subprocess.run([sys.executable, '-m', 'command', 'sleep'])"
    )
    said = project / SAID
    with said.open("w") as stream:
        streams = {"stdin": subprocess.DEVNULL, "stdout": stream, "stderr": subprocess.PIPE}
        owner = subprocess.Popen(
            [sys.executable, "-c", code], cwd=project, text=True, start_new_session=True, **streams
        )
    wait_until(lambda: "begun\n" in said.read_text() or owner.poll() is not None)
    assert os.getpgid(int(said.read_text().split()[0])) != owner.pid
    os.killpg(owner.pid, signal.SIGINT)
    _, errors = owner.communicate(timeout=60)
    assert "tidied up" in said.read_text() and "Traceback" not in errors


def test_a_killed_command_takes_its_worker_along(project: Path, warm_server: None) -> None:
    process, worker = begin(project)
    process.kill()
    process.communicate(timeout=60)
    wait_until(lambda: not is_alive(worker))


def test_without_a_server_a_command_runs_by_itself(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(project, "well").stdout.split()[1] == str(os.getpid())
    monkeypatch.setenv(ADDRESS, str(project / "nobody"))
    assert run(project, "well").stdout.split()[1] == str(os.getpid())


def test_where_the_server_dies_a_waiting_command_runs_by_itself(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (project / "broken.py").write_text("import time; time.sleep(3); raise ImportError('broken')")
    with fork_server(project, ["broken"]):
        done = run(project, "well")  # it waits for the libraries
    assert done.returncode == 0 and done.stdout.split()[1] == str(os.getpid())
    assert "ImportError: broken" in capfd.readouterr().err


def test_where_the_server_dies_no_command_waits_for_one_that_it_began(project: Path) -> None:
    others = children_of(os.getpid())
    with fork_server(project, ["json"]):
        (server,) = set(children_of(os.getpid())) - set(others)
        process, _ = begin(project)
        try:
            os.kill(server, signal.SIGKILL)
            wait_until(lambda: not is_alive(server))
            assert run(project, "well").returncode == 0
            assert process.poll() is None
        finally:
            process.kill()
            process.communicate(timeout=60)


def test_a_folder_too_deep_for_a_socket_costs_speed_alone(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = project / ("deep" * 40)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with fork_server(project, ["json"]):
        assert ADDRESS not in os.environ
        assert run(project, "well").returncode == 0


def test_a_python_without_handles_of_processes_costs_speed_alone(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr("os.pidfd_open")  # as in conda's, and on macOS
    with fork_server(project, ["json"]):
        assert ADDRESS not in os.environ
        assert run(project, "well").returncode == 0
    assert capfd.readouterr().err == ""


def test_a_server_keeps_nothing_of_the_commands_it_has_served(project: Path) -> None:
    others = children_of(os.getpid())
    with fork_server(project, ["json"]):
        (server,) = set(children_of(os.getpid())) - set(others)
        held = []
        for _ in range(2):
            assert run(project, "well").returncode == 0
            wait_until(lambda: not children_of(server))  # no zombie either
            held.append(len(list(Path(f"/proc/{server}/fd").iterdir())))
    assert held[0] == held[1]


def test_a_server_dies_with_who_wanted_it(project: Path) -> None:
    code = "import time; from relinv.forking import *\nwith fork_server(Path.cwd(), ['json']):\n time.sleep(600)"
    owner = subprocess.Popen([sys.executable, "-c", code], cwd=project)
    try:
        wait_until(lambda: children_of(owner.pid))
        children = children_of(owner.pid)
    finally:
        owner.kill()
        owner.wait(timeout=60)
    wait_until(lambda: not any(map(is_alive, children)))


@pytest.mark.parametrize(
    ("answer", "forks"),
    [(0, False), (3, True), (100, True)],  # as cuDeviceGetCount: a GPU is set up, cuInit was not called, it found none
)
def test_where_libraries_have_set_up_a_gpu_commands_run_by_themselves(
    answer: int, forks: bool, project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    library = "import ctypes; ctypes.CDLL = lambda name: {'libcuda.so.1': Driver}[name]\nclass Driver:\n"
    (project / "library.py").write_text(f"{library} cuDeviceGetCount = staticmethod(lambda count: {answer})")
    with fork_server(project, ["library"]):
        done = run(project, "well")
    assert done.returncode == 0 and capfd.readouterr().err == ""
    assert (done.stdout.split()[1] != str(os.getpid())) == forks


def test_libraries_that_look_for_gpus_do_not_set_them_up(project: Path) -> None:
    told = "assert os.environ['PYTORCH_NVML_BASED_CUDA_CHECK'] == '1'"
    (project / "library.py").write_text(f"import os; {told}")
    with fork_server(project, ["library"]):
        assert run(project, "well").stdout.split()[1] != str(os.getpid())
    assert "PYTORCH_NVML_BASED_CUDA_CHECK" not in os.environ


@pytest.mark.parametrize(
    ("devices", "given", "expected"),
    [
        (("cpu", "cpu"), None, (cores(), [])),
        (("cuda", "cuda"), None, (2, ["4", "7"])),
        (("cuda", "cpu"), 4, (4, ["4", "7"])),
        (("cuda:1", "cuda"), None, (1, [])),  # a number chooses among all of them
    ],
)
def test_stages_share_what_there_is(
    devices: tuple[str, str], given: int | None, expected: tuple[int, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = MagicMock()
    params.model().device, params.judge().device = devices
    seen: list[tuple[Any, ...]] = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("stages.reproduce.THREADS_CHOSEN", False)
    monkeypatch.setattr("stages.reproduce.load_params", lambda: params)
    monkeypatch.setattr("relinv.preflight.check_params", lambda params: None)
    monkeypatch.setattr("relinv.pipeline.reproducing.reproduce", lambda root, *arguments: seen.append(arguments))
    reproduce(slots=given)
    assert seen == [expected]


@pytest.mark.parametrize(("threads", "slots"), [(1, 6), (2, 3), (4, 1), (8, 1)])
def test_stages_told_to_compute_on_several_threads_do_not_outnumber_the_cores(
    threads: int, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.reproduce.THREADS_CHOSEN", True)  # as where Slurm sets OMP_NUM_THREADS
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    monkeypatch.setattr("relinv.cli.cores", lambda: 6)
    assert _slots_on_cpu() == slots


def test_what_is_imported_beforehand_is_there() -> None:
    code = "from importlib import import_module as get; from relinv.forking import PRELOADED; list(map(get, PRELOADED))"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)
