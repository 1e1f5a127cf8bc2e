"""Several stages at a time: the same results as `dvc repro`, and a failure that names its stage and loses nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from relinv.errors import UserError
from relinv.reproducing import GROUPS, LOGS, reproduce, stale_stages

ITEMS = ("a", "b", "c")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a DVC project of the pipeline's shape whose stages copy a file onward, so that order matters."""
    lines = ["stages:"]
    for before, group in zip(("source", *GROUPS), GROUPS, strict=False):
        given = "source-${item}" if before == "source" else f"{before}-${{item}}"
        lines += [
            f"  {group}:",
            f"    foreach: [{', '.join(ITEMS)}]",
            "    do:",
            f"      cmd: cp {given} {group}-${{item}}",
            f'      deps: ["{given}"]',
            f'      outs: ["{group}-${{item}}"]',
        ]
    inputs = ", ".join(f"score-{item}" for item in ITEMS)
    lines += ["  report:", f"    cmd: cat score-* > report.txt\n    deps: [{inputs}]\n    outs: [report.txt]"]
    (tmp_path / "dvc.yaml").write_text("\n".join(lines) + "\n")
    for item in ITEMS:
        (tmp_path / f"source-{item}").write_text(item)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=tmp_path, check=True)
    return tmp_path


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
