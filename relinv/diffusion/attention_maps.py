"""Where a picture attends to each word: cross-attention maps of coarse UNet layers, with gradients to the latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from relinv.diffusion.cross_attention import cross_attentions
from relinv.errors import UserError

if TYPE_CHECKING:
    import torch

    from relinv.diffusion.bases import Base


class _AllSeen(Exception):
    """The last layer of interest has been reached: the rest of the UNet need not run."""


def coarse_layers(base: Base) -> list[Any]:
    """Return the cross-attentions of the mid block and of the first up block that has any.

    These determine the layout (Chen et al., "Training-Free Layout Control with Cross-Attention Guidance", 2024).
    Stable Diffusion 1.5 at 512 pixels has one at 8 x 8 and three at 16 x 16. Raises UserError if there are none.
    """
    found = cross_attentions(base)
    ups = [int(name.split(".")[1]) for name in found if name.startswith("up_blocks.")]
    blocks = ("mid_block.", f"up_blocks.{min(ups)}.") if ups else ("mid_block.",)
    layers = [layer for name, layer in found.items() if name.startswith(blocks)]
    if not layers:
        raise UserError(
            f"The UNet of '{base.id}' has no cross-attention in its mid and up blocks: use a method without layout."
        )
    return layers


def attention_maps(
    base: Base, latents: torch.Tensor, timestep: torch.Tensor, encodings: torch.Tensor
) -> list[torch.Tensor]:
    """Return each coarse layer's attention probabilities, (images, heads, cells, tokens) float32.

    `latents` are the UNet's input, (images, channels, height, width), `encodings` the prompts', (images, tokens, dim).
    The UNet, and so any gradient, runs only as far as the last of these layers. Its attention is not replaced: each
    layer's input is captured, and its probabilities are computed from that a second time.
    """
    layers = coarse_layers(base)
    inputs: list[tuple[Any, torch.Tensor, torch.Tensor]] = []

    def look(layer: Any, arguments: tuple[torch.Tensor], options: dict[str, Any]) -> None:
        """Capture a layer's inputs; at the last layer, stop the UNet."""
        inputs.append((layer, arguments[0], options["encoder_hidden_states"]))
        if len(inputs) == len(layers):
            raise _AllSeen

    hooks = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in layers]
    try:
        # Calls `forward` directly, because torch.compile does not see hooks that were added after it.
        base.unet.forward(latents.to(base.dtype), timestep, encoder_hidden_states=encodings.to(base.device, base.dtype))
    except _AllSeen:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return [_probabilities(*taken, base.dtype) for taken in inputs]


def _probabilities(layer: Any, hidden: torch.Tensor, words: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return softmax(Q K^T / sqrt(d)) of a layer, (images, heads, cells, tokens) float32.

    `hidden` are its cells, (images, cells, width), `words` the encodings, (images, tokens, dim); `dtype` is the
    base's. The result is float32, since sums over many cells would lose small shares in half precision.
    """
    import torch

    # A concept's own weights may be more precise than the base's, whose forward then runs under autocast; so does this.
    with torch.autocast(hidden.device.type, dtype, enabled=dtype != torch.float32):
        query = layer.head_to_batch_dim(layer.to_q(hidden), out_dim=4).float()  # (images, heads, cells, d)
        key = layer.head_to_batch_dim(layer.to_k(words), out_dim=4).float()  # (images, heads, tokens, d)
    return (query @ key.transpose(-1, -2) * layer.scale).softmax(dim=-1)
