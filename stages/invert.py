"""Stage `invert`: learns one relation by one method from the relation's exemplars."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from relinv import cli
from relinv.cli import Relation
from relinv.diffusion.bases import load_base
from relinv.learning.inversion import invert_relation
from relinv.learning.problem import read_problem
from relinv.overrides import require_edits_take_effect
from relinv.params import load_params
from relinv.preflight import check_settings
from relinv.results import FOLDERS, SCRATCH
from relinv.unchanged import require_unchanged

app = cli.stage_app()


@app.command(epilog="Example: python -m stages.invert inside reversion")
def invert(
    relation: Relation,
    method: Annotated[str, typer.Argument(help="A method: a file in relinv/methods, such as reversion.")],
) -> None:
    """Learn RELATION from data/relations/RELATION by METHOD, into data/concepts/RELATION/METHOD.

    If stopped at any moment and run again, it resumes where it was and ends with the same bytes.
    """
    check_settings(load_params())  # those of later stages too; `params` notes what this one depends on
    params = load_params()
    require_edits_take_effect(params, [method])
    problem = read_problem(params, relation, method, load_base)
    confirm = partial(require_unchanged, params, "invert", method)
    invert_relation(problem, FOLDERS["invert"] / relation / method, SCRATCH, confirm=confirm)


if __name__ == "__main__":
    cli.run(app)
