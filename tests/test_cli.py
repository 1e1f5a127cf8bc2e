"""A stage's command line: user mistakes become one sentence and exit code 1, bugs keep their traceback."""

from __future__ import annotations

import errno
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from dvc.utils.hydra import apply_overrides
from typer.testing import CliRunner

from relinv import cli, unchanged
from relinv.errors import UserError
from relinv.files import atomic_write_bytes, atomic_write_text, read_text
from relinv.params import Params, load_params
from stages.invert_together import invert_together
from tests.checkouts import lay_out_checkout

NO_MEMORY = "Error: The memory ran out: in params.yaml set bases.NAME.model.precision to bf16 if it is fp32, lower its "
FOR_DEBUGGING = (  # what PyTorch 2.8 adds to every error of a GPU
    "CUDA kernel errors might be asynchronously reported at some other API call\n"
    "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)


def status_of_failing(error: Exception, monkeypatch: pytest.MonkeyPatch) -> int:
    app = cli.stage_app()

    @app.command()
    def command() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["stage"])
    return cli.exit_status(app)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (UserError("No such cat."), "Error: No such cat.\n"),
        (OSError(errno.ENOSPC, "No space left on device"), "Error: The disk is full while writing: free some "),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "Error: The disk is full while writing: "),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a.png"), "Error: Your share of the disk is used up while wri"),
        (RuntimeError("I/O error: Disk quota exceeded (os error 122)"), "Error: Your share of the disk is used up "),
        (OSError(errno.EROFS, "Read-only file system", "a.png"), "Error: The disk may be read, but not written to 'a."),
        (
            OSError(errno.EACCES, "Permission denied", "a.png"),
            "Error: You have no permission to read or write 'a.png': ",
        ),
        (
            OSError(errno.EPERM, "Operation not permitted", "a.png"),
            "Error: You have no permission to read or write 'a.png",
        ),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a.png"), "Error: The path 'a.png' is longer than the "),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), NO_MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes."), NO_MEMORY),
        (RuntimeError("CUDA error: out of memory"), NO_MEMORY),
        (torch.AcceleratorError(f"CUDA error: out of memory\n{FOR_DEBUGGING}"), NO_MEMORY),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), NO_MEMORY),
        (RuntimeError("GET was unable to find an engine to execute this computation"), NO_MEMORY),
        (RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"), NO_MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), NO_MEMORY),
        (MemoryError(), NO_MEMORY),
        (
            torch.AcceleratorError(f"CUDA error: uncorrectable ECC error encountered\n{FOR_DEBUGGING}"),
            "Error: The GPU failed (CUDA error: uncorrectable ECC error encountered): run the same command again, ",
        ),
        (
            torch.AcceleratorError(f"CUDA error: no kernel image is available for execution\n{FOR_DEBUGGING}"),
            "Error: This PyTorch has no code for this GPU (CUDA error: no kernel image is available for execution): ",
        ),
        (RuntimeError("repository path '/a' is not owned by current user"), "Error: The repository belongs to "),
        (RuntimeError("InvalidCxxCompiler: No working C++ compiler"), "Error: torch.compile needs a compiler, "),
        (RuntimeError("Failed to find C compiler. Please specify"), "Error: torch.compile needs a compiler, "),
        (
            subprocess.CalledProcessError(1, ["gcc", "triton/backends/nvidia/driver.c", "-O3"]),
            "Error: torch.compile needs a compiler, ",
        ),
    ],
)
def test_mistake_is_one_sentence(
    error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of_failing(error, monkeypatch) == 1
    text = capsys.readouterr().err
    assert text.startswith(sentence)
    assert text.count("\n") == 1


@pytest.mark.parametrize(("path", "told"), [("file/below", "file"), ("folder", "folder"), ("file", "file")])
def test_what_stands_in_a_files_or_folders_way_is_told(
    path: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError) as caught:
        read_text(tmp_path / path) if path == "folder" else atomic_write_text(tmp_path / path / "a.json", "{}")
    assert status_of_failing(caught.value, monkeypatch) == 1
    error = capsys.readouterr().err
    wanted = {"file": "folder", "folder": "file"}[told]
    assert error.startswith(f"Error: A {told} is where the path '{tmp_path}/{path}' needs a {wanted}: ")
    assert error.count("\n") == 1


def test_what_the_output_has_no_code_for_is_written_as_an_escape() -> None:
    lines = "from relinv import cli\napp = cli.stage_app()\napp.command()(lambda: print('a ↑ − b'))\ncli.run(app)"
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}  # as Windows has for a pipe
    done = subprocess.run([sys.executable, "-c", lines], env=environment, check=True, capture_output=True)
    assert done.stdout.split() == [b"a", b"\\u2191", b"\\u2212", b"b"] and not done.stderr


