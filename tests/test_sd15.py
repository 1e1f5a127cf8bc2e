"""Every layer of Stable Diffusion 1.5, random weights: shapes, words, a step of training, an image.

A tenth as wide by default. `pytest -m full tests/test_sd15.py` takes its true size at 512 pixels (16 GB; on two cores
ten minutes).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from benchmarks.sd15 import build_sd15_base
from relinv.benchmark import load_benchmark
from relinv.diffusion.attention_maps import coarse_layers
from relinv.diffusion.bases import Base, load_base
from relinv.diffusion.concept import EMBEDDING, load_concept
from relinv.diffusion.conditioning import Drawer
from relinv.diffusion.cross_attention import cross_attentions
from relinv.exchange.exporting import export_concept
from relinv.generation import generate_folder
from relinv.images import read_pictures, read_records
from relinv.learning.inversion import invert_relation
from relinv.learning.training import take_step
from relinv.learning.words import PREPOSITIONS
from relinv.methods.reversion import content_ids, preposition_ids
from relinv.settings import GenerateSettings, ModelSettings, Sampler
from tests.conftest import tiny_settings
from tests.inverting import METHODS, looping, problem

SETTINGS = GenerateSettings(pairs="all", seed=0, steps=2, guidance_scale=7.5, scheduler="pndm", batch_size=8)


@pytest.fixture(scope="module", params=["narrow", pytest.param("full", marks=pytest.mark.full)])
def size(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(size: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sd15_base(tmp_path_factory.mktemp("sd15"), full=size == "full")


@pytest.fixture(scope="module")
def settings(size: str, folder: Path) -> ModelSettings:
    resolution = 512 if size == "full" else 128
    return tiny_settings(folder).model_copy(update={"resolution": resolution})


@pytest.fixture(scope="module")
def base(settings: ModelSettings) -> Base:
    return load_base(settings)


def test_it_has_the_layers_of_the_published_model(base: Base) -> None:
    processors = [name for name in base.unet.attn_processors if "attn2" in name]
    assert len(processors) == 16
    assert len(base.text_encoder.get_input_embeddings().weight) == 49408
    assert base.vae.config.scaling_factor == 0.18215
    assert base.scheduler.alphas_cumprod[-1].item() == pytest.approx(0.0047, abs=1e-4)


def test_layouts_look_at_the_published_layers(base: Base) -> None:
    cross = {id(layer): name for name, layer in cross_attentions(base).items()}
    names = [cross[id(layer)].partition(".transformer_blocks")[0] for layer in coarse_layers(base)]
    ups = [f"up_blocks.1.attentions.{index}" for index in range(3)]
    assert sorted(names) == ["mid_block.attentions.0", *ups]


def test_clips_own_words_have_their_published_ids(base: Base) -> None:
    assert base.tokenizer("and", add_special_tokens=False).input_ids == [537]
    ids = base.tokenizer("cat").input_ids
    assert (ids[0], ids[-1]) == (49406, 49407)


def test_prepositions_are_tokens_of_clip_but_for_astride(base: Base) -> None:
    ids = preposition_ids(base)
    assert len(ids) == len(PREPOSITIONS) - 1 == 55
    assert "astride" not in base.tokenizer.batch_decode([[index] for index in ids])


def test_negatives_are_the_captions_own_words(base: Base) -> None:
    caption = "a photo of 2 cats, <r> the michael jackson's basket!"
    words = base.tokenizer.batch_decode([[index] for index in content_ids(base, caption)])
    assert [word.strip() for word in words] == ["photo", "cats", "michael", "jackson", "basket"]


@pytest.mark.parametrize("method", [*METHODS, "dreambooth+full"])
def test_a_relation_is_learned_drawn_and_exported(
    method: str, size: str, base: Base, folder: Path, exemplar_folder: Path, tmp_path: Path
) -> None:
    drawing = SETTINGS.model_copy(update={"batch_size": 1}) if size == "full" else SETTINGS
    task = problem(base, exemplar_folder, method, steps=1, batch_size=1)
    invert_relation(task, tmp_path / "concept", tmp_path / "scratch")
    concept = load_concept(tmp_path / "concept", base)
    scenarios = load_benchmark("data/benchmark/reversion.yaml").scenarios("inside")[:1]
    generate_folder(base, concept, scenarios, drawing, tmp_path / "images", tmp_path / "scratch")
    (picture,) = read_pictures(tmp_path / "images", read_records(tmp_path / "images"))
    assert picture.size == (base.resolution, base.resolution)
    if concept.embedding is not None and not concept.weights:
        export_concept(concept, "diffusers", tmp_path / "out", "inside")
        pipeline = StableDiffusionPipeline.from_pretrained(folder)
        pipeline.load_textual_inversion(str(tmp_path / "out"), weight_name=EMBEDDING)
        index = pipeline.tokenizer.convert_tokens_to_ids("<r>")
        assert torch.equal(pipeline.text_encoder.get_input_embeddings().weight[index].detach(), concept.embedding)


def test_in_bf16_the_row_alone_gets_a_gradient_and_a_picture_is_drawn(
    settings: ModelSettings, exemplar_folder: Path, tmp_path: Path
) -> None:
    half = load_base(settings.model_copy(update={"precision": "bf16"}))
    loop = looping(problem(half, exemplar_folder, "reversion", steps=1, batch_size=1), tmp_path)
    take_step([loop], 0)
    (row,) = loop.method.state().values()
    assert row.grad is not None and row.grad.isfinite().all() and row.grad.any()
    for network in (half.text_encoder, half.vae, half.unet):
        assert {(weight.dtype, weight.grad) for weight in network.parameters()} == {(torch.bfloat16, None)}
    prompts, sampler = ["cat inside box"], Sampler(steps=2, guidance_scale=7.5, scheduler="pndm")
    image = Drawer(half, [], prompts, sampler).draw(prompts, [1])
    assert image.shape == (1, 3, half.resolution, half.resolution)
    assert image.isfinite().all() and image.std() > 0
