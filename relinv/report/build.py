"""The report stage's work: collect a run, tell its story, write the files."""

from __future__ import annotations

from pathlib import Path

from relinv.files import atomic_folder, atomic_write_bytes, atomic_write_text, write_json
from relinv.params import Params
from relinv.report.collect import collect
from relinv.report.pages import html, markdown
from relinv.report.rows import format_rows, means
from relinv.report.sheets import render
from relinv.report.story import tell


def write_report(root: Path, params: Params) -> None:
    """Write metrics.json, scores.csv, grids/, report.html and report.md below `root`/reports.

    Equal inputs give equal bytes. Raises UserError if a result of an earlier stage is missing or damaged.
    """
    run = collect(root, params)
    story = tell(run)
    reports = Path(root) / "reports"
    with atomic_folder(reports / "grids") as grids:
        for sheet in story.sheets:
            atomic_write_bytes(grids / f"{sheet.relation}.png", render(sheet))
            for method, path in sheet.forms.items():
                atomic_write_bytes(grids / f"{sheet.relation}-{method}.png", path.read_bytes())
    write_json(reports / "metrics.json", means(run.rows, run.methods))
    atomic_write_text(reports / "scores.csv", format_rows(run.rows))
    atomic_write_text(reports / "report.html", html(story))
    atomic_write_text(reports / "report.md", markdown(story))
