"""Several stages at a time: the same results as `dvc repro`, and a failure that names its stage and loses nothing."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import dvc.repo  # noqa: F401 - here, because DVC's log keeps the stdout it finds first, which is to outlive a test
import psutil
import pytest

from relinv import cli
from relinv.errors import UserError
from relinv.params import load_params
from relinv.pipeline.logged import last_words, run_logged
from relinv.pipeline.reproducing import (
    ENDED,
    LOGS,
    _ended,
    _shares,
    _write,
    due_relations,
    reproduce,
    reproduce_share,
    stale_stages,
)
from stages import reproduce as command
from tests.waiting import wait_until

HERE = Path(__file__).parent.parent
ITEMS = ("a", "b", "c")
GROUPS = ("fetch", "score")  # each takes seconds, and any number of them the same course


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a DVC project of the pipeline's shape whose stages copy a file onward, so that order matters."""
    monkeypatch.setattr("relinv.pipeline.reproducing.GROUPS", GROUPS)
    lines = ["stages:"]
    for before, group in zip(("source", *GROUPS), GROUPS, strict=False):
        given = "source-${item}" if before == "source" else f"{before}-${{item}}"
        lines += [
            f"  {group}:",
            f"    foreach: [{', '.join(ITEMS)}]",
            "    do:",
            f"      cmd: while [ -e wait-${{item}} ]; do sleep 0.1; done; cp {given} {group}-${{item}}",
            f'      deps: ["{given}"]',
            f'      outs: ["{group}-${{item}}"]',
        ]
    inputs = ", ".join(f"score-{item}" for item in ITEMS)
    lines += ["  report:", f"    cmd: cat score-* > report.txt\n    deps: [{inputs}]\n    outs: [report.txt]"]
    (tmp_path / "dvc.yaml").write_text("\n".join(lines) + "\n")
    for item in ITEMS:
        (tmp_path / f"source-{item}").write_text(item)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=tmp_path, check=True, timeout=120)
    return tmp_path


def test_each_slot_sees_a_gpu_of_its_own(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")  # as a person chose them
    pipeline = project / "dvc.yaml"
    pipeline.write_text(pipeline.read_text().replace("; cp ", '; echo "$CUDA_VISIBLE_DEVICES" >> seen; cp '))
    reproduce(project, slots=3, gpus=["4", "7"])
    assert sorted((project / "seen").read_text().split()) == [*["4"] * 2 * len(GROUPS), *["7"] * len(GROUPS)]


def stages_run(project: Path) -> set[str]:
    texts = [log.read_text() for log in (project / LOGS).glob("*.log")]
    return {name for text in texts for name in re.findall("Running stage '(.*)'", text)}


def test_a_failing_stage_is_named_and_the_next_run_makes_only_what_is_missing(project: Path) -> None:
    (project / "source-b").unlink()
    with pytest.raises(
        UserError, match=r"A stage of 'fetch' failed, .*fetch@b.* See .*\.scratch/reproduce/fetch-\d\.log"
    ):
        reproduce(project, slots=2)
    assert (project / "fetch-a").read_text() == "a"
    assert not (project / "report.txt").exists()

    (project / "source-b").write_text("b")
    reproduce(project, slots=3)
    assert (project / "report.txt").read_text() == "abc"
    made = stages_run(project)
    assert {f"{group}@{item}" for group in GROUPS[1:] for item in ITEMS} | {"fetch@b"} <= made
    assert "fetch@a" not in made
    assert [stale_stages(project, group) for group in GROUPS] == [[]] * len(GROUPS)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            "echo a bar; printf 'Error: Bad captions:\\n  - none for 0.png\\n' >&2; false",
            "saying: Bad captions:\n  - none for 0.png 'fetch@b' could not be reproduced: .* exited with 1. See ",
        ),
        (
            "printf 'Traceback:\\nValueError: odd\\n' >&2; exit 3",
            "saying: ValueError: odd 'fetch@b' could not be reproduced: .* exited with 3. See ",
        ),
    ],
)
def test_what_a_failing_command_said_is_quoted_with_its_stage(project: Path, command: str, said: str) -> None:
    (project / "fetch-b.sh").write_text(command)
    fails = "if [ -e fetch-${item}.sh ]; then . ./fetch-${item}.sh; fi && cp source-"
    pipeline = (project / "dvc.yaml").read_text()
    (project / "dvc.yaml").write_text(pipeline.replace("cp source-", fails))
    with pytest.raises(UserError, match=said):
        reproduce(project, slots=1)


