"""Command `study`: runs the arms of a plan as DVC experiments and writes what they show. It can be resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from relinv import cli
from relinv.params import load_params
from relinv.settings import ReportSettings

app = cli.stage_app()


@app.command(epilog="Example: python -m stages.study --plan plans/study_parts.yaml --arms default,no_steering")
def study(
    arms: Annotated[str, typer.Option(help="Only these arms of the plan, separated by commas.")] = "",
    relations: Annotated[str, typer.Option(help="Only these relations, separated by commas.")] = "",
    plan: Annotated[Path, typer.Option(help="The plan: arms, seeds and contrasts.")] = Path("plans/study.yaml"),
    output: Annotated[Path | None, typer.Option(help="The folder for the tables; default: reports/PLAN.")] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, help="How many stages run at a time; default: as in `reproduce`.")
    ] = None,
) -> None:
    """Run the unfinished experiments, then write study.csv, study.md, study.svg, and the reports of the plan's arms.

    Experiments see the files that git tracks, with uncommitted changes; a new file must be added to git first.
    """
    from relinv.statistics import Bootstrap
    from relinv.study.plan import load_plan, trials
    from relinv.study.running import run_pending
    from relinv.study.summary import gather, keep_reports, write_study

    output = output or Path("reports") / plan.stem
    settings = load_params().section("report", ReportSettings)
    loaded = load_plan(plan)
    planned = trials(Path(), loaded, _names(arms), _names(relations))
    commits = run_pending(Path(), planned, slots)
    rows = gather(Path(), planned, commits)
    write_study(output, plan.as_posix(), loaded, rows, Bootstrap(settings.resamples, settings.seed, settings.level))
    keep_reports(Path(), output, loaded, planned, commits)


def _names(joined: str) -> list[str]:
    return [name.strip() for name in joined.split(",") if name.strip()]


if __name__ == "__main__":
    cli.run(app)
