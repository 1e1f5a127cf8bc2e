"""The judge: an open_clip model that embeds images and texts as unit vectors; their cosine is a score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from relinv.checking import parse
from relinv.devices import deterministic, find_device
from relinv.errors import UserError, is_out_of_memory, reason, unknown
from relinv.files import read_json
from relinv.fingerprint import judge_fingerprint
from relinv.hub import OFFLINE, asking_hub
from relinv.settings import JudgeSettings

if TYPE_CHECKING:
    import torch

CONFIG = "open_clip_config.json"
TOKENIZERS = ("tokenizer.json", "vocab.*", "*.model")  # one is needed, else transformers makes up a byte-level one
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # in open_clip's order
TEXTS_AT_ONCE = 256


class Judge:
    """A loaded open_clip model with its preprocessing and tokenizer."""

    def __init__(
        self, name: str, fingerprint: str, model: Any, preprocess: Any, tokenizer: Any, device: torch.device
    ) -> None:
        self.name, self.fingerprint = name, fingerprint
        self._model, self._preprocess, self._tokenizer, self._device = model, preprocess, tokenizer, device
        self._texts: dict[str, np.ndarray] = {}

    @property
    def resolution(self) -> int:
        """The side, in pixels, of the images the model looks at."""
        size = self._model.visual.image_size
        return size if isinstance(size, int) else size[0]

    def shapes(self) -> dict[str, torch.Size]:
        """Return the shape of each of the model's weights."""
        return {name: tensor.shape for name, tensor in self._model.state_dict().items()}

    def encode_images(self, images: Sequence[Image.Image], batch_size: int) -> np.ndarray:
        """Return one unit vector for each RGB image, (images, dim) float32."""
        import torch

        parts = []
        with torch.inference_mode(), deterministic(self._device, backward=False):
            for start in range(0, len(images), batch_size):
                batch = torch.stack([self._preprocess(image) for image in images[start : start + batch_size]])
                parts.append(_to_numpy(self._model.encode_image(batch.to(self._device), normalize=True)))
        return np.concatenate(parts)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return one unit vector for each text, (texts, dim) float32; each distinct text is encoded once.

        Raises UserError for a text longer than the model can read, which it would cut silently.
        """
        import torch

        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        with torch.inference_mode(), deterministic(self._device, backward=False):
            for start in range(0, len(new), TEXTS_AT_ONCE):
                part = new[start : start + TEXTS_AT_ONCE]
                self.require_read(part)
                tokens = self._tokenizer(part).to(self._device)  # (texts, tokens)
                vectors = _to_numpy(self._model.encode_text(tokens, normalize=True))
                self._texts.update(zip(part, vectors, strict=True))
        return np.stack([self._texts[text] for text in texts])

    def reads(self, texts: Sequence[str]) -> list[bool]:
        """Return for each text whether it is short enough for the model to read all of it."""
        length = self._tokenizer.context_length
        # A text that was cut ends with the end token; with one more place, another token is there instead.
        cut = self._tokenizer(list(texts), context_length=length + 1)[:, :length] != self._tokenizer(list(texts))
        return [not each for each in cut.any(dim=1).tolist()]

    def require_read(self, texts: Sequence[str]) -> None:
        """Raise UserError if a text is longer than the model can read."""
        for text, whole in zip(texts, self.reads(texts), strict=True):
            if not whole:
                raise UserError(
                    f"The judge '{self.name}' reads {self._tokenizer.context_length} tokens at most: shorten the "
                    f"entities of '{text}', or its relation's words."
                )


def load_judge(settings: JudgeSettings) -> Judge:
    """Return the judge that `settings` name, on the device they name.

    `model` is a folder in open_clip's "local-dir" layout (open_clip_config.json, open_clip_model.safetensors
    and the tokenizer's files), or an open_clip architecture whose weights `pretrained` names. Raises
    UserError, before any image is scored, for an unknown name or tag, weights that are missing, damaged or
    made for another architecture, and weights trained with QuickGELU for an architecture without it.
    """
    weights = check_judge(settings)
    if weights is None:
        _download(settings)
        return _load(settings, settings.model)
    judge = _load(settings, f"local-dir:{weights.parent}")
    _check_shapes(judge, weights)
    return judge


def check_judge(settings: JudgeSettings) -> Path | None:
    """Return the weights file of a judge in a folder, None for a judge given by name; loads and downloads nothing.

    Raises UserError for an unknown name or tag, an activation function that does not match the weights, an incomplete
    folder, and weights or a tokenizer to be downloaded while the hub is not to be asked (HF_HUB_OFFLINE).
    """
    from huggingface_hub import constants

    folder = Path(settings.model)
    if not folder.is_dir():
        _check_name(settings)
        if constants.HF_HUB_OFFLINE:
            _download(settings)  # which then only looks whether all is here
        return None
    if settings.pretrained is not None:
        raise UserError(f"The judge '{folder}' is a folder with weights of its own: set its 'pretrained' to null.")
    return _weights(folder)


def _load(settings: JudgeSettings, source: str) -> Judge:
    """Return the judge open_clip loads from `source`; its errors, except out of memory, become one UserError."""
    import open_clip

    device = find_device(settings.device)
    try:
        with device:  # where open_clip first draws random weights; drawn on a CPU, those of a large judge take seconds
            model, preprocess = open_clip.create_model_from_pretrained(
                source, pretrained=settings.pretrained, device=device
            )
        tokenizer = open_clip.get_tokenizer(source)
    except Exception as error:  # state dicts, JSON, tokenizers, downloads: each fails in its own way
        if is_out_of_memory(error):
            raise  # nothing is wrong with the judge
        raise UserError(f"The judge '{settings.name}' cannot be loaded: {reason(error)}") from error
    fingerprint = judge_fingerprint(settings)
    return Judge(settings.name, fingerprint, model.eval().requires_grad_(False), preprocess, tokenizer, device)


def _download(settings: JudgeSettings) -> None:
    """Download the weights and tokenizer of a judge given by name, unless they are here; UserError if that fails."""
    import open_clip

    name, tag = settings.model, settings.pretrained
    weights = open_clip.get_pretrained_cfg(name, tag)
    page = weights["hf_hub"].rpartition("/")[0]  # owner/name/file, the file's name often empty
    refusal = f"The judge '{name}/{tag}' is not in the local cache and cannot be downloaded"
    with asking_hub(refusal, page, OFFLINE):
        try:
            open_clip.download_pretrained(weights)
        except FileNotFoundError as error:  # repeats only the words of the hub's error
            raise error.__context__ or error from None
        open_clip.get_tokenizer(name)


def _weights(folder: Path) -> Path:
    """Return the weights in a judge's folder; UserError if weights, configuration or tokenizer are missing."""
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None or not (folder / CONFIG).is_file():
        raise UserError(f"The judge '{folder}' is incomplete: put {CONFIG} and {WEIGHTS[0]} in that folder.")
    with weights.open("rb"):  # where the system refuses this, safetensors would say that there is no such file
        pass
    file = folder / CONFIG
    config = parse(dict[str, Any], read_json(file, "judge's configuration"), "", file)
    model = parse(dict[str, Any], config.get("model_cfg", {}), "model_cfg", file)
    text = parse(dict[str, Any], model.get("text_cfg", {}), "model_cfg.text_cfg", file)
    if text.get("hf_tokenizer_name") and not any(any(folder.glob(name)) for name in TOKENIZERS):
        raise UserError(f"The judge '{folder}' lacks its tokenizer: put tokenizer.json in that folder.")
    return weights


