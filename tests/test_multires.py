"""A token's rows by timestep: which row is learned and drawn when, what prompts may ask for, what is left on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from relinv.adapters import layout
from relinv.adapters.multires import Adapter, resolution
from relinv.benchmark import Scenario
from relinv.diffusion.attention_maps import attention_maps
from relinv.diffusion.bases import Base
from relinv.diffusion.concept import EMBEDDING, Concept, load_concept
from relinv.diffusion.conditioning import Encodings, guided_by, in_use
from relinv.diffusion.embeddings import PlaceholderTokens
from relinv.diffusion.sampling import initial_latents
from relinv.diffusion.token_rows import ROWS
from relinv.errors import UserError
from relinv.exchange.exporting import export_concept
from relinv.generation import draw_forms, generate_folder
from relinv.images import FORMS_FILE, RECORDS
from relinv.learning.inversion import invert_relation
from relinv.learning.method import InversionMethod
from relinv.params import load_params
from relinv.settings import GenerateSettings
from tests.inverting import build, inputs, problem, training
from tests.tiny import weights

FINE, MIDDLE, COARSE = 0, 555, 999  # timesteps; of ten resolutions those of 0, 5 and 9


@pytest.fixture
def adapter(base: Base) -> Adapter:
    """Ten rows of `<r>`, no two alike."""
    return Adapter(base, "<r>", {ROWS: torch.randn(10, base.dim, generator=torch.Generator().manual_seed(0))}, {})


def method(base: Base, exemplar_folder: Path, name: str = "multires", **changes: object) -> InversionMethod:
    return build(problem(base, exemplar_folder, name, **{"resolutions": 10} | changes))


def test_resolutions_are_equal_parts_of_the_timesteps() -> None:
    assert [resolution(t, 10, 1000) for t in (0, 99, 100, 999)] == [0, 0, 1, 9]
    assert [resolution(t, 100, 1000) for t in (530, 590)] == [53, 59]  # where 32-bit floats round down
    assert resolution(torch.arange(1000), 10, 1000).bincount().tolist() == [100] * 10


@pytest.mark.parametrize(
    ("form", "fine", "middle", "coarse"),
    [
        ("<r>", "<r|0|>", "<r|5|>", "<r|9|>"),
        ("<r[0]>", "<r|0|>", "<r|5|>", "<r|9|>"),
        ("<r[7]>", "<r|7|>", "<r|7|>", "<r|9|>"),
        ("<r(0)>", "<r|0|>", "<r|5|>", "<r|9|>"),
        ("<r(5)>", "", "<r|5|>", "<r|9|>"),
        ("<r(6)>", "", "", "<r|9|>"),
        ("<r|3|>", "<r|3|>", "<r|3|>", "<r|3|>"),
        ("<R[0.7]>", "<r|7|>", "<r|7|>", "<r|9|>"),
        ("<r(.59)>", "", "<r|5|>", "<r|9|>"),
        ("<r|0.99|>", "<r|9|>", "<r|9|>", "<r|9|>"),
    ],
)
def test_each_form_takes_its_row(adapter: Adapter, form: str, fine: str, middle: str, coarse: str) -> None:
    taken = [adapter.prompt_at(f"cat {form}, box", timestep) for timestep in (FINE, MIDDLE, COARSE)]
    assert taken == [f"cat {row}, box" for row in (fine, middle, coarse)]


def test_fractions_are_exact(base: Base) -> None:
    adapter = Adapter(base, "<r>", {ROWS: torch.zeros(100, base.dim)}, {})
    assert adapter.prompt_at("<r|0.29|>", FINE) == "<r|29|>"  # 0.29 * 100 is less than 29 in floats


def test_a_token_is_read_by_its_letters_alone(base: Base) -> None:
    adapter = Adapter(base, "<a+.>", {ROWS: torch.zeros(10, base.dim)}, {})
    assert adapter.prompt_at("<a+.[7]> <a+.> <aab>", FINE) == "<a+.|7|> <a+.|0|> <aab>"


def test_forms_mix_in_one_prompt(adapter: Adapter) -> None:
    prompt = "<r[6]> cat <r(6)> box <r|1|> <r> <s>"
    assert adapter.prompt_at(prompt, MIDDLE) == "<r|6|> cat  box <r|1|> <r|5|> <s>"
    assert adapter.prompt_at(prompt, COARSE) == "<r|9|> cat <r|9|> box <r|1|> <r|9|> <s>"


@pytest.mark.parametrize("n", ["10", "-1", "1.0", "-0.1", "x", "", "1e-1", "4/5", "3 4", "."])
@pytest.mark.parametrize("kind", ["[]", "()", "||"])
def test_other_numbers_are_refused(adapter: Adapter, kind: str, n: str) -> None:
    with pytest.raises(UserError, match=r"names <r.*: write <r>, or .* a whole number from 0 to 9 or a fraction"):
        adapter.prompt_at(f"cat <r{kind[0]}{n}{kind[1]}> box", FINE)


@pytest.mark.parametrize("form", ["<r[3)>", "<r|3>", "<r(>"])
def test_brackets_that_do_not_close_are_refused(adapter: Adapter, form: str) -> None:
    with pytest.raises(UserError, match="write <r>, or"):
        adapter.prompt_at(form, FINE)


def test_a_deleted_token_leaves_the_prompt_without_it(base: Base, adapter: Adapter) -> None:
    prompts = ["cat <r(9)> box", "cat box"]
    with adapter.applied():
        deleted, without = Encodings(base, [adapter], prompts, [FINE]).of(prompts)(FINE)
    assert torch.equal(deleted, without)


def test_a_prompt_has_no_more_encodings_than_resolutions(
    base: Base, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    encode = Base.encode
    monkeypatch.setattr(Base, "encode", lambda self, ids: seen.append(len(ids)) or encode(self, ids))
    with adapter.applied():
        encodings = Encodings(base, [adapter], ["cat <r[2]> <r(5)> box", "cat <r|4|> box", ""], list(range(0, 1000, 7)))
        assert sum(seen) == 8 + 1 + 1
        rows = {tuple(encodings.of(["cat <r[2]> <r(5)> box"])(t).flatten().tolist()) for t in range(0, 1000, 7)}
    assert len(rows) == 8 and len(seen) == 1


def test_another_concept_with_the_token_is_refused(
    base: Base, adapter: Adapter, exemplar_folder: Path, tmp_path: Path
) -> None:
    one, many = (
        training(problem(base, exemplar_folder, name), tmp_path).concept(0)
        for name in ("textual_inversion", "multires")
    )
    for concepts in ([one, many], [many, one]):
        with pytest.raises(UserError, match="knows the token '<r>' already"), in_use(base, concepts):
            pass


@pytest.mark.parametrize("tensors", [{}, {ROWS: torch.zeros(32)}, {ROWS: torch.zeros(2, 31)}, {"x": torch.zeros(2)}])
def test_weights_that_are_no_rows_are_refused(base: Base, tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(UserError, match=r"not the rows of a token|has shape"):
        Adapter(base, "<r>", tensors, {})


def test_rows_without_a_token_are_refused(base: Base) -> None:
    with pytest.raises(UserError, match="not the rows of a token"):
        Adapter(base, None, {ROWS: torch.zeros(10, base.dim)}, {})


def test_captions_take_the_row_of_the_timestep(base: Base, exemplar_folder: Path) -> None:
    learner = method(base, exemplar_folder)
    captions = [learner.caption("cat {} box", timestep) for timestep in (0, 99, 100, 999)]
    assert captions == ["cat <r|0|> box", "cat <r|0|> box", "cat <r|1|> box", "cat <r|9|> box"]
    with learner.attached():
        ids = base.tokenize(captions)
    assert len(ids[0].unique()) == len(base.tokenize(["cat inside box"])[0].unique())  # one token, as a word is


def test_all_rows_start_from_the_same_word(base: Base, exemplar_folder: Path) -> None:
    (rows,) = method(base, exemplar_folder, initializer_token="inside", norm="free").state().values()
    word = base.table[base.tokenizer("inside", add_special_tokens=False).input_ids[0]]
    assert rows.shape == (10, base.dim) and all(torch.equal(row, word) for row in rows)


def test_a_row_learns_at_its_own_timesteps_alone(base: Base, exemplar_folder: Path) -> None:
    learner, prompts = method(base, exemplar_folder), ["cat <r|2|> box", "dog <r|7|> cup"]
    with learner.attached():
        learner.conditioning(base.tokenize(prompts)).square().sum().backward()
    gradient = learner.state()["<r>"].grad
    assert gradient.norm(dim=-1).nonzero().flatten().tolist() == [2, 7]


@pytest.mark.parametrize(("term", "weight"), [("steer", "steer_weight"), ("anchor", "anchor_weight")])
def test_losses_over_rows_reach_those_in_use(base: Base, exemplar_folder: Path, term: str, weight: str) -> None:
    learner = method(base, exemplar_folder, "reversion", anchor_word="box", **{weight: 1.0})
    loss = learner.losses(inputs(["cat <r|2|> box", "dog <r|7|> cup"], [299, 700]))[term].value
    (gradient,) = torch.autograd.grad(loss, [learner.state()["<r>"]])
    assert gradient.norm(dim=-1).nonzero().flatten().tolist() == [2, 7]


def test_equal_rows_are_steered_as_one_row_is(base: Base, exemplar_folder: Path) -> None:
    one, many = (method(base, exemplar_folder, "reversion", resolutions=count) for count in (1, 10))
    of_one, of_many = (
        learner.losses(inputs(["cat <r> box", "dog <r> cup"], [0, 999]))["steer"].value for learner in (one, many)
    )
    assert of_one.item() == pytest.approx(of_many.item())
    assert not one.adapters and len(many.adapters) == 1


def test_the_anchor_is_the_mean_over_captions(base: Base, exemplar_folder: Path) -> None:
    learner = method(base, exemplar_folder, norm="free", anchor_weight=1.0, anchor_word=None)
    learner.state()["<r>"].data[7] += 2.0
    value = learner.losses(inputs(["<r|2|>", "<r|7|>"], [299, 700]))["anchor"].value
    assert value.item() == pytest.approx(4 * base.dim / 2 / (24 * base.dim))


def test_norm_vocabulary_holds_every_row(base: Base, exemplar_folder: Path) -> None:
    learner = method(base, exemplar_folder, norm="vocabulary")
    before = learner.state()["<r>"].norm(dim=-1)
    learner.state()["<r>"].data.mul_(torch.arange(1, 11)[:, None])
    learner.after_step()
    assert torch.allclose(learner.state()["<r>"].norm(dim=-1), before)


@pytest.mark.parametrize("name", ["multires", "reversion"])
def test_saved_loaded_drawn_and_not_exported(name: str, base: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    before, folder = weights(base), tmp_path / "concept"
    invert_relation(problem(base, exemplar_folder, name, resolutions=4), folder, tmp_path / "scratch")
    concept = load_concept(folder, base)
    assert concept.embedding is None and not (folder / EMBEDDING).exists()
    assert {key: tuple(rows.shape) for key, rows in concept.weights["multires"].items()} == {ROWS: (4, base.dim)}
    assert list(concept.adapters) == [{"name": "multires", "file": "rows.safetensors", "options": {}}]
    with in_use(base, [concept]) as adapters:
        coarse, fine = (Encodings(base, adapters, ["cat <r> box"], [0, 999]).of(["cat <r> box"])(t) for t in (999, 0))
    assert not torch.equal(coarse, fine)
    assert weights(base) == before
    with pytest.raises(UserError, match=f"'{name}' learned no single row for <r>, the one form that all other"):
        export_concept(concept, "webui", tmp_path / "out", "inside")


@pytest.mark.parametrize("name", ["dreambooth", "custom_diffusion"])
def test_rows_by_timestep_stand_beside_learned_weights(
    name: str, base: Base, exemplar_folder: Path, tmp_path: Path
) -> None:
    before, folder = weights(base), tmp_path / "concept"
    invert_relation(problem(base, exemplar_folder, name, resolutions=4, steps=3), folder, tmp_path / "scratch")
    concept = load_concept(folder, base)
    assert [adapter["name"] for adapter in concept.adapters] == ["multires", name]
    assert concept.embedding is None and concept.weights["multires"][ROWS].shape == (4, base.dim)
    prompts, timesteps = ["<r[3]> box", "<r(3)> box", "<r|3|> box"], [0, 999]
    with in_use(base, [concept]) as adapters:
        encodings = Encodings(base, adapters, prompts, timesteps).of(prompts)
        fine, coarse = encodings(0), encodings(999)
        noise = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        changed = base.unet(noise, 500, encoder_hidden_states=coarse).sample
    assert torch.equal(fine[0], coarse[0]) and torch.equal(fine[2], coarse[2])  # the coarsest row alone
    assert not torch.equal(fine[1], coarse[1])  # not asked for at finer resolutions
    assert not torch.equal(base.unet(noise, 500, encoder_hidden_states=coarse).sample, changed)
    assert weights(base) == before


def test_every_form_is_drawn_beside_the_others(base: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    settings = GenerateSettings(pairs="all", seed=0, steps=2, guidance_scale=5.0, scheduler="ddim", batch_size=8)
    scenario = Scenario("inside", 0, "cat", "box", held_out=None, validation=False)
    task = training(problem(base, exemplar_folder, "multires", resolutions=4), tmp_path)
    task.method.adapters[0].tensors[ROWS].data.normal_(generator=torch.Generator().manual_seed(0))
    picture = draw_forms(base, task.concept(0), scenario, settings)
    assert picture.size == (4 * 118 + 6, 3 * 136 + 6)
    cells = [[np.asarray(picture.crop((x, y + 18, x + 112, y + 130))) for x in range(6, 478, 118)]
             for y in range(6, 414, 136)]  # fmt: skip
    assert np.array_equal(cells[0][0], cells[1][0])  # <r[0]> and <r(0)> ask for every resolution
    assert np.array_equal(cells[0][3], cells[2][3])  # <r[3]> and <r|3|> for the coarsest alone
    assert not np.array_equal(cells[0][0], cells[2][0])
    plain = Concept("<r>", torch.zeros(base.dim), task.concept(0).metadata | {"adapters": []})
    assert draw_forms(base, plain, scenario, settings) is None


def test_the_sheet_of_forms_lies_beside_the_scenarios(base: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    settings = GenerateSettings(pairs="all", seed=0, steps=2, guidance_scale=5.0, scheduler="ddim", batch_size=8)
    scenario, other = (
        Scenario("inside", index, "cat", tail, held_out=None, validation=False)
        for index, tail in enumerate(("box", "dog"))
    )
    concept = training(problem(base, exemplar_folder, "multires", resolutions=2), tmp_path).concept(0)
    generate_folder(base, concept, [scenario, other], settings, tmp_path / "images", tmp_path / "scratch")
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["000.png", "001.png", FORMS_FILE, RECORDS]
    with Image.open(tmp_path / "images" / FORMS_FILE) as sheet:
        assert np.array_equal(np.asarray(sheet), np.asarray(draw_forms(base, concept, scenario, settings)))
    assert not list((tmp_path / "scratch").glob("*/"))


def test_boxes_tell_head_from_tail_beside_a_row_of_the_token(base: Base, adapter: Adapter) -> None:
    boxes = layout.Adapter(base, "<r>", {}, load_params().section("invert.compositional.layout", dict[str, Any]))
    with adapter.applied():
        words = boxes.words([adapter.prompt_at(text, COARSE) for text in ("cat <r> box", "<r[7]> big box", "cat box")])
    places = [[row.nonzero()[:, 0].tolist() for row in prompt] for prompt in words]
    assert places == [[[1], [3]], [[1], [2, 3]], [[], []]]


def test_a_layout_is_asked_for_where_it_is_decided(base: Base, adapter: Adapter) -> None:
    """A token that leaves the prompt at finer resolutions is still laid out at the coarsest."""
    boxes = layout.Adapter(base, "<r>", {}, load_params().section("invert.compositional.layout", dict[str, Any]))
    with adapter.applied():
        assert guided_by([adapter, boxes], ["cat <r(9)> box"]) is not None
        assert guided_by([adapter, boxes], ["cat box"]) is None


def test_a_picture_is_guided_while_its_prompt_has_the_token(base: Base, adapter: Adapter) -> None:
    values = load_params().section("invert.compositional.layout", dict[str, Any]) | {"iterations": 1, "threshold": 0.0}
    boxes, prompts = layout.Adapter(base, "<r>", {}, values), ["cat <r(5)> big box", "cat <r(9)> box"]
    latents, timestep = initial_latents(base, [1, 2]), torch.tensor(600)  # finer than asked for
    with adapter.applied(), torch.no_grad():
        guidance = guided_by([adapter, boxes], prompts)
        encodings = base.encode(base.tokenize([adapter.prompt_at(prompt, 600) for prompt in prompts]))
        assert guidance is not None
        moved = guidance(latents, timestep, 0.0, encodings)
        assert torch.equal(guidance(latents, torch.tensor(400), 0.0, encodings), latents)  # both tokens are gone
    assert torch.equal(moved[1], latents[1])  # its prompt is "cat box"
    start = latents[:1].clone().requires_grad_()
    words = torch.zeros(1, 2, encodings.shape[1], dtype=torch.bool)
    words[0, 0, 1] = words[0, 1, 3:5] = True  # "cat" and "big box"
    loss = layout.spatial_loss(attention_maps(base, start, timestep, encodings[:1]), words, boxes.layout.boxes)
    (gradient,) = torch.autograd.grad(boxes.layout.scale * loss.sum(), start)
    expected = latents[:1] - (1 - base.scheduler.alphas_cumprod[600]) * gradient
    assert torch.allclose(moved[:1], expected, atol=1e-6)


def test_a_relation_does_not_become_the_head_when_its_head_has_left_the_prompt(base: Base, adapter: Adapter) -> None:
    values = load_params().section("invert.compositional.layout", dict[str, Any]) | {"threshold": 0.0}
    boxes, latents = layout.Adapter(base, "<s>", {}, values), initial_latents(base, [1])
    with adapter.applied(), PlaceholderTokens(base, {"<s>": torch.ones(base.dim)}).applied(), torch.no_grad():
        guidance = guided_by([adapter, boxes], ["<r(9)> <s> box"])
        assert guidance is not None
        for timestep, guided in ((950, True), (850, False)):
            encodings = base.encode(base.tokenize([adapter.prompt_at("<r(9)> <s> box", timestep)]))
            moved = guidance(latents, torch.tensor(timestep), 0.0, encodings)
            assert torch.equal(moved, latents) is not guided


def test_other_concepts_know_no_resolutions(base: Base, exemplar_folder: Path) -> None:
    learner = method(base, exemplar_folder, "textual_inversion")
    with learner.attached(), pytest.raises(UserError, match=r"names <r\[3\]>, which no concept in use has learned"):
        base.tokenize(["cat <R[3]> box"])


def test_half_precision_bases_keep_their_rows_in_float32(base: Base) -> None:
    rows = torch.randn(3, base.dim).bfloat16()
    assert Adapter(base, "<r>", {ROWS: rows}, {}).tensors[ROWS].dtype == torch.float32
