"""Command `reproduce`: what `dvc repro` does, several stages at a time, with changed parameters if wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from relinv import cli
from relinv.overrides import changed_params, require_edits_take_effect
from relinv.params import flatten, load_params
from stages import THREADS_CHOSEN

app = cli.stage_app()


@app.command(epilog="Example: python -m stages.reproduce --slots 4 -S invert.reversion.steer_weight=0.1")
def reproduce(
    changes: Annotated[
        list[str] | None,
        typer.Option("--set-param", "-S", metavar="NAME=VALUE", help="Change a parameter first, as DVC does."),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            min=1, help="How many stages run at a time; default: as many as keep the cores, or the GPUs, busy."
        ),
    ] = None,
) -> None:
    """Rebuild every result that is out of date, several stages at a time. If stopped and run again, it resumes."""
    from relinv.devices import visible_gpus
    from relinv.forking import fork_server
    from relinv.pipeline.reproducing import reproduce
    from relinv.preflight import check_params

    with changed_params(Path(), changes or []) as changed:
        params = load_params()
        check_params(params)
        params.require_effect(flatten(changed))
        require_edits_take_effect(params, params.methods())
    devices = {params.model().device, params.judge().device}
    on_cpu = devices == {"cpu"}
    gpus = visible_gpus() if "cuda" in devices and devices <= {"cpu", "cuda"} else []  # "cuda:1" already names one
    slots = slots or (_slots_on_cpu() if on_cpu else max(1, len(gpus)))
    with fork_server(Path.cwd()):
        reproduce(Path.cwd(), slots, gpus)
    print("Every result is up to date: open reports/report.html")


def _slots_on_cpu() -> int:
    """Return how many stages keep all cores busy, each with as many threads as the environment gives it."""
    if not THREADS_CHOSEN:
        return cli.cores()

    import torch

    return max(1, cli.cores() // torch.get_num_threads())


if __name__ == "__main__":
    cli.run(app)
