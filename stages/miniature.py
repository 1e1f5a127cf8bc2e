"""Stage `miniature`: trains the miniature's parts from its sprites; not run by the main pipeline."""

from __future__ import annotations

import os
from pathlib import Path

from relinv import cli
from relinv.files import read_yaml
from relinv.params import read_params
from relinv.settings import GenerateSettings
from stages import THREADS_CHOSEN

app = cli.stage_app()
PARAMS = Path("data/miniature/params.yaml")


@app.callback(epilog="Example: python -m stages.miniature judge")
def main() -> None:
    """Train one part of the miniature, in this order: autoencoder, denoiser, judge, card.

    If stopped at any moment and run again, each resumes from its last checkpoint in .scratch/miniature.
    """
    if not THREADS_CHOSEN:
        os.environ["OMP_NUM_THREADS"] = str(cli.cores())  # large batches, one stage at a time


@app.command()
def autoencoder() -> None:
    """Render the training scenes and train the autoencoder on them: data/miniature/base/vae."""
    from relinv.miniature.recipe import SceneSettings, TrainingSettings, make_autoencoder

    params = read_params(PARAMS)
    make_autoencoder(
        params.section("scenes", SceneSettings),
        params.section("autoencoder", TrainingSettings),
        params.section("decoder", TrainingSettings),
    )


@app.command()
def denoiser() -> None:
    """Train text encoder and UNet on the scenes' latents: the rest of data/miniature/base."""
    from relinv.miniature.recipe import SceneSettings, TrainingSettings, make_denoiser

    params = read_params(PARAMS)
    make_denoiser(params.section("scenes", SceneSettings), params.section("denoiser", TrainingSettings))


@app.command()
def judge() -> None:
    """Train the judge on fresh scenes passed through the autoencoder, and test it: data/miniature/judge."""
    from relinv.miniature.recipe import TrainingSettings, make_judge

    make_judge(read_params(PARAMS).section("judge", TrainingSettings))


@app.command()
def card() -> None:
    """Measure the miniature on triplets held out of its training: CARD.md and card.json."""
    from relinv.benchmark import load_benchmark
    from relinv.miniature.card import make_card
    from relinv.miniature.recipe import HOME
    from relinv.world.exemplars import BENCHMARK

    settings = read_params(PARAMS).section("card", GenerateSettings)
    make_card(HOME, load_benchmark(BENCHMARK), read_yaml(PARAMS), settings)


if __name__ == "__main__":
    cli.run(app)
