"""The command `relinv`: your own relations, tokens from and for other programs, and how an image was made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from relinv import cli
from relinv.errors import UserError
from relinv.params import load_params
from relinv.results import FOLDERS, find_result
from relinv.segmenting import MODEL
from relinv.settings import HIGHEST_GUIDANCE, MOST_STEPS, ValidateSettings

if TYPE_CHECKING:
    from relinv.diffusion.bases import Base
    from relinv.images import ImageRecord

# As in stages/__init__.py: another number of threads changes the last bits. torch reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

app = cli.stage_app()
CONCEPTS = FOLDERS["invert"]
ON_CPU = {"device": "cpu"}

Relation = Annotated[str, typer.Argument(help="A relation's name, such as inside.")]
Method = Annotated[
    str, typer.Argument(help="The method that learned it, such as reversion, or the name it was imported by.")
]


@app.callback(no_args_is_help=True)
def main() -> None:
    """Work with relations and learned tokens. Run it in a checkout of the pipeline."""


def _base_on_cpu() -> Base:
    """Return the base in use on the CPU, for what reads or checks its weights: a machine without its GPU will do."""
    from relinv.diffusion.bases import load_base

    return load_base(load_params().model().model_copy(update=ON_CPU))


@app.command(epilog="Example: relinv new kissing ~/pictures/kissing")
def new(
    relation: Relation,
    pictures: Annotated[Path, typer.Argument(parser=cli.path, help="A folder with your pictures.")],
) -> None:
    """Create data/exemplars/own/RELATION from your pictures, and print what is left to do.

    It takes precedence over any other source of that relation. Once its captions are written, it works like any other.
    """
    from relinv.benchmark import load_benchmark
    from relinv.exemplars import OWN
    from relinv.own_relation import lay_out, next_steps
    from relinv.tokens import load_token_counter
    from relinv.validation import validate_folder

    params = load_params()
    model, settings = params.model(), params.section("validate", ValidateSettings)
    count_tokens, limit = load_token_counter(model)  # first: if it is missing, nothing is left half done
    left_out = lay_out(relation, pictures, OWN / relation, load_benchmark(params.benchmark()))
    verdict = validate_folder(
        OWN / relation, settings, count_tokens=count_tokens, token_limit=limit, resolution=model.resolution
    )
    print(next_steps(relation, OWN / relation, left_out, verdict))


@app.command(epilog='Example: relinv masks data/exemplars/own/kissing "two people kissing"')
def masks(
    folder: Annotated[
        Path, typer.Argument(parser=cli.path, help="The folder of your own relation, as `relinv new` creates it.")
    ],
    words: Annotated[str, typer.Argument(help="What to look for in the pictures.")],
    model: Annotated[str, typer.Option(help="A CLIPSeg model: a folder or a Hugging Face hub id.")] = MODEL,
) -> None:
    """Find with CLIPSeg where the pictures of a folder show something, and write soft masks beside them.

    With every method, the training loss is then weighted by them: bright areas count most.
    """
    from relinv.exemplars import MASKS
    from relinv.segmenting import FAINT, find_pictures, load_segmenter, write_masks

    if not words.strip():
        raise UserError('The words say nothing to look for: write some, such as "two people kissing".')
    pictures = find_pictures(folder)
    brightest = write_masks(pictures, words, load_segmenter(model))
    print(f"{folder / MASKS} holds {len(brightest)} masks, bright where the loss should count: look at them, and")
    print("repaint or delete those that are wrong; a picture without one counts in full.")
    for name, level in brightest.items():
        if level < FAINT:
            print(f"  {name}: '{words}' was hardly found, at most {level:.2f}.")


@app.command(epilog="Example: relinv download")
def download() -> None:
    """Download the model and the judge of the base in use, for machines without internet access. It needs no GPU.

    They come from the Hugging Face hub, into the folder that HF_HOME names. To get the exemplars too, and have them
    checked: dvc repro --glob 'validate@*'
    """
    from relinv.asking import find_asked
    from relinv.judge import load_judge

    base = _base_on_cpu()  # loaded as the stages do, which shows that all is there
    settings = load_params().judge()
    here = [base.id, load_judge(settings.model_copy(update=ON_CPU)).name]
    if settings.asked:
        find_asked(settings.asked)
        here.append(settings.asked.model)
    print(f"{' and '.join(here)} are here: with HF_HUB_OFFLINE=1, the hub is not asked for them.")


@app.command("import", epilog="Example: relinv import learned_embeds.bin painted_on published")
def import_(
    file: Annotated[
        Path,
        typer.Argument(
            help="A learned token (.safetensors, .bin or .pt), a Perfusion .ckpt, or Custom Diffusion weights."
        ),
    ],
    relation: Relation,
    method: Annotated[str, typer.Argument(help="A name for where it came from, such as published.")],
    token: Annotated[
        Path | None, typer.Option(help="For Custom Diffusion, the token's file; default: the one beside the weights.")
    ] = None,
) -> None:
    """Turn another program's learned token into a concept, data/concepts/RELATION/METHOD, for the base in use.

    An earlier import under these names is replaced; something that was learned here never is. It stands beside the
    pipeline: named among the methods of params.yaml, its folder would be removed by DVC. The pipeline takes the file
    itself, by its method `imported`: the command printed last compares it in a report.
    """
    import shlex

    from relinv.exchange.importing import as_change, import_concept

    folder = CONCEPTS / relation / method
    concept = import_concept(file, relation, method, _base_on_cpu(), folder, token)
    print(f"{folder} holds {concept.metadata['imported']['token']} as {concept.token}. To draw the scenarios with it:")
    print(f"  python -m stages.generate {relation} {method} && python -m stages.score {relation} {method}")
    print("To compare it with what is learned here, in a report (the pipeline takes the file where it is):")
    compared = ["-S", f"relations=[{relation}]", "-S", "methods=[relation_words,reversion,imported]"]
    print(f"  {shlex.join(['dvc', 'exp', 'run', *compared, '-S', as_change(concept, file, token)])}")
    if file.resolve().is_relative_to(CONCEPTS.resolve()):
        print(f"Copy {file} out of {CONCEPTS} first, and name the copy: DVC removes it when that is learned again.")
    print(f"Leave '{method}' itself out of the methods in params.yaml: DVC would remove its folder.")


@app.command(epilog="Example: relinv export inside reversion --for webui --to ~/embeddings")
def export(
    relation: Relation,
    method: Method,
    form: Annotated[str, typer.Option("--for", help="diffusers, webui (A1111, ComfyUI, InvokeAI) or hub.")],
    to: Annotated[Path, typer.Option(parser=cli.path, help="The folder to write into.")],
    name: Annotated[str | None, typer.Option(help="What web UIs call the token; default: RELATION_METHOD.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
) -> None:
    """Write a learned token in another program's format."""
    from relinv.diffusion.concept import load_concept
    from relinv.exchange.exporting import export_concept, spellings

    concept = load_concept(find_result("invert", relation, method), _base_on_cpu())
    # Never a plain word by default: A1111 inserts the token wherever a prompt contains its name.
    name = name or f"{relation}_{method}"
    for path in export_concept(concept, form, to, name, overwrite):
        print(path)
    if form == "webui":
        print(f"Prompts say {spellings(name)}.")


