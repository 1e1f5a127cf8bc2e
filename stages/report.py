"""Stage `report`: tables with intervals, charts, contact sheets, and the two pages that hold them."""

from __future__ import annotations

from pathlib import Path

from relinv import cli
from relinv.params import load_params
from relinv.unchanged import require_unchanged

app = cli.stage_app()


@app.command(epilog="Example: python -m stages.report")
def report() -> None:
    """Write reports/: metrics.json, scores.csv, grids/, report.html and report.md.

    It reads the results of the relations and methods that params.yaml names.
    """
    from relinv.report.build import write_report

    params = load_params()
    write_report(Path(), params)
    require_unchanged(params, "report")


if __name__ == "__main__":
    cli.run(app)
