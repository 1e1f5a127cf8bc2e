"""The README stays true: its file tree names every module, and every file it names is there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides
from PIL import Image

from stages.validate import validate
from tests.checkouts import lay_out_checkout

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


def anchors(page: Path) -> set[str]:
    """Return how links name a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [Path("README.md"), Path("reports/README.md"), *Path("docs").glob("*.md")])
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_what_is_told_of_python_runs(
    tiny_base: Path,
    exemplar_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    told = Path("README.md").read_text(encoding="utf-8").partition("### Use it from Python")[2].split("```")[1]
    judge = Path("data/miniature/judge").resolve()
    monkeypatch.chdir(lay_out_checkout(tmp_path, tiny_base))
    small = ["invert.reversion.steps=2", "invert.preview.prompts=[]", "bases.miniature.sampling.steps=2"]
    apply_overrides(Path("params.yaml"), [*small, f"bases.miniature.judge.model={judge}"])
    shutil.copytree(exemplar_folder, "data/relations/inside")
    validate("inside")
    exec(told.removeprefix("python"), {})
    assert Image.open("cat.png").size == (64, 64) and "[[" in capsys.readouterr().out


def test_every_file_of_the_tree_is_there() -> None:
    named = re.findall(r"^([\w./]+/[\w./]*)  ", TREE, re.MULTILINE)
    assert [path for path in named if not Path(path).exists()] == []
