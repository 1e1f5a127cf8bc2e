"""Perfusion: the edit's closed-form values, several concepts in one base, both lockings, what is learned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from relinv.adapters.perfusion import DIRECTION, INPUT, SUPERCLASS, Adapter
from relinv.checking import parse
from relinv.diffusion.adapter import in_place
from relinv.diffusion.bases import Base, load_base
from relinv.diffusion.concept import Concept, load_concept
from relinv.diffusion.conditioning import Encodings, in_use, with_draw_options
from relinv.diffusion.cross_attention import projections
from relinv.diffusion.rank_one import Edit, are_distinct, orthonormal_basis
from relinv.diffusion.sampling import initial_latents
from relinv.errors import UserError
from relinv.learning.inversion import identity, invert_relation
from relinv.methods.perfusion import Method, Settings
from relinv.params import load_params
from tests.inverting import build, problem
from tests.tiny import weights

DIM, OUT = 12, 5
OPTIONS = {"superclass": "with", "beta": 0.7, "tau": 0.15, "locking": "local", "second_moment": "same"}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment() -> torch.Tensor:
    """Return a second moment of unequal eigenvalues, (DIM, DIM)."""
    samples = draw(4 * DIM, DIM, seed=1) * torch.arange(1, DIM + 1)
    return samples.T @ samples / len(samples)


def edit_of(inputs: torch.Tensor, inverse: torch.Tensor, beta: float = 0.75, tau: float = 0.1) -> Edit:
    betas, taus = (torch.full((len(inputs),), value, dtype=inputs.dtype) for value in (beta, tau))
    return Edit.of(inputs, inputs @ inverse, betas, taus)


def edited(edit: Edit, encodings: torch.Tensor, projection: torch.Tensor, outputs: Sequence[torch.Tensor]) -> Any:
    return edit.apply(encodings, encodings @ projection.T, edit.basis @ projection.T, outputs)


# The edit


@pytest.mark.parametrize(
    ("beta", "tau", "at_concept", "elsewhere"), [(0.75, 0.1, 0.924, 5.5e-4), (0.7, 0.15, 0.881, 9.3e-3)]
)
def test_gates_open_at_the_concept_and_close_elsewhere(
    beta: float, tau: float, at_concept: float, elsewhere: float
) -> None:
    inverse, concept = torch.linalg.inv(moment()), draw(1, DIM)
    edit = edit_of(concept, inverse, beta, tau)
    across = draw(1, DIM, seed=2)
    across -= (across @ edit.probes.T) * concept  # s(e) = 0
    assert edit.gates(concept).item() == pytest.approx(at_concept, abs=5e-4)
    assert edit.gates(across).item() == pytest.approx(elsewhere, rel=0.01)


def test_each_concept_has_a_gate_of_its_own() -> None:
    inverse, concepts, encodings = torch.linalg.inv(moment()), draw(2, DIM), draw(2, 3, DIM, seed=3)
    gates = Edit.of(concepts, concepts @ inverse, *torch.tensor([[0.75, 0.4], [0.1, 0.3]]).to(concepts)).gates(
        encodings
    )
    for index, (beta, tau) in enumerate([(0.75, 0.1), (0.4, 0.3)]):
        concept = concepts[index]
        share = encodings @ inverse @ concept / (concept @ inverse @ concept)  # s / E, (2, 3)
        torch.testing.assert_close(gates[..., index], torch.sigmoid((share - beta) / tau))


def test_the_scale_of_the_second_moment_cancels() -> None:
    concepts, encodings, projection, outputs = draw(2, DIM), draw(3, 4, DIM), draw(OUT, DIM), draw(2, OUT)
    first, second = (
        edited(edit_of(concepts, torch.linalg.inv(scale * moment())), encodings, projection, outputs)
        for scale in (1.0, 250.0)
    )
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


def test_an_open_gate_to_the_projections_own_output_changes_nothing_at_the_concept() -> None:
    inverse, concept, projection = torch.linalg.inv(moment()), draw(1, DIM), draw(OUT, DIM)
    edit = edit_of(concept, inverse, beta=-torch.inf)
    encodings, own = draw(2, 3, DIM, seed=3), concept @ projection.T
    share = (encodings @ inverse @ concept.T) / (concept @ inverse @ concept.T)  # s / E, (2, 3, 1)
    expected = encodings @ projection.T + (1 - share) * own
    torch.testing.assert_close(edited(edit, encodings, projection, own), expected)
    torch.testing.assert_close(edited(edit, concept[None], projection, own)[0], own)


def test_one_concept_by_the_formula_of_several_is_the_formula_of_one() -> None:
    inverse, concept, projection, output = torch.linalg.inv(moment()), draw(1, DIM), draw(OUT, DIM), draw(1, OUT)
    encodings = draw(2, 3, DIM, seed=3)
    share = (encodings @ inverse @ concept[0] / (concept[0] @ inverse @ concept[0]))[..., None]  # s / E
    single = (encodings - share * concept) @ projection.T + torch.sigmoid((share - 0.75) / 0.1) * output
    torch.testing.assert_close(edited(edit_of(concept, inverse), encodings, projection, output), single)


def test_the_basis_is_orthonormal_and_that_of_the_published_decomposition() -> None:
    inverse, concepts = torch.linalg.inv(moment()), draw(3, DIM)
    basis, duals = orthonormal_basis(concepts, concepts @ inverse)
    torch.testing.assert_close(basis @ inverse @ basis.T, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(duals, basis @ inverse)
    upper = torch.linalg.cholesky(inverse, upper=True)  # U^T U = C^-1
    orthogonal, _ = torch.linalg.qr(upper @ concepts.T)
    published = torch.linalg.solve(upper, orthogonal).T  # u_j = U^-1 q_j
    torch.testing.assert_close(published * (published * basis).sum(-1, keepdim=True).sign(), basis)


def test_every_concept_is_taken_out_before_outputs_are_added() -> None:
    inverse, concepts, projection = torch.linalg.inv(moment()), draw(3, DIM), draw(OUT, DIM)
    nothing = torch.zeros(3, OUT, dtype=torch.float64)
    left = edited(edit_of(concepts, inverse), concepts[None], projection, nothing)
    torch.testing.assert_close(left, torch.zeros_like(left))


def test_concepts_are_told_apart_by_their_directions_whatever_their_lengths() -> None:
    inverse, concepts = torch.linalg.inv(moment()), draw(2, DIM)
    near = torch.stack([concepts[0], concepts[0] + 1e-4 * concepts[1]])
    for length in (1e-4, 1e4):
        assert are_distinct(length * concepts, length * concepts @ inverse)
        assert not are_distinct(length * near, length * near @ inverse)


# The edit in a base


def tensors(base: Base, seed: int, word: str = "with") -> dict[str, torch.Tensor]:
    """Return a concept of random values at a word's encoding, measured by C = 1."""
    start = base.encode(base.tokenize([word]))[0, 1].detach()  # (dim,)
    layers = {name: layer for name, layer in projections(base).items() if name.endswith("to_v")}
    values = {name: draw(layer.out_features, seed=seed).float() for name, layer in layers.items()}
    return {INPUT: start, DIRECTION: start, SUPERCLASS: start, **values}


