"""DreamBooth in use (Ruiz et al. 2023): low-rank changes of the UNet's attention layers, or new weights throughout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from relinv.diffusion.adapter import ConceptAdapter, require_fit

if TYPE_CHECKING:
    import torch

    from relinv.diffusion.bases import Base

FILES = {
    "lora": "pytorch_lora_weights.safetensors",  # as diffusers' `pipe.load_lora_weights` expects it
    "full": "diffusion_pytorch_model.safetensors",  # as in the folder of a UNet
}
ATTENTION_LAYERS = (".to_q", ".to_k", ".to_v", ".to_out.0")
NAME = "relation"  # of the low-rank change within peft's layers


class Adapter(ConceptAdapter):
    """`options` say which form: {"weights": "lora", "rank": ...} or {"weights": "full"}.

    lora: `tensors` are down and up projections, (rank, width) and (width, rank), with alpha equal to the rank; inside
    the block peft's layers wrap the base's own, and nested adapters add up (Hu et al., "LoRA", 2022). full: `tensors`
    are all weights of the UNet; inside the block they replace the base's, until a second such adapter replaces them,
    and the UNet computes in the base's precision.
    """

    replaces_layers = True

    def prepare(self) -> None:
        """Lay the tensors out in memory as the base's. Raises UserError if they do not fit its UNet."""
        import torch

        require_fit(self.base, self.tensors, initial_tensors(self.base, self.options))
        self.FILE = FILES[self.options["weights"]]
        for tensor in self.tensors.values():
            if tensor.dim() == 4:  # the memory layout of the base's convolutions, even 1 x 1 ones: bits depend on it
                tensor.data = torch.empty_like(tensor.data, memory_format=torch.channels_last).copy_(tensor.data)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the UNet has the low-rank layers or the weights."""
        with ExitStack() as undo:
            if self.options["weights"] == "lora":
                self._wrap_layers(undo)
            else:
                self._replace_weights(undo)
            yield

    def _wrap_layers(self, undo: ExitStack) -> None:
        for name in attention_layers(self.base):
            parent, _, child = name.rpartition(".")
            down, up = (self.tensors[f"unet.{name}.lora_{kind}.weight"] for kind in "AB")
            block = self.base.unet.get_submodule(parent)
            layer = getattr(block, child)
            undo.callback(setattr, block, child, layer)
            setattr(block, child, _low_rank(layer, down, up))

    def _replace_weights(self, undo: ExitStack) -> None:
        import torch

        unet, dtype = self.base.unet, self.base.dtype
        for name, tensor in self.tensors.items():
            path, _, kind = name.rpartition(".")
            module = unet.get_submodule(path)
            while hasattr(module, "base_layer"):  # another adapter's layer wraps it
                module = module.base_layer
            undo.callback(setattr, module, kind, getattr(module, kind))
            setattr(module, kind, tensor)
        if dtype != torch.float32:
            before = unet.__dict__.get("forward")
            unet.forward = torch.autocast(self.base.device.type, dtype)(unet.forward)
            undo.callback(_set_forward, unet, before)


def own_weights(base: Base) -> dict[str, torch.nn.Parameter]:
    """Return the UNet's weights by their names in its file, without the layers that other adapters wrap around them."""
    named = base.unet.named_parameters()
    return {name.replace(".base_layer", ""): weight for name, weight in named if ".lora_" not in name}


def attention_layers(base: Base) -> list[str]:
    """Return the names of the linear layers in the UNet's self- and cross-attentions."""
    names = [name.replace(".base_layer", "") for name, _ in base.unet.named_modules()]
    return [name for name in dict.fromkeys(names) if name.endswith(ATTENTION_LAYERS)]


def initial_tensors(base: Base, options: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
    """Return the tensors from which learning starts; they leave the UNet's output as it is.

    lora: each down projection is normal with standard deviation 1 / rank, from its own generator, and each up
    projection is zero. full: the UNet's weights, not copied.
    """
    import torch

    from relinv.diffusion.randomness import generator

    if options["weights"] == "full":
        return own_weights(base)
    tensors, rank = {}, options["rank"]
    for name in attention_layers(base):
        layer = base.unet.get_submodule(name)
        down = torch.randn(rank, layer.in_features, generator=generator(0, name, 0)) / rank
        tensors[f"unet.{name}.lora_A.weight"] = down
        tensors[f"unet.{name}.lora_B.weight"] = torch.zeros(layer.out_features, rank)
    return tensors


def _low_rank(layer: torch.nn.Module, down: torch.nn.Parameter, up: torch.nn.Parameter) -> torch.nn.Module:
    """Return `layer` wrapped in peft's, with these very parameters, (rank, width) and (width, rank)."""
    import torch
    from peft import LoraConfig
    from peft.tuners.lora import Linear

    rank = len(down)
    with torch.device("meta"):  # peft's initial weights are replaced at once
        config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights=False)
        wrapped = Linear(layer, NAME, config, r=rank, lora_alpha=rank)
    wrapped.lora_A[NAME].weight, wrapped.lora_B[NAME].weight = down, up
    return wrapped.eval()


def _set_forward(unet: torch.nn.Module, forward: Any) -> None:
    """Restore the forward of `unet`: its class's, or `forward` if the object had its own."""
    del unet.forward
    if forward is not None:
        unet.forward = forward
