"""The command `relinv`: your own relations, tokens from and for other programs, and how an image was made."""

from __future__ import annotations

import os

# As in stages/__init__.py: another number of threads changes the last bits. torch reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from relinv import cli
from relinv.commands import checkout, images, relations, tokens

app = cli.stage_app()


@app.callback(no_args_is_help=True)
def main() -> None:
    """Work with relations and learned tokens. Run it in a checkout of the pipeline."""


for part in (relations, tokens, images, checkout):
    app.add_typer(part.app)


def run() -> None:
    """Run the command line."""
    cli.run(app)
