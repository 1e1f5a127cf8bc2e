"""A complete vision-language model of random weights: LLaVA's parts, with a tokenizer of whole words."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Punctuation, Sequence, WhitespaceSplit
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    TokenizersBackend,
)

SIDE, PATCH = 16, 8  # pixels
SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
WORDS = 'Does this figure show " ? Please answer yes or no . Yes No USER ASSISTANT : cat dog box cup inside hugging'
TEMPLATE = (
    "{% for message in messages %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def build_tiny_vqa(folder: Path, words: str = WORDS, template: str | None = TEMPLATE) -> Path:
    """Save the model, its processor and, if any, its chat template into `folder`; return `folder`.

    The weights are the same each time, and so large that answers depend on pictures and words.
    """
    ids = {word: index for index, word in enumerate([*SPECIAL.values(), "<image>", *words.split()])}
    model = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    model.pre_tokenizer = Sequence([WhitespaceSplit(), Punctuation()])
    tokenizer = TokenizersBackend(tokenizer_object=model, extra_special_tokens={"image_token": "<image>"}, **SPECIAL)
    pictures = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    LlavaProcessor(
        pictures, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", chat_template=template,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "initializer_range": 0.5}  # fmt: skip
    named = {"pad_token_id": ids["<pad>"], "bos_token_id": ids["<s>"], "eos_token_id": ids["</s>"]}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=SIDE, patch_size=PATCH, **small),
        text_config=LlamaConfig(vocab_size=len(ids), max_position_embeddings=64, **named, **small),
        image_token_index=ids["<image>"],
        vision_feature_layer=-1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlavaForConditionalGeneration(config).save_pretrained(folder)
    return folder
