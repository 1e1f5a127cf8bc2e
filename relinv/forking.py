"""Stages forked from one process that has imported the heavy libraries: importing them takes longer than some stages.

`fork_server` starts that process and puts its address in the environment. A stage's command that finds it there
(relinv/cli.py) sends its module, arguments, environment, folder and standard streams, and waits while a forked worker
runs the stage in its place. The command's Ctrl-C and death are passed on to the worker, and the worker's exit status
back to the command.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import runpy
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

ADDRESS = "RELINV_FORK_SERVER"  # the environment variable with the socket's path
NUMBER = struct.Struct("!i")  # a worker's process id, and later its exit status
# Libraries look for GPUs when they are imported; so told, PyTorch counts them without setting up CUDA.
WITHOUT_CUDA = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
# Nothing of relinv: each worker imports that afresh, as a separate process would.
PRELOADED = ("diffusers.models.autoencoders.autoencoder_kl", "diffusers.models.unets.unet_2d_condition",
             "diffusers.schedulers", "transformers.models.clip.modeling_clip",
             "transformers.models.clip.tokenization_clip", "open_clip", "pandas", "typer")  # fmt: skip


@contextmanager
def fork_server(root: Path, preloaded: Sequence[str] = PRELOADED) -> Iterator[None]:
    """Inside the block, a server in `root` forks the stages whose commands are started with this process's environment.

    If there can be none here, or it cannot be reached, they run by themselves.
    """
    if not can_serve():
        yield
        return
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(address := f"{folder}/socket")
        except OSError:  # a path may be too long for a socket
            yield
            return
        listener.listen()
        command = [sys.executable, "-m", __name__, str(listener.fileno()), *preloaded]
        streams: dict[str, Any] = {"stdin": subprocess.PIPE, "pass_fds": [listener.fileno()]}
        server = subprocess.Popen(command, cwd=root, env=os.environ | WITHOUT_CUDA, **streams)
        listener.close()
        os.environ[ADDRESS] = address
        try:
            yield
        finally:
            del os.environ[ADDRESS]
            server.kill()
            server.communicate()


def can_serve() -> bool:
    """Return whether a server works here: on Linux 5.3 or newer, if Python was built for it (conda's is not)."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


def run_forked() -> int | None:
    """Run this process's command in a worker and return its exit status, or None if no server is available."""
    address = os.environ.pop(ADDRESS, None)  # removed: the worker must run the command itself
    module: Any = sys.modules["__main__"].__spec__
    if not address or not module:
        return None
    request = {"module": module.name, "arguments": sys.argv, "environment": dict(os.environ), "folder": str(Path.cwd())}
    with socket.socket(socket.AF_UNIX) as connection:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until there is a worker to pass it on to
        try:
            connection.connect(address)
            socket.send_fds(connection, [b"\n"], [0, 1, 2])
            connection.sendall(json.dumps(request).encode() + b"\n")
            worker = _receive(connection)
        except OSError:
            worker = None
        if worker is not None and worker > 0:
            signal.signal(signal.SIGINT, lambda *_: os.kill(worker, signal.SIGINT))  # it is in another process group
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        if worker is None or worker < 0:  # no server, or a worker that died before it began
            return None
        status = _receive(connection)
    if status == -signal.SIGINT:  # while it imported
        return 130
    if status is not None and status >= 0:
        return status
    print(f"Error: {module.name} was killed before its end: did the memory run out?", file=sys.stderr)
    return 1


def serve(listener: socket.socket, preloaded: Sequence[str]) -> None:
    """Fork a worker for each command that connects, for ever; only the workers return, once their module has run.

    If the libraries have set up a GPU, this returns at once, and the commands run by themselves.
    """
    _when_closed(os.dup(0), os.getpid())  # its other end is held by the process that started the server
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for that process
    gc.disable()  # it takes a quarter of the time of importing
    for name in preloaded:
        import_module(name)
    gc.freeze()  # or a worker that looks for garbage would touch, and so copy, all the memory that it shares
    gc.enable()
    if _gpu_is_set_up():
        return
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers that have ended leave no zombies
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _keep(connection)
            return
        connection.close()


def _gpu_is_set_up() -> bool:
    """Return whether this process has set up CUDA or ROCm, which processes forked from it could then not use."""
    if any(str(entry.resolve()) == "/dev/kfd" for entry in Path("/proc/self/fd").iterdir()):  # ROCm's
        return True
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:  # no NVIDIA driver
        return False
    return bool(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) == 0)  # before cuInit, it is an error


def _keep(connection: socket.socket) -> None:
    """Fork a worker for the command that a connection sends, and send back its exit status; only the worker returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile("rb") as reader:
        request = json.loads(reader.readline())
    worker = os.fork()
    if worker == 0:
        _work(connection, request, streams)
        return
    _when_closed(connection.fileno(), worker)  # if the command is killed, so is the worker in its place
    _, status = os.waitpid(worker, 0)
    with suppress(OSError):
        connection.sendall(NUMBER.pack(os.waitstatus_to_exitcode(status)))
    os._exit(0)


def _work(connection: socket.socket, request: dict[str, Any], streams: Sequence[int]) -> None:
    """Become the command: send this process's id, and run the module as `python -m` does."""
    os.setpgid(0, 0)  # so that Ctrl-C comes once, from the command
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdout = os.fdopen(1, "w", closefd=False)  # not the server's: a file's fails where a pipe has come in its place
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["arguments"]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with connection:  # last: a Ctrl-C that had to wait comes at once, and what it prints belongs in the stage's log
        connection.sendall(NUMBER.pack(os.getpid()))
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def _receive(connection: socket.socket) -> int | None:
    """Return the next number, or None if the other end has closed."""
    with suppress(OSError):
        data = connection.recv(NUMBER.size, socket.MSG_WAITALL)
        if len(data) == NUMBER.size:
            return int(NUMBER.unpack(data)[0])
    return None


def _when_closed(descriptor: int, process: int) -> None:
    """Kill a process, if it still runs, when the other end of a silent pipe or socket is closed."""
    handle = os.pidfd_open(process)  # never another process that was given its id

    def wait() -> None:
        """Block until the other end is closed, then kill."""
        os.read(descriptor, 1)  # not a stream: a fork would find its lock held for ever
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
