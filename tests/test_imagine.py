"""`relinv imagine`: prompts of one's own, with concepts from several files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import apply_overrides
from PIL import Image

from relinv.adapters.dreambooth import own_weights
from relinv.diffusion.bases import Base, load_base
from relinv.errors import UserError
from relinv.images import read_image_record
from relinv.learning.inversion import invert_relation
from relinv.params import load_params
from tests.checkouts import run, warned
from tests.concepts import keep, made
from tests.inverting import problem

INSIDE, KOALA = ("--use", "r=inside/reversion"), ("--use", "koala=koala/reversion")


@pytest.fixture
def both(checkout: Path) -> Base:
    """The base of two concepts that are in the checkout: of `inside`, and of a `koala` that is its opposite."""
    base = load_base(load_params().model())
    keep(checkout, made(base))
    keep(checkout, replace(made(base, relation="koala"), embedding=-made(base).embedding))
    return base


def imagine(target: str, *options: str, seed: int = 5) -> bytes:
    """Draw a prompt of two tokens into the file `target`; return the picture's bytes."""
    run("imagine", "<koala> <r> box", target, *options, "--seed", str(seed))
    with Image.open(target) as image:
        return image.tobytes()


def test_concepts_stand_in_one_prompt_by_their_names_whatever_their_order(both: Base) -> None:
    first = imagine("out.png", *INSIDE, *KOALA)
    assert imagine("out.png", *INSIDE, *KOALA) == first
    assert imagine("out.png", *KOALA, *INSIDE) == first
    assert imagine("out.png", *INSIDE, *KOALA, seed=6) != first
    assert imagine("out.png", "--use", "r=koala/reversion", "--use", "koala=inside/reversion") != first


def test_an_image_of_several_concepts_is_shown_and_drawn_again(both: Base) -> None:
    imagine("both.png", *INSIDE, *KOALA)
    printed = run("show", "both.png")
    assert printed.startswith("<koala> <r> box") and "koala=koala/reversion" in printed
    run("draw", "both.png", "drawn.png")
    assert Path("drawn.png").read_bytes() == Path("both.png").read_bytes()
    with pytest.raises(UserError, match="prompt of its own"):
        run("show", "both.png", "--boxes", "boxes.png")


def test_a_negative_prompt_changes_the_image_and_is_shown_and_drawn_again(both: Base) -> None:
    negative = ("--negative", "big <r> vase")  # which may have a concept in it
    plain, without = imagine("plain.png", *INSIDE, *KOALA), imagine("without.png", *INSIDE, *KOALA, *negative)
    assert plain != without
    assert "\nNegative prompt: \nSteps" in run("show", "plain.png")
    assert "\nNegative prompt: big <r> vase\nSteps" in run("show", "without.png")
    for name in ("plain", "without"):
        run("draw", f"{name}.png", "drawn.png")
        assert Path("drawn.png").read_bytes() == Path(f"{name}.png").read_bytes()
    with pytest.raises(UserError, match="negative prompt would change nothing at a guidance scale of 1 or less"):
        imagine("out.png", *INSIDE, *KOALA, *negative, "--guidance-scale", "1")
    assert not Path("out.png").exists()


def test_concepts_whose_order_matters_are_drawn_again_as_they_were(checkout: Path, both: Base) -> None:
    adapters = [{"name": "dreambooth", "file": "diffusion_pytorch_model.safetensors", "options": {"weights": "full"}}]
    for relation, factor in (("inside", 0.9), ("koala", 1.1)):  # two UNets, of which the last in use counts
        weights = {"dreambooth": {name: weight * factor for name, weight in own_weights(both).items()}}
        keep(checkout, replace(made(both, relation=relation, adapters=adapters), weights=weights))
    first = imagine("both.png", *INSIDE, *KOALA)
    run("draw", "both.png", "drawn.png")
    assert Path("drawn.png").read_bytes() == Path("both.png").read_bytes()
    assert imagine("both.png", *KOALA, *INSIDE) == first


def test_an_image_of_several_concepts_is_not_drawn_again_with_another(checkout: Path, both: Base) -> None:
    imagine("both.png", *INSIDE, *KOALA)
    keep(checkout, made(both, relation="koala", seed=1))
    with pytest.raises(UserError, match=r"both\.png was drawn with another concept than is here now"):
        run("draw", "both.png", "drawn.png")


