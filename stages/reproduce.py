"""Command `reproduce`: what `dvc repro` does, several stages at a time."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from relinv import cli
from relinv.settings import load_params

app = cli.stage_app()


@app.command(epilog="Example: python -m stages.reproduce --slots 4")
def reproduce(
    slots: Annotated[int, typer.Option(min=1, help="How many stages run at a time.")] = cli.cores(),
) -> None:
    """Rebuild every result that is out of date, one stage a core; on one GPU use --slots 1. It resumes."""
    from relinv.forking import fork_server
    from relinv.reproducing import check_arms, reproduce

    params = load_params()
    check_arms(params)
    on_cpu = params.model().device == params.judge().device == "cpu"  # a GPU's state does not outlive a fork
    with fork_server(Path.cwd()) if on_cpu and sys.platform == "linux" else nullcontext():
        reproduce(Path.cwd(), slots)


if __name__ == "__main__":
    cli.run(app)
