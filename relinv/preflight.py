"""Checks parameters before anything is run: a mistake in them is told at once, not by the stage that stumbles on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relinv.benchmark import Benchmark, load_benchmark
from relinv.checking import parse
from relinv.devices import find_device, require_precision
from relinv.diffusion.adapter import drawing_adapter
from relinv.errors import UserError, within
from relinv.exemplars import OWN
from relinv.hub import find_tokenizer, load_tokenizer, require_place
from relinv.judge import check_judge
from relinv.learning.token_row import TokenRowSettings
from relinv.params import Params
from relinv.plugins import find_plugin, plugin_names
from relinv.results import FOLDERS
from relinv.settings import (
    BaseSettings,
    ExemplarSettings,
    PreviewSettings,
    ReportSettings,
    ScoreSettings,
    Seed,
    ValidateSettings,
)
from relinv.vqa import check_vqa

SECTIONS = {"exemplars": ExemplarSettings, "validate": ValidateSettings, "invert.seed": Seed,
            "invert.preview": PreviewSettings, "score": ScoreSettings, "report": ReportSettings}  # fmt: skip


def check_params(params: Params) -> None:
    """Raise UserError as `check_settings` does, and if this machine cannot run what the parameters name.

    Also if a metric lacks a part, the file of a token still to be imported is missing, or, unless the base is still to
    be downloaded, they name a word of more tokens of the base than they allow.
    """
    from relinv.scoring import METRICS, load_metric  # here, since stages call `check_settings`, and pandas takes long

    settings = check_settings(params)
    require_place(params.model().source)
    _check_devices(params)
    _check_words(params, settings)
    for metric in plugin_names(METRICS):
        load_metric(metric)
    if "imported" in settings:
        for relation in params.relations():
            if not (FOLDERS["invert"] / relation / "imported").is_dir():  # once it is taken, its file may go
                settings["imported"].tokens[relation].require_files(relation)


def check_settings(params: Params) -> dict[str, Any]:
    """Return each method's settings; UserError for an unknown relation, method or adapter, or a stage set wrongly.

    Also if a method's settings contradict each other, or lack what it needs for a relation. It takes little time and
    no GPU, so that stages do it before they start, even for those that come after them.
    """
    benchmark = _benchmark(params)
    params.section(f"bases.{params.base()}", BaseSettings)
    for section, kind in SECTIONS.items():
        params.section(section, kind)
    _check_count(params)
    for relation in params.relations():
        benchmark.relation(relation)
    settings = _check_methods(params)
    _check_drawing(params, settings)
    return settings


def _benchmark(params: Params) -> Benchmark:
    return load_benchmark(params.benchmark(), *(OWN / relation for relation in params.relations()))


def _check_count(params: Params) -> None:
    """Raise UserError if fewer exemplars are kept than validation asks for."""
    count = params.section("exemplars", ExemplarSettings).count
    least = params.section("validate", ValidateSettings).minimum_images
    if count is not None and count < least:
        raise UserError(
            f"exemplars.count is {count} and validate.minimum_images {least}: raise the one or lower the other."
        )


def _check_devices(params: Params) -> None:
    """Raise UserError for a device that this machine lacks, a precision it is too old for, or a judge there is not."""
    for model in (params.model(), params.drawing_model()):
        if model.device != "cpu":
            require_precision(find_device(model.device), model.precision)
    if (judge := params.judge()).device != "cpu":
        find_device(judge.device)
    check_judge(judge)
    check_vqa(judge)


def _check_methods(params: Params) -> dict[str, Any]:
    """Return each method's settings; UserError for an unknown method, and for settings that it cannot run with."""
    plugins = {name: find_plugin("relinv.methods", name) for name in params.methods()}
    for name in plugins:
        if name not in params.presets:  # DVC would tell only when it has to be learned
            raise UserError(f"'presets' in {params.file} has no section '{name}': add `{name}: {{}}` there.")
    settings = {name: params.method(name, plugin.Settings) for name, plugin in plugins.items()}
    for name, plugin in plugins.items():
        for relation in params.relations():
            plugin.Method.settings_for(relation, settings[name])
    find_plugin("relinv.methods", params.section("report", ReportSettings).subject)
    return settings


def _check_drawing(params: Params, settings: Mapping[str, Any]) -> None:
    """Raise UserError for options of drawing that no adapter has, or too few for what is learned without it.

    A method that learns with an adapter to which options can be added has its settings by the adapter's name.
    """
    tokens = [method for method in settings if find_plugin("relinv.methods", method).Method.token]
    for name, options in params.generation().adapters.items():
        kind = drawing_adapter(name, options)
        if kind.addable and not all(hasattr(settings[method], name) for method in tokens):
            parse(kind.DrawOptions, options, f"generate.adapters.{name}", params.file)


def _check_words(params: Params, settings: Mapping[str, Any]) -> None:
    """Raise UserError if a method cannot take the row of a word it names, or of one of the relations' words."""
    model, benchmark = params.model(), _benchmark(params)
    if not (folder := find_tokenizer(model.source, model.revision)):
        return
    tokenizer = load_tokenizer(folder)
    for method, of_method in settings.items():
        if isinstance(of_method, TokenRowSettings):
            for relation in params.relations():
                with within(f"Method '{method}'"):
                    of_method.check_words(benchmark.relation(relation).words, tokenizer)
