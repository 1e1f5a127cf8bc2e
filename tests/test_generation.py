"""Generation with a learned concept: diffusers' own images, batches, resuming, refusals."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from relinv import generation, imagining
from relinv.benchmark import Scenario, load_benchmark
from relinv.diffusion import conditioning, sampling
from relinv.diffusion.bases import Base, load_base
from relinv.diffusion.concept import Concept, save_concept
from relinv.diffusion.conditioning import Drawer, Encodings, in_use
from relinv.diffusion.sampling import initial_latents
from relinv.errors import UserError
from relinv.generation import generate_folder, image_seed, plan, redraw
from relinv.images import ImageRecord, read_pictures, read_records
from relinv.params import load_params
from relinv.settings import GenerateSettings, ModelSettings
from tests.concepts import made, plain_words

PAIRS = [("cat", "box"), ("dog", "cup"), ("panda", "bowl"), ("cat", "box"), ("man", "wall")]
SCENARIOS = [Scenario("inside", index, head, tail, index == 1, False) for index, (head, tail) in enumerate(PAIRS)]
SETTINGS = GenerateSettings(pairs="all", seed=3, steps=4, guidance_scale=5.0, scheduler="ddim", batch_size=2)


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(ModelSettings(source=str(tiny_base), revision=None, device="cpu", precision="fp32", resolution=64))


@pytest.fixture(scope="module")
def concept(base: Base) -> Concept:
    return made(base)


def pixels(folder: Path) -> np.ndarray:
    """Return all images of a folder, (images, side, side, 3)."""
    return np.stack([np.asarray(image) for image in read_pictures(folder, read_records(folder))]).astype(int)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def straight(base: Base, concept: Concept, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of all scenarios, drawn without interruption."""
    root = tmp_path_factory.mktemp("straight")
    generate_folder(base, concept, SCENARIOS, SETTINGS, root / "images", root / "scratch")
    return root / "images"


def test_images_are_those_diffusers_draws_with_the_concept_loaded(
    base: Base, concept: Concept, straight: Path, tiny_base: Path, tmp_path: Path
) -> None:
    save_concept(tmp_path, concept)
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.load_textual_inversion(tmp_path)
    records = read_records(straight)
    theirs = pipeline(
        [record.prompt for record in records],
        num_inference_steps=4,
        guidance_scale=5.0,
        latents=initial_latents(base, [record.seed for record in records]),
        output_type="np",
    ).images
    assert np.abs(pixels(straight) - np.round(theirs * 255)).max() <= 2


def test_a_gpu_may_draw_with_the_attention_whose_forward_alone_is_deterministic(
    base: Base, concept: Concept, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    for module in (generation, imagining):
        monkeypatch.setattr(module, "deterministic", lambda device, backward: nullcontext(asked.append(backward)))
    list(generation.generate(base, concept, plan(base, concept, SCENARIOS[:1], SETTINGS), SETTINGS))
    imagining.imagine(base, [concept], "cat <r> box", SETTINGS, seed=1)
    assert asked == [False, False]


def test_records_say_how_each_image_was_made(base: Base, concept: Concept, straight: Path) -> None:
    records = read_records(straight)
    assert [record.file for record in records] == [f"{index:03d}.png" for index in range(5)]
    assert records[1] == ImageRecord(
        file="001.png",
        prompt="dog <r> cup",
        head="dog",
        tail="cup",
        relation="inside",
        index=1,
        seed=image_seed(3, "inside", 1),
        held_out=True,
        method="reversion",
        settings={
            "pairs": "all",
            "images": 1,
            "seed": 3,
            "steps": 4,
            "guidance_scale": 5.0,
            "scheduler": "ddim",
            "batch_size": 2,
            "adapters": {},
            "resolution": 64,
            "run": base.numerics,
            "base": base.id,
            "base_sha256": base.fingerprint,
            "concept_sha256": concept.fingerprint,
        },
    )


def test_what_is_chosen_at_drawing_is_drawn(base: Base, concept: Concept, straight: Path, tmp_path: Path) -> None:
    layout = load_params().section("invert.compositional.layout", dict[str, Any])
    strong = {"threshold": 0.0, "scale": 10_000.0, "fraction": 1.0}
    settings = SETTINGS.model_copy(update={"adapters": {"layout": layout | strong}})
    generate_folder(base, concept, SCENARIOS[:2], settings, tmp_path / "images", tmp_path / "scratch")
    moved = np.abs(pixels(tmp_path / "images") - pixels(straight)[:2]).max(axis=(1, 2, 3))
    assert (moved > 2).all()


def test_the_batch_size_moves_no_pixel_by_more_than_two(
    base: Base, concept: Concept, straight: Path, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"batch_size": 5})
    generate_folder(base, concept, SCENARIOS, settings, tmp_path / "images", tmp_path / "scratch")
    assert np.abs(pixels(tmp_path / "images") - pixels(straight)).max() <= 2
    assert [record.seed for record in read_records(tmp_path / "images")] == [r.seed for r in read_records(straight)]


