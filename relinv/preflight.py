"""Checks parameters before anything is run: a mistake in them is told at once, not by the stage that stumbles on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from relinv.asking import check_asked
from relinv.benchmark import load_benchmark
from relinv.devices import find_device, require_precision
from relinv.diffusion.adapter import drawing_adapter
from relinv.errors import UserError
from relinv.exemplars import OWN
from relinv.hub import find_tokenizer, load_tokenizer
from relinv.judge import check_judge
from relinv.learning.token_row import TokenRowSettings, word_id
from relinv.params import PRESETS, Params
from relinv.plugins import find_plugin
from relinv.settings import (
    BaseSettings,
    ExemplarSettings,
    PreviewSettings,
    ReportSettings,
    ScoreSettings,
    Seed,
    ValidateSettings,
)

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

SECTIONS = {"exemplars": ExemplarSettings, "validate": ValidateSettings, "invert.seed": Seed,
            "invert.preview": PreviewSettings, "score": ScoreSettings, "report": ReportSettings}  # fmt: skip


def check_params(params: Params) -> None:
    """Raise UserError if the parameters name an unknown relation, method or adapter, or set a stage wrongly.

    Also if a method's settings lack what it needs for a relation; and, unless the base is still to be downloaded, if it
    is to start from a word that is not one token of the base.
    """
    benchmark = load_benchmark(params.benchmark(), *(OWN / relation for relation in params.relations()))
    params.section(f"bases.{params.base()}", BaseSettings)
    for section, kind in SECTIONS.items():
        params.section(section, kind)
    for model in (params.model(), params.drawing_model()):
        if model.device != "cpu":
            require_precision(find_device(model.device), model.precision)
    if (judge := params.judge()).device != "cpu":
        find_device(judge.device)
    check_judge(judge)
    check_asked(judge)
    for adapter, options in params.generation().adapters.items():
        drawing_adapter(adapter, options)
    words = [benchmark.relation(relation).words for relation in params.relations()]
    plugins = {name: find_plugin("relinv.methods", name) for name in params.methods()}
    settings = {name: params.method(name, plugin.Settings) for name, plugin in plugins.items()}
    for name, plugin in plugins.items():
        for relation in params.relations():
            plugin.Method.settings_for(relation, settings[name])
    find_plugin("relinv.methods", params.section("report", ReportSettings).subject)
    presets = params.presets()
    for method in settings:
        if method not in presets:  # DVC would tell only when it has to be learned
            file = params.file.with_name(PRESETS)
            raise UserError(f"The method '{method}' has no section in {file}: add `{method}: {{}}` there.")
    model = params.model()
    if folder := find_tokenizer(model.source, model.revision):
        tokenizer = load_tokenizer(folder)
        for method, of_method in settings.items():
            if isinstance(of_method, TokenRowSettings):
                _check_words(tokenizer, method, of_method, words)


def _check_words(tokenizer: CLIPTokenizer, method: str, settings: TokenRowSettings, words: Sequence[str]) -> None:
    """Raise UserError if a word whose row the method takes, by default the relations' `words`, is not one token."""
    starts = [settings.initializer_token] if settings.initializer_token else words
    anchors = [settings.anchor_word] if settings.anchor_word else []
    for parameter, given in (("initializer_token", starts), ("anchor_word", anchors)):
        for word in given:
            try:
                word_id(tokenizer, word, parameter)
            except UserError as error:
                raise UserError(f"Method '{method}': {error}") from None
