"""Parameters: what is refused, and that the sentence names the parameter, its value, what is allowed, and the file."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from dvc.utils.hydra import apply_overrides

from relinv.adapters.layout import Layout
from relinv.checking import parse
from relinv.errors import UserError
from relinv.files import read_yaml
from relinv.overrides import changed_params
from relinv.params import Params, load_params, read_params
from relinv.plugins import find_plugin
from relinv.preflight import check_params
from relinv.settings import (
    BaseSettings,
    DrawingSettings,
    ExemplarSettings,
    GenerateSettings,
    JudgeSettings,
    Names,
    NetworkSettings,
    PreviewSettings,
    ReportSettings,
    Sampler,
    SamplingSettings,
    ScoreSettings,
    Seed,
    Settings,
    ValidateSettings,
)
from tests.inverting import LEARNING

SAMPLING = {"steps": 25, "guidance_scale": 5.0, "scheduler": "ddim", "batch_size": 50}
MODEL = {"source": "folder", "revision": None, "device": "cpu", "precision": "fp32", "resolution": 64}


def refusal(kind: Any, values: Any, where: str = "sampling") -> str:
    with pytest.raises(UserError) as caught:
        parse(kind, values, where)
    return str(caught.value)


def test_value_out_of_range_is_named_with_bound_and_file() -> None:
    assert refusal(SamplingSettings, {**SAMPLING, "steps": 0}) == (
        "Parameter 'sampling.steps' is 0 in params.yaml: it must be greater than or equal to 1."
    )
    assert refusal(SamplingSettings, {**SAMPLING, "steps": 501}).endswith(": it must be less than or equal to 500.")


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (NetworkSettings, None, "Parameter 'there' is null in params.yaml: it must be a section of named values."),
        (
            NetworkSettings,
            {**MODEL, "compile": 1},
            "Parameter 'there.compile' is 1 in params.yaml: it must be true or ",
        ),
        (Path, 3, "Parameter 'there' is 3 in params.yaml: it must be a path."),
        (Names, [], "Parameter 'there' is [] in params.yaml: it must have at least 1 item, not 0."),
        (Path, [None, {"on": True}], "Parameter 'there' is [null, {'on': true}] in params.yaml: it must be a path."),
    ],
)
def test_no_sentence_speaks_of_python(kind: Any, values: Any, said: str) -> None:
    assert refusal(kind, values, "there").startswith(said)


def test_a_whole_file_of_another_kind_is_named_by_its_content() -> None:
    assert refusal(dict[str, int], [1], "") == (
        "The content is [1] in params.yaml: it must be a section of named values."
    )
    assert refusal(ScoreSettings, {"batch": 1}, "").endswith("It stands in params.yaml as 'batch'.")


def test_true_is_no_number() -> None:
    assert refusal(SamplingSettings, {**SAMPLING, "guidance_scale": True}) == (
        "Parameter 'sampling.guidance_scale' is true in params.yaml: it must be a valid number."
    )
    assert refusal(Seed, True, "invert.seed").startswith("Parameter 'invert.seed' is true in params.yaml: it must be ")
    assert "'bf16' or 'fp16'" in refusal(DrawingSettings, {**SAMPLING, "precision": False})
    assert parse(NetworkSettings, {**MODEL, "compile": True}, "model").compile


@pytest.mark.parametrize(("name", "value"), [("steps", "25"), ("steps", 25.0), ("guidance_scale", "5")])
def test_text_is_no_number_and_a_number_with_a_point_no_integer(name: str, value: object) -> None:
    assert refusal(SamplingSettings, SAMPLING | {name: value}).startswith(
        f"Parameter 'sampling.{name}' is {value!r} in params.yaml: "
    )
    assert parse(SamplingSettings, SAMPLING | {"guidance_scale": 5}, "sampling").guidance_scale == 5.0


def test_true_is_no_number_in_a_list_either() -> None:
    boxes = {"head": [0.0, 0.1, 0.5, True], "tail": [0, 0, 1, 1]}
    layout = {"scale": 1.0, "threshold": 0.2, "iterations": 1, "fraction": 0.2}
    assert refusal(Layout, layout | boxes, "layout").startswith("Parameter 'layout.head.3' is true in params.yaml: ")


def test_unknown_key_is_answered_with_the_closest() -> None:
    assert refusal(SamplingSettings, {**SAMPLING, "stepz": 3}).startswith(
        "Unknown parameter 'stepz'. Did you mean 'steps'?"
    )


@pytest.mark.parametrize(
    ("names", "reason"), [([], "at least 1"), (["inside", "inside"], "once"), (["In Side"], "In Side")]
)
def test_lists_of_relations_and_methods_hold_each_name_once(names: list[str], reason: str) -> None:
    params = Params({"relations": names, "methods": names}, Path("params.yaml"))
    for read in (params.relations, params.methods):
        with pytest.raises(UserError, match=reason) as caught:
            read()
        assert "params.yaml" in str(caught.value)


def test_a_fault_in_a_section_that_may_be_null_is_named_like_any_other() -> None:
    vqa = {"model": "some/model", "precision": "bf16"}
    judge = {"model": "ViT-B-32", "pretrained": "openai", "device": "cpu"}
    assert parse(JudgeSettings, {**judge, "vqa": None}, "judge").vqa is None
    assert refusal(JudgeSettings, {**judge, "vqa": {**vqa, "precision": "int8"}}, "judge") == (
        "Parameter 'judge.vqa.precision' is 'int8' in params.yaml: it must be 'fp32', 'bf16' or 'fp16'."
    )
    assert refusal(JudgeSettings, {**judge, "vqa": {**vqa, "modell": "x"}}, "judge").startswith(
        "Unknown parameter 'modell'. Did you mean 'model'? Available: model, precision, revision."
    )
    assert refusal(JudgeSettings, {**judge, "vqa": "some/model"}, "judge") == (
        "Parameter 'judge.vqa' is 'some/model' in params.yaml: it must be a section of named values."
    )


def test_missing_key_says_what_to_add() -> None:
    message = refusal(ScoreSettings, {}, "score")
    assert message == "Parameter 'score.batch_size' is missing from params.yaml: add it."


def test_choices_are_listed() -> None:
    message = refusal(NetworkSettings, {**MODEL, "precision": "fp16"}, "bases.miniature.model")
    assert message.startswith("Parameter 'bases.miniature.model.precision' is 'fp16'")
    assert message.endswith("it must be 'fp32' or 'bf16'.")  # in fp16 training would lose small gradients


def test_a_sampler_without_a_scheduler_is_refused() -> None:
    unsaid = {name: value for name, value in SAMPLING.items() if name != "scheduler"}
    assert refusal(SamplingSettings, unsaid) == ("Parameter 'sampling.scheduler' is missing from params.yaml: add it.")


def test_every_problem_is_told_in_its_own_sentence() -> None:
    message = refusal(SamplingSettings, {**SAMPLING, "steps": 0, "batch_size": "many"})
    assert [line.split("'")[1] for line in message.splitlines()] == ["sampling.steps", "sampling.batch_size"]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_without_an_end_are_refused_where_none_is_set_too(number: float) -> None:
    class Rate(Settings):
        rate: float

    assert "'invert.rate' is" in refusal(Rate, {"rate": number}, "invert")


def test_a_resolution_that_the_autoencoder_cannot_halve_three_times_is_refused() -> None:
    assert refusal(NetworkSettings, {**MODEL, "resolution": 60}, "model").endswith(": it must be a multiple of 8.")


def test_scalars_and_lists_are_checked_too() -> None:
    assert refusal(Seed, -1, "invert.seed").startswith("Parameter 'invert.seed' is -1 in params.yaml")
    assert refusal(list[int], [1, "x"], "sizes").startswith("Parameter 'sizes.1' is 'x'")
    assert (
        refusal(dict[str, int], {3: 1}, "")
        == "The name of '3' in params.yaml is not allowed: it must be a valid string."
    )


def test_params_remember_the_sections_read() -> None:
    base, generate = {"model": MODEL, "sampling": SAMPLING | {"precision": "fp16"}}, {"pairs": "test", "seed": 3}
    params = Params({"base": "small", "bases": {"small": base}, "generate": generate}, Path("p.yaml"))
    assert params.model().resolution == 64
    assert params.sections_read == {"base", "bases.small.model"}
    assert params.generation() == GenerateSettings(**generate, **SAMPLING)
    assert (params.model().precision, params.drawing_model().precision) == ("fp32", "fp16")
    assert params.sections_read == {"base", "bases.small.model", "bases.small.sampling", "generate"}


def test_a_base_draws_in_its_own_precision_unless_drawing_has_one() -> None:
    base = {"model": MODEL | {"precision": "bf16"}, "sampling": SAMPLING | {"precision": None}}
    assert Params({"base": "small", "bases": {"small": base}}, Path("p.yaml")).drawing_model().precision == "bf16"


def test_changes_are_taken_back_when_the_check_of_them_is_stopped(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("seed: 0  # of all\n")
    with pytest.raises(KeyboardInterrupt), changed_params(tmp_path, ["seed=1"]) as changed:
        assert changed == read_yaml(tmp_path / "params.yaml") == {"seed": 1}
        raise KeyboardInterrupt
    assert (tmp_path / "params.yaml").read_text() == "seed: 0  # of all\n"


def test_a_base_whose_name_has_a_dot_is_told_so() -> None:
    with pytest.raises(UserError, match=r"The base 'sd1\.5' cannot have a dot in its name"):
        Params({"base": "sd1.5", "bases": {"sd1.5": {}}}, Path("p.yaml")).model()


def test_unknown_base_is_answered_with_the_closest() -> None:
    params = Params({"base": "minature", "bases": {"miniature": {}}}, Path("p.yaml"))
    with pytest.raises(UserError, match=r"Unknown base 'minature'. Did you mean 'miniature'\?.* p.yaml"):
        params.model()


@pytest.mark.parametrize("bases", [3, ["miniature"], None])
def test_bases_that_are_no_section_are_refused(bases: object) -> None:
    with pytest.raises(UserError, match=r"Parameter 'bases' is .* in p\.yaml: it must be a section of named values"):
        Params({"base": "miniature", "bases": bases}, Path("p.yaml")).model()


def test_missing_section_is_named() -> None:
    with pytest.raises(UserError, match=r"'invert.seed' is missing from p.yaml"):
        Params({"invert": {}}, Path("p.yaml")).section("invert.seed", Seed)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("scroe: {batch_size: 8}\n", "'scroe'. Did you mean 'score'.*as 'scroe'"),
        ("invert: {sede: 3}\n", "'sede'. Did you mean 'seed'.*as 'invert.sede'"),
        ("invert: {revrsion: {}}\n", "'revrsion'. Did you mean 'reversion'.*as 'invert.revrsion'"),
        ("bases: {tiny: {samplng: {}}}\n", "'samplng'. Did you mean 'sampling'.*as 'bases.tiny.samplng'"),
    ],
)
def test_a_section_that_nothing_reads_is_answered_with_the_closest(tmp_path: Path, text: str, place: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"Unknown parameter {place}"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("text", ["", "- a list\n", "a: [1\n"])
def test_file_that_holds_no_parameters_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=r"params\.yaml"):
        load_params(tmp_path / "params.yaml")


def test_yaml_is_read_as_dvc_reads_it(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("relations: [on, inside]\nrate: 1e-3\n")
    params = read_params(tmp_path / "params.yaml")
    assert params.relations() == ["on", "inside"]
    assert params.section("rate", float) == 1e-3


def test_committed_parameters_are_valid() -> None:
    params = load_params()
    for name, base in params.section("bases", dict[str, Any]).items():
        parse(BaseSettings, base, f"bases.{name}")
        assert Path(base["benchmark"]).is_file()
    params.section("exemplars", ExemplarSettings)
    params.section("validate", ValidateSettings)
    params.section("invert.preview", PreviewSettings)
    params.generation()
    params.section("score", ScoreSettings)
    params.section("report", ReportSettings)


def test_a_base_is_trained_as_its_training_section_says_and_drawn_without() -> None:
    values = read_yaml(Path("params.yaml"))
    values["bases"][values["base"]]["training"] = {
        "gradient_checkpointing": True,
        "samples_per_pass": 2,
        "deterministic": False,
        "preview": {"steps": 3, "guidance_scale": 6.0, "scheduler": "ddim"},
    }
    params = Params(values, Path("params.yaml"))
    trained, drawing = params.trained_model(), params.drawing_model()
    assert (trained.gradient_checkpointing, trained.samples_per_pass, trained.deterministic) == (True, 2, False)
    assert (drawing.gradient_checkpointing, drawing.samples_per_pass, drawing.deterministic) == (False, None, True)
    assert trained.preview == Sampler(steps=3, guidance_scale=6.0, scheduler="ddim")


class Sectioned(Settings):
    steps: int
    batch_size: int


def presets(chosen: str | None, of_base: str | None) -> Params:
    values = {
        "base": "b",
        "bases": {"b": {"preset": of_base}},
        "invert": {
            "preset": chosen,
            "reversion": {"steps": 150, "batch_size": 8},
            "other": {"steps": 1, "batch_size": 1},
            "plain": {},  # learns nothing, so that no preset has anything to say of it
        },
        "presets": {"reversion": {"long": {"steps": 3000}, "odd": {"stepz": 1}}, "other": {}, "plain": {}},
    }
    return Params(values, Path("params.yaml"))


@pytest.mark.parametrize(
    ("chosen", "of_base", "steps"), [(None, None, 150), ("long", None, 3000), (None, "long", 3000)]
)
def test_a_preset_changes_a_methods_section(chosen: str | None, of_base: str | None, steps: int) -> None:
    params = presets(chosen, of_base)
    assert params.method("reversion", Sectioned) == Sectioned(steps=steps, batch_size=8)
    assert params.method("plain", Settings) == Settings()
    if chosen or of_base:  # a budget is not half of one preset and half of another's
        with pytest.raises(UserError, match=r"says nothing of 'other': add 'presets\.other\.long' to params\.yaml"):
            params.method("other", Sectioned)


def test_unknown_presets_and_what_they_may_not_change_are_named() -> None:
    with pytest.raises(UserError, match=r"Unknown preset 'lang'. Did you mean 'long'\?.* as 'presets\.METHOD\.NAME'"):
        presets("lang", None).method("reversion", Sectioned)
    with pytest.raises(UserError, match=r"Unknown parameter 'stepz'.* as 'presets\.reversion\.odd\.stepz'"):
        presets("odd", None).method("reversion", Sectioned)


def test_a_change_while_a_stage_runs_is_told_if_it_had_read_what_changed(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    text = "base: b\nbases: {b: {preset: short}}\ninvert: {preset: , reversion: {steps: 120, batch_size: 8}}\n"
    text += "score: {batch_size: 1}\npresets: {reversion: {short: {steps: 600}}, other: {short: {steps: 7}}}\n"
    file.write_text(text)
    params = read_params(file)
    params.method("reversion", Sectioned)
    file.write_text(text.replace("batch_size: 1", "batch_size: 2").replace("steps: 7", "steps: 8"))
    params.require_unchanged()

    file.write_text(text.replace("120", "60"))
    with pytest.raises(UserError, match=r"changed while this ran, .*: invert\.reversion\. Put .* again"):
        params.require_unchanged()

    file.write_text(text.replace("600", "700"))
    with pytest.raises(UserError, match=r": presets\.reversion\. Put"):
        params.require_unchanged()


# What each recipe publishes, and what a preset says beside that to follow it. A batch is samples times accumulated
# micro-batches; a rate is multiplied by both where the published trainer scales it, and once more by 2 for the prior
# pictures of Custom Diffusion, whose denoising loss is summed over 4 channels.
# fmt: off
ROW = {
    "weight_decay": 1e-2, "norm": "free", "stop_window": None,
    "importance_alpha": 0.0, "denoise_weight": 1.0, "anchor_weight": 0.0,
}
REVERSION = {**ROW, "steps": 3000, "batch_size": 2 * 4, "learning_rate": 2.5e-4 * 4 * 2, "initializer_token": "and"}
WEIGHTS = {
    **ROW, "initializer_token": "sks", "resolutions": 1, "max_grad_norm": 1.0,
    "prior_images": 200, "prior_weight": 1.0, "prior_steps": 50, "prior_guidance_scale": 7.5,
}
BOXES = {"head": [0.1, 0.2, 0.5, 0.8], "tail": [0.6, 0.2, 0.95, 0.8]}
OFFICIAL: dict[str, dict[str, Any]] = {
    "textual_inversion": REVERSION,
    "reversion": {
        **REVERSION, "importance_alpha": 0.5, "resolutions": 1,
        "steer_weight": 0.01, "steer_positives": 4, "steer_temperature": 0.07,
    },
    "multires": {**ROW, "steps": 3000, "batch_size": 1 * 4, "learning_rate": 5e-4 * 4 * 1, "resolutions": 10,
                 "initializer_token": "and"},
    "compositional": {
        **ROW, "steps": 5000, "batch_size": 4 * 2, "learning_rate": 0.005 * 2 * 4, "initializer_token": "and",
        "denoise_weight": 0.05, "anchor_weight": 0.95,
        "layout": {**BOXES, "scale": 30.0, "threshold": 0.2, "iterations": 5, "fraction": 10 / 50},
    },
    "custom_diffusion": {
        **WEIGHTS, "steps": 500, "batch_size": 2, "learning_rate": 1e-5 * 2 * 2, "weights_learning_rate": 1e-5 * 2 * 2,
        "denoise_weight": 4.0, "scale_variants": 20,
    },
    "dreambooth": {
        **WEIGHTS, "steps": 800, "batch_size": 1, "learning_rate": 1e-5, "weights_learning_rate": 1e-5,
        "weights": "full", "train_token": True,
    },
    "perfusion": {
        **ROW, "steps": 400, "batch_size": 4 * 4, "learning_rate": 0.006, "value_learning_rate": 0.03,
        "input_average": round(0.99**4, 3), "train_beta": 0.75, "train_tau": 0.1, "beta": 0.7, "tau": 0.15,
        "locking": "local", "superclass": None,
        "initializer_token": "and", "captions": Path("data/benchmark/reversion.yaml"),
    },
}
# fmt: on


@pytest.mark.parametrize("method", OFFICIAL)
def test_the_official_preset_has_every_published_number(method: str) -> None:
    changes = load_params().presets[method]["official"]
    section = load_params().section(f"invert.{method}", dict[str, Any])
    settings = parse(find_plugin("relinv.methods", method).Settings, section | changes, method).model_dump()
    expected = OFFICIAL[method]
    assert set(changes) == set(expected)  # all of it stands there: none comes from the miniature's section
    for name, value in expected.items():
        assert settings[name] == (pytest.approx(value) if isinstance(value, float) else value), name


@pytest.mark.parametrize("preset", ["official", "short", "object"])
def test_the_presets_that_come_along_are_valid(preset: str) -> None:
    params, samples = load_params(), {}
    for method in (name for name, of_method in params.presets.items() if preset in of_method):
        kind = find_plugin("relinv.methods", method).Settings
        own = params.section(f"invert.{method}", dict[str, Any])
        settings = parse(kind, own | params.presets[method][preset], method)
        if method in LEARNING:
            samples[method] = settings.steps * settings.batch_size
    published = 24_000  # samples; the miniature's own have fewer
    assert samples["reversion"] == samples["textual_inversion"] == (960 if preset == "object" else published)


def leaves(node: Any, place: str) -> dict[str, Any]:
    """Return the scalars below a place of params.yaml by their dotted names."""
    if not isinstance(node, dict):
        return {} if isinstance(node, list) else {place: node}
    return {name: value for key, inner in node.items() for name, value in leaves(inner, f"{place}.{key}").items()}


@pytest.mark.parametrize("name", ["invert.reversion", "presets.reversion.official"])
def test_what_dvc_changes_is_one_line(name: str, tmp_path: Path) -> None:
    before, changed = Path("params.yaml").read_text().splitlines(), Path(shutil.copy("params.yaml", tmp_path))
    apply_overrides(changed, [f"{name}.steer_weight=0.123"])
    after = changed.read_text().splitlines()
    assert [line for line in after if line not in before] == [next(line for line in after if "0.123" in line)]
    assert len(after) == len(before)


def test_every_parameter_of_a_base_is_changed_by_dvc_and_no_other_with_it(tmp_path: Path) -> None:
    given = read_yaml(Path("params.yaml"))
    names = leaves(given["bases"], "bases").keys()
    changed = Path(shutil.copy("params.yaml", tmp_path))
    apply_overrides(changed, [f"{name}={number}" for number, name in enumerate(names)])
    assert leaves(read_yaml(changed)["bases"], "bases") == {name: number for number, name in enumerate(names)}


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("generate", "pairs", "valid"),
        ("report", "level", 2),
        ("report", "level", 1.0),  # whose ends are nowhere
        ("score", "batch_size", 0),
        ("validate", "minimum_side", -1),
        ("invert", "seed", -1),
        ("invert", "preview", 3),
    ],
)
def test_a_wrong_setting_of_a_late_stage_is_found_before_the_first(section: str, name: str, value: Any) -> None:
    values = read_yaml(Path("params.yaml"))
    check_params(Params(values, Path("params.yaml")))
    values[section][name] = value
    with pytest.raises(UserError, match=rf"'{section}\.{name}' is {value!r} in params\.yaml"):
        check_params(Params(values, Path("params.yaml")))


def test_fewer_exemplars_than_validation_asks_for_are_told_before_the_first_stage() -> None:
    values = read_yaml(Path("params.yaml"))
    values["exemplars"]["count"] = 2
    with pytest.raises(
        UserError, match=r"^exemplars\.count is 2 and validate\.minimum_images 4: raise the one or lower"
    ):
        check_params(Params(values, Path("params.yaml")))
    values["validate"]["minimum_images"] = 2
    check_params(Params(values, Path("params.yaml")))


def test_a_report_about_an_unknown_method_is_told_before_the_first_stage() -> None:
    values = read_yaml(Path("params.yaml"))
    values["report"]["subject"] = "revrsion"
    with pytest.raises(UserError, match=r"Unknown method 'revrsion'\. Did you mean 'reversion'"):
        check_params(Params(values, Path("params.yaml")))


VQA = {"model": "data/not/here", "revision": None, "precision": "fp32"}


@pytest.mark.parametrize(
    ("section", "name", "value", "said"),
    [
        ("judge", "model", "data/nowhere", "The judge's folder 'data/nowhere' does not exist"),
        ("judge", "device", "cuda:99", "The device 'cuda:99' is not available"),
        ("judge", "vqa", VQA, "There is no vision-language model folder 'data/not/here'"),
        ("model", "device", "cuda:99", "The device 'cuda:99' is not available"),
        ("model", "source", "/data/nowhere/base", "There is no base model folder '/data/nowhere/base': build it"),
        ("model", "source", "./base", r"There is no base model folder '\./base': build it"),
        ("model", "source", "../base", r"There is no base model folder '\.\./base': build it"),
        ("training", "samples_per_pass", 0, r"'bases\.miniature\.training\.samples_per_pass' is 0 in params\.yaml"),
    ],
)
def test_a_judge_or_device_there_is_not_is_told_before_the_first_stage(
    section: str, name: str, value: Any, said: str
) -> None:
    values = read_yaml(Path("params.yaml"))
    values["bases"][values["base"]][section][name] = value
    with pytest.raises(UserError, match=said):
        check_params(Params(values, Path("params.yaml")))


@pytest.mark.parametrize(("training", "drawing"), [("bf16", "fp16"), ("fp32", "bf16")])
def test_a_gpu_too_old_for_a_precision_is_told_before_the_first_stage(
    training: str, drawing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relinv.preflight.find_device", torch.device)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Tesla T4")
    values = read_yaml(Path("params.yaml"))
    base = values["bases"][values["base"]]
    base["model"] |= {"device": "cuda", "precision": training}
    base["sampling"]["precision"] = drawing
    with pytest.raises(UserError, match="'Tesla T4' is too old for bf16"):
        check_params(Params(values, Path("params.yaml")))


@pytest.mark.parametrize("preset", [None, "official"])
def test_a_method_without_a_section_of_presets_is_told_before_the_first_stage(preset: str | None) -> None:
    values = read_yaml(Path("params.yaml"))
    values["invert"]["preset"] = preset
    del values["presets"]["reversion"]
    with pytest.raises(
        UserError, match=r"^'presets' in params\.yaml has no section 'reversion': add `reversion: {}` th"
    ):
        check_params(Params(values, Path("params.yaml")))


def test_presets_of_no_method_are_told(tmp_path: Path) -> None:
    (file := tmp_path / "params.yaml").write_text("presets: {revrsion: {official: {steps: 1}}}\n")
    with pytest.raises(UserError, match=r"Unknown parameter 'revrsion'\. Did you mean 'reversion'.* 'presets\.revrsi"):
        load_params(file)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"preset": "official"}, "Method 'custom_diffusion': The initializer_token 'sks' is 2 tokens for this base"),
        ({"reversion": {"initializer_token": None}}, "Method 'reversion': The initializer_token 'painted on' is 2 "),
        ({"reversion": {"anchor_word": "zzyx"}}, "Method 'reversion': The anchor_word 'zzyx' is 4 tokens"),
        (
            {"perfusion": {"superclass": "painted on", "locking": "global"}},
            "Method 'perfusion': Perfusion's locking cannot be global with 'painted on'",
        ),
    ],
)
def test_a_word_that_is_several_tokens_is_told_before_the_first_stage(changes: dict[str, Any], told: str) -> None:
    values = read_yaml(Path("params.yaml"))
    values["methods"] = ["relation_words", "reversion", "custom_diffusion", "perfusion"]
    for name, change in changes.items():
        known = values["invert"][name]
        values["invert"][name] = known | change if isinstance(change, dict) else change
    with pytest.raises(UserError, match=f"^{re.escape(told)}"):
        check_params(Params(values, Path("params.yaml")))
    values["bases"]["miniature"]["model"]["source"] = "some/model"  # which is still to be downloaded
    check_params(Params(values, Path("params.yaml")))


@pytest.mark.parametrize(
    ("change", "told"),
    [({"anchor_weight": 0.4}, "anchor_weight pulls a row"), ({"resolutions": 10}, "rows that differ as they learn")],
)
def test_what_contradicts_a_row_held_by_dreambooth_is_told_before_the_first_stage(
    change: dict[str, Any], told: str
) -> None:
    values = read_yaml(Path("params.yaml")) | {"methods": ["dreambooth"]}
    values["invert"]["dreambooth"] |= {"train_token": False, "anchor_weight": 0.0}
    check_params(Params(values, Path("params.yaml")))
    values["invert"]["dreambooth"] |= change
    with pytest.raises(UserError, match=told):
        check_params(Params(values, Path("params.yaml")))


def test_what_imported_tokens_lack_is_told_before_the_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = read_yaml(Path("params.yaml")) | {"relations": ["inside", "hug"], "methods": ["imported"]}
    monkeypatch.setattr("relinv.preflight.FOLDERS", {"invert": tmp_path})
    (file := tmp_path / "r.bin").write_bytes(b"abc")
    inside = {"file": str(file), "sha256": "0" * 64}
    for tokens, told in (
        ({"inside": inside}, r"^The method 'imported' has no token of 'hug': name its file"),
        (
            {"inside": inside, "hug": inside | {"file": "none.bin"}},
            r"^The token of 'hug' should be in 'none\.bin', but there is no such file",
        ),
        ({"inside": inside | {"token": "a\0b"}, "hug": inside}, "should be in 'a\0b', but there is no such file"),
        (
            {"inside": inside | {"sha256": None}},
            r"'invert\.imported\.tokens\.inside\.sha256' is null in params\.yaml: it must be a valid string",
        ),
    ):
        values["invert"]["imported"]["tokens"] = tokens
        with pytest.raises(UserError, match=told):
            check_params(Params(values, Path("params.yaml")))
    values["invert"]["imported"]["tokens"] = {"inside": inside, "hug": inside | {"file": "none.bin"}}
    (tmp_path / "hug/imported").mkdir(parents=True)
    check_params(Params(values, Path("params.yaml")))  # taken already


def test_a_fault_of_params_is_not_blamed_on_the_preset() -> None:
    params = presets("long", None)
    params._values["invert"]["reversion"]["batch_size"] = "many"
    with pytest.raises(UserError, match=r"'invert\.reversion\.batch_size' is 'many' in .*params\.yaml"):
        params.method("reversion", Sectioned)


@pytest.mark.parametrize(
    ("adapters", "said"),
    [
        ({"perfussion": {}}, "Unknown adapter 'perfussion'. Did you mean 'perfusion'"),
        ({"perfusion": {"betta": 0.5}}, "Unknown option of the adapter 'perfusion' 'betta'. Did you mean 'beta'"),
        ({"perfusion": {"beta": 50.0}}, r"'generate\.adapters\.perfusion\.beta' is 50\.0 .*less than or equal to 10"),
        ({"perfusion": {"beta": "0.5"}}, r"'generate\.adapters\.perfusion\.beta' is '0\.5' .*must be a valid number"),
        (
            {"layout": {"head": [0, 0, 1, True]}},
            r"'generate\.adapters\.layout\.head\.3' is true .*a valid number",
        ),
        ({"layout": {"scale": 1.0, "head": [0.1, 0.2]}}, r"'generate\.adapters\.layout\.head' is \[0\.1, 0\.2\]"),
        (
            {"Layout": {}},
            r"name of 'generate\.adapters\.Layout' in .* is not allowed: it must match pattern '\^\[a-z",
        ),
        ({"perfusion": None}, r"'generate\.adapters\.perfusion' is null .*must be a section of"),
        ({"dreambooth": {"rank": 4}}, "The adapter 'dreambooth' has nothing to choose when it draws"),
    ],
)
def test_a_mistyped_adapter_is_found_before_the_first_stage(adapters: dict[str, Any], said: str) -> None:
    values = read_yaml(Path("params.yaml"))
    values["generate"]["adapters"] = adapters
    with pytest.raises(UserError, match=said):
        check_params(Params(values, Path("params.yaml")))


def test_an_adapter_is_added_to_what_is_learned_without_it_by_all_its_options() -> None:
    values = read_yaml(Path("params.yaml"))
    values["generate"]["adapters"] = {"layout": {"scale": 1.0}}
    with pytest.raises(UserError, match=r"'generate\.adapters\.layout\.head' is missing"):
        check_params(Params(values, Path("params.yaml")))
    values["methods"] = ["relation_words", "compositional"]  # of which one draws nothing by it, and one has the others
    check_params(Params(values, Path("params.yaml")))
    values["methods"] = ["reversion", "compositional"]
    with pytest.raises(UserError, match=r"'generate\.adapters\.layout\.head' is missing"):
        check_params(Params(values, Path("params.yaml")))