ENDING = """
import atexit, sys, threading, time
from relinv import cli
app = cli.stage_app()
@app.command()
def command():
    atexit.register(print, "the end")
    threading.Thread(target=lambda: (time.sleep(0.3), print("a thread's"))).start()
    print("a line")
    print("a warning", file=sys.stderr)
    raise SystemExit(7)
cli.run(app)
"""


def test_a_command_ends_with_all_that_it_said_and_had_still_to_do() -> None:
    done = subprocess.run([sys.executable, "-c", ENDING], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 7 and done.stderr == "a warning\n"
    assert done.stdout.splitlines() == ["a line", "a thread's", "the end"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_what_a_command_said_last_and_could_not_write_is_told() -> None:
    with Path("/dev/full").open("w") as full:
        streams = {"stdout": full, "stderr": subprocess.PIPE, "text": True}
        done = subprocess.run([sys.executable, "-c", ENDING], check=False, timeout=60, **streams)
    assert done.returncode not in (0, 7) and "No space left on device" in done.stderr


def test_an_output_that_is_closed_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.argv", ["stage"])
    app = cli.stage_app()
    app.command()(lambda: print("said to nobody"))
    assert cli.exit_status(app) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_told_with_the_file_that_did_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f".a.png.{os.getpid()}.tmp").symlink_to("/dev/full")  # where the bytes go at first
    with pytest.raises(OSError) as caught:
        atomic_write_bytes(tmp_path / "a.png", b"bytes")
    assert status_of_failing(caught.value, monkeypatch) == 1
    assert capsys.readouterr().err.startswith(f"Error: The disk is full while writing '{tmp_path}/a.png': free some")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("given", "threads"), [({}, "1 False"), ({"OMP_NUM_THREADS": "2"}, "2 True")])
def test_stages_compute_on_one_thread_unless_told_otherwise(given: dict[str, str], threads: str) -> None:
    told = "import os, stages; print(os.environ['OMP_NUM_THREADS'], stages.THREADS_CHOSEN)"
    chosen = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", told], env=chosen | given, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == threads


def test_a_method_that_learns_nothing_is_not_trained_together() -> None:
    with pytest.raises(UserError, match="'relation_words' learns nothing"):
        invert_together("relation_words", 2)


