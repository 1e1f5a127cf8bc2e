"""Devices: held to the same bits inside a block, and as they were after it; never waited for within a step."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch.utils import deterministic as settings

from relinv.devices import deterministic, find_device, require_precision
from relinv.diffusion.bases import Base, load_base
from relinv.diffusion.sampling import SCHEDULERS, Sampler, decode, denoise, initial_latents
from relinv.errors import UserError
from relinv.learning.training import take_step
from tests.conftest import tiny_settings
from tests.inverting import looping, problem


def flags() -> tuple[bool, bool, bool, bool]:
    """Return whether algorithms must be deterministic, may not be with a warning, fill memory, and round to TF32."""
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        settings.fill_uninitialized_memory,
        torch.backends.cudnn.allow_tf32,
    )


@pytest.mark.parametrize(
    ("device", "backward", "inside"),
    [
        ("cuda", True, (True, False, False, False)),
        ("cuda", False, (True, True, False, False)),  # cuDNN's attention may be used, whose forward is deterministic
        ("mps", True, (True, True, False, False)),
    ],
)
def test_the_same_bits_each_time_on_a_gpu_and_as_it_was_after_it(
    device: str, backward: bool, inside: tuple[bool, ...]
) -> None:
    before = flags()
    with pytest.raises(KeyboardInterrupt), deterministic(torch.device(device), backward):
        with deterministic(torch.device(device)):
            pass
        assert flags() == inside
        raise KeyboardInterrupt
    assert flags() == before


def test_a_cpu_is_left_as_it_is() -> None:
    before = flags()
    with deterministic(torch.device("cpu")):
        assert flags() == before


def test_a_gpu_is_found_by_its_number_and_set_up_to_be_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    environment: dict[str, str] = {}
    monkeypatch.setattr("os.environ", environment)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert find_device("cuda:1") == torch.device("cuda:1")
    assert environment == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # else cuBLAS refuses to work in `deterministic`
    with pytest.raises(UserError, match=r"'cuda:2' is not available on this machine \(it has 2 GPUs"):
        find_device("cuda:2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_what_pytorch_says_of_the_driver_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old")

    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.cuda.init", refuse)
    with pytest.raises(UserError, match=r"is made for CUDA 13\.0, and says: The NVIDIA driver .* too old\): run "):
        find_device("cuda")


@pytest.mark.parametrize(
    ("capability", "precision", "refused"),
    [((7, 0), "bf16", True), ((7, 5), "bf16", True), ((7, 5), "fp16", False), ((8, 0), "bf16", False)],
)
def test_a_gpu_that_would_only_imitate_bf16_is_refused(
    capability: tuple[int, int], precision: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Tesla T4")
    told = pytest.raises(UserError, match=r"The GPU 'Tesla T4' is too old for bf16, .* set the base's model\.precision")
    with told if refused else nullcontext():
        require_precision(torch.device("cuda"), precision)
    require_precision(torch.device("cpu"), precision)


@pytest.fixture
def unreadable(tiny_base: Path) -> Base:
    """The tiny base on a device whose numbers cannot be read: where a GPU would be waited for, it raises an error."""
    base = load_base(tiny_settings(tiny_base))
    base.device = torch.device("meta")
    return base


@pytest.mark.parametrize("method", ["textual_inversion", "reversion", "multires", "custom_diffusion", "dreambooth"])
def test_a_step_reads_nothing_back(method: str, unreadable: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    loop = looping(problem(unreadable, exemplar_folder, method, norm="free", prior_images=0), tmp_path)
    for step in range(2):
        take_step([loop], step)
    assert len(loop.log.losses) == 2 and loop.log.losses[0].device == unreadable.device


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_images_are_drawn_without_reading_anything_back(scheduler: str, unreadable: Base) -> None:
    with torch.inference_mode():
        prompt, empty = unreadable.encode(unreadable.tokenize(["cat in box", ""])).split(1)
        latents = denoise(unreadable, prompt, empty, initial_latents(unreadable, [1]), Sampler(3, 7.5, scheduler))
        assert decode(unreadable, latents).device == unreadable.device
