"""The report's files: what it reads, and that its pages are whole."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from dvc.utils.hydra import apply_overrides
from PIL import Image

from relinv.errors import UserError
from relinv.files import read_yaml
from relinv.fingerprint import judge_fingerprint
from relinv.images import FORMS_FILE
from relinv.params import load_params
from relinv.report.build import write_report
from relinv.report.collect import collect, used_parameters
from relinv.report.pages import data_uri, html
from relinv.report.rows import READINGS, parse_rows
from relinv.report.story import as_yaml, tell
from tests.reporting import METHODS, write_arm, write_run


@pytest.mark.parametrize("change", ["seed", "rows"])
def test_methods_scored_on_other_seeds_or_scenarios_are_not_compared(change: str, tmp_path: Path) -> None:
    params = write_run(tmp_path)
    file = tmp_path / "data/scores/hug/reversion.csv"
    rows = pd.read_csv(file, keep_default_na=False)
    (rows.assign(seed=rows["seed"] + 1) if change == "seed" else rows.head(2)).to_csv(file, index=False)
    with pytest.raises(
        UserError, match=r"scores of 'hug' in '.*scores' are of other scenarios or seeds: run `dvc repro`"
    ):
        collect(tmp_path, params)


def test_the_report_writes_its_five_results(tmp_path: Path) -> None:
    write_report(tmp_path, write_run(tmp_path))
    reports = tmp_path / "reports"
    assert sorted(path.name for path in reports.iterdir()) == [
        "grids",
        "metrics.json",
        "report.html",
        "report.md",
        "scores.csv",
    ]
    assert sorted(path.name for path in (reports / "grids").iterdir()) == ["hug.png", "inside.png"]
    metrics = json.loads((reports / "metrics.json").read_text())
    assert list(metrics) == METHODS
    assert all(list(values) == list(READINGS) for values in metrics.values())
    assert metrics["relation_words"]["leakage"] is None and metrics["reversion"]["leakage"] is not None
    scores = pd.read_csv(reports / "scores.csv")
    assert len(scores) == 2 * 3 * 12 and list(scores.columns[-2:]) == ["leakage", "judge"]
    for method, values in metrics.items():
        own = scores[scores["method"] == method]
        for name, value in values.items():
            mean = own[name].sum() / own[name].count() if own[name].notna().any() else None
            assert value == pytest.approx(mean, abs=1e-5), (method, name)


def test_the_report_shows_the_forms_of_a_token_that_has_several(tmp_path: Path) -> None:
    params = write_run(tmp_path)
    Image.new("RGB", (300, 100), "#123").save(tmp_path / "data/images/hug/reversion" / FORMS_FILE)
    write_report(tmp_path, params)
    reports = tmp_path / "reports"
    drawn = (reports / "grids/hug-reversion.png").read_bytes()
    assert drawn == (tmp_path / "data/images/hug/reversion" / FORMS_FILE).read_bytes()
    assert (reports / "report.html").read_text().count(base64.b64encode(drawn).decode()) == 1
    assert (reports / "report.md").read_text().count("(grids/hug-reversion.png)") == 1


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        write_report(tmp_path / name, write_run(tmp_path / name))
        files = sorted((tmp_path / name / "reports").rglob("*.*"))
        contents.append([path.read_bytes() for path in files])
    assert contents[0] == contents[1]


def test_arms_that_params_do_not_name_are_not_read(tmp_path: Path) -> None:
    params = write_run(tmp_path)
    write_arm(tmp_path, "inside", "dropped")
    write_report(tmp_path, params)
    assert "dropped" not in (tmp_path / "reports/scores.csv").read_text()


class Addresses(HTMLParser):
    """Collects every src and href, and whether tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.ids: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]
        self.ids |= {value or "" for name, value in attrs if name == "id"}
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_no_network(tmp_path: Path) -> None:
    write_report(tmp_path, write_run(tmp_path))
    text = (tmp_path / "reports/report.html").read_text(encoding="utf-8")
    parser = Addresses()
    parser.feed(text)
    assert parser.open == []
    assert all(address.startswith(("data:image/jpeg;base64,", "#")) for address in parser.found)
    assert {address[1:] for address in parser.found if address.startswith("#")} <= parser.ids
    assert "@import" not in text and "url(" not in text and "<script" not in text
    assert "3.png is nearly the same picture as 1.png." in text and "2.png shows &lt;nothing&gt;." in text
    assert (
        "0.981" in text
        and "On 400 real scenes" in text
        and "<td>400</td>" not in text
        and "steer_weight" in text
        and "e" * 64 in text
    )
    assert "<dt>Entity similarity</dt><dd>Cosine between the" in text and "Source: CLIPScore, unscaled" in text
    assert "prefers-color-scheme:dark" in text


