"""The Makefile: what its recipes are run with."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.checkouts import ROOT


@pytest.mark.parametrize(
    ("base", "said", "expected"),
    [([], None, "1"), (["BASE=sd15"], None, "0"), (["BASE=sd15"], "1", "1"), ([], "0", "0")],
)
def test_the_hub_is_asked_for_another_base_unless_the_user_forbids_it(
    base: list[str], said: str | None, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "Makefile").write_text("include Makefile\nreproduce:\n\t@echo $$HF_HUB_OFFLINE\n")  # its own recipe
    environment = {"PATH": os.environ["PATH"]}  # without what a `make -C FOLDER test BASE=sd15` hands down
    done = subprocess.run(
        ["make", "--silent", "--file", tmp_path / "Makefile", "--assume-old", ".venv/.installed", *base, "reproduce"],
        cwd=ROOT,
        env=environment | ({"HF_HUB_OFFLINE": said} if said else {}),
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{expected}\n"


@pytest.mark.parametrize(("base", "changes"), [([], []), (["BASE=sd15"], ["--set-param", "base=sd15"])])
def test_another_base_is_reproduced_like_the_miniature(base: list[str], changes: list[str]) -> None:
    done = subprocess.run(
        ["make", "--dry-run", "--assume-old", ".venv/.installed", *base, "reproduce"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [".venv/bin/python", "-m", "stages.reproduce", *changes]
