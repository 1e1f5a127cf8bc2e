"""`relinv show` and `draw`: how an image was made, and the same image again."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dvc.utils.hydra import apply_overrides
from PIL import Image

from relinv.benchmark import load_benchmark
from relinv.diffusion.bases import load_base
from relinv.errors import UserError
from relinv.generation import generate_folder
from relinv.params import load_params
from relinv.settings import GenerateSettings
from tests.checkouts import files_below, name_a_gpu_that_is_not_here, run, warned
from tests.concepts import keep, made

SETTINGS = GenerateSettings(pairs="all", seed=3, steps=2, guidance_scale=5.0, scheduler="dpmpp", batch_size=3)


def test_an_image_is_made_again_to_the_same_bytes(checkout: Path, tiny_base: Path) -> None:
    base = load_base(load_params().model())
    concept = made(base)
    keep(checkout, concept)
    scenarios = load_benchmark("data/benchmark/miniature.yaml").scenarios("inside")
    images = checkout / "my images/inside's"  # a shell would take the name apart
    generate_folder(base, concept, scenarios, SETTINGS, images, checkout / ".scratch")
    for name in ("001.png", "003.png"):  # among three, and alone in its batch
        printed = run("show", str(images / name))
        assert "Sampler: DPM++ 2M" in printed and "concept_sha256" in printed
        command = printed.strip().splitlines()[-1].partition(": relinv ")[2]
        run(*shlex.split(command))
        assert (checkout / "again.png").read_bytes() == (images / name).read_bytes()
    (checkout / "again.png").unlink()
    keep(checkout, made(base, seed=1))
    with pytest.raises(UserError, match="another concept than is here now"):
        run("draw", str(images / "001.png"), "again.png")
    assert not (checkout / "again.png").exists()


def test_an_image_is_shown_with_the_boxes_it_was_drawn_by(checkout: Path, tiny_base: Path) -> None:
    base, plain = load_base(load_params().model()), made(load_base(load_params().model()))
    options = load_params().section("invert.compositional.layout", dict[str, Any])
    adapter = {"name": "layout", "file": None, "options": options}
    concept = replace(plain, metadata={**plain.metadata, "method": "compositional", "adapters": [adapter]})
    scenarios = load_benchmark("data/benchmark/miniature.yaml").scenarios("inside")[:1]
    for each in (plain, concept):
        keep(checkout, each)
        generate_folder(base, each, scenarios, SETTINGS, checkout / "images" / each.method, checkout / ".scratch")
    name_a_gpu_that_is_not_here()  # nor needed
    run("show", "images/compositional/000.png", "--boxes", "boxes.png")
    with Image.open("boxes.png") as marked, Image.open("images/compositional/000.png") as image:
        assert marked.size == image.size and marked.tobytes() != image.tobytes()
    run("show", "images/compositional/000.png", "--boxes", "boxes.png")  # over the one of before
    told = warned("export", "inside", "compositional", "--for", "webui", "--to", "out")
    assert told == "Warning: its layout stays behind: other programs draw without it.\n"
    with pytest.raises(UserError, match="reversion learned is drawn without boxes"):
        run("show", "images/reversion/000.png", "--boxes", "none.png")
    keep(checkout, replace(concept, embedding=torch.zeros(base.dim)))
    with pytest.raises(UserError, match="drawn with another concept"):
        run("show", "images/compositional/000.png", "--boxes", "none.png")


def test_boxes_are_shown_as_they_were_chosen_for_the_drawing(checkout: Path) -> None:
    base = load_base(load_params().model())
    options = load_params().section("invert.compositional.layout", dict[str, Any])
    keep(checkout, concept := made(base, adapters=[{"name": "layout", "file": None, "options": options}]))
    whole = {"layout": {"head": [0.0, 0.0, 1.0, 1.0], "tail": [0.0, 0.0, 1.0, 1.0]}}
    scenarios = load_benchmark("data/benchmark/miniature.yaml").scenarios("inside")[:1]
    settings = SETTINGS.model_copy(update={"adapters": whole})
    generate_folder(base, concept, scenarios, settings, checkout / "images", checkout / ".scratch")
    run("show", "images/000.png", "--boxes", "boxes.png")
    with Image.open("boxes.png") as marked, Image.open("images/000.png") as image:
        inner = (1, 1, image.width - 1, image.height - 1)  # all within the frame, which is drawn as boxes
        assert marked.crop(inner).tobytes() == image.convert("RGB").crop(inner).tobytes()
        assert marked.tobytes() != image.tobytes()


@pytest.mark.parametrize("name", ["out.jpg", "out", "out.png.webp"])
def test_a_png_is_not_written_by_another_name(name: str, checkout: Path) -> None:
    keep(checkout, made(load_base(load_params().model())))
    run("imagine", "cat <r> box", "cat.PNG", "--use", "r=inside/reversion")
    for words in (
        ("imagine", "cat <r> box", name, "--use", "r=inside/reversion"),
        ("draw", "cat.PNG", name),
        ("show", "cat.PNG", "--boxes", name),
    ):
        with pytest.raises(UserError, match=rf"The image '{name}' would be a PNG .* let its name end in \.png\."):
            run(*words)
    assert not Path(name).exists()


def test_a_picture_that_was_not_drawn_here_is_not_written_over(checkout: Path) -> None:
    run("imagine", "cat in box", "cat.png")
    Image.new("RGB", (8, 8)).save("photo.png")
    Path("notes_1.png").write_text("mine")
    before = files_below(checkout)
    for words in (
        ("imagine", "cat in box", "photo.png"),
        ("imagine", "cat in box", "notes.png", "--images", "2"),
        ("draw", "cat.png", "photo.png"),
        ("show", "cat.png", "--boxes", "photo.png"),
    ):
        with pytest.raises(UserError, match=r"'(photo|notes_1)\.png' exists, and .* to write, or remove it\.$"):
            run(*words)
    assert files_below(checkout) == before
    run("imagine", "cat on box", "cat.png")
    assert files_below(checkout) != before


def test_the_image_that_is_read_is_not_written_over(checkout: Path) -> None:
    keep(checkout, made(load_base(load_params().model())))
    run("imagine", "cat <r> box", "cat.png", "--use", "r=inside/reversion")
    before = files_below(checkout)
    for words in (("draw", "cat.png", f"{checkout}/cat.png"), ("show", "cat.png", "--boxes", "./cat.png")):
        with pytest.raises(UserError, match=r"cat\.png' is the image that is read, .*: name another file to write\.$"):
            run(*words)
    assert files_below(checkout) == before


def test_an_image_of_scenarios_that_are_no_more_is_not_made_again(checkout: Path) -> None:
    base = load_base(load_params().model())
    keep(checkout, made(base))
    scenarios = load_benchmark("data/benchmark/miniature.yaml").scenarios("inside")[:1]
    validation = SETTINGS.model_copy(update={"pairs": "validation"})  # the benchmark has none of these now
    generate_folder(base, made(base), scenarios, validation, checkout / "images", checkout / ".scratch")
    with pytest.raises(UserError, match=r"000\.png was drawn with another benchmark than is here now"):
        run("draw", "images/000.png", "again.png")


def test_an_image_is_drawn_again_in_the_precision_that_is_set_for_drawing(checkout: Path) -> None:
    apply_overrides(Path("params.yaml"), ["bases.miniature.sampling.precision=bf16"])
    keep(checkout, made(load_base(load_params().model())))
    run("imagine", "cat <r> box", "cat.png", "--use", "r=inside/reversion")
    assert '"precision": "bf16"' in run("show", "cat.png")
    run("draw", "cat.png", "again.png")
    assert Path("again.png").read_bytes() == Path("cat.png").read_bytes()


def test_an_image_is_not_made_again_by_a_base_that_runs_otherwise(checkout: Path) -> None:
    keep(checkout, made(load_base(load_params().model())))
    run("imagine", "cat <r> box", "cat.png", "--use", "r=inside/reversion")
    file = checkout / "params.yaml"
    file.write_text(file.read_text().replace("precision: fp32", "precision: bf16"))
    with pytest.raises(UserError, match=r"cat\.png was drawn with another library, GPU or way to run the base"):
        run("draw", "cat.png", "again.png")
