"""Stage `judge`: asks the judge which relation the exemplars show."""

from __future__ import annotations

from dataclasses import asdict

from relinv import cli
from relinv.cli import Relation
from relinv.exemplars import read_exemplars
from relinv.files import write_json
from relinv.judge import load_judge
from relinv.judging import ask_of_exemplars, require_scenarios_read
from relinv.params import load_params
from relinv.results import FOLDERS, find_benchmark
from relinv.settings import ScoreSettings
from relinv.unchanged import require_unchanged
from relinv.vqa import load_vqa_model

app = cli.stage_app()


@app.command(epilog="Example: python -m stages.judge inside")
def judge(relation: Relation) -> None:
    """Count for how many pictures of data/relations/RELATION the judge finds the relation they show: data/judged.

    What they show is known, so this tells how far the judge's scores can be believed.
    """
    params = load_params()
    settings = params.section("score", ScoreSettings)
    benchmark = find_benchmark(params, relation)
    exemplars = read_exemplars(FOLDERS["fetch"] / relation)

    loaded = load_judge(params.judge())
    require_scenarios_read(loaded, relation, benchmark)  # now, rather than when all is learned and drawn
    found = ask_of_exemplars(loaded, exemplars, benchmark, settings.batch_size, load_vqa_model(params.judge()))
    write_json(FOLDERS["judge"] / f"{relation}.json", asdict(found))
    require_unchanged(params, "judge")


if __name__ == "__main__":
    cli.run(app)