@pytest.mark.parametrize(
    ("prompt", "options", "reason"),
    [
        ("<koala> <r> box", INSIDE, r"names <koala>, .* has learned: .* --use koala=RELATION/METHOD`\), or leave"),
        (
            "<r> box",
            ("--use", "inside/reversion"),
            r"'inside/reversion' names no concept: write --use TOKEN=RELATION/METHOD",
        ),
        ("<r> box", ("--use", "r=inside"), r"'r=inside' names no concept: write --use TOKEN"),
        ("<r> box", ("--use", "r=inside/reversion/x"), r"'r=inside/reversion/x' names no concept: write --use TOKEN"),
        ("<r> box", ("--use", "r=inside/reversoin"), r"Unknown method 'reversoin'\. Did you mean 'reversion'"),
        ("<r> box", ("--use", "r=inside/multires"), r"no 'data/concepts/inside/multires' yet: make it with"),
        ("<r> box", ("--use", "<r>=inside/reversion"), r"a token that prompts cannot name: write what stands between"),
        ("<My cat> box", ("--use", "my cat=inside/reversion"), r"a token that prompts cannot name: .* without spaces"),
        ("<> box", ("--use", "=inside/reversion"), r"a token that prompts cannot name"),
        ("<r> box", ("--use", "r> <k=inside/reversion"), r"a token that prompts cannot name"),
        ("caf\udce9 <r> box", INSIDE, r"The prompt is not UTF-8 text"),
        ("<r> box", (*INSIDE, "--negative", "caf\udce9"), r"The prompt is not UTF-8 text"),
        ("<r> box", (*INSIDE, "--with", "perfusion=1"), r"'perfusion=1' is not an option"),
        ("<r> box", (*INSIDE, "--with", "perfusion.beta"), r"'perfusion\.beta' is not an option"),
        ("<r> box", (*INSIDE, "--with", "prefusion.beta=1"), r"Unknown adapter 'prefusion'\. Did you mean 'perfusion'"),
        (
            "<r> box",
            (*INSIDE, "--with", "perfusion.beta=0.5"),
            r"'perfusion\.beta=0\.5' would change nothing, .* adapter 'perfusion' \(they have none\): leave it out\.$",
        ),
        ("<r> box", (*INSIDE, "--with", "layout.scale=1"), r"'generate\.adapters\.layout\.head' is missing from --w"),
    ],
)
def test_what_cannot_be_imagined_is_refused(prompt: str, options: tuple[str, ...], reason: str, both: Base) -> None:
    with pytest.raises(UserError, match=reason):
        run("imagine", prompt, "out.png", *options)
    assert not Path("out.png").exists()


def test_a_token_that_the_prompt_does_not_say_is_told(both: Base) -> None:
    told = warned("imagine", "<koala> <r box", "out.png", "--use", "R=inside/reversion", *KOALA)
    assert told == (
        "Warning: The prompt '<koala> <r box' does not say <r>: write it where R=inside/reversion is to be shown.\n"
    )
    assert Path("out.png").is_file()
    assert warned("imagine", "<koala> box", "out.png", *INSIDE, *KOALA, "--negative", "<r>") == ""  # which says it


def test_a_token_of_several_rows_is_said_in_all_its_forms(checkout: Path, exemplar_folder: Path) -> None:
    learned = problem(load_base(load_params().model()), exemplar_folder, "multires", steps=1)
    invert_relation(learned, checkout / "data/concepts/inside/multires", checkout / ".scratch")
    for form in ("<r>", "<r[3]>", "<R(3)>", "<r|3|>", "<r[0.5]>"):
        assert warned("imagine", f"cat {form} box", "out.png", "--use", "r=inside/multires") == ""
    with pytest.raises(UserError, match=r"r\[99\]"):
        run("imagine", "cat <r[99]> box", "out.png", "--use", "r=inside/multires")


def test_a_token_is_read_alike_in_capitals(both: Base) -> None:
    first = imagine("out.png", *INSIDE, *KOALA)
    assert imagine("out.png", "--use", "R=inside/reversion", "--use", "Koala=koala/reversion") == first
    assert warned("imagine", "<Koala> <R> box", "out.png", *INSIDE, *KOALA) == ""