@app.command(epilog="Example: relinv restore")
def restore() -> None:
    """Bring the committed parameters and results back after experiments, from DVC's cache: nothing is learned again.

    How params.yaml and presets.yaml differed is kept in a file. What no experiment writes is left as it is.
    """
    from relinv.pipeline.restoring import restore as bring_back

    kept = bring_back(Path())
    print("The committed parameters and results are back.")
    for file in kept:
        print(f"How the parameters differed is kept: git apply {file}")


@app.command("second-moment", epilog="Example: relinv second-moment captions.txt")
def second_moment_(
    captions: Annotated[
        Path | None, typer.Argument(help="One caption per line; default: invert.perfusion.captions.")
    ] = None,
) -> None:
    """Measure the second moment of the base's text encodings, for Perfusion, which otherwise measures it by itself."""
    from relinv.diffusion.bases import load_base
    from relinv.learning.second_moment import CACHE, read_captions, second_moment
    from relinv.methods.perfusion import WATCHED, Settings

    params = load_params()
    file = captions or params.method("perfusion", Settings).captions
    moment = second_moment(load_base(params.model()), read_captions(file))
    print(f"{CACHE} holds {moment.id} of {file}, {len(moment.matrix)} x {len(moment.matrix)}.")
    if file.parent != WATCHED:  # DVC would not notice changes elsewhere
        print(f"To learn with it, copy {file} into {WATCHED}, and")
        file = WATCHED / file.name
    print(f"set invert.perfusion.captions in params.yaml (or in the preset in use) to {file}.")


@app.command(epilog="Example: relinv show data/images/inside/reversion/042.png")
def show(
    image: Annotated[Path, typer.Argument(help="An image that the pipeline drew.")],
    boxes: Annotated[
        Path | None, typer.Option(help="Also write the image with its boxes drawn in, to this PNG.")
    ] = None,
) -> None:
    """Print how an image was made, and the command that makes it again."""
    import json
    import shlex
    from dataclasses import asdict

    from relinv.images import parameters, read_image_record, require_png

    if boxes:
        require_png(boxes)
    record = read_image_record(image)
    if boxes:
        _require_another(boxes, image)
        _write_with_boxes(image, record, boxes)
    print(parameters(record))
    print(json.dumps(asdict(record), indent=2, ensure_ascii=False))
    print(f"To make it again: {shlex.join(['relinv', 'draw', str(image), 'again.png'])}")


