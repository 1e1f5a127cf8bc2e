"""Relations of one's own: their folders, and masks for their pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from relinv import cli
from relinv.benchmark import load_benchmark
from relinv.cli import Relation
from relinv.errors import UserError
from relinv.exemplars import MASKS, OWN
from relinv.hub import base_tokenizer
from relinv.own_relation import lay_out, next_steps
from relinv.params import load_params
from relinv.segmenting import FAINT, MODEL, find_pictures, load_segmenter, write_masks
from relinv.settings import ValidateSettings
from relinv.validation import validate_folder

app = cli.stage_app()


@app.command(epilog="Example: relinv new kissing ~/pictures/kissing")
def new(
    relation: Relation,
    pictures: Annotated[Path, typer.Argument(parser=cli.path, help="A folder with your pictures.")],
) -> None:
    """Make a relation of your own from pictures.

    It is laid out as data/exemplars/own/RELATION, for the base in use; what is left to do is printed. It takes
    precedence over any other source of that relation. Once its captions are written, it works like any other.
    """
    params = load_params()
    model, settings = params.model(), params.section("validate", ValidateSettings)
    tokenizer = base_tokenizer(model)  # first: if it is missing, nothing is left half done
    left_out = lay_out(relation, pictures, OWN / relation, load_benchmark(params.benchmark()))
    verdict = validate_folder(OWN / relation, settings, tokenizer, model.resolution)
    print(next_steps(relation, OWN / relation, params.base(), left_out, verdict))


@app.command(epilog='Example: relinv masks data/exemplars/own/kissing "two people kissing"')
def masks(
    folder: Annotated[
        Path, typer.Argument(parser=cli.path, help="The folder of your own relation, as `relinv new` creates it.")
    ],
    words: Annotated[str, typer.Argument(help="What to look for in the pictures.")],
    model: Annotated[str, typer.Option(help="A CLIPSeg model: a folder or a Hugging Face hub id.")] = MODEL,
) -> None:
    """Write masks of where pictures show something.

    CLIPSeg finds it; the masks are soft, and lie beside the pictures. With every method, the training loss is then
    weighted by them: bright areas count most.
    """
    if not words.strip():
        raise UserError('The words say nothing to look for: write some, such as "two people kissing".')
    pictures = find_pictures(folder)
    brightest = write_masks(pictures, words, load_segmenter(model))
    print(f"{folder / MASKS} holds {len(brightest)} masks, bright where the loss should count: look at them, and")
    print("repaint or delete those that are wrong; a picture without one counts in full.")
    for name, level in brightest.items():
        if level < FAINT:
            print(f"  {name}: '{words}' was hardly found, at most {level:.2f}.")