def test_several_images_are_those_of_the_seeds_that_follow_and_none_needs_a_concept(checkout: Path) -> None:
    run("imagine", "cat in box", "cat.png", "--seed", "3", "--images", "2")
    run("imagine", "cat in box", "last.png", "--seed", "4")
    assert not Path("cat.png").exists() and Image.open("cat_3.png").tobytes() != Image.open("cat_4.png").tobytes()
    assert Image.open("cat_4.png").tobytes() == Image.open("last.png").tobytes()
    assert read_image_record(Path("cat_4.png")).file == "cat_4.png"
    run("draw", "cat_4.png", "again.png")
    assert Path("again.png").read_bytes() == Path("cat_4.png").read_bytes()
    with pytest.raises(UserError, match="2 images from seed 4294967295 on take seeds beyond 4294967295"):
        run("imagine", "cat in box", "cat.png", "--seed", "4294967295", "--images", "2")
    for nameless in (".", "/"):
        with pytest.raises(UserError, match=r"a PNG by another name: let its name end in \.png"):
            run("imagine", "cat in box", nameless, "--images", "2")
    run("imagine", "cat in box", "cat.png", "--seed", "4294967295")


def test_what_is_chosen_at_drawing_is_seen_in_the_picture_and_in_what_it_says(checkout: Path) -> None:
    keep(checkout, made(load_base(load_params().model())))
    layout = load_params().section("invert.compositional.layout", dict[str, Any]) | {"threshold": 0.0}
    options = [word for name, value in layout.items() for word in ("--with", f"layout.{name}={value}")]
    use = ("cat <r> box", "--use", "r=inside/reversion")
    run("imagine", *use[:1], "plain.png", *use[1:])
    run("imagine", *use[:1], "boxes.png", *use[1:], *options)
    assert Image.open("plain.png").tobytes() != Image.open("boxes.png").tobytes()
    assert read_image_record(Path("boxes.png")).settings["adapters"]["layout"]["threshold"] == 0.0
    run("draw", "boxes.png", "again.png")
    assert Path("again.png").read_bytes() == Path("boxes.png").read_bytes()
    apply_overrides(Path("params.yaml"), [f"+generate.adapters.layout.{name}={layout[name]}" for name in layout])
    run("imagine", *use[:1], "boxes.png", *use[1:])
    assert Path("again.png").read_bytes() == Path("boxes.png").read_bytes()
    run("imagine", *use[:1], "small.png", *use[1:], *options, "--with", "layout.scale=1e-3")  # a number in YAML 1.2
    assert read_image_record(Path("small.png")).settings["adapters"]["layout"]["scale"] == 0.001
    with pytest.raises(UserError, match=r"The value in 'layout\.head=\[0' is not valid YAML"):
        run("imagine", *use[:1], "out.png", *use[1:], "--with", "layout.head=[0")
    with pytest.raises(UserError, match=r"'generate\.adapters\.layout\.threshold' is 2 in --with"):
        run("imagine", *use[:1], "out.png", *use[1:], *options, "--with", "layout.threshold=2")


def test_steps_guidance_scale_and_scheduler_may_be_the_pictures_own(checkout: Path) -> None:
    before = Path("params.yaml").read_bytes()
    run("imagine", "cat in box", "as_params.png")
    for options in (("--steps", "3"), ("--guidance-scale", "0"), ("--scheduler", "ddim")):
        run("imagine", "cat in box", "own.png", *options)
        assert Image.open("own.png").tobytes() != Image.open("as_params.png").tobytes()
        settings = read_image_record(Path("own.png")).settings
        name, value = options
        assert settings[name[2:].replace("-", "_")] == (int(value) if value.isdigit() else value)
        run("draw", "own.png", "again.png")
        assert Path("again.png").read_bytes() == Path("own.png").read_bytes()
    assert Path("params.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--steps", "501", "'steps' is 501 in the command: it must be less than or equal to 500"),
        ("--images", "4294967297", "4294967297 images from seed 0 on take seeds beyond"),
        ("--guidance-scale", "nan", "'guidance_scale' is nan in the command: it must be a finite number"),
    ],
)
def test_what_no_picture_can_be_drawn_with_is_refused(checkout: Path, option: str, value: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        run("imagine", "cat in box", "out.png", option, value)
    assert not Path("out.png").exists()
