"""Learned tokens from other programs and for them, and what Perfusion's need."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from relinv import cli
from relinv.benchmark import load_benchmark
from relinv.cli import Method, Relation
from relinv.commands.common import base_on_cpu
from relinv.diffusion.bases import load_base
from relinv.diffusion.concept import Concept, load_concept
from relinv.errors import unknown
from relinv.exchange.exporting import export_concept, spellings
from relinv.exchange.importing import import_concept, sha256_of
from relinv.exemplars import OWN
from relinv.learning.second_moment import CACHE, read_captions, second_moment
from relinv.methods.perfusion import WATCHED, Settings
from relinv.overrides import as_override
from relinv.params import load_params
from relinv.results import FOLDERS, find_result

app = cli.stage_app()
CONCEPTS = FOLDERS["invert"]


@app.command("import", epilog="Example: relinv import learned_embeds.bin painted_on published")
def import_(
    file: Annotated[
        Path,
        typer.Argument(
            parser=cli.path,
            help="A learned token (.safetensors, .bin or .pt), a Perfusion .ckpt, Custom Diffusion weights, or the "
            "text encoder that Multiresolution Textual Inversion saved.",
        ),
    ],
    relation: Relation,
    method: Annotated[str, typer.Argument(help="A name for where it came from, such as published.")],
    token: Annotated[
        Path | None,
        typer.Option(
            parser=cli.path, help="For Custom Diffusion, the token's file; default: the one beside the weights."
        ),
    ] = None,
) -> None:
    """Take a token of another program.

    It becomes a concept, data/concepts/RELATION/METHOD, for the base in use. An earlier import under these names is
    replaced; something that was learned here never is. It stands beside the pipeline: named among the methods of
    params.yaml, its folder would be removed by DVC. The pipeline takes the file itself, by its method `imported`: the
    command printed last compares it in a report.
    """
    relations = load_benchmark(load_params().benchmark(), OWN / relation).relations
    folder = CONCEPTS / relation / method
    concept = import_concept(file, relation, method, base_on_cpu(), folder, token)
    print(f"{folder} holds {concept.metadata['imported']['token']} as {concept.token}.")
    if relation in relations:
        _print_uses(concept, file, token)
    else:  # such as an object, which serves in prompts of one's own
        print(
            f"Warning: {unknown('relation', relation, relations)} The benchmark of the base in use has no scenarios "
            f"for it: draw prompts of your own with it, by `relinv imagine --use r={relation}/{method}`.",
            file=sys.stderr,
        )
    print(f"Leave '{method}' itself out of the methods in params.yaml: DVC would remove its folder.")


def _print_uses(concept: Concept, file: Path, token: Path | None) -> None:
    """Print the commands that draw the scenarios of an imported concept's relation, and compare it in a report."""
    relation, method = concept.metadata["relation"], concept.method
    print("To draw the scenarios with it:")
    fetch = "" if (FOLDERS["fetch"] / relation).is_dir() else f"python -m stages.fetch {relation} && "
    print(f"  {fetch}python -m stages.generate {relation} {method} && python -m stages.score {relation} {method}")
    print("To compare it with what is learned here, in a report (the pipeline takes the file where it is):")
    compared = ["-S", f"relations=[{relation}]", "-S", "methods=[relation_words,reversion,imported]"]
    print(f"  {shlex.join(['dvc', 'exp', 'run', *compared, '-S', as_change(concept, file, token)])}")
    if file.resolve().is_relative_to(CONCEPTS.resolve()):
        print(f"Copy {file} out of {CONCEPTS} first, and name the copy: DVC removes it when that is learned again.")


def as_change(concept: Concept, file: Path, token_file: Path | None) -> str:
    """Return the change of params.yaml, as DVC's -S takes it, that has the pipeline use the file `concept` is from."""
    relation, beside = concept.metadata["relation"], concept.metadata["imported"].get("token_file")
    token_file = token_file or (file.with_name(beside) if beside else None)
    named = {"file": str(file.absolute()), "sha256": sha256_of(file, token_file)}
    if token_file:
        named["token"] = str(token_file.absolute())
    return as_override(f"invert.imported.tokens.{relation}", named)


@app.command(epilog="Example: relinv export inside reversion --for webui --to ~/embeddings")
def export(
    relation: Relation,
    method: Method,
    form: Annotated[str, typer.Option("--for", help="diffusers, webui (A1111, ComfyUI, InvokeAI) or hub.")],
    to: Annotated[Path, typer.Option(parser=cli.path, help="The folder to write into.")],
    name: Annotated[str | None, typer.Option(help="What web UIs call the token; default: RELATION_METHOD.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
) -> None:
    """Write a token for other programs."""
    concept = load_concept(find_result("invert", relation, method), base_on_cpu())
    # Never a plain word by default: A1111 inserts the token wherever a prompt contains its name.
    name = name or f"{relation}_{method}"
    for path in export_concept(concept, form, to, name, overwrite):
        print(path)
    for adapter in concept.adapters:
        print(f"Warning: its {adapter['name']} stays behind: other programs draw without it.", file=sys.stderr)
    if form == "webui":
        print(f"Prompts say {spellings(name)}.")


@app.command("second-moment", epilog="Example: relinv second-moment captions.txt")
def second_moment_(
    captions: Annotated[
        Path | None,
        typer.Argument(parser=cli.path, help="One caption per line; default: invert.perfusion.captions."),
    ] = None,
) -> None:
    """Measure what Perfusion needs of the base.

    That is the second moment of its text encodings, which Perfusion otherwise measures by itself.
    """
    params = load_params()
    file = captions or params.method("perfusion", Settings).captions
    moment = second_moment(load_base(params.model()), read_captions(file))
    print(f"{CACHE} holds {moment.id} of {file}, {len(moment.matrix)} x {len(moment.matrix)}.")
    if file.parent != WATCHED:  # DVC would not notice changes elsewhere
        print(f"To learn with it, copy {file} into {WATCHED}, and")
        file = WATCHED / file.name
    print(f"set invert.perfusion.captions in params.yaml (or in the preset in use) to {file}.")
