"""Stage `fetch`: one relation's exemplar folder, in the layout of the ReVersion benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from relinv import cli
from relinv.benchmark import load_benchmark
from relinv.fetching import fetch_exemplars
from relinv.settings import ExemplarSettings, load_params

app = cli.stage_app()


@app.command(epilog="Example: python -m stages.fetch inside")
def fetch(relation: Annotated[str, typer.Argument(help="A relation of the benchmark, such as inside.")]) -> None:
    """Put a relation's exemplars into data/relations/RELATION: pictures, and text.json with their captions.

    The base in use (base in params.yaml) says where they come from: rendered, or copied from your own folder.
    """
    params = load_params()
    load_benchmark(params.benchmark()).relation(relation)
    settings = params.section("exemplars", ExemplarSettings)
    fetch_exemplars(relation, Path("data/relations") / relation, params.exemplar_source(), settings)


if __name__ == "__main__":
    cli.run(app)
