"""Stage `validate`: checks one relation's exemplar folder before anything is learned from it."""

from __future__ import annotations

from relinv import cli
from relinv.cli import Relation
from relinv.hub import base_tokenizer
from relinv.params import load_params
from relinv.results import FOLDERS, find_benchmark
from relinv.settings import ValidateSettings
from relinv.unchanged import require_unchanged
from relinv.validation import validate_folder, write_verdict

app = cli.stage_app()


@app.command(epilog="Example: python -m stages.validate inside")
def validate(relation: Relation) -> None:
    """Check data/relations/RELATION and write the verdict to data/verdicts/RELATION.json.

    All problems are listed at once. An error fails the stage; a warning is shown in the report.
    """
    params = load_params()
    find_benchmark(params, relation)  # a wrong name ends here
    model = params.model()
    settings = params.section("validate", ValidateSettings)
    tokenizer = base_tokenizer(model)
    folder = FOLDERS["fetch"] / relation
    verdict = validate_folder(folder, settings, tokenizer, model.resolution)
    write_verdict(verdict, folder, FOLDERS["validate"] / f"{relation}.json")
    require_unchanged(params, "validate")


if __name__ == "__main__":
    cli.run(app)
