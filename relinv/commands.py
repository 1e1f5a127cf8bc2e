"""The command `relinv`: relations of your own, tokens from and for other programs, and how an image was made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from relinv import cli
from relinv.errors import UserError
from relinv.segmenting import MODEL
from relinv.settings import ValidateSettings, load_params

if TYPE_CHECKING:
    from relinv.images import ImageRecord

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True)
CONCEPTS = Path("data/concepts")

Relation = Annotated[str, typer.Argument(help="A relation's name, such as inside.")]
Method = Annotated[str, typer.Argument(help="The name of what learned it, such as reversion.")]


@app.callback()
def main() -> None:
    """Work with relations and learned tokens, in the checkout of the pipeline."""


@app.command(epilog="Example: relinv new kissing ~/pictures/kissing")
def new(relation: Relation, pictures: Annotated[Path, typer.Argument(help="A folder with your pictures.")]) -> None:
    """Lay out data/exemplars/own/RELATION from your pictures, and say what is left to do.

    The relation comes before any other source of that name, and takes part once the benchmark has it.
    """
    from relinv.fetching import OWN
    from relinv.own_relation import lay_out, next_steps
    from relinv.tokens import load_token_counter
    from relinv.validation import validate_folder

    params = load_params()
    model, settings = params.model(), params.section("validate", ValidateSettings)
    lay_out(relation, pictures, OWN / relation)
    count_tokens, limit = load_token_counter(model)
    verdict = validate_folder(
        OWN / relation, settings, count_tokens=count_tokens, token_limit=limit, resolution=model.resolution
    )
    print(next_steps(relation, OWN / relation, verdict, params.benchmark()))


@app.command(epilog='Example: relinv masks data/exemplars/own/kissing "two people kissing"')
def masks(
    folder: Annotated[Path, typer.Argument(help="A relation's own folder, as `relinv new` lays it out.")],
    words: Annotated[str, typer.Argument(help="What to look for in its pictures.")],
    model: Annotated[str, typer.Option(help="A CLIPSeg: a folder, or an id of the Hugging Face hub.")] = MODEL,
) -> None:
    """Find by CLIPSeg where the pictures of a folder show something, and write soft masks beside them.

    The loss then counts where they are bright, whatever the method.
    """
    from relinv.devices import find_device
    from relinv.exemplars import MASKS
    from relinv.segmenting import FAINT, find_pictures, load_segmenter, write_masks

    if not words.strip():
        raise UserError('The words say nothing to look for: write some, such as "two people kissing".')
    pictures = find_pictures(folder)
    brightest = write_masks(pictures, words, load_segmenter(model, find_device(load_params().model().device)))
    print(f"{folder / MASKS} holds {len(brightest)} masks, bright where the loss shall count: look at them, and")
    print("repaint or delete those that are wrong; a picture without one counts in full.")
    for name in [name for name, level in brightest.items() if level < FAINT]:
        print(f"  {name}: '{words}' was hardly found, at most {brightest[name]:.2f}.")


@app.command("import", epilog="Example: relinv import learned_embeds.bin painted_on published")
def import_(
    file: Annotated[
        Path,
        typer.Argument(
            help="One learned token, .safetensors, .bin or .pt; Perfusion's .ckpt; or Custom Diffusion's weights."
        ),
    ],
    relation: Relation,
    method: Annotated[str, typer.Argument(help="A name for where it came from, such as published.")],
    token: Annotated[
        Path | None, typer.Option(help="The token's own file, for Custom Diffusion: the one beside it if not given.")
    ] = None,
) -> None:
    """Turn another program's learned token into a concept, data/concepts/RELATION/METHOD, for the base in use."""
    from relinv.diffusion.bases import load_base
    from relinv.importing import import_concept

    folder = CONCEPTS / relation / method
    concept = import_concept(file, relation, method, load_base(load_params().model()), folder, token)
    print(f"{folder} holds {concept.metadata['imported']['token']} as {concept.token}. To draw the scenarios with it:")
    print(f"  python -m stages.generate {relation} {method} && python -m stages.score {relation} {method}")


@app.command(epilog="Example: relinv export inside reversion --for webui --to ~/embeddings")
def export(
    relation: Relation,
    method: Method,
    form: Annotated[str, typer.Option("--for", help="diffusers, webui (A1111, ComfyUI, InvokeAI) or hub.")],
    to: Annotated[Path, typer.Option(help="The folder to write into.")],
    name: Annotated[str | None, typer.Option(help="What web UIs call the token: RELATION if not given.")] = None,
) -> None:
    """Write a learned token as another program reads it."""
    from relinv.diffusion.bases import load_base
    from relinv.diffusion.concept import load_concept
    from relinv.exporting import export_concept

    concept = load_concept(CONCEPTS / relation / method, load_base(load_params().model()))
    for path in export_concept(concept, form, to, name or relation):
        print(path)


