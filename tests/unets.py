"""What a UNet answers, and weights that make it answer otherwise: for adapters, which change it and put it back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor2_0

from relinv.adapters.custom_diffusion import pretrained
from relinv.diffusion.bases import Base


def answer(base: Base, unet: UNet2DConditionModel | None = None) -> torch.Tensor:
    """Return the output for fixed latents and two fixed encodings, (2, 4, 16, 16), of the base's UNet or another."""
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)).to(base.dtype)
    text = torch.randn(2, 24, base.dim, generator=torch.Generator().manual_seed(1)).to(base.dtype)
    asked = base.unet if unet is None else unet
    with torch.no_grad():
        return asked(noise, torch.tensor([10, 700]), encoder_hidden_states=text).sample


def changed_projections(base: Base) -> dict[str, torch.Tensor]:
    """Return Custom Diffusion's weights, keys and values that differ from the base's."""
    source = torch.Generator().manual_seed(2)
    return {
        name: weight.float() + 0.1 * torch.randn(weight.shape, generator=source)
        for name, weight in pretrained(base).items()
    }


def unet_of_diffusers(base: Base, learned: Mapping[str, torch.Tensor]) -> UNet2DConditionModel:
    """Return a copy of the base's UNet with diffusers' own processors of Custom Diffusion, which hold `learned`."""
    unet = UNet2DConditionModel.from_config(base.unet.config)
    unet.load_state_dict(base.unet.state_dict())
    processors = {}
    for name in unet.attn_processors:
        own = {key.removeprefix(f"{name}."): value for key, value in learned.items() if key.startswith(name)}
        width, dim = own["to_k_custom_diffusion.weight"].shape if own else (None, None)
        options = {"train_q_out": False, "hidden_size": width, "cross_attention_dim": dim}
        processors[name] = CustomDiffusionAttnProcessor2_0(train_kv=bool(own), **options)
        processors[name].load_state_dict(own)
    unet.set_attn_processor(processors)
    return unet
