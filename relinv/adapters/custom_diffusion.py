"""Custom Diffusion in use (Kumari et al. 2023): keys and values of each cross-attention from learned projections."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from relinv.diffusion import cross_attention
from relinv.diffusion.adapter import ConceptAdapter, hooks_changed, require_fit

if TYPE_CHECKING:
    import torch

    from relinv.diffusion.bases import Base


class Adapter(ConceptAdapter):
    """`tensors` are the projections, each (width, dim), by the names in diffusers' files of this kind.

    A hook adds to a layer's output the difference that the learned projection makes. With the base's own weights that
    is exactly zero, in bf16 small changes are not lost against large weights, and nested adapters add up.
    """

    FILE = "pytorch_custom_diffusion_weights.safetensors"

    def prepare(self) -> None:
        """Keep the base's own projections. Raises UserError if the learned ones do not fit them."""
        self._own = pretrained(self.base)  # as they are now: another adapter may replace the layers' weights later
        require_fit(self.base, self.tensors, self._own)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block each layer has its hook."""
        layers = projections(self.base)
        with ExitStack() as undo:
            undo.callback(hooks_changed, self.base)  # runs last, when the hooks are gone
            for name, weight in self.tensors.items():
                hook = layers[name].register_forward_hook(partial(_change, weight, self._own[name]))
                undo.callback(hook.remove)
            hooks_changed(self.base)
            yield


def projections(base: Base) -> dict[str, Any]:
    """Return the layers that compute keys and values, by the names of their weights in a file of this kind."""
    return {_name_in_file(name): layer for name, layer in cross_attention.projections(base).items()}


def _name_in_file(layer: str) -> str:
    block, _, kind = layer.rpartition(".")
    return f"{block}.processor.{kind}_custom_diffusion.weight"


def pretrained(base: Base) -> dict[str, torch.Tensor]:
    """Return the base's own projections, from which learning starts, each (width, dim)."""
    return {name: layer.weight for name, layer in projections(base).items()}


def _change(
    weight: torch.Tensor,
    own: torch.Tensor,
    layer: torch.nn.Module,
    inputs: tuple[torch.Tensor],
    output: torch.Tensor,
) -> torch.Tensor:
    """Return the output with the learned `weight`, (batch, tokens, width), without a gradient for token 0.

    That is the start token, which is the same in every prompt: learning from it would change every picture.
    """
    import torch
    from torch.nn.functional import linear

    (encodings,) = inputs  # (batch, tokens, dim)
    learned = output + linear(encodings, (weight - own).to(encodings.dtype))  # (batch, tokens, width)
    return torch.cat([learned[:, :1].detach(), learned[:, 1:]], dim=1)