def test_the_contents_name_what_the_page_has(tmp_path: Path) -> None:
    story = tell(collect(tmp_path, write_run(tmp_path)))
    for without in ({"curves": []}, {"groups": []}):
        parser = Addresses()
        parser.feed(html(dataclasses.replace(story, **without)))
        named = {address[1:] for address in parser.found if address.startswith("#")}
        assert len(named) == 9 and named <= parser.ids


@pytest.mark.parametrize(("size", "side"), [((400, 300), 160), ((64, 96), 64)])
@pytest.mark.filterwarnings("error")
def test_the_page_holds_pictures_no_larger_than_it_shows_them(
    size: tuple[int, int], side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", size).save(tmp_path / "0.png")
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", size[0] * size[1] - 1)  # as of a photograph that Pillow warns of
        inlined = data_uri(tmp_path / "0.png")
    held = base64.b64decode(inlined.removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(held)).size == (side, side)


def test_a_preset_that_changes_while_the_report_is_made_is_told(tmp_path: Path) -> None:
    file = Path(shutil.copy("params.yaml", tmp_path))
    apply_overrides(file, ["invert.preset=official"])
    params = load_params(file)
    used_parameters(params)
    params.require_unchanged()
    apply_overrides(file, ["presets.reversion.official.steps=7"])
    with pytest.raises(UserError, match=r"changed while this ran, .*: presets\."):
        params.require_unchanged()


@pytest.mark.parametrize("name", ["verdicts/hug.json", "concepts/hug/reversion/concept.json"])
def test_a_result_that_is_missing_is_named_with_what_makes_it(name: str, tmp_path: Path) -> None:
    params = write_run(tmp_path)
    (tmp_path / "data" / name).unlink()
    with pytest.raises(UserError, match=rf"{name}' does not exist: run `dvc repro` to make it"):
        write_report(tmp_path, params)


def test_markdown_tables_have_equally_many_cells(tmp_path: Path) -> None:
    write_report(tmp_path, write_run(tmp_path))
    text = (tmp_path / "reports/report.md").read_text(encoding="utf-8")
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1
    assert "](grids/hug.png)" in text
    assert "- hug: 3.png is nearly the same picture as 1.png.\n- hug: 2.png shows <nothing>.\n" in text
    assert text.count("\n## ") == 10


def test_missing_scores_are_named(tmp_path: Path) -> None:
    params = write_run(tmp_path)
    (tmp_path / "data/scores/hug/reversion.csv").unlink()
    with pytest.raises(UserError, match=r"hug/reversion\.csv' do not exist: run `dvc repro`"):
        write_report(tmp_path, params)
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize("other", ["hug/relation_words", "inside/reversion"])
def test_scores_of_another_arm_are_not_taken_for_ones_own(other: str, tmp_path: Path) -> None:
    params = write_run(tmp_path)
    shutil.copyfile(tmp_path / f"data/scores/{other}.csv", tmp_path / "data/scores/hug/reversion.csv")
    with pytest.raises(
        UserError, match=r"^The scores '.*hug/reversion\.csv' are another relation's or method's: delete"
    ):
        write_report(tmp_path, params)


def test_a_relation_of_ones_own_is_reported_on_by_its_own_grid(tmp_path: Path) -> None:
    params = write_run(tmp_path)
    file = tmp_path / "data/benchmark/miniature.yaml"
    benchmark = read_yaml(file)
    (tmp_path / "data/relations/hug/relation.yaml").write_text(as_yaml(benchmark["relations"].pop("hug")))
    file.write_text(as_yaml(benchmark))
    run = collect(tmp_path, params)
    assert {name: relation.own for name, relation in run.benchmark.relations.items()} == {"inside": False, "hug": True}


def test_the_number_of_the_judges_scenes_is_no_accuracy(tmp_path: Path) -> None:
    judge = collect(tmp_path, write_run(tmp_path)).judge
    assert judge["scenes"] == 400 and judge["accuracy"] == {"relation_accuracy": 0.981, "direction": 0.957}


def test_scores_by_another_judge_are_not_reported_as_this_ones(tmp_path: Path) -> None:
    params = write_run(tmp_path)
    scores = tmp_path / "data/scores/hug/reversion.csv"
    rows = parse_rows(scores.read_bytes(), "hug")
    fingerprint = judge_fingerprint(params.judge(), tmp_path)
    rows.assign(judge=fingerprint).to_csv(scores, index=False)
    (tmp_path / "data/miniature/judge/.DS_Store").write_bytes(b"looked at")
    write_report(tmp_path, params)
    assert fingerprint in (tmp_path / "reports/report.md").read_text()
    rows.assign(judge="0123456789abcdef").to_csv(scores, index=False)
    with pytest.raises(UserError, match=r"'hug' by 'reversion' are by another judge than 'data/.*' is now: change the"):
        write_report(tmp_path, params)
    rows.assign(judge=fingerprint).to_csv(scores, index=False)
    reading = tmp_path / "data/judged/hug.json"
    reading.write_text(json.dumps(json.loads(reading.read_text()) | {"judge": "0123456789abcdef"}))
    with pytest.raises(UserError, match="scores of the exemplars of 'hug' are by another judge"):
        write_report(tmp_path, params)
    reading.write_text('{"pictures": "four"}')
    with pytest.raises(UserError, match=r"hug\.json' is damaged: delete it, and run `dvc repro` to make it"):
        write_report(tmp_path, params)


def test_a_damaged_concept_is_named(tmp_path: Path) -> None:
    params = write_run(tmp_path)
    (tmp_path / "data/concepts/hug/reversion/concept.json").write_text("{}")
    with pytest.raises(UserError, match=r"hug/reversion/concept\.json' lacks relation, .*: invert the relation again"):
        write_report(tmp_path, params)


@pytest.mark.parametrize(
    ("text", "told"),
    [('{"direction": "good"}', "'direction' is 'good'"), ('{"scenes": NaN}', "'scenes' is nan"),
     ('{"scenes": Infinity}', "'scenes' is inf")],
)  # fmt: skip
def test_a_damaged_accuracy_of_the_judge_is_named(text: str, told: str, tmp_path: Path) -> None:
    params = write_run(tmp_path)
    (tmp_path / "data/miniature/judge/accuracy.json").write_text(text)
    with pytest.raises(UserError, match=rf"Parameter {told} in .*accuracy\.json: it must be a .*number\.$"):
        write_report(tmp_path, params)


@pytest.mark.parametrize(
    ("text", "fault"),
    [("step,denoise\n1,much\n", "are damaged"), ("step,denoise\n", "hold no steps"), ("denoise\n1\n", "hold no steps")],
)
def test_damaged_losses_are_named(text: str, fault: str, tmp_path: Path) -> None:
    params = write_run(tmp_path)
    (tmp_path / "data/concepts/hug/reversion/losses.csv").write_text(text)
    with pytest.raises(UserError, match=rf"losses\.csv' {fault}"):
        write_report(tmp_path, params)


def test_the_stage_never_imports_torch(tmp_path: Path) -> None:
    write_run(tmp_path)
    code = "import sys; from stages.report import report; report(); assert 'torch' not in sys.modules"
    here = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {here!r}); {code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "reports/report.html").stat().st_size < 8_000_000