def _check_shapes(judge: Judge, weights: Path) -> None:
    """Refuse weights that open_clip would silently resize: position embeddings made for another size."""
    expected = judge.shapes()
    for name, shape in _stored_shapes(weights).items():
        if name in expected and shape != tuple(expected[name]):
            shapes = f"{shape} where {CONFIG} makes it {tuple(expected[name])}"
            raise UserError(f"The weights '{weights}' do not fit their architecture: '{name}' is {shapes}.")


def _stored_shapes(weights: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a weights file, by the name that open_clip gives it."""
    if weights.suffix != ".safetensors":
        from open_clip.factory import load_state_dict

        return {name: tuple(tensor.shape) for name, tensor in load_state_dict(str(weights)).items()}
    from safetensors import safe_open

    with safe_open(weights, "pt") as stored:  # whose header has the shapes: the weights are not read again
        names = stored.keys()
        shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in names}
    return {name.removeprefix("module."): shape for name, shape in shapes.items()}


def _check_name(settings: JudgeSettings) -> None:
    """Refuse names, tags and activation mismatches, before anything is downloaded."""
    import open_clip

    name, tag = settings.model, settings.pretrained
    if "/" in name:
        raise UserError(f"The judge's folder '{name}' does not exist: restore it, or correct the judge's model.")
    if name not in open_clip.list_models():
        raise unknown("open_clip model", name, open_clip.list_models())
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag is None:
        raise UserError(f"The judge '{name}' is not a folder: set its pretrained to one of {', '.join(tags)}.")
    if tag not in tags:
        raise unknown(f"pretrained tag of the judge {name}", tag, tags)
    quick = "quick_gelu"  # of weights that do not say it, nothing is known
    if open_clip.get_pretrained_cfg(name, tag).get(quick) and not open_clip.get_model_config(name).get(quick):
        raise UserError(
            f"The weights '{tag}' were trained with QuickGELU, unlike the architecture '{name}': set the judge's model "
            f"to '{name}-quickgelu'."
        )


def _to_numpy(vectors: torch.Tensor) -> np.ndarray:
    """Return `vectors` as a float32 array."""
    return vectors.float().cpu().numpy()
