"""The Makefile: what its recipes are run with."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.checkouts import ROOT


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