@pytest.mark.parametrize(
    ("was", "wrong", "said"),
    [
        ("\n- inside\n", "\n- insde\n", "Error: Unknown relation 'insde'. Did you mean 'inside'?"),
        ("\n- reversion\n", "\n- reverson\n", "Error: Unknown method 'reverson'. Did you mean 'reversion'?"),
        (
            "\n    steer_weight: 0.01\n",
            "\n    steer_weight: -1\n",
            "Error: Parameter 'invert.reversion.steer_weight' is -1 in params.yaml",
        ),
    ],
)
def test_a_wrong_name_is_told_before_anything_runs(
    was: str, wrong: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params = (HERE / "params.yaml").read_text()
    assert params.count(was) == 1
    (tmp_path / "params.yaml").write_text(params.replace(was, wrong))
    (tmp_path / "data").symlink_to(HERE / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("relinv.pipeline.reproducing.reproduce", lambda *_: pytest.fail("it ran"))
    monkeypatch.setattr("sys.argv", ["reproduce"])
    assert cli.exit_status(command.app) == 1
    assert capsys.readouterr().err.startswith(said)


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder to work in with the committed parameters."""
    shutil.copy(HERE / "params.yaml", tmp_path)
    (tmp_path / "data").symlink_to(HERE / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_parameters_are_changed_before_anything_runs(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relinv.pipeline.reproducing.reproduce", MagicMock())
    monkeypatch.setattr(
        "sys.argv",
        ["reproduce", "-S", "relations=[hug, on]", "-S", "presets.reversion.official.steer_weight=0.2",
         "--set-param", "invert.reversion.stop_threshold=0.2", "-S", "invert.preset=official",
         "-S", "./params.yaml:score.batch_size=3"],
    )  # fmt: skip
    assert cli.exit_status(command.app) == 0
    params = load_params()
    assert params.relations() == ["hug", "on"]
    assert params.section("invert.reversion.stop_threshold", float) == 0.2
    assert params.section("score.batch_size", int) == 3
    assert params.presets["reversion"]["official"]["steer_weight"] == 0.2
    kept = (pipeline / "params.yaml").read_text().splitlines()
    assert [line for line in (HERE / "params.yaml").read_text().splitlines() if "# " in line and line not in kept] == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("relations=[insde]", "Error: Unknown relation 'insde'. Did you mean 'inside'?"),
        ("base=sd155", "Error: Unknown base 'sd155'. Did you mean 'sd15'?"),
        ("invert.reversion.steer=1", "Error: Parameters cannot be changed in 'params.yaml': Could not override 'inv"),
        (
            "relations=inside,on",
            "Error: 'relations=inside,on' gives several values: write a list in brackets, as in rel",
        ),
        ("relations.inside=1", "Error: Parameters cannot be changed in 'params.yaml': invalid literal for int"),
        ("base", "Error: Parameters cannot be changed in 'params.yaml': Error parsing override 'base' missing EQUAL"),
        ("score.batch_size=${foo}", "Error: Parameters cannot be changed in 'params.yaml': Interpolation key 'foo'"),
        (
            "score.batch_size=glob(*)",
            "Error: 'score.batch_size=glob(*)' gives several values: write a list in brackets",
        ),
        (
            "param.yaml:base=sd15",
            "Error: 'param.yaml:base=sd15' names another file than params.yaml: write NAME=VALUE.",
        ),
        (
            "presets.yaml:reversion.official.steps=7",
            "Error: 'presets.yaml:reversion.official.steps=7' names another file than params.yaml: write NAME=VALUE.",
        ),
        (
            "./params.yaml:invert.preset=official",
            "Error: 'invert.reversion.steps' would change nothing: the preset 'official' sets it; write presets.rev",
        ),
        (
            "++presets.reversion.official.steps=7",
            "Error: 'presets.reversion.official.steps' would change nothing: no preset is in use; set invert.",
        ),
    ],
)
def test_a_wrong_change_is_told_and_no_file_is_changed(
    change: str, said: str, pipeline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("relinv.pipeline.reproducing.reproduce", lambda *_: pytest.fail("it ran"))
    monkeypatch.setattr("sys.argv", ["reproduce", "-S", "invert.reversion.steps=7", "-S", change])
    assert cli.exit_status(command.app) == 1
    assert capsys.readouterr().err.startswith(said)
    assert (pipeline / "params.yaml").read_bytes() == (HERE / "params.yaml").read_bytes()
    assert not (pipeline / "param.yaml").exists()


def test_an_edit_that_the_preset_undoes_is_told_before_anything_is_run(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    committed = (pipeline / "params.yaml").read_text().replace("steer_weight: 0.01", "steer_weight: 0.1", 1)
    monkeypatch.setattr("relinv.overrides.git", lambda *words: committed)
    monkeypatch.setattr("relinv.pipeline.reproducing.reproduce", lambda *_: pytest.fail("it ran"))
    monkeypatch.setattr("sys.argv", ["reproduce", "-S", "invert.preset=official", "-S", "methods=[reversion]",
                                     "-S", "presets.reversion.official.initializer_token=and"])  # fmt: skip
    assert cli.exit_status(command.app) == 1
    told = capsys.readouterr().err
    assert told.startswith("Error: 'invert.reversion.steer_weight' would change nothing: the preset 'official' sets it")
    assert (pipeline / "params.yaml").read_bytes() == (HERE / "params.yaml").read_bytes()


def test_a_file_system_without_locks_is_told_instead_of_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    monkeypatch.setattr("fcntl.flock", MagicMock(side_effect=unknown))
    with pytest.raises(UserError, match=r"Files cannot be locked in '.*' \(.*Function not implemented\): keep the"):
        reproduce(tmp_path, slots=1)


def test_what_dvc_cannot_do_is_told_as_a_failure(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relinv.pipeline.reproducing.GROUPS", ())  # nothing before the last `dvc repro`, which fails
    (project / "source-b").unlink()
    with pytest.raises(UserError, match="`dvc repro` failed, as it says above"):
        reproduce(project, slots=1)
    (project / "dvc.yaml").write_text("stages: [")
    with pytest.raises(UserError, match=r"DVC cannot tell what has changed in 'fetch'\. It says:\n.*dvc\.yaml"):
        stale_stages(project, "fetch")


def test_due_is_what_dvc_calls_stale_and_all_of_a_method_that_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relinv.pipeline.reproducing.stale_stages", lambda root, group: [f"{group}@hug-reversion"])
    params = load_params()
    params._values.update(relations=["inside", "hug"], methods=["textual_inversion", "reversion"])
    assert due_relations(Path(), params, "reversion") == (["hug"], ["inside"])
    assert due_relations(Path(), params, "textual_inversion") == ([], ["inside", "hug"])
    assert due_relations(Path(), params, "multires") == (["inside", "hug"], [])


def test_what_had_ended_before_a_kill_is_not_run_again(project: Path) -> None:
    (project / "wait-c").touch()
    said = project / "said.txt"
    command = [sys.executable, "-m", "relinv.pipeline.reproducing", *(f"fetch@{item}" for item in ITEMS)]
    with said.open("w") as stream:
        share = subprocess.Popen(
            command, cwd=project, env=os.environ | {"PYTHONPATH": str(HERE)}, stdout=stream, start_new_session=True
        )
    wait_until(lambda: "Running stage 'fetch@c'" in said.read_text() or share.poll() is not None)
    assert share.poll() is None
    os.killpg(share.pid, signal.SIGKILL)
    share.wait(timeout=120)
    assert said.read_text().count(ENDED) == 2 and not (project / "dvc.lock").exists()

    (project / "wait-c").unlink()
    reproduce(project, slots=2)
    assert (project / "report.txt").read_text() == "abc"
    assert stages_run(project) & {f"fetch@{item}" for item in ITEMS} == {"fetch@c"}


def test_shares_end_with_the_process_that_wanted_them_and_keep_what_had_ended(project: Path) -> None:
    (project / "wait-c").touch()
    lines = (
        "from pathlib import Path; from relinv.pipeline.reproducing import reproduce; reproduce(Path.cwd(), slots=1)"
    )
    wanting = subprocess.Popen(
        [sys.executable, "-c", lines], cwd=project, env=os.environ | {"PYTHONPATH": str(HERE)}, start_new_session=True
    )
    log = project / LOGS / "fetch-0.log"
    wait_until(lambda: log.exists() and "Running stage 'fetch@c'" in log.read_text())
    started = psutil.Process(wanting.pid).children(recursive=True)
    wanting.kill()
    wanting.wait(timeout=120)
    assert len(started) > 1 and psutil.wait_procs(started, timeout=120)[1] == []
    assert (project / "wait-c").exists()
    assert "fetch@b" in (project / "dvc.lock").read_text() and "fetch@c" not in (project / "dvc.lock").read_text()


def test_a_disk_that_is_full_for_dvc_is_told_with_what_to_do(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setattr("dvc.stage.Stage.reproduce", MagicMock(side_effect=OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(
        UserError, match=r"'fetch@a' could not be reproduced: The disk is full while writing: free some"
    ):
        reproduce_share(project, ["fetch@a"])


def test_a_stage_that_another_process_is_making_is_told_in_one_line_with_that_process(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, because the last of a share's log is what is passed on."""
    monkeypatch.chdir(project)
    (project / "wait-a").touch()
    other = subprocess.Popen([sys.executable, "-m", "dvc", "repro", "fetch@a"], cwd=project, stdout=subprocess.PIPE)
    lock = project / ".dvc/tmp/rwlock"
    wait_until(lambda: lock.exists() and str(other.pid) in lock.read_text())
    try:
        with pytest.raises(UserError, match=rf"^'fetch@a' could .* is busy, .* by: \(PID {other.pid}\)"):
            reproduce_share(project, ["fetch@a"])
    finally:
        (project / "wait-a").unlink()
        other.communicate(timeout=120)


def test_the_lock_of_another_dvc_is_waited_for(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For longer than the three seconds after which DVC gives up by itself, as with many slots."""
    monkeypatch.chdir(project)
    code = (
        "import pathlib, time; from dvc.repo import Repo, lock_repo\n"
        "with Repo() as repo, lock_repo(repo):\n pathlib.Path('held').touch()\n time.sleep(8)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], cwd=project)
    wait_until(lambda: (project / "held").exists() or other.poll() is not None)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(stale_stages, project, "score")
        reproduce_share(project, ["fetch@a"])
        assert asking.result() == [f"score@{item}" for item in ITEMS]
    assert other.wait(timeout=60) == 0 and (project / "fetch-a").exists()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_stops_a_process_does_not_cut_dvc_lock_short(stop: signal.Signals) -> None:
    written = []

    def dump_stages(stages: list[object], update_pipeline: bool) -> None:
        signal.raise_signal(stop)
        written.extend(stages)

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    stage = SimpleNamespace(dvcfile=SimpleNamespace(dump_stages=dump_stages))
    former = signal.signal(stop, end)
    try:
        with pytest.raises(KeyboardInterrupt):
            _write([stage])
        assert signal.getsignal(stop) is end
    finally:
        signal.signal(stop, former)
    assert written == [stage]


@pytest.mark.parametrize(
    ("command", "said"), [("printf 'caf\\351\\n'; exit 1", "caf\N{REPLACEMENT CHARACTER}"), ("exit 1", "no word")]
)
def test_what_a_failing_command_said_is_passed_on_whatever_its_bytes(command: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^It failed, saying: {said}\. See "):
        run_logged("It", ["sh", "-c", command], tmp_path / "logs/it.log", tmp_path, {})


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("Error: A\nError: B\nFailed fetch@b\nError: C\n", "B C"),  # of an earlier stage, which went on
        ("Failed to look for updates\nError: B\nFailed fetch@b\nError: C\n", "B C"),  # a command's own words
        ("Failed fetch@b\nError: C\n", "C"),
    ],
)
def test_the_cause_of_a_failure_is_the_last_that_its_own_command_said(log: str, said: str) -> None:
    assert last_words(log) == said


def test_stages_are_counted_in_logs_of_whatever_bytes(tmp_path: Path) -> None:
    (tmp_path / "fetch-0.log").write_bytes(b"caf\xe9\n" + f"{ENDED}fetch@a\n{ENDED}fetch@b\n".encode())
    assert _ended([tmp_path / "fetch-0.log", tmp_path / "fetch-1.log"]) == 2  # one has not begun


@pytest.mark.parametrize("methods", [["relation_words", "reversion"], ["relation_words", "reversion", "multires"]])
def test_each_slot_has_its_part_of_every_method(methods: list[str]) -> None:
    stages = [f"invert@{relation}-{method}" for relation in ("hug", "inside", "on", "ride_on") for method in methods]
    shares = _shares(stages, 2)
    assert sorted(name for share in shares for name in share) == sorted(stages)
    for method in methods:
        assert [sum(name.endswith(f"-{method}") for name in share) for share in shares] == [2, 2]
    assert _shares(["fetch@on"], 2) == [["fetch@on"]]
