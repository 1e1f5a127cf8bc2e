"""Stage `fetch`: one relation's exemplar folder, in the layout of the ReVersion benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from relinv import cli
from relinv.benchmark import load_benchmark
from relinv.cli import Relation
from relinv.exemplars import OWN
from relinv.fetching.fetch import fetch_exemplars, place_exemplars
from relinv.overrides import require_edits_take_effect
from relinv.params import load_params
from relinv.preflight import check_settings
from relinv.results import FOLDERS, SCRATCH
from relinv.settings import ExemplarSettings
from relinv.unchanged import require_unchanged

app = cli.stage_app()


@app.command(epilog="Example: python -m stages.fetch inside (or, for files placed by hand: --from ~/Downloads)")
def fetch(
    relation: Relation,
    given: Annotated[
        Path | None,
        typer.Option(
            "--from",
            parser=cli.path,
            help="The relation's folder, a folder holding it, or the zip a browser downloads from Google Drive.",
        ),
    ] = None,
) -> None:
    """Put a relation's exemplars into data/relations/RELATION: pictures, and text.json with their captions.

    The base in use (base in params.yaml) says where they come from: rendered, copied from a folder, unpacked from an
    archive, or downloaded. Files given with --from are kept in data/exemplars/placed, and used instead until they are
    removed there.
    """
    every = load_params()  # those of later stages too; `params` notes what this one depends on
    check_settings(every)
    require_edits_take_effect(every, every.methods())
    params = load_params()
    load_benchmark(params.benchmark(), OWN / relation).relation(relation)
    settings = params.section("exemplars", ExemplarSettings)
    source = params.exemplar_source()
    if given:
        place_exemplars(relation, given, source, SCRATCH)
    fetch_exemplars(relation, FOLDERS["fetch"] / relation, source, settings, SCRATCH)
    require_unchanged(params, "fetch")


if __name__ == "__main__":
    cli.run(app)