def test_the_batch_size_moves_no_pixel_of_the_miniatures_by_more_than_two(tmp_path: Path) -> None:
    params = load_params()
    base, scenarios = load_base(params.model()), load_benchmark(params.benchmark()).scenarios("inside")[:12]
    drawn = []
    for size in (12, 5):
        settings = params.generation().model_copy(update={"batch_size": size})
        generate_folder(base, made(base), scenarios, settings, tmp_path / str(size), tmp_path / "scratch")
        drawn.append(pixels(tmp_path / str(size)))
    assert np.abs(drawn[0] - drawn[1]).max() <= 2
    assert np.abs(drawn[0][0] - drawn[0][1]).max() > 100  # there is something in them


def test_a_killed_run_goes_on_to_the_same_bytes(
    base: Base,
    concept: Concept,
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, sampled = conditioning.sample, []

    def dying(*arguments: object) -> torch.Tensor:
        sampled.append(1)
        if len(sampled) == 2:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(conditioning, "sample", dying)
    run = (base, concept, SCENARIOS, SETTINGS, tmp_path / "images", tmp_path / "scratch")
    with pytest.raises(KeyboardInterrupt):
        generate_folder(*run)
    assert not (tmp_path / "images").exists()  # nothing half-written to be mistaken for a result
    (workspace,) = (tmp_path / "scratch").glob("*/")
    assert sorted(path.name for path in workspace.iterdir()) == ["000.png", "001.png"]
    # As SIGKILL leaves a batch that was being written: one of its pictures, and the beginning of the other.
    shutil.copy(straight / "002.png", workspace / "002.png")
    (workspace / ".003.png.1.tmp").write_bytes((straight / "003.png").read_bytes()[:100])
    capsys.readouterr()
    generate_folder(*run)
    assert "100%" in capsys.readouterr().err
    assert len(sampled) == 2 + 2  # the first batch was kept
    assert contents(tmp_path / "images") == contents(straight)
    assert list((tmp_path / "scratch").glob("*/")) == []


@pytest.mark.parametrize(
    ("place", "other"),
    [
        ("torch.backends.cpu.get_cpu_capability", lambda: "another's"),
        ("relinv.generation.code_hash", lambda root, parts: "another's"),
    ],
)
def test_a_run_begun_on_another_processor_or_by_other_code_is_not_gone_on_with(
    place: str, other: Any, base: Base, concept: Concept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, other)
    monkeypatch.setattr(generation, "publish", lambda *arguments: None)  # as if killed before it
    generate_folder(base, concept, SCENARIOS[1:], SETTINGS, tmp_path / "images", tmp_path / "scratch")
    (begun,) = (tmp_path / "scratch").glob("*/")
    monkeypatch.undo()
    for picture in begun.glob("*.png"):
        picture.write_bytes(b"rounded otherwise")
    generate_folder(base, concept, SCENARIOS[1:], SETTINGS, tmp_path / "images", tmp_path / "scratch")
    assert len(read_pictures(tmp_path / "images", read_records(tmp_path / "images"))) == 4


def test_seeds_belong_to_seed_relation_and_scenario_on_every_machine() -> None:
    assert image_seed(0, "inside", 0) == 611771291
    seeds = {image_seed(seed, relation, i) for seed in (0, 1) for relation in ("inside", "on") for i in range(100)}
    assert len(seeds) == 400


def test_images_whose_code_was_edited_meanwhile_are_kept_until_it_is_put_back(
    base: Base, concept: Concept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = (base, concept, SCENARIOS[:2], SETTINGS, tmp_path / "images", tmp_path / "scratch")
    with pytest.raises(UserError, match="changed"):
        generate_folder(*run, confirm=MagicMock(side_effect=[None, UserError("changed")]))
    assert not (tmp_path / "images").exists()
    monkeypatch.setattr(Drawer, "draw", MagicMock(side_effect=AssertionError))  # none is drawn again
    generate_folder(*run)
    assert len(read_records(tmp_path / "images")) == 2


def test_several_images_of_a_scenario_differ_by_their_noise_alone(
    base: Base, concept: Concept, straight: Path, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"images": 3})
    generate_folder(base, concept, SCENARIOS[:2], settings, tmp_path / "images", tmp_path / "scratch")
    records = read_records(tmp_path / "images")
    assert " ".join(record.file for record in records).replace(".png", "") == "000 000_1 000_2 001 001_1 001_2"
    assert len({record.seed for record in records}) == 6 and len({record.prompt for record in records}) == 2
    drawn = pixels(tmp_path / "images")
    assert np.abs(drawn[[0, 3]] - pixels(straight)[:2]).max() <= 2  # the first of each, as if there were no more
    assert np.abs(drawn[0] - drawn[1]).max() > 2 and np.abs(drawn[1] - drawn[2]).max() > 2
    assert np.array_equal(np.asarray(redraw(base, concept, records[4], SCENARIOS[:2])), drawn[4])


def test_an_image_is_redrawn_in_its_own_batch_which_decides_its_last_bits(
    base: Base, concept: Concept, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, drawn = Drawer.draw, []
    monkeypatch.setattr(Drawer, "draw", lambda self, texts, seeds: (drawn.append(seeds), draw(self, texts, seeds))[1])
    records = plan(base, concept, SCENARIOS, SETTINGS)
    redraw(base, concept, records[3], SCENARIOS)
    assert drawn == [[records[2].seed, records[3].seed]]


def test_methods_share_seeds(base: Base, concept: Concept) -> None:
    plain = plain_words(base, "{head} inside {tail}")
    ours, theirs = plan(base, concept, SCENARIOS, SETTINGS), plan(base, plain, SCENARIOS, SETTINGS)
    assert [record.seed for record in ours] == [record.seed for record in theirs]
    assert theirs[0].prompt == "cat inside box" and theirs[0].method == "relation_words"


def test_plain_words_need_no_token(base: Base, tmp_path: Path) -> None:
    plain = plain_words(base, "{head} inside {tail}")
    generate_folder(base, plain, SCENARIOS[:1], SETTINGS, tmp_path / "images", tmp_path / "scratch")
    assert pixels(tmp_path / "images").shape == (1, 64, 64, 3)


def test_the_token_is_read_in_either_case_and_no_other_is(base: Base, concept: Concept) -> None:
    lower, upper, plain = encoded(base, concept, ["cat <r> box", "cat <R> box", "cat in box"])
    assert torch.equal(lower, upper)
    assert not torch.equal(lower, plain)
    with pytest.raises(UserError, match="<s>"):
        encoded(base, concept, ["cat <s> box"])
    with pytest.raises(UserError, match="limit is 24"):
        encoded(base, concept, ["cat " * 30])


def encoded(base: Base, concept: Concept, prompts: list[str]) -> torch.Tensor:
    """Return the encodings of prompts, (prompts, tokens, dim), with the concept in use."""
    with in_use(base, [concept]) as adapters:
        return Encodings(base, adapters, prompts, [0]).of(prompts)(0)


def test_two_concepts_hold_at_once(base: Base, concept: Concept) -> None:
    other = Concept("<s>", -concept.embedding, made(base, token="<s>", template="{head} <s> {tail}").metadata)
    prompts = ["<s> <r> box", "cat <r> box"]
    with in_use(base, [concept, other]) as adapters:
        both, one = Encodings(base, adapters, prompts, [0]).of(prompts)(0)
    assert torch.equal(one, encoded(base, concept, ["cat <r> box"])[0])
    assert not torch.equal(both, one)
    with pytest.raises(UserError, match="knows the token '<r>' already"), in_use(base, [concept, concept]):
        pass


def test_each_distinct_prompt_is_encoded_once(base: Base, concept: Concept, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    encode = Base.encode
    monkeypatch.setattr(Base, "encode", lambda self, ids: (seen.append(len(ids)), encode(self, ids))[1])
    records = plan(base, concept, SCENARIOS, SETTINGS)
    drawn: Iterator[object] = generation.generate(base, concept, records, SETTINGS)
    assert len(list(drawn)) == 3
    assert seen == [5]  # four distinct prompts and the empty one


def test_memory_and_precision_are_told_in_a_sentence(
    base: Base, concept: Concept, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = plan(base, concept, SCENARIOS, SETTINGS)

    def full(*arguments: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(sampling, "denoise", full)
    with pytest.raises(UserError, match=r"too small for 2 images at once: lower the base's sampling\.batch_size"):
        list(generation.generate(base, concept, records, SETTINGS))
    with pytest.raises(UserError, match=r"too small for an image: set the base's sampling\.precision to fp16"):
        list(generation.generate(base, concept, records, SETTINGS.model_copy(update={"batch_size": 1})))
    monkeypatch.setattr(sampling, "denoise", lambda *arguments: torch.full((2, 4, 16, 16), torch.nan))
    with pytest.raises(UserError, match=r"overflows even in fp32, so what it draws with has diverged: learn it"):
        list(generation.generate(base, concept, records, SETTINGS))
    for precision, wider in (("fp16", "bf16 or fp32"), ("bf16", "fp32")):
        monkeypatch.setattr(base, "settings", base.settings.model_copy(update={"precision": precision}))
        with pytest.raises(UserError, match=rf"set its sampling\.precision to {wider}; if"):
            list(generation.generate(base, concept, records, SETTINGS))


@pytest.mark.parametrize("failing", [0, 4])
def test_a_picture_that_cannot_be_written_is_told_before_all_others_are_drawn(
    failing: int, base: Base, concept: Concept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []

    def write(folder: Path, record: ImageRecord, picture: object) -> None:
        drawn.append(record.file)
        if record.index == failing:
            raise OSError("No space left on device")

    monkeypatch.setattr(generation, "write_image", write)
    one_by_one = SETTINGS.model_copy(update={"batch_size": 1})
    with pytest.raises(OSError, match="No space left"):
        generate_folder(base, concept, SCENARIOS, one_by_one, tmp_path / "images", tmp_path / "scratch")
    assert drawn == [f"{index:03d}.png" for index in range(failing + 1)] and not (tmp_path / "images").exists()
