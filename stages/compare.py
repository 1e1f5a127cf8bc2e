"""Command `compare`: revisions and experiments side by side. Not a pipeline stage: it reads other revisions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from relinv import cli
from relinv.params import load_params
from relinv.settings import ReportSettings

app = cli.stage_app()


@app.command(epilog="Example: python -m stages.compare main my-experiment workspace --html comparison.html")
def compare(
    revisions: Annotated[list[str], typer.Argument(help="Commits, branches, experiments, or the word workspace.")],
    html: Annotated[Path | None, typer.Option(help="Also write the tables to this HTML file.")] = None,
) -> None:
    """Print how revisions differ: in parameters, in metrics, and in paired differences from the first."""
    from relinv.files import atomic_write_text
    from relinv.report.compare import as_html, as_lines, compare, require_html
    from relinv.statistics import Bootstrap

    if html:
        require_html(html)
    settings = load_params().section("report", ReportSettings)
    comparison = compare(Path(), revisions, Bootstrap.of(settings))
    print(as_lines(comparison))
    if html:
        atomic_write_text(html, as_html(comparison))


if __name__ == "__main__":
    cli.run(app)
