"""Devices: held to the same bits inside a block, and as they were after it; never waited for within a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils import deterministic as settings

from relinv.benchmark import load_benchmark
from relinv.devices import deterministic, find_device, fp32_as_such, require_precision, visible_gpus
from relinv.diffusion.bases import Base, load_base
from relinv.diffusion.concept import load_concept
from relinv.diffusion.sampling import SCHEDULERS, decode, denoise, initial_latents
from relinv.errors import UserError
from relinv.generation import generate, plan
from relinv.judge import load_judge
from relinv.learning.inversion import invert_relation
from relinv.learning.training import Loop, numerics, take_step
from relinv.settings import GenerateSettings, JudgeSettings, Sampler
from tests.conftest import tiny_settings
from tests.elsewhere import NAME, elsewhere
from tests.inverting import FORMS, LEARNING, METHODS, problem, training
from tests.tiny_judge import build_tiny_judge

DRAWING = GenerateSettings(pairs="all", seed=0, steps=3, guidance_scale=7.5, scheduler="dpmpp", batch_size=2)


def flags() -> tuple[bool, ...]:
    """Return whether algorithms must be deterministic, may not be with a warning, and fill memory.

    And whether convolutions and matrix products round to TF32, and convolutions choose their kernels by speed.
    """
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        settings.fill_uninitialized_memory,
        torch.backends.cudnn.allow_tf32,
        torch.get_float32_matmul_precision() != "highest",
        torch.backends.cudnn.benchmark,
    )


@pytest.mark.parametrize(
    ("device", "backward", "inside"),
    [
        ("cuda", True, (True, False, False, False, False, False)),
        ("cuda", False, (True, True, False, False, False, False)),  # cuDNN's attention may be used: its forward is so
        ("mps", True, (True, True, False, False, False, False)),
    ],
)
def test_the_same_bits_each_time_on_a_gpu_and_as_it_was_after_it(
    device: str, backward: bool, inside: tuple[bool, ...], request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(partial(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision()))
    torch.set_float32_matmul_precision("medium")  # as the environment may have it
    before = flags()
    with pytest.raises(KeyboardInterrupt), deterministic(torch.device(device), backward):
        with deterministic(torch.device(device)):
            pass
        assert flags() == inside
        raise KeyboardInterrupt
    assert flags() == before


def test_a_cpu_is_left_as_it_is() -> None:
    before = flags()
    with deterministic(torch.device("cpu")), fp32_as_such(torch.device("cpu"), by_speed=True):
        assert flags() == before


def test_on_a_cpu_it_does_not_matter_how_tf32_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends, "fp32_precision", "ieee", raising=False)  # a read of the old flag then fails
    with deterministic(torch.device("cpu")), fp32_as_such(torch.device("cpu"), by_speed=True):
        pass


@pytest.mark.parametrize(
    ("fixed", "inside"),
    [(True, (True, False, False, False, False, False)), (False, (False, False, True, False, False, True))],
)
def test_training_leaves_kernels_to_the_gpu_only_if_told(
    fixed: bool, inside: tuple[bool, ...], tiny_base: Path
) -> None:
    base = load_base(tiny_settings(tiny_base).model_copy(update={"deterministic": fixed}))
    base.device = torch.device("cuda")
    before = flags()
    with numerics(base):
        assert flags() == inside
        assert torch._inductor.config.deterministic is fixed  # which keeps torch.compile from choosing by speed
        with deterministic(base.device, backward=False):  # as a method's own pictures are drawn
            assert not torch.backends.cudnn.benchmark
    assert flags() == before


def test_a_cpu_is_found_without_a_look_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:  # it would set up CUDA
    monkeypatch.setattr("torch.cuda.is_available", MagicMock(side_effect=AssertionError))
    assert find_device("cpu") == torch.device("cpu")


def test_a_gpu_is_found_by_its_number_and_set_up_to_be_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    environment: dict[str, str] = {}
    monkeypatch.setattr("os.environ", environment)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert find_device("cuda:1") == torch.device("cuda:1")
    assert environment == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # else cuBLAS refuses to work in `deterministic`
    environment["CUBLAS_WORKSPACE_CONFIG"] = ":16:8"  # as a user may have it
    find_device("cuda:0")
    assert environment == {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}
    with pytest.raises(
        UserError, match=r"'cuda:2' is not available on this machine \(GPUs that may be used: 2, counted"
    ):
        find_device("cuda:2")


def test_an_apple_gpu_is_found_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert find_device("mps") == torch.device("mps")
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(UserError, match="The device 'mps' is not available on this machine: run this where it is"):
        find_device("mps")


@pytest.mark.parametrize(
    ("chosen", "usable"),
    [
        (None, ["0", "1"]),
        ("", []),
        ("-1", []),
        ("1, 0", ["1", "0"]),
        ("0,1,", ["0", "1"]),
        ("0,-1,1", ["0"]),
        ("0,1,7", ["0", "1"]),  # there are two
        ("GPU-1b,GPU-2c", ["GPU-1b", "GPU-2c"]),
        ("MIG-a,MIG-b,MIG-c", ["MIG-a", "MIG-b", "MIG-c"]),
    ],
)
def test_gpus_are_counted_as_cuda_counts_them(
    chosen: str | None, usable: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert visible_gpus() == usable


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "The NVIDIA driver on your system is too old.",
            r"too old; docs/stable-diffusion\.md names a PyTorch for older drivers\): run ",
        ),
        ("Found no NVIDIA driver on your system.", r"Found no NVIDIA driver on your system\): run "),
    ],
)
def test_what_pytorch_says_of_the_driver_is_passed_on(said: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.cuda.init", MagicMock(side_effect=RuntimeError(said)))
    with pytest.raises(UserError, match=rf"is made for CUDA 13\.0, and says: .*{told}"):
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
def reads() -> Iterator[list[str]]:
    """Where tests' device is there: the operations in which a GPU would be waited for."""
    with elsewhere() as found:
        yield found


