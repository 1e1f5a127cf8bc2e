"""Command `reproduce`: what `dvc repro` does, several stages at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from relinv import cli

app = cli.stage_app()


@app.command(epilog="Example: python -m stages.reproduce --slots 4")
def reproduce(
    slots: Annotated[int, typer.Option(min=1, help="How many stages run at a time.")] = os.cpu_count() or 1,
) -> None:
    """Rebuild every result that is out of date, one stage a core; on one GPU use --slots 1. It resumes."""
    from relinv.reproducing import reproduce

    reproduce(Path.cwd(), slots)


if __name__ == "__main__":
    cli.run(app)
