"""The layers of a UNet that attend to the prompt, by the names that files of learned weights use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from relinv.diffusion.bases import Base


def cross_attentions(base: Base) -> dict[str, Any]:
    """Return diffusers' attention module of each cross-attention by its name in the UNet, in the UNet's order.

    A name ends in ".attn2", as in "mid_block.attentions.0.transformer_blocks.0.attn2"; Stable Diffusion 1.5 has 16.
    """
    return {name: module for name, module in base.unet.named_modules() if name.endswith(".attn2")}


def projections(base: Base) -> dict[str, torch.nn.Linear]:
    """Return the layers that project the prompt to keys and values, by their names in the UNet."""
    return {
        f"{name}.{part}": getattr(attention, part)
        for name, attention in cross_attentions(base).items()
        for part in ("to_k", "to_v")
    }
