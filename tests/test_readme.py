"""The README stays true: its file tree names every module, and every file it names is there."""

from __future__ import annotations

import re
from pathlib import Path

TREE = Path("README.md").read_text(encoding="utf-8").partition("## What is where")[2]


def test_the_file_tree_names_every_module_and_no_other() -> None:
    named, folder = set(), ""
    for line in TREE.splitlines():
        found = re.match(r"( {4})?([\w./]+)", line)
        if found and not found[1]:
            folder = found[2]
        if found and found[2].endswith(".py"):
            named.add(f"{folder if found[1] else ''}{found[2]}")
    modules = {path.as_posix() for root in ("relinv", "stages", "benchmarks") for path in Path(root).rglob("*.py")}
    assert named == {module for module in modules if not module.endswith("__init__.py")}


def test_every_file_and_link_is_there() -> None:
    text = Path("README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    named = re.findall(r"^([\w./]+/[\w./]*)  ", TREE, re.MULTILINE)
    assert [path for path in links + named if not Path(path).exists()] == []
