"""Devices that networks run on: found by name and made deterministic."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from relinv.errors import UserError

if TYPE_CHECKING:
    import torch


def find_device(name: str) -> torch.device:
    """Return the device of that name; UserError if this machine does not have it."""
    import torch

    if name == "cpu":
        return torch.device(name)  # without a look for GPUs, which would set up CUDA
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kind, _, index = name.partition(":")
    if not usable.get(kind) or (kind == "cuda" and int(index or 0) >= torch.cuda.device_count()):
        cause = _cuda_cause() if kind == "cuda" else ""
        raise UserError(
            f"The device '{name}' is not available on this machine{cause}: run this where it is, or set that device to "
            "cpu in params.yaml."
        )
    if kind == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for `deterministic`; cuBLAS reads it at first use
    return torch.device(name)


def _cuda_cause() -> str:
    """Return in brackets why CUDA, or the GPU of that number, is unavailable."""
    import torch

    if torch.cuda.is_available():
        return f" (GPUs that may be used: {torch.cuda.device_count()}, counted from 0)"
    if torch.version.cuda is None:
        return f" (PyTorch {torch.__version__} is made without CUDA)"
    try:
        torch.cuda.init()
    except RuntimeError as error:  # tells a missing driver from one that is too old for this PyTorch, and what to do
        said = str(error).rstrip(".")
        hint = "; docs/stable-diffusion.md names a PyTorch for older drivers" if "too old" in said else ""
        return f" (PyTorch {torch.__version__} is made for CUDA {torch.version.cuda}, and says: {said}{hint})"
    return ""


def require_precision(device: torch.device, precision: str) -> None:
    """Raise UserError if `precision` is bf16 and the device a GPU without it.

    PyTorch would imitate it without saying so, slower than fp32.
    """
    import torch

    if precision != "bf16" or device.type != "cuda" or torch.version.hip:  # AMD counts its capabilities otherwise
        return
    if torch.cuda.get_device_capability(device) < (8, 0):
        raise UserError(
            f"The GPU '{torch.cuda.get_device_name(device)}' is too old for bf16, which NVIDIA's have from Ampere on: "
            "set the base's model.precision to fp32, and its sampling.precision, or its judge.vqa.precision, to fp16."
        )


def float_type(precision: str) -> torch.dtype:
    """Return the type of numbers that "fp32", "bf16" or "fp16" stands for."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, named as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count, chosen = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return [str(index) for index in range(count)]
    named = [name.strip() for name in chosen.split(",")]
    names = list(takewhile(lambda name: name and not name.startswith("-"), named))  # CUDA ignores what follows
    # of a GPU divided by MIG, CUDA sees one part alone
    return names if count and any(name.startswith("MIG-") for name in names) else names[:count]


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a CPU tensor copied to `device`, without waiting for a GPU's pending work."""
    if device.type != "cuda":
        return tensor.to(device)
    import torch

    with torch.cuda.device(device):  # otherwise PyTorch would set up the first GPU too, and take some of its memory
        return tensor.pin_memory().to(device, non_blocking=True)


@contextmanager
def deterministic(device: torch.device, backward: bool = True) -> Iterator[None]:
    """Inside the block, `device` is deterministic, and a GPU's fp32 is fp32.

    A CPU is deterministic anyway; an Apple GPU is as far as PyTorch has such kernels. `backward`: whether gradients
    are to be so too; if not, a GPU may use the fastest attention, cuDNN's among others, whose forward is deterministic.
    """
    import torch

    settings: Any = torch.utils.deterministic  # which gets its attributes only at run time
    enabled, warn_only, fills = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        settings.fill_uninitialized_memory,
    )
    if device.type != "cpu":
        # warn_only=True permits fused attention, whose forward is deterministic; without it PyTorch would avoid
        # cuDNN's kernel. Training on CUDA uses the strict mode.
        torch.use_deterministic_algorithms(True, warn_only=device.type != "cuda" or not backward)
        settings.fill_uninitialized_memory = False  # takes time, and no kernel here reads unwritten memory
    try:
        with fp32_as_such(device, by_speed=False):
            yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        settings.fill_uninitialized_memory = fills


@contextmanager
def fp32_as_such(device: torch.device, by_speed: bool) -> Iterator[None]:
    """Inside the block a GPU does not round fp32 to TF32.

    PyTorch lets convolutions do so by default, and matrix products where the environment says so, as in NVIDIA's
    containers. by_speed: whether each convolution takes the kernel that proves the fastest at its first run, which may
    be another each time.
    """
    if device.type == "cpu":  # where it does not matter: PyTorch refuses to read its flags if its newer ones were set
        yield
        return
    import torch

    cudnn = torch.backends.cudnn
    before, products = (cudnn.allow_tf32, cudnn.benchmark), torch.get_float32_matmul_precision()
    cudnn.allow_tf32, cudnn.benchmark = False, by_speed
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.benchmark = before
        torch.set_float32_matmul_precision(products)
