"""Stage `generate`: draws every scenario of one relation with what one method learned."""

from __future__ import annotations

from functools import partial

from relinv import cli
from relinv.benchmark import ENTRY
from relinv.cli import Method, Relation
from relinv.diffusion.bases import load_base
from relinv.diffusion.concept import load_concept
from relinv.errors import UserError
from relinv.generation import generate_folder
from relinv.params import load_params
from relinv.preflight import check_settings
from relinv.results import FOLDERS, SCRATCH, find_benchmark, find_result
from relinv.unchanged import require_unchanged

app = cli.stage_app()


@app.command(epilog="Example: python -m stages.generate inside reversion")
def generate(relation: Relation, method: Method) -> None:
    """Draw the relation's scenarios into data/images/RELATION/METHOD: one PNG each, and records.jsonl.

    If the token can be written in several forms, forms.png shows the first scenario with each of them.

    The concept is read from data/concepts/RELATION/METHOD. If killed and run again, it resumes where it stopped.
    """
    check_settings(load_params())  # those of later stages too; `params` notes what this one depends on
    params = load_params()
    settings = params.generation()
    scenarios = find_benchmark(params, relation).scenarios(relation, settings.pairs)
    if not scenarios:
        raise UserError(
            f"The relation '{relation}' has no {settings.pairs} scenarios: set generate.pairs to all, or give it more "
            f"entities in {params.benchmark()} (or in the {ENTRY} of a relation of your own)."
        )
    model = params.drawing_model()
    learned = find_result("invert", relation, method)

    base = load_base(model)
    folder = FOLDERS["generate"] / relation / method
    concept = load_concept(learned, base)
    confirm = partial(require_unchanged, params, "generate")
    generate_folder(base, concept, scenarios, settings, folder, SCRATCH, confirm=confirm)


if __name__ == "__main__":
    cli.run(app)
