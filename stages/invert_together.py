"""Command `invert_together`: several relations learned at once, which uses a device better than one after another."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated

import typer

from relinv import cli
from relinv.diffusion.bases import load_base
from relinv.errors import UserError
from relinv.learning.problem import read_problem
from relinv.overrides import require_edits_take_effect
from relinv.params import load_params
from relinv.pipeline.reproducing import due_relations
from relinv.plugins import find_plugin
from relinv.results import SCRATCH
from relinv.unchanged import require_unchanged

app = cli.stage_app()


@app.command(epilog="Example: python -m stages.invert_together reversion --at-once 4 && dvc repro")
def invert_together(
    method: Annotated[str, typer.Argument(help="A method: a file in relinv/methods, such as reversion.")],
    at_once: Annotated[
        int,
        typer.Option(
            help="How many relations share a batch; each adds its own batch_size. With `compile: true`, take a number "
            "that divides that of the relations: a batch of another size is compiled anew.",
            min=1,
        ),
    ],
) -> None:
    """Learn the relations of params.yaml by METHOD, several in one batch; `dvc repro` then finds them learned.

    Relations that are up to date are skipped. Each result is as if learned alone, except for rounding. The
    exemplars must be there first: dvc repro --glob 'validate@*'.
    """
    from relinv.learning.inversion import invert_together

    if "steps" not in find_plugin("relinv.methods", method).Settings.model_fields:
        raise UserError(f"The method '{method}' learns nothing: there is nothing to train together.")
    params = load_params()
    require_edits_take_effect(params, [method])
    due, learned = due_relations(Path(), params, method)
    if learned:
        print(f"{', '.join(learned)} by {method}: learned already, from what is here now")
    load = cache(load_base)  # once: all share one base
    problems, faults = {}, []
    for relation in due:
        try:
            problems[relation] = read_problem(params, relation, method, load)
        except UserError as error:
            faults.append(str(error))  # the others are learned anyway
    ready = list(problems)
    for start in range(0, len(ready), at_once):
        relations = ready[start : start + at_once]
        print(f"{', '.join(relations)} by {method}")
        try:
            require_unchanged(params, "invert", method)
            invert_together([problems[relation] for relation in relations], SCRATCH)
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("\n".join(dict.fromkeys(faults)))


if __name__ == "__main__":
    cli.run(app)