@app.command("second-moment", epilog="Example: relinv second-moment captions.txt")
def second_moment_(
    captions: Annotated[Path | None, typer.Argument(help="A caption a line; else as invert.perfusion says.")] = None,
) -> None:
    """Measure how the text encoder of the base in use spreads captions, for Perfusion, which else does so itself."""
    from relinv.diffusion.bases import load_base
    from relinv.learning.second_moment import CACHE, read_captions, second_moment
    from relinv.methods.perfusion import Settings

    params = load_params()
    file = captions or params.method("perfusion", Settings).captions
    moment = second_moment(load_base(params.model()), read_captions(file))
    print(f"{CACHE} holds {moment.id} of {file}, {len(moment.matrix)} x {len(moment.matrix)}.")
    print(f"To learn with it, set invert.perfusion.captions in params.yaml (or in the preset in use) to {file}.")


@app.command(epilog="Example: relinv show data/images/inside/reversion/042.png")
def show(
    image: Annotated[Path, typer.Argument(help="An image that the pipeline drew.")],
    boxes: Annotated[Path | None, typer.Option(help="Write the image here with the boxes it was drawn by.")] = None,
) -> None:
    """Print how an image was made, and the command that makes it again."""
    import json
    from dataclasses import asdict

    from relinv.images import parameters, read_image_record

    record = read_image_record(image)
    if boxes:
        _write_with_boxes(image, record, boxes)
    print(parameters(record))
    print(json.dumps(asdict(record), indent=2, ensure_ascii=False))
    print(f"To make it again: relinv draw {image} again.png")


def _write_with_boxes(image: Path, record: ImageRecord, target: Path) -> None:
    """Write a drawn image with the boxes of its concept; UserError where that has none, or is another by now."""
    from PIL import Image

    from relinv.adapters.layout import draw_boxes, layout_of
    from relinv.diffusion.bases import load_base
    from relinv.diffusion.concept import load_concept
    from relinv.files import atomic_write_bytes
    from relinv.images import encode_png

    concept = load_concept(CONCEPTS / record.relation / record.method, load_base(load_params().model()))
    layout = layout_of(concept.metadata)
    if concept.fingerprint != record.settings["concept_sha256"]:
        raise UserError(f"The image '{image}' was drawn with another concept than is here now: generate it again.")
    with Image.open(image) as picture:
        atomic_write_bytes(target, encode_png(draw_boxes(picture.convert("RGB"), layout)))


@app.command(epilog="Example: relinv draw data/images/inside/reversion/042.png again.png")
def draw(
    image: Annotated[Path, typer.Argument(help="An image that the pipeline drew.")],
    target: Annotated[Path, typer.Argument(help="Where to write it.")],
) -> None:
    """Make an image again, from what it says of itself: the same bytes on the same machine."""
    from relinv.benchmark import load_benchmark
    from relinv.diffusion.bases import load_base
    from relinv.diffusion.concept import load_concept
    from relinv.files import atomic_write_bytes
    from relinv.generation import redraw
    from relinv.images import encode_png, read_image_record

    record = read_image_record(image)
    params = load_params()
    scenarios = load_benchmark(params.benchmark()).scenarios(record.relation, record.settings["pairs"])
    base = load_base(params.model())
    concept = load_concept(CONCEPTS / record.relation / record.method, base)
    atomic_write_bytes(target, encode_png(redraw(base, concept, record, scenarios), record))


@app.command(
    epilog='Example: relinv imagine "<koala> <r> box" koala.png --use r=inside/reversion --use koala=koala/dreambooth'
)
def imagine(
    prompt: Annotated[str, typer.Argument(help="What to draw, with a <token> for each concept.")],
    target: Annotated[Path, typer.Argument(help="Where to write the image, a PNG.")],
    use: Annotated[list[str], typer.Option(help="A concept as TOKEN=RELATION/METHOD; may be given several times.")],
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
) -> None:
    """Draw a prompt of your own with one concept or several at once, each from its folder below data/concepts."""
    from relinv.diffusion.bases import load_base
    from relinv.diffusion.concept import load_concept
    from relinv.errors import UserError
    from relinv.files import atomic_write_bytes
    from relinv.generation import imagine as draw_freely
    from relinv.images import encode_png

    params = load_params()
    settings, base = params.generation(), load_base(params.model())
    concepts = []
    for item in use:
        token, equals, folder = item.partition("=")
        if not equals:
            raise UserError(f"'{item}' names no token: write --use TOKEN=RELATION/METHOD, such as r=inside/reversion.")
        concepts.append(load_concept(CONCEPTS / folder, base).called(f"<{token}>"))
    atomic_write_bytes(target, encode_png(draw_freely(base, concepts, prompt, settings, seed)))


def run() -> None:
    """Run the command line."""
    cli.run(app)


if __name__ == "__main__":
    run()
