"""VQAScore: how probably a vision-language model says yes when asked whether a picture shows a text.

A second judge (Lin et al., ECCV 2024, arXiv 2404.01291), which agrees better with people about composition than CLIP.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from relinv.devices import deterministic, find_device, float_type, require_precision
from relinv.errors import UserError, enough_memory, is_out_of_memory, reason
from relinv.hub import find_model

if TYPE_CHECKING:
    import torch

    from relinv.settings import JudgeSettings, VqaSettings

QUESTION = 'Does this figure show "{}"? Please answer yes or no.'  # the paper's
YES = ("Yes", " Yes", "yes", " yes")  # how answers start; which are one token depends on the tokenizer
FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors")  # of a hub model
RESOLUTION = 512  # pixels a side of the exemplars it is shown: as Stable Diffusion 1.5 draws


class VqaModel:
    """A loaded vision-language model and its processor, which makes its inputs from pictures and questions."""

    def __init__(self, name: str, network: Any, processor: Any, yes: list[int]) -> None:
        self.name = name
        self._network, self._processor, self._yes = network, processor, yes

    def ask(self, pictures: Sequence[Image.Image], texts: Sequence[str], batch_size: int) -> np.ndarray:
        """Return for each RGB picture the probability that it shows its text, (pictures,) float32.

        That is the probability, among all tokens, that the answer to `QUESTION` starts with one that says yes (`YES`).
        The paper takes its own model's token "Yes"; which spellings are tokens, and with which of them answers start,
        differs between tokenizers, so their probabilities are summed. Raises UserError if memory runs out.
        """
        import torch

        pairs, parts = list(zip(pictures, texts, strict=True)), []
        # backward=False: a kernel without a deterministic form, as such models may have, is then no error
        device = self._network.device
        with torch.inference_mode(), deterministic(device, backward=False), _enough_memory(device, self.name):
            for start in range(0, len(pairs), batch_size):
                parts.append(self._probabilities(pairs[start : start + batch_size]).cpu().numpy())
        return np.concatenate(parts)

    def _probabilities(self, pairs: Sequence[tuple[Image.Image, str]]) -> torch.Tensor:
        """Return the probability of yes for pictures with their texts, (pictures,) float32."""
        inputs = self._processor.apply_chat_template(
            [_chat(picture, text) for picture, text in pairs],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},  # so that the answer follows the question
        ).to(self._network.device, self._network.dtype)
        # `generate`, because it derives positions from the padding; the logits are those before any of its settings
        answer = self._network.generate(
            **inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        return answer.logits[0].float().softmax(dim=-1)[:, self._yes].sum(dim=-1)


def load_vqa_model(judge: JudgeSettings) -> VqaModel | None:
    """Return the vision-language model that a judge's settings name, on the judge's device, or None if they name none.

    Raises UserError if it cannot be had, is damaged or incomplete, has no chat template, no token for yes, or does not
    fit into memory.
    """
    vqa = judge.vqa
    if vqa is None:
        return None
    from transformers import AutoModelForImageTextToText, AutoProcessor

    device = find_device(judge.device)
    require_precision(device, vqa.precision)
    folder = find_vqa_model(vqa)
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    weights = {"dtype": float_type(vqa.precision), "use_safetensors": True, "output_loading_info": True}
    with _enough_memory(device, vqa.model):
        try:
            processor = AutoProcessor.from_pretrained(folder, **local)
            network, report = AutoModelForImageTextToText.from_pretrained(folder, **weights, **local)
            network = network.to(device).eval().requires_grad_(False)
        except Exception as error:  # configurations, weights, tokenizers: each fails in its own way
            if is_out_of_memory(error):
                raise
            raise _refusal(vqa, f"cannot be loaded ({reason(error)})") from error
    if report["missing_keys"]:
        raise _refusal(vqa, f"lacks the weights {', '.join(sorted(report['missing_keys'])[:3])}")
    if not getattr(processor, "chat_template", None):
        raise _refusal(vqa, "has no chat template, so it is not known how to ask it")
    yes = _one_token_spellings(processor.tokenizer)
    if not yes:
        raise _refusal(vqa, 'has no single token for "Yes"')
    return VqaModel(vqa.model, network, processor, yes)


def check_vqa(judge: JudgeSettings) -> None:
    """Raise UserError if the judge's `vqa` cannot be had here, or not in its precision; loads and downloads nothing."""
    from huggingface_hub import constants

    if vqa := judge.vqa:
        require_precision(find_device(judge.device), vqa.precision)
        if constants.HF_HUB_OFFLINE or len(Path(vqa.model).parts) != 2:  # else it is a hub id, to be downloaded later
            find_vqa_model(vqa)


def find_vqa_model(vqa: VqaSettings) -> Path:
    """Return the model's folder, downloaded if it is a hub id; UserError if it can be had from neither."""
    return find_model(vqa.model, vqa.revision, FILES, "vision-language model")


def _one_token_spellings(tokenizer: Any) -> list[int]:
    """Return the ids of those of `YES` that are a single token."""
    spelt = [tokenizer(spelling, add_special_tokens=False)["input_ids"] for spelling in YES]
    return sorted({ids[0] for ids in spelt if len(ids) == 1} - {tokenizer.unk_token_id})


def _chat(picture: Image.Image, text: str) -> list[dict[str, Any]]:
    """Return what to ask about a picture, as transformers' processors take it."""
    content = [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION.format(text)}]
    return [{"role": "user", "content": content}]


def _refusal(vqa: VqaSettings, fault: str) -> UserError:
    """Return the error for a model that has a fault."""
    return UserError(
        f"The vision-language model '{vqa.model}' {fault}: restore it, or name another as the judge's vqa.model in "
        "params.yaml."
    )


def _enough_memory(device: torch.device, name: str) -> AbstractContextManager[None]:
    """Return the block in which a lack of memory is a UserError that says what to do."""
    remedy = (
        "in params.yaml, lower score.batch_size, set the precision in the judge's vqa to bf16 or fp16, or name a "
        "smaller model there"
    )
    return enough_memory(device, f"the vision-language model '{name}'", remedy)
