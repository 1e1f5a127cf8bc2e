"""Stages forked from one process that has imported the heavy libraries: importing them takes longer than some stages.

`fork_server` starts that process and says in the environment where it listens. A stage's command that finds it there
(relinv/cli.py) sends its module, arguments, environment, folder and standard streams, and waits: the fork runs the
very stage in its place and dies with it.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

ADDRESS = "RELINV_FORK_SERVER"  # the environment's variable with the socket's path
# Nothing of relinv: each fork imports that anew, as a process of its own would.
PRELOADED = ("diffusers.models.autoencoders.autoencoder_kl", "diffusers.models.unets.unet_2d_condition",
             "diffusers.schedulers", "transformers.models.clip.modeling_clip",
             "transformers.models.clip.tokenization_clip", "open_clip", "pandas", "typer")  # fmt: skip


@contextmanager
def fork_server(root: Path) -> Iterator[None]:
    """Inside the block, commands of stages that are started with this process's environment are forked in `root`."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address := f"{folder}/socket")
        listener.listen()
        command = [sys.executable, "-m", __name__, str(listener.fileno())]
        server = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, pass_fds=[listener.fileno()])
        listener.close()  # where the server dies, commands are refused here, and run by themselves
        os.environ[ADDRESS] = address
        try:
            yield
        finally:
            del os.environ[ADDRESS]
            server.kill()
            server.communicate()


def run_forked() -> int | None:
    """Run this process's command in a fork and return its exit status, or None where no server is to be had."""
    address = os.environ.pop(ADDRESS, None)  # once: the fork runs the command itself
    module: Any = sys.modules["__main__"].__spec__
    if not address or not module:
        return None
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(address)
        except OSError:
            return None
        try:
            socket.send_fds(connection, [b"\n"], [0, 1, 2])
            connection.sendall(json.dumps(_request(module.name)).encode() + b"\n")
            status = connection.recv(1)
        except OSError:
            status = b""
    if not status:
        print(f"Error: {module.name} was killed before its end: did the memory run out?", file=sys.stderr)
    return status[0] if status else 1


def _request(module: str) -> dict[str, Any]:
    return {"module": module, "arguments": sys.argv, "environment": dict(os.environ), "folder": str(Path.cwd())}


def serve(listener: socket.socket) -> None:
    """Fork for each command that connects, for ever; raises SystemExit in the forks, when their command has ended."""
    _die_with(os.dup(0))  # its other end is the process that wanted the server
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for that process and the forks
    for name in PRELOADED:
        import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks that have ended leave nothing behind
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            listener.close()
            sys.exit(_answer(connection))
        connection.close()


def _answer(connection: socket.socket) -> int:
    """Run the command that a connection sends, tell it the exit status and return that."""
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    with connection.makefile("rb") as reader:
        request = json.loads(reader.readline())
    _die_with(connection.fileno())  # where the command is killed, so is what runs in its place
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["arguments"]
    status = _run(request["module"])
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(bytes([status]))
    return status


def _run(module: str) -> int:
    """Run a module as `python -m` does; return its exit status."""
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        return 1
    return 0


def _die_with(descriptor: int) -> None:
    """Kill this process when the other end of a pipe or socket, on which nothing comes, is closed."""

    def wait() -> None:
        os.read(descriptor, 1)  # no lock of a stream is held, which a fork would find held for ever
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