def outputs_of(base: Base, encodings: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: layer(encodings) for name, layer in projections(base).items()}


def test_layers_answer_by_the_formula_and_are_left_as_they_were(base: Base) -> None:
    before, plain = weights(base), outputs_of(base, tensors(base, 0)[INPUT][None, None])
    adapter = Adapter(base, "<r>", tensors(base, 0), OPTIONS)
    at_concept = adapter.tensors[INPUT][None, None]  # (1, 1, dim)
    with adapter.applied():
        inside = outputs_of(base, at_concept)
    for name, output in inside.items():
        locked = plain[name] if name.endswith("to_k") else adapter.tensors[name]  # a key is its superclass's
        torch.testing.assert_close(output, torch.sigmoid(torch.tensor(2.0)) * locked.expand_as(output))
    assert all(torch.equal(plain[name], output) for name, output in outputs_of(base, at_concept).items())
    assert weights(base) == before
    hooked = [module for module in base.unet.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert hooked == []


def test_the_gate_is_chosen_anew_at_each_drawing(base: Base) -> None:
    """Without another training: options alone change, and of concepts that have them."""
    described = {"name": "perfusion", "file": Adapter.FILE, "options": OPTIONS}
    weights = {"perfusion": tensors(base, 0)}
    concept = Concept("<r>", torch.zeros(base.dim), {"method": "perfusion", "adapters": [described]}, weights)
    opened = with_draw_options(concept, {"perfusion": {"beta": 0.2}})
    for used, gate in ((concept, (0.7, 0.15)), (opened, (0.2, 0.15))):
        with in_use(base, [used]) as (adapter,):
            assert adapter.gate == gate
    assert with_draw_options(concept, {}).fingerprint == concept.fingerprint != opened.fingerprint
    plain = Concept("<r>", torch.zeros(base.dim), {"method": "reversion"})
    assert with_draw_options(plain, {"perfusion": {"beta": 0.2}}) is plain


def test_global_locking_wants_a_superclass_of_one_token(base: Base) -> None:
    with pytest.raises(UserError, match="more than one token"):
        Adapter(base, "<r>", tensors(base, 0), OPTIONS | {"superclass": "inside with", "locking": "global"})


def test_two_concepts_are_composed_whichever_comes_first(base: Base) -> None:
    encodings = base.encode(base.tokenize(["cat with box", "dog inside cup"]))
    one = Adapter(base, "<r>", tensors(base, 0, "with"), OPTIONS)
    two = Adapter(base, "<s>", tensors(base, 1, "inside"), OPTIONS | {"superclass": "inside", "beta": 0.5})
    with in_place([one, two]):
        both = outputs_of(base, encodings)
    with in_place([two, one]):
        turned = outputs_of(base, encodings)
    parts = (torch.stack([one.tensors[name], two.tensors[name]]) for name in (INPUT, DIRECTION))
    edit = Edit.of(*parts, torch.tensor([0.7, 0.5]), torch.tensor([0.15, 0.15]))
    for name, layer in projections(base).items():
        torch.testing.assert_close(both[name], turned[name], rtol=1e-4, atol=1e-5)
        expected = edited(edit, encodings, layer.weight, [one.output(name, layer), two.output(name, layer)])
        torch.testing.assert_close(both[name], expected)


def test_concepts_measured_differently_are_not_composed(base: Base) -> None:
    one = Adapter(base, "<r>", tensors(base, 0), OPTIONS)
    two = Adapter(base, "<s>", tensors(base, 1, "inside"), OPTIONS | {"second_moment": "another"})
    with pytest.raises(UserError, match="different second moments"), in_place([one, two]):
        pass


def test_concepts_at_one_encoding_are_not_composed(base: Base) -> None:
    one, two = (Adapter(base, token, tensors(base, seed), OPTIONS) for seed, token in enumerate(("<r>", "<s>")))
    with pytest.raises(UserError, match="have one encoding"), in_place([one, two]):
        pass


def test_weights_of_other_layers_are_refused(base: Base) -> None:
    whole = tensors(base, 0)
    *others, last = whole
    for wrong, told in (
        ({name: whole[name] for name in others}, "to_v"),
        (whole | {last: whole[last][1:]}, "to_v"),
        (whole | {"conv_in": whole[last]}, "conv_in"),
        ({name: tensor for name, tensor in whole.items() if name != SUPERCLASS}, "to_k"),
    ):
        with pytest.raises(UserError, match=rf"do not fit the base .*{told}"):
            Adapter(base, "<r>", wrong, OPTIONS)


def test_global_locking_shows_keys_the_superclass_and_values_the_concept(base: Base) -> None:
    metadata = {"adapters": [{"name": "perfusion", "options": OPTIONS | {"locking": "global"}}]}
    concept = Concept("<r>", draw(base.dim).float(), metadata, {"perfusion": tensors(base, 0)})
    prompts = ["cat <R> box", "cat with box"]
    with in_use(base, [concept]) as adapters:
        joined = Encodings(base, adapters, prompts, [0]).of(prompts)(0)  # (prompts, tokens, 2 * dim)
        plain = base.encode(base.tokenize(prompts))
        torch.testing.assert_close(joined[0], torch.cat([plain[0], plain[1]], dim=-1))
        torch.testing.assert_close(joined[1], torch.cat([plain[1], plain[1]], dim=-1))
        halves = outputs_of(base, joined[:1])
        keys, values = outputs_of(base, plain[1:]), outputs_of(base, plain[:1])
    for name, output in halves.items():
        torch.testing.assert_close(output, (keys if name.endswith("to_k") else values)[name])


def test_keys_see_the_superclass_whatever_signs_the_token_has(base: Base) -> None:
    adapter = Adapter(base, "<a+.>", tensors(base, 0), OPTIONS | {"locking": "global"})
    asked: list[str] = []

    def plain(prompts: Sequence[str]) -> torch.Tensor:
        asked.extend(prompts)
        return torch.zeros(len(prompts), 77, base.dim)

    adapter.encode(["cat <a+.> <aab>"], plain)
    assert asked == ["cat <a+.> <aab>", "cat with <aab>"]


def test_keys_see_the_superclass_of_each_concept_that_is_locked_so(base: Base) -> None:
    concepts = []
    for seed, (token, word) in enumerate([("<r>", "with"), ("<s>", "inside")]):
        options = OPTIONS | {"superclass": word, "locking": "global"}
        metadata = {"adapters": [{"name": "perfusion", "options": options}]}
        row = draw(base.dim, seed=seed).float()
        concepts.append(Concept(token, row, metadata, {"perfusion": tensors(base, seed, word)}))
    with in_use(base, concepts) as adapters:
        joined = Encodings(base, adapters, ["cat <r> <s>"], [0]).of(["cat <r> <s>"])(0)  # (1, tokens, 2 * dim)
        plain = base.encode(base.tokenize(["cat <r> <s>", "cat with inside"]))
    torch.testing.assert_close(joined[0], torch.cat([plain[0], plain[1]], dim=-1))


def test_low_precision_rounds_what_goes_in_and_comes_out_alone(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = Adapter(base, "<r>", tensors(base, 0), OPTIONS)
    layer = next(layer for name, layer in projections(base).items() if name.endswith("to_v"))
    at_concept = adapter.tensors[INPUT][None, None]
    with adapter.applied():
        exact = layer(at_concept)
        monkeypatch.setattr(layer.weight, "data", layer.weight.data.bfloat16())
        rounded = layer(at_concept.bfloat16())
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.02, atol=0.02)


# Learning


def method(base: Base, exemplar_folder: Path, **changes: Any) -> Method:
    learned = build(problem(base, exemplar_folder, "perfusion", **changes))
    assert isinstance(learned, Method)
    return learned


def test_it_starts_as_its_superclass_in_the_tokens_place(base: Base, exemplar_folder: Path) -> None:
    learned = method(base, exemplar_folder, superclass="riding on", initializer_token="and")
    pairs = [("cat", "box"), ("dog", "basket"), ("rabbit", "bowl"), ("panda", "cup")]
    short = base.encode(base.tokenize([f"{head} riding on {tail}" for head, tail in pairs]))[:, 3]
    long = base.encode(base.tokenize([f"a photo of a {head} riding on a {tail} in the snow" for head, tail in pairs]))
    start = torch.cat([short, long[:, 7]]).mean(0)
    torch.testing.assert_close(learned.edit.tensors[INPUT].data, start)
    torch.testing.assert_close(learned.edit.tensors[DIRECTION].data, learned._inverse @ start)
    for name, layer in projections(base).items():
        torch.testing.assert_close(learned.edit.output(name, layer), start @ layer.weight.T)
    assert method(base, exemplar_folder, superclass=None, initializer_token="and").edit.options["superclass"] == "and"


def test_the_edit_applies_to_the_token_from_the_first_step(exemplar_folder: Path) -> None:
    miniature = load_base(load_params().model())
    learned = method(miniature, exemplar_folder)
    captions = [f"{head} {learned.initializer} {tail}" for head, tail in (("cat", "box"), ("panda", "cup"))]
    encodings = miniature.encode(miniature.tokenize(captions))[:, :4]  # the start token, head, token, tail
    edit = Edit.of(*(learned.edit.tensors[name][None] for name in (INPUT, DIRECTION)), *torch.tensor([[0.75], [0.1]]))
    assert (edit.gates(encodings)[..., 0] > 0.5).tolist() == [[False, False, True, False]] * 2


def test_a_pass_makes_no_tensor_of_numbers(base: Base, exemplar_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied to a GPU, as the gate's numbers were, they end torch.compile, which traces the edit's renewal too."""
    learned = method(base, exemplar_folder)
    with learned.attached():
        encodings = learned.conditioning(base.tokenize(["cat <r> box"]))
        latents, timestep = initial_latents(base, [0]), torch.tensor([300])
        monkeypatch.setattr("torch.tensor", MagicMock(side_effect=AssertionError))
        monkeypatch.setattr("torch.Tensor.pin_memory", MagicMock(side_effect=AssertionError))
        base.unet(latents, timestep, encoder_hidden_states=encodings)


def test_outputs_learn_at_a_rate_of_their_own_and_never_decay(base: Base, exemplar_folder: Path) -> None:
    changes = {"learning_rate": 0.3, "value_learning_rate": 0.002, "weight_decay": 0.5}
    row, values = method(base, exemplar_folder, **changes).groups()
    assert (row["lr"], row["weight_decay"]) == (0.3, 0.5)
    assert (values["lr"], values["weight_decay"]) == (0.002, 0.0)


def test_a_superclass_of_blanks_is_refused(base: Base, exemplar_folder: Path) -> None:
    with pytest.raises(UserError, match="superclass is empty"):
        method(base, exemplar_folder, superclass=" ")


def test_the_average_follows_the_tokens_encoding_once_a_step(base: Base, exemplar_folder: Path) -> None:
    learned = method(base, exemplar_folder, input_average=0.9)
    start = learned.edit.tensors[INPUT].clone()
    with learned.attached():
        ids = base.tokenize(["cat <r> box", "a photo of a dog <r> a cup"])
        encodings = learned.conditioning(ids).detach()
    assert torch.equal(learned.edit.tensors[INPUT], start)
    learned.after_step()
    mean = (encodings[0, 2] + encodings[1, 6]) / 2
    torch.testing.assert_close(learned.edit.tensors[INPUT].data, 0.9 * start + 0.1 * mean)
    expected = learned._inverse @ learned.edit.tensors[INPUT]
    torch.testing.assert_close(learned.edit.tensors[DIRECTION].data, expected)
    assert not learned.edit.tensors[INPUT].requires_grad


def test_a_pass_sees_what_training_has_changed_since_the_last(base: Base, exemplar_folder: Path) -> None:
    learned = method(base, exemplar_folder)
    inputs = torch.zeros(1, 4, 16, 16), torch.tensor([5]), base.encode(base.tokenize(["cat with box"]))
    with learned.attached(), torch.no_grad():
        base.unet(*inputs)
        learned.edit.tensors[INPUT].mul_(2)  # as a checkpoint that is taken up inside the block would
        learned.edit.tensors[DIRECTION].mul_(2)
        inside = base.unet(*inputs).sample
    with learned.attached(), torch.no_grad():
        assert torch.equal(base.unet(*inputs).sample, inside)


def test_training_and_drawing_have_a_gate_each(base: Base, exemplar_folder: Path, tmp_path: Path) -> None:
    task = problem(base, exemplar_folder, "perfusion", steps=1, beta=0.6, tau=0.2, locking="global")
    assert method(base, exemplar_folder).edit.gate == (0.75, 0.1)
    invert_relation(task, tmp_path / "concept", tmp_path / "scratch")
    concept = load_concept(tmp_path / "concept", base)
    with in_use(base, [concept]) as (adapter,):
        assert isinstance(adapter, Adapter) and adapter.gate == (0.6, 0.2) and not adapter.learning
    options = json.loads((tmp_path / "concept" / "concept.json").read_text())["adapters"][0]["options"]
    assert options.keys() == OPTIONS.keys() and options["locking"] == "global"


def test_captions_stand_where_the_stage_looks_for_changes(base: Base, exemplar_folder: Path) -> None:
    values = problem(base, exemplar_folder, "perfusion").settings.model_dump()
    with pytest.raises(UserError, match=r"'captions' is .*elsewhere\.txt.*a file in data/benchmark"):
        parse(Settings, values | {"captions": "elsewhere.txt"}, "")


def test_a_run_is_never_finished_with_other_captions(
    base: Base, exemplar_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = problem(base, exemplar_folder, "perfusion")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/benchmark").mkdir(parents=True)
    found = []
    for text in ("name: one", "name: other"):
        (tmp_path / "data/benchmark/miniature.yaml").write_text(text)
        found.append(identity(task))
    assert found[0] != found[1]