def _require_another(target: Path, image: Path) -> None:
    """Raise UserError if an image would be written over the one that was read."""
    if target.exists() and target.samefile(image):
        raise UserError(f"'{target}' is the image that is read, and it would be lost: name another file to write.")


def _write_with_boxes(image: Path, record: ImageRecord, target: Path) -> None:
    """Write a drawn image with the boxes of its concept; UserError if it has none or has changed since."""
    from PIL import Image

    from relinv.adapters.layout import draw_boxes, layout_of
    from relinv.diffusion.concept import load_concept
    from relinv.diffusion.conditioning import drawn_with
    from relinv.files import atomic_write_bytes
    from relinv.generation import settings_of
    from relinv.images import encode_png

    if not record.method:
        raise UserError(f"The image '{image}' is of a prompt of its own: boxes are shown on the scenarios' images.")
    learned = find_result("invert", record.relation, record.method)
    concept = load_concept(learned, _base_on_cpu())
    layout = layout_of(drawn_with(concept, settings_of(record).adapters))
    if concept.fingerprint != record.settings.get("concept_sha256"):
        raise UserError(f"The image '{image}' was drawn with another concept than is here now: generate it again.")
    with Image.open(image) as picture:
        atomic_write_bytes(target, encode_png(draw_boxes(picture.convert("RGB"), layout)))


@app.command(epilog="Example: relinv draw data/images/inside/reversion/042.png again.png")
def draw(
    image: Annotated[Path, typer.Argument(help="An image that the pipeline drew.")],
    target: Annotated[Path, typer.Argument(help="The PNG to write.")],
) -> None:
    """Draw an image again from the record stored in it: the same bytes on the same machine."""
    from relinv.files import atomic_write_bytes
    from relinv.images import encode_png, read_image_record, require_png
    from relinv.imagining import draw_again

    require_png(target)
    record = read_image_record(image)
    _require_another(target, image)
    atomic_write_bytes(target, encode_png(draw_again(record, load_params()), record))


@app.command(
    epilog='Example: relinv imagine "<koala> <r> box" a.png --use r=inside/reversion --use koala=koala/dreambooth; or '
    'relinv imagine "cat <r> bowl" cat.png --use r=inside/perfusion --with perfusion.beta=0.5'
)
def imagine(
    prompt: Annotated[str, typer.Argument(help="What to draw, with a <token> for each concept.")],
    target: Annotated[Path, typer.Argument(help="The PNG to write; of several images, each name ends in its seed.")],
    use: Annotated[
        list[str] | None, typer.Option(help="A concept as TOKEN=RELATION/METHOD; may be given several times.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="The seed of the noise.")] = 0,
    images: Annotated[int, typer.Option(min=1, help="How many to draw, from that seed and those after it.")] = 1,
    steps: Annotated[
        int | None, typer.Option(min=1, max=MOST_STEPS, help="Sampling steps; default: the base's, as in params.yaml.")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(min=0, max=HIGHEST_GUIDANCE, help="Default: the base's, as in params.yaml.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--with", help="As in generate.adapters: perfusion.beta=0.5; may be given several times."),
    ] = None,
) -> None:
    """Draw your own prompt with concepts from data/concepts: one, several at once, or none."""
    from dataclasses import replace

    from tqdm import trange

    from relinv.diffusion.bases import load_base
    from relinv.files import atomic_write_bytes
    from relinv.images import encode_png, require_png
    from relinv.imagining import find_concepts, free_record, imagine_each, require_used, with_options

    require_png(target)
    _require_recordable(prompt, seed, images)
    params = load_params()
    settings, options = params.generation(), option or []
    given = {"steps": steps, "guidance_scale": guidance_scale}
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = settings.model_copy(update={**chosen, "adapters": with_options(options, settings.adapters)})
    base = load_base(params.drawing_model())
    concepts = find_concepts(use or [], base)
    require_used(options, settings.adapters, concepts.values())
    record = free_record(base, concepts, prompt, settings, seed, target.name)
    seeds = trange(seed, seed + images, unit="image", disable=images == 1)
    pictures = imagine_each(base, list(concepts.values()), prompt, settings, seeds)
    for each, picture in enumerate(pictures, start=seed):
        file = target if images == 1 else target.with_stem(f"{target.stem}_{each}")
        atomic_write_bytes(file, encode_png(picture, replace(record, seed=each, file=file.name)))


def _require_recordable(prompt: str, seed: int, images: int) -> None:
    """Raise UserError for a prompt or seeds that the images' records could not hold."""
    if seed + images > 2**32:
        raise UserError(f"{images} images from seed {seed} on take seeds beyond {2**32 - 1}: start from a lower one.")
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError("The prompt is not UTF-8 text: write it in a terminal that uses UTF-8.") from None


def run() -> None:
    """Run the command line."""
    cli.run(app)


if __name__ == "__main__":
    run()
