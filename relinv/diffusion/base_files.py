"""The files of a base model: where its folder is, whether they are of a kind that this project runs, and whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from relinv.checking import parse
from relinv.errors import UserError
from relinv.files import read_json
from relinv.hub import CONVERT, OFFLINE, find_model

COMPONENTS = ("tokenizer", "text_encoder", "vae", "unet", "scheduler")
CONFIGURATIONS = ("model_index.json", *(f"{name}/*.json" for name in COMPONENTS))
FILES = (  # the files of a hub model that make up a base
    *CONFIGURATIONS,
    "tokenizer/*.txt",
    *(f"{name}/*.safetensors" for name in ("text_encoder", "vae", "unet")),
)
FURTHER_INPUTS = (  # in a UNet's configuration; time_cond_proj_dim: the guidance scale, in latent consistency models
    "addition_embed_type",
    "class_embed_type",
    "encoder_hid_dim_type",
    "num_class_embeds",
    "time_cond_proj_dim",
)


def locate(source: str, revision: str | None) -> Path:
    """Return the local folder of a base: `source` itself, or the hub's snapshot, downloaded if need be.

    Raises UserError if it is neither a pipeline folder nor available from the hub, or is another kind of model.
    """
    check_kind(find_model(source, revision, CONFIGURATIONS))  # before gigabytes are downloaded
    folder = find_model(source, revision, FILES)
    missing = [name for name in ("model_index.json", *COMPONENTS) if not (folder / name).exists()]
    if missing:
        remedy = "restore it." if folder == Path(source) else f"restore it. {OFFLINE}"
        raise UserError(f"The base model folder '{folder}' lacks {', '.join(missing)}: {remedy}")
    return folder


def check_kind(folder: Path) -> None:
    """Raise UserError if the configurations in `folder` are not of the kind of model that this project runs.

    That is a UNet that takes latents, timesteps and one text encoder's outputs, as in Stable Diffusion 1 and 2.
    """
    files = {name: folder / name / "config.json" for name in ("unet", "vae", "text_encoder")}
    unet, vae, text = (
        parse(dict[str, Any], read_json(file, "configuration"), "", file) if file.is_file() else {}
        for file in files.values()
    )
    takes, reads, writes = unet.get("in_channels", 4), unet.get("cross_attention_dim"), text.get("hidden_size")
    widths = {*reads} if isinstance(reads, list) else {reads}
    if takes != vae.get("latent_channels", 4):
        difference = f"its UNet takes {takes} channels, unlike its latents"
    elif any(unet.get(kind) is not None for kind in FURTHER_INPUTS):
        difference = "its UNet takes more than timesteps and a prompt"
    elif None not in (reads, writes) and widths != {writes}:
        difference = f"its UNet reads encodings of {reads} numbers, and its text encoder writes {writes}"
    else:
        return
    raise UserError(
        f"The base model in '{folder}' is not a Stable Diffusion 1 or 2 as this project runs them: {difference}. Name "
        "another as the base's model.source."
    )


def model_files(folder: Path) -> list[Path]:
    """Return the files that make up the base in `folder`, sorted: configurations and the weights that are loaded.

    A second dot in a name marks a variant (model.fp16.safetensors), which is not loaded.
    """
    found = [
        path
        for name in COMPONENTS
        for path in (folder / name).iterdir()
        if path.suffix in {".json", ".txt", ".safetensors"} and path.name.count(".") == 1
    ]
    return sorted(found)


def check_weights(source: str, folder: Path, files: Sequence[Path]) -> None:
    """Raise UserError if a component of a base has no safetensors file among its `files`, or one of them is damaged.

    `folder` is where `locate` found `source`.
    """
    from safetensors import SafetensorError, safe_open

    is_local, weights = folder == Path(source), [path for path in files if path.suffix == ".safetensors"]
    for name in ("text_encoder", "vae", "unet"):
        if not any(path.parent.name == name for path in weights):
            remedy = _remedy(folder, name) if is_local else _remedy_on_hub(source)
            raise UserError(f"The weights of {name} are missing from '{folder}' (*.safetensors): {remedy}")
    for path in weights:
        with path.open("rb"):  # where the system refuses this, safetensors would say that there is no such file
            pass
        try:
            with safe_open(path, "numpy"):  # reads the header, and compares the file's length with it
                pass
        except (SafetensorError, OSError) as error:
            remedy = "restore it" if is_local else f"remove '{path.resolve()}', and it is downloaded again"
            raise UserError(f"The weight file '{path}' is damaged ({error}): {remedy}.") from None


def _remedy(folder: Path, component: str) -> str:
    """Return what to do about a component without weights that are loaded; others, if it has any, can be converted."""
    others = sorted(path.name for path in (folder / component).iterdir() if path.suffix in {".bin", ".safetensors"})
    if not others:
        return "restore them, or convert those of another kind (.bin, a variant)."
    _, *variant, _ = others[0].split(".")  # such as fp16, or fp16-00001-of-00002 for one of its parts
    why, option = ("a variant", f", variant='{variant[0].partition('-')[0]}'") if variant else ("a pickle", "")
    convert = CONVERT.format(f"from_pretrained('{folder}'{option})", f"{folder}-safetensors")
    return f"{others[0]}, {why}, is not loaded; {convert} as model.source."


def _remedy_on_hub(source: str) -> str:
    """Return what to do about a model of the hub that has no such weights there, or not all of them here."""
    convert = CONVERT.format(f"from_pretrained('{source}')", f"{source.partition('/')[2]}-safetensors")
    return (
        f"if '{source}' has them as .bin alone, {convert} as model.source (if as a variant alone, with variant='fp16' "
        f"in that call). {OFFLINE}"
    )