@pytest.fixture
def moved(tiny_base: Path, reads: list[str]) -> Base:
    """The tiny base on a device that is not the CPU."""
    return moved_base(tiny_base)


def moved_base(folder: Path) -> Base:
    """Return the base in `folder`, on tests' device."""
    base = load_base(tiny_settings(folder))
    base.device = torch.device(NAME)
    return base


def learned_and_drawn(base: Base, name: str, exemplar_folder: Path, folder: Path) -> tuple[list[Tensor], np.ndarray]:
    """Return what the method leaves in its concept, and what it draws with it, (images, height, width, 3)."""
    invert_relation(problem(base, exemplar_folder, name, steps=3), folder / name, folder / "scratch")
    concept = load_concept(folder / name, base)
    left = [tensor for tensors in concept.weights.values() for tensor in tensors.values()]
    scenarios = load_benchmark("data/benchmark/reversion.yaml").scenarios("inside")[:2]
    drawn = generate(base, concept, plan(base, concept, scenarios, DRAWING), DRAWING)
    pictures = [np.asarray(picture, dtype=int) for _, batch in drawn for picture in batch]
    return left + ([] if concept.embedding is None else [concept.embedding]), np.stack(pictures)


@pytest.mark.parametrize("name", [*METHODS, *FORMS])
def test_a_method_learns_and_draws_on_another_device_what_it_does_on_the_cpu(
    name: str, tiny_base: Path, exemplar_folder: Path, tmp_path: Path
) -> None:
    with elsewhere():
        there, seen = learned_and_drawn(moved_base(tiny_base), name, exemplar_folder, tmp_path / "a")
    here, drawn = learned_and_drawn(load_base(tiny_settings(tiny_base)), name, exemplar_folder, tmp_path / "b")
    torch.testing.assert_close(there, here, atol=1e-3, rtol=1e-3)  # Adam magnifies the rounding of small gradients
    assert abs(seen - drawn).max() <= 2


@pytest.mark.parametrize("name", [*LEARNING, *FORMS])
def test_a_step_reads_nothing_back(
    name: str, moved: Base, reads: list[str], exemplar_folder: Path, tmp_path: Path
) -> None:
    begun = training(problem(moved, exemplar_folder, name), tmp_path)
    loop = Loop(begun)
    with begun.method.attached():
        take_step([loop], 0)  # in which what is needed is loaded
        reads.clear()
        for step in range(1, 4):
            take_step([loop], step)
        assert reads == []
    learned = [tensor for group in begun.method.groups() for tensor in group["params"]]
    assert learned and all(tensor.grad is not None for tensor in learned)
    assert loop.log.losses[-1].tolist() and reads  # which is where one would wait


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_images_are_drawn_without_reading_anything_back(scheduler: str, moved: Base, reads: list[str]) -> None:
    prompt, empty = moved.encode(moved.tokenize(["cat in box", ""])).split(1)
    _ = moved.unet, moved.vae  # loaded
    reads.clear()
    conditions = (lambda timestep: prompt), (lambda timestep: empty)
    sampler = Sampler(steps=3, guidance_scale=7.5, scheduler=scheduler)
    latents = denoise(moved, *conditions, initial_latents(moved, [1]), sampler)
    assert decode(moved, latents).device.type == NAME and reads == []


def test_the_judge_sees_on_another_device_what_it_sees_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = JudgeSettings(model=str(build_tiny_judge(tmp_path)), pretrained=None, device="cpu")
    pictures, texts = [Image.new("RGB", (64, 64), colour) for colour in ("red", "navy", "ivory")], ["cat in box", "dog"]
    here = load_judge(settings)
    create, drawn = open_clip.create_model_from_pretrained, []

    def created(*arguments: Any, **options: Any) -> Any:
        drawn.append(torch.rand(1).device.type)  # as its random weights are, which take seconds on a CPU
        return create(*arguments, **options)

    monkeypatch.setattr("open_clip.create_model_from_pretrained", created)
    with elsewhere():
        monkeypatch.setattr("relinv.judge.find_device", lambda name: torch.device(NAME))
        there = load_judge(settings)
        seen, read = there.encode_images(pictures, 2), there.encode_texts(texts)
    np.testing.assert_allclose(seen, here.encode_images(pictures, 2), atol=1e-5)
    np.testing.assert_allclose(read, here.encode_texts(texts), atol=1e-5)
    assert drawn == [NAME]
