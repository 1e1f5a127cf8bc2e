"""Stage `invert`: learns one relation by one method from the relation's exemplars."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from relinv import cli
from relinv.benchmark import load_benchmark
from relinv.diffusion.bases import Base, load_base
from relinv.exemplars import read_exemplars
from relinv.learning.inversion import Problem, invert_relation, require_valid
from relinv.plugins import find_plugin
from relinv.settings import ModelSettings, Params, PreviewSettings, Seed, load_params

app = cli.stage_app()


@app.command(epilog="Example: python -m stages.invert inside reversion")
def invert(
    relation: Annotated[str, typer.Argument(help="A relation of the benchmark, such as inside.")],
    method: Annotated[str, typer.Argument(help="A method: a file in relinv/methods, such as reversion.")],
) -> None:
    """Learn RELATION from data/relations/RELATION by METHOD, into data/concepts/RELATION/METHOD.

    Stopped at any moment and run again, it goes on where it was, to the same bytes.
    """
    problem = read_problem(load_params(), relation, method, load_base)
    invert_relation(problem, Path("data/concepts") / relation / method, Path(".scratch"))


def read_problem(params: Params, relation: str, method: str, load: Callable[[ModelSettings], Base]) -> Problem:
    """Return what is to be learned of a relation by a method, as parameters and the stages before this one have it.

    `load` gives the base: relations that are learned together share one. Raises UserError where something is missing
    or wrong.
    """
    words = load_benchmark(params.benchmark()).relation(relation).words
    plugin = find_plugin("relinv.methods", method)
    settings = params.method(method, plugin.Settings)
    require_valid(Path("data/verdicts") / f"{relation}.json")
    return Problem(
        base=load(params.model()),
        exemplars=read_exemplars(Path("data/relations") / relation),
        words=words,
        method=method,
        settings=settings,
        seed=params.section("invert.seed", Seed),
        preview=params.section("invert.preview", PreviewSettings),
    )


if __name__ == "__main__":
    cli.run(app)
