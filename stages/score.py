"""Stage `score`: scores every image of one relation and method with the judge."""

from __future__ import annotations

from relinv import cli
from relinv.cli import Method, Relation
from relinv.judge import load_judge
from relinv.params import load_params
from relinv.results import FOLDERS, find_benchmark, find_result
from relinv.settings import ScoreSettings
from relinv.unchanged import require_unchanged
from relinv.vqa import load_vqa_model

app = cli.stage_app()


@app.command(epilog="Example: python -m stages.score inside reversion")
def score(relation: Relation, method: Method) -> None:
    """Score data/images/RELATION/METHOD by every metric into data/scores/RELATION/METHOD.csv, one row per image."""
    params = load_params()
    settings = params.section("score", ScoreSettings)
    benchmark = find_benchmark(params, relation)
    images = find_result("generate", relation, method)

    from relinv.scoring import (  # only now, since pandas takes long to load
        read_image_folder,
        score_images,
        write_scores,
    )

    drawn = read_image_folder(images, FOLDERS["fetch"] / relation)
    judge = params.judge()
    rows = score_images(drawn, benchmark, load_judge(judge), settings.batch_size, load_vqa_model(judge))
    write_scores(FOLDERS["score"] / relation / f"{method}.csv", rows)
    require_unchanged(params, "score")


if __name__ == "__main__":
    cli.run(app)
