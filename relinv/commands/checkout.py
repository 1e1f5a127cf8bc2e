"""The checkout itself: what it downloads, and what was committed in it."""

from __future__ import annotations

from pathlib import Path

from relinv import cli
from relinv.commands.common import ON_CPU, base_on_cpu
from relinv.judge import load_judge
from relinv.params import load_params
from relinv.pipeline.restoring import branches_left
from relinv.pipeline.restoring import restore as bring_back
from relinv.vqa import find_vqa_model

app = cli.stage_app()


@app.command(epilog="Example: relinv download")
def download() -> None:
    """Download the base in use and its judge.

    So that machines without internet access can use them; it needs no GPU. They come from the Hugging Face hub, into
    the folder that HF_HOME names. To get the exemplars too, and have them checked: dvc repro --glob 'validate@*'
    """
    base = base_on_cpu()  # loaded as the stages do, which shows that all is there
    settings = load_params().judge()
    here = [base.id, load_judge(settings.model_copy(update=ON_CPU)).name]
    if settings.vqa:
        find_vqa_model(settings.vqa)
        here.append(settings.vqa.model)
    print(f"{' and '.join(here)} are here: with HF_HUB_OFFLINE=1, the hub is not asked for them.")


@app.command(epilog="Example: relinv restore")
def restore() -> None:
    """Bring the committed results back.

    Parameters and results as they are committed replace those of experiments, from DVC's cache: nothing is learned
    again. How params.yaml differed is kept in a file. What no experiment writes is left as it is.
    """
    restored = bring_back(Path())
    if branches := branches_left(Path()):
        switch = " or ".join(f"`git switch {branch}`" for branch in branches)
        print(f"git is on no branch, as a killed experiment leaves it: {switch}, so that what you commit is on one.")
    if restored.lacking:
        listed = ", ".join(restored.lacking[:3]) + (", …" if len(restored.lacking) > 3 else "")
        print(f"The committed parameters are back, and the results but for {len(restored.lacking)} ({listed}).")
        print("Most often these were never made in this clone, so that DVC's cache lacks them: `dvc repro` makes them.")
    else:
        print("The committed parameters and results are back.")
    for file in restored.kept:
        print(f"How the parameters differed is kept: git apply {file}")