def test_a_process_bound_to_some_cores_counts_those(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3, 7}, raising=False)
    monkeypatch.setattr("relinv.cli.CPU_LIMIT", ())
    assert cli.cores() == 2


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (["150000 100000\n"], 2),
        (["50000 100000\n"], 1),
        (["max 100000\n"], 8),
        (["150000\n", "100000\n"], 2),  # in the former control groups
        (["-1\n", "100000\n"], 8),
    ],
)
def test_a_container_with_less_time_than_cores_counts_that(
    limits: list[str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / str(number) for number in range(3)]  # of which the last is missing
    for file, limit in zip(files, limits, strict=False):
        file.write_text(limit)
    monkeypatch.setattr("relinv.cli.CPU_LIMIT", files)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert cli.cores() == expected


def test_a_limit_that_may_not_be_read_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    locked = MagicMock(is_file=lambda: True, read_text=MagicMock(side_effect=PermissionError))
    monkeypatch.setattr("relinv.cli.CPU_LIMIT", [locked])
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert cli.cores() == 8


def test_relations_learned_together_share_one_base(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, trained = [], []
    monkeypatch.setattr("stages.invert_together.load_base", lambda settings: loaded.append(settings) or object())
    for name in ("require_valid", "read_exemplars"):
        monkeypatch.setattr(f"relinv.learning.problem.{name}", lambda path: path)
    monkeypatch.setattr("relinv.learning.inversion.invert_together", lambda problems, scratch: trained.append(problems))
    relations = load_params().relations()
    stale = [f"invert@{relation}-reversion" for relation in relations]
    monkeypatch.setattr("relinv.pipeline.reproducing.stale_stages", lambda root, group: stale)
    invert_together("reversion", 4)
    problems = [problem for batch in trained for problem in batch]
    assert len(trained) > 1 and [problem.exemplars.name for problem in problems] == relations
    assert [settings.source for settings in loaded] == [load_params().model().source]
    assert all(problem.base is problems[0].base for problem in problems)


def test_one_bad_relation_keeps_no_other_from_being_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[list[str]] = []
    first, *others = load_params().relations()

    def read(params: Params, relation: str, *rest: Any) -> str:
        if relation == first:
            raise UserError(f"{relation} is not valid")
        return relation

    def learn(problems: list[str], scratch: Path) -> None:
        trained.append(problems)
        if others[0] in problems:
            raise UserError(f"{others[0]} diverged")

    monkeypatch.setattr("stages.invert_together.due_relations", lambda root, params, method: ([first, *others], []))
    monkeypatch.setattr("stages.invert_together.read_problem", read)
    monkeypatch.setattr("relinv.learning.inversion.invert_together", learn)
    with pytest.raises(UserError, match=f"^{first} is not valid\n{others[0]} diverged$"):
        invert_together("reversion", 4)
    assert trained == [others[start : start + 4] for start in range(0, len(others), 4)]


def test_relations_are_not_learned_together_by_code_that_is_not_what_is_there_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learn = MagicMock()
    monkeypatch.setattr("stages.invert_together.due_relations", lambda root, params, method: (params.relations(), []))
    monkeypatch.setattr("stages.invert_together.read_problem", lambda params, relation, *rest: relation)
    monkeypatch.setattr("relinv.learning.inversion.invert_together", learn)
    edited = unchanged.PACKAGE / "methods/reversion.py"
    monkeypatch.setattr(unchanged, "AT_START", {**unchanged.AT_START, edited: "of other code"})
    with pytest.raises(UserError, match=r"^Code was changed while this ran, .*: relinv/methods/reversion\.py\."):
        invert_together("reversion", 4)
    learn.assert_not_called()


def test_relations_that_stand_are_not_learned_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[str] = []
    first, second, *others = load_params().relations()
    stale = [f"invert@{first}-reversion", f"invert@{second}-textual_inversion"]
    monkeypatch.setattr("relinv.pipeline.reproducing.stale_stages", lambda root, group: stale)
    monkeypatch.setattr("stages.invert_together.read_problem", lambda params, relation, *rest: relation)
    monkeypatch.setattr("relinv.learning.inversion.invert_together", lambda problems, scratch: trained.extend(problems))
    invert_together("reversion", 4)
    assert trained == [first]
    assert f"{', '.join([second, *others])} by reversion: learned already" in capsys.readouterr().out
    trained.clear()
    invert_together("perfusion", 4)  # no stage of the pipeline learns by it
    assert trained == [first, second, *others]


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError(),
        RuntimeError("a shape is wrong"),
        torch.AcceleratorError(f"CUDA error: device-side assert triggered\n{FOR_DEBUGGING}"),
    ],
)
def test_bug_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(type(error)):
        status_of_failing(error, monkeypatch)


@pytest.mark.parametrize("stage", ["fetch", "validate", "judge", "invert", "generate", "score", "report"])
def test_parameters_are_checked_before_torch_is_imported(stage: str) -> None:
    """torch and what builds on it take seconds: a stage reads its parameters and files first."""
    check = "from relinv.params import load_params as load; from relinv.plugins import find_plugin as find; "
    check += "[load().method(name, find('relinv.methods', name).Settings) for name in load().methods()]; "
    code = f"import sys, stages.{stage}; {check} sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("stage", "words"),
    [("fetch", ("inside",)), ("invert", ("inside", "relation_words")), ("generate", ("inside", "relation_words"))],
)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("invert.reversion.steps=abc", r"Parameter 'invert\.reversion\.steps' is 'abc'"),
        ("relations=[inside,inside]", "each item may appear only once"),
        ("relations=[inside,insde]", "Unknown relation 'insde'"),
        ("report.level=2", r"Parameter 'report\.level' is 2"),
    ],
)
def test_a_mistake_in_what_a_later_stage_reads_is_told_before_an_earlier_one_works(
    stage: str,
    words: tuple[str, ...],
    change: str,
    reason: str,
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(lay_out_checkout(tmp_path, tiny_base))
    apply_overrides(Path("params.yaml"), [change])
    with pytest.raises(UserError, match=reason):
        CliRunner().invoke(importlib.import_module(f"stages.{stage}").app, list(words), catch_exceptions=False)
