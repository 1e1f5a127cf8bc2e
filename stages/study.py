"""Command `study`: runs the arms of a plan as DVC experiments and writes what they show. It can be resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from relinv import cli
from relinv.errors import UserError
from relinv.params import load_params
from relinv.pipeline.restoring import GRIDS
from relinv.settings import ReportSettings

app = cli.stage_app()


@app.command(epilog="Example: python -m stages.study plans/study.yaml plans/study_parts.yaml")
def study(
    plans: Annotated[list[Path], typer.Argument(help="Plans: arms, seeds and contrasts; they run one by one.")],
    slots: Annotated[
        int | None, typer.Option(min=1, help="How many stages run at a time; default: as in `reproduce`.")
    ] = None,
) -> None:
    """Run the unfinished experiments of each plan, then write what they show to reports/PLAN.

    That is study.csv, study.md, study.svg, and the reports of the plan's arms. Experiments see your code,
    parameters and exemplars as they are when each plan begins, committed or not.
    """
    from relinv.statistics import Bootstrap
    from relinv.study.plan import check_trials, load_plan, trials
    from relinv.study.running import alone, finished, run_pending
    from relinv.study.summary import gather, keep_reports, write_study

    settings = load_params().section("report", ReportSettings)
    bootstrap = Bootstrap.of(settings)
    if len({path.stem for path in plans}) < len(plans):
        raise UserError("Two of the plans have one name, so their results would replace each other: rename one.")
    for path in plans:
        if Path("reports", path.stem) == Path(GRIDS):
            raise UserError(f"'{path}' would be written into {GRIDS}, which every report replaces: rename the plan.")
        planned = trials(Path(), load_plan(path))  # fails now for a mistake in one, not after hours of the others
        done = finished(Path(), planned)
        check_trials(Path(), [trial for trial in planned if trial.name not in done])
    for path in plans:
        plan = load_plan(path)
        with alone(Path()) as lock:
            planned = trials(Path(), plan)  # of the files as they are when its experiments begin
            commits = run_pending(Path(), planned, slots, lock)
        folder = Path("reports") / path.stem
        judges = list(dict.fromkeys(trial.judge for trial in planned))
        write_study(folder, path.as_posix(), plan, judges, gather(Path(), plan, planned, commits), bootstrap)
        keep_reports(Path(), folder, plan, planned, commits)
        print(f"{folder}/study.md holds what {path} shows.")


if __name__ == "__main__":
    cli.run(app)
