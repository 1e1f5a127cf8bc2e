"""Base models: a Stable Diffusion in diffusers' folder format, loaded frozen from a folder or the hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relinv.devices import find_device, float_type, require_precision, to_device
from relinv.diffusion.base_files import check_weights, locate, model_files
from relinv.errors import UserError, is_out_of_memory, reason
from relinv.fingerprint import fingerprint
from relinv.hub import load_tokenizer
from relinv.settings import TrainingSettings

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from diffusers.models.upsampling import Upsample2D
    from transformers import CLIPTextModel, CLIPTokenizer

    from relinv.settings import ModelSettings

LIBRARIES = ("torch", "diffusers", "transformers")  # on which results depend
PREDICTIONS = ("epsilon", "v_prediction")  # what a UNet may answer: the noise or the velocity
# of diffusers' upsampling layer, as Stable Diffusion has it
PLAIN = {"use_conv": True, "use_conv_transpose": False, "interpolate": True, "norm": None, "name": "conv"}
PLACEHOLDER = re.compile(r"<[^<>\s]+>")


class Base:
    """A frozen base model in a local `folder`; `fingerprint` is the hex SHA-256 of the files it is made of.

    A component is loaded on first access, frozen and in evaluation mode (but see `text_encoder`), so that a command
    which needs none of them starts at once. Learned tokens swap `tokenizer` for a copy, and adapters change the UNet,
    only while in use. First access raises UserError if a component cannot be loaded.
    """

    def __init__(self, settings: ModelSettings, folder: Path, fingerprint: str) -> None:
        self.id = settings.source
        self.settings = settings
        self.fingerprint = fingerprint
        self.resolution = settings.resolution  # pixels per side of the images
        self._folder = folder

    @cached_property
    def device(self) -> torch.device:
        """Return the device the networks are on."""
        return find_device(self.settings.device)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Return the type of the networks' weights."""
        return float_type(self.settings.precision)

    @property
    def gpu(self) -> str | None:
        """Return the name of the GPU that the networks are on, None on another device."""
        if not self.settings.device.startswith("cuda"):
            return None
        import torch

        return torch.cuda.get_device_name(self.device)

    @property
    def processor(self) -> str:
        """Return what the networks run on: the GPU's name, or the CPU's vector instructions and how many threads.

        Another processor rounds differently, so work begun on one is not continued on another.
        """
        import torch

        return self.gpu or f"{torch.backends.cpu.get_cpu_capability()}, threads: {torch.get_num_threads()}"

    @cached_property
    def numerics(self) -> dict[str, Any]:
        """Return what results depend on to the last bit, besides weights: libraries, GPU, how the networks run."""
        versions = {name: import_module(name).__version__ for name in LIBRARIES}  # with PyTorch's build, +cpu or +cu130
        gpu = {"gpu": self.gpu} if self.gpu else {}
        return versions | gpu | self.settings.model_dump(exclude={"source", "revision", *TrainingSettings.model_fields})

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        """Return the tokenizer; inside a `PlaceholderTokens` block it knows the learned tokens."""
        return load_tokenizer(self._folder / "tokenizer")

    @cached_property
    def scheduler(self) -> DDPMScheduler:
        """Return the noise schedule of training; samplers are made from its config.

        Raises UserError if the config does not give the betas, since diffusers' defaults are not Stable Diffusion's, or
        if the UNet predicts neither noise nor velocity.
        """
        from diffusers import DDPMScheduler

        scheduler = self._load("scheduler", DDPMScheduler)
        unsaid = {"beta_start", "beta_end", "beta_schedule"} & {*scheduler.config.get("_use_default_values", [])}
        if unsaid and scheduler.config.trained_betas is None:
            raise UserError(
                f"The base '{self.id}' lacks {', '.join(sorted(unsaid))} in its scheduler: restore its folder."
            )
        kind = scheduler.config.prediction_type
        if kind not in PREDICTIONS:
            raise UserError(
                f"The UNet of '{self.id}' predicts '{kind}', as its scheduler says, and can be trained only on "
                f"{' or '.join(PREDICTIONS)}: name another base."
            )
        return scheduler

    @cached_property
    def text_encoder(self) -> CLIPTextModel:
        """Return the text encoder, set up as the settings say."""
        from transformers import CLIPTextModel
        from transformers.utils import logging

        # eager only if asked for, as in the UNet; else transformers chooses
        plain = {"attn_implementation": "eager"} if self.settings.attention == "eager" else {}
        logging.disable_progress_bar()  # for reading tensors, which is noise among a stage's own lines
        try:
            text_encoder = self._load_network("text_encoder", CLIPTextModel, **plain)
        finally:
            logging.enable_progress_bar()
        if self.settings.gradient_checkpointing:
            text_encoder.activation_checkpointing_enable({"use_reentrant": False})
            text_encoder.train()  # transformers recomputes activations only in this mode; CLIP has no dropout
        return text_encoder

    @cached_property
    def vae(self) -> AutoencoderKL:
        """Return the autoencoder between images and latents."""
        from diffusers import AutoencoderKL

        return self._load_network("vae", AutoencoderKL)

    @cached_property
    def unet(self) -> UNet2DConditionModel:
        """Return the network that predicts the noise or velocity, set up as the settings say."""
        from diffusers import UNet2DConditionModel
        from diffusers.models.attention_processor import AttnProcessor
        from diffusers.models.upsampling import Upsample2D

        unet = self._load_network("unet", UNet2DConditionModel)
        if self.settings.attention == "eager":
            unet.set_attn_processor(AttnProcessor())  # faster than PyTorch's fused kernel in bf16 on a CPU
        if self.settings.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        if self.settings.compile:
            for layer in unet.modules():
                if isinstance(layer, Upsample2D) and PLAIN.items() <= vars(layer).items():
                    layer.forward = partial(upsample, layer)
            unet.compile()
        return unet

    @property
    def dim(self) -> int:
        """Return the width of a row of the token table."""
        return self.text_encoder.get_input_embeddings().embedding_dim

    @property
    def latent_side(self) -> int:
        """Return the side of an image's latents: each block of the autoencoder but the last halves the resolution."""
        return self.resolution // 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def table(self) -> torch.Tensor:
        """Return the token table, (vocabulary, dim)."""
        return self.text_encoder.get_input_embeddings().weight

    def tokenize(self, prompts: Sequence[str]) -> torch.Tensor:
        """Return the padded ids of `prompts`, (prompts, tokens), on the base's device; `<R>` is read as `<r>`.

        Raises UserError for a token in angle brackets that no concept in use has learned, and for a prompt that is too
        long.
        """
        import torch

        prompts = [PLACEHOLDER.sub(lambda match: match[0].lower(), prompt) for prompt in prompts]
        known = self.tokenizer.get_added_vocab()
        for prompt in prompts:
            for token in PLACEHOLDER.findall(prompt):
                if token not in known:
                    raise UserError(
                        f"The prompt '{prompt}' names {token}, which no concept in use has learned: use one that has "
                        f"(`relinv imagine --use {token[1:-1]}=RELATION/METHOD`), or leave {token} out."
                    )
        ids = self.tokenizer(prompts, padding="max_length").input_ids
        limit = self.tokenizer.model_max_length
        for prompt, row in zip(prompts, ids, strict=True):
            if len(row) > limit:
                raise UserError(f"The prompt '{prompt}' has {len(row)} tokens and the limit is {limit}: shorten it.")
        return to_device(torch.tensor(ids), self.device)

    def encode(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the text encodings of token `ids`: (prompts, tokens) to (prompts, tokens, dim)."""
        return self.text_encoder(ids).last_hidden_state

    def _load_network(self, name: str, kind: Any, **further: Any) -> Any:
        """Return a frozen network. Raises UserError if weights are missing, since libraries fill them at random."""
        import torch

        options = {"torch_dtype": self.dtype, "use_safetensors": True, "output_loading_info": True}
        network, report = self._load(name, kind, **options, **further)
        if report["missing_keys"]:
            lacking = ", ".join(sorted(report["missing_keys"])[:3])
            raise UserError(f"The weights of {name} in '{self._folder}' lack {lacking} and more: restore the folder.")
        # Convolutions run about a tenth faster on channels-last weights on a CPU.
        return network.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)

    def _load(self, name: str, kind: Any, **options: Any) -> Any:
        """Return the component `name`. Raises UserError if its files are damaged or a library's version is wrong."""
        try:
            return kind.from_pretrained(self._folder / name, local_files_only=True, **options)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            if is_out_of_memory(error):
                raise  # nothing is wrong with the folder
            if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
                raise UserError(
                    f"The installed diffusers or transformers do not fit this project ({reason(error)}): install those "
                    "of constraints.txt."
                ) from error
            text = f"The {name} in '{self._folder}' cannot be loaded ({reason(error)}): restore the folder."
            raise UserError(text) from error


def upsample(layer: Upsample2D, hidden: torch.Tensor, size: Sequence[int] | None = None) -> torch.Tensor:
    """Return what a `PLAIN` layer makes of `hidden`, (batch, channels, height, width): twice the sides, then convolved.

    torch.compile would take the gradient of diffusers' own form by adding at indices: slow where the order is to be
    fixed, else in bf16 by many roundings. Of this form it is a sum.
    """
    from torch.nn import functional as F

    if size is not None:  # of a picture whose latents cannot be halved as often as the UNet does
        return layer.conv(F.interpolate(hidden, size=size, mode="nearest"))
    batch, channels, height, width = hidden.shape
    cells = hidden[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)  # (batch, channels, height, 2, width, 2)
    return layer.conv(cells.reshape(batch, channels, 2 * height, 2 * width))


def load_base(settings: ModelSettings) -> Base:
    """Return the base model that `settings` names; its components are loaded on demand.

    Raises UserError if the device, the folder, the hub id or a weight file is missing, the device is too old for the
    precision, or a weight file is damaged.
    """
    if settings.device != "cpu":  # which is always available, and a method without steps does not need PyTorch
        require_precision(find_device(settings.device), settings.precision)  # before gigabytes are downloaded for it
    folder = locate(settings.source, settings.revision)
    files = model_files(folder)
    check_weights(settings.source, folder, files)
    return Base(settings, folder, fingerprint(folder, files))
