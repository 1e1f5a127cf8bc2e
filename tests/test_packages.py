"""The pinned packages: all that are declared, in versions that its bounds and the oldest Python allow."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINES = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line]
PINNED = {canonicalize_name(name): version for name, version in (line.split("==") for line in LINES)}


@pytest.mark.parametrize("declared", [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]])
def test_what_is_declared_is_pinned_within_its_bounds(declared: str) -> None:
    wanted = Requirement(declared)
    assert PINNED[canonicalize_name(wanted.name)] in wanted.specifier


def test_the_oldest_python_can_install_what_is_pinned() -> None:
    oldest = PROJECT["requires-python"].removeprefix(">=") + ".0"  # Debian 12 has 3.11.2
    asked: dict[str, str] = {}
    for name in PINNED:
        try:
            asked[name] = metadata(name).get("Requires-Python", "")
        except PackageNotFoundError:  # of another system
            continue
    assert len(asked) > 100
    assert {name: python for name, python in asked.items() if oldest not in SpecifierSet(python)} == {}
