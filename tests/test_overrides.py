"""Changes of parameters, as DVC's -S takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from relinv.files import read_yaml
from relinv.overrides import as_override, changed_params
from relinv.params import flatten
from relinv.study.plan import overridden


@pytest.mark.parametrize(
    "value",
    [None, True, 7, 0.00004, "shared", "2026", "null", "true", "1e3", "2026-01-31", "", "cat <r> box, in 'snow' \\",
     "it's", 'so-called "red"', "${base} and ${none}", "$x", "a=b: c # d", ["on", "hug"],
     ["cat <r> box, red", None, [0.1, 2]],
     {"layout": {"scale": 2.0, "head": []}}, {}],
)  # fmt: skip
def test_overrides_are_written_as_dvc_reads_them(value: Any, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("prompt:\nadapters: {perfusion: {beta: 0.5, tau: 1}}\n")
    values = read_yaml(file)
    changes = {"prompt": value, "adapters": {"perfusion": {"beta": value}, "layout": {"scale": value}}}
    with changed_params(tmp_path, [as_override(*change) for change in changes.items()]):
        found = read_yaml(file)
    assert repr(found) == repr(overridden(values, changes))


def test_parameters_are_flattened() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
