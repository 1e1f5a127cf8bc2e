"""From image folders to score rows, and the two stages that wrap drawing and scoring."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pandas as pd
import pytest
from PIL import ImageOps
from typer.testing import CliRunner

from relinv import cli, unchanged
from relinv.benchmark import Benchmark, Relation, load_benchmark
from relinv.diffusion.bases import load_base
from relinv.errors import UserError
from relinv.exemplars import ExemplarSet, load_image, read_exemplars
from relinv.fingerprint import judge_fingerprint
from relinv.generation import write_image
from relinv.images import read_records, write_records
from relinv.judge import Judge, load_judge
from relinv.judging import ask_of_exemplars, require_scenarios_read
from relinv.params import load_params
from relinv.plugins import plugin_names
from relinv.results import Judged, read_judged
from relinv.scoring import JUDGE, KEYS, METRICS, Context, load_metric, read_image_folder, score_images, write_scores
from relinv.settings import JudgeSettings, ModelSettings
from relinv.vqa import load_vqa_model
from stages import generate, score
from stages import judge as judge_stage
from tests.concepts import keep, made
from tests.records import record
from tests.tiny_judge import build_tiny_judge
from tests.tiny_vqa import build_tiny_vqa

TINY_MODEL = {"revision": None, "device": "cpu", "precision": "fp32", "resolution": 64}
BENCHMARK = {
    "name": "tiny",
    "held_out": None,
    "validation": {"fraction": 0.25, "seed": 1},
    "relations": {
        "inside": {"words": "inside", "asymmetric": True, "heads": ["cat", "box"], "tails": ["box", "cup"]},
        "hug": {"words": "hugging", "asymmetric": False, "heads": ["cat"], "tails": ["dog"]},
    },
}


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_judge(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module")
def judge(judge_folder: Path) -> Judge:
    return load_judge(JudgeSettings(model=str(judge_folder), pretrained=None, device="cpu"))


@pytest.fixture
def benchmark(tmp_path: Path) -> Benchmark:
    (tmp_path / "benchmark.yaml").write_text(json.dumps(BENCHMARK))
    return load_benchmark(tmp_path / "benchmark.yaml")


@pytest.fixture
def images(tmp_path: Path, exemplar_folder: Path, benchmark: Benchmark) -> Path:
    """A generated folder of `inside` that holds the exemplars themselves."""
    records = [
        record(scenario.index, prompt="", head=scenario.head, tail=scenario.tail, seed=7, method="copycat")
        for scenario in benchmark.scenarios("inside")
    ]
    folder = tmp_path / "images"
    folder.mkdir()
    for each in records:
        write_image(folder, each, load_image(exemplar_folder / f"{each.index}.png", 64))
    write_records(folder, records)
    return folder


def test_a_row_for_each_image_with_every_metric(
    images: Path, exemplar_folder: Path, benchmark: Benchmark, judge: Judge
) -> None:
    rows = score_images(read_image_folder(images, exemplar_folder), benchmark, judge, batch_size=3)
    assert rows.columns.tolist() == [*KEYS, *plugin_names(METRICS), JUDGE]
    assert set(rows[JUDGE]) == {judge.fingerprint}
    assert rows[["relation", "method", "index", "seed"]].drop_duplicates().shape == (4, 4)
    np.testing.assert_allclose(rows["exemplar_similarity"], 1, atol=1e-4)  # each is an exemplar
    assert rows["direction"].isna().tolist() == [False, False, True, False]  # box inside box


def test_a_metric_is_held_to_its_bounds_but_for_rounding(
    images: Path, exemplar_folder: Path, benchmark: Benchmark, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric, drawn = load_metric("entity"), read_image_folder(images, exemplar_folder)
    monkeypatch.setattr(metric, "score", lambda context: np.array([1 + 1e-6, np.nan, -1.0, 0.5]))
    rows = score_images(drawn, benchmark, judge, batch_size=3)
    np.testing.assert_array_equal(rows["entity"], [1, np.nan, -1, 0.5])
    monkeypatch.setattr(metric, "score", lambda context: np.array([1.001, 0.0, 0.0, 0.0]))
    with pytest.raises(UserError, match=r"'entity' gives values beyond its BOUNDS, -1 and 1: correct one"):
        score_images(drawn, benchmark, judge, batch_size=3)
    monkeypatch.setattr(metric, "score", lambda context: np.array([1.0, np.nan, -1.0, 0.5]))
    monkeypatch.setattr(metric, "BOUNDS", (0.0, 1.0))
    with pytest.raises(UserError, match=r"'entity' gives values beyond its BOUNDS, 0 and 1: correct one"):
        score_images(drawn, benchmark, judge, batch_size=3)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.float64(0.5), r"shape \(\) for 4 images: give all a value"),
        (None, r"shape \(\) for 4 images"),
        (np.zeros(3), r"shape \(3,\) for 4 images"),
        (np.zeros((4, 1)), r"shape \(4, 1\) for 4 images"),
        (np.array([0.5, np.inf, 0.5, 0.5]), "infinite values: give NaN where it is undefined"),
    ],
)
def test_a_metric_that_gives_no_number_for_each_image_is_named(
    values: np.ndarray | None,
    told: str,
    images: Path,
    exemplar_folder: Path,
    benchmark: Benchmark,
    judge: Judge,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(load_metric("entity"), "score", lambda context: values)
    monkeypatch.setattr(load_metric("entity"), "BOUNDS", (-np.inf, np.inf))
    with pytest.raises(UserError, match=f"The metric 'entity' gives (values of )?{told}"):
        score_images(read_image_folder(images, exemplar_folder), benchmark, judge, batch_size=3)


def test_an_image_is_held_against_its_own_words_and_the_exemplars(
    images: Path, exemplar_folder: Path, benchmark: Benchmark, judge: Judge
) -> None:
    """Its values by hand, of pictures that are no exemplars and in another order than the records' pairs."""
    records = read_records(images)
    drawn = [ImageOps.invert(load_image(exemplar_folder / f"{3 - each.index}.png", 64)) for each in records]
    for each, picture in zip(records, drawn, strict=True):
        write_image(images, each, picture)
    rows = score_images(read_image_folder(images, exemplar_folder), benchmark, judge, batch_size=3)
    exemplars = judge.encode_images([load_image(exemplar_folder / f"{place}.png", 64) for place in range(4)], 4)
    for (_, row), picture in zip(rows.iterrows(), drawn, strict=True):
        (image,) = judge.encode_images([picture], 1)  # (dim,)
        head, tail = row["head"], row["tail"]
        scene, swapped = judge.encode_texts([f"{head} inside {tail}", f"{tail} inside {head}"])
        nearest = (exemplars @ image).max()
        assert row["relation_score"] == pytest.approx(image @ scene, abs=1e-5)
        assert row["exemplar_similarity"] == pytest.approx(nearest, abs=1e-5) and nearest < 0.9999
        if head != tail:
            assert row["direction"] == float(image @ scene > image @ swapped)
    assert set(rows["direction"].dropna()) == {0, 1}


def test_scores_are_written_with_blanks_and_the_same_bytes(
    images: Path, exemplar_folder: Path, benchmark: Benchmark, judge: Judge, tmp_path: Path
) -> None:
    for name in ("one.csv", "two.csv"):
        rows = score_images(read_image_folder(images, exemplar_folder), benchmark, judge, batch_size=3)
        write_scores(tmp_path / name, rows)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    table = pd.read_csv(tmp_path / "one.csv")
    assert table["direction"].isna().sum() == 1
    assert table["held_out"].isna().all()
    assert table["entity"].between(-1, 1).all()
    np.testing.assert_allclose(table["entity"], rows["entity"], rtol=1e-5)  # six digits


def test_a_relation_the_benchmark_lacks_is_named(
    images: Path, exemplar_folder: Path, benchmark: Benchmark, judge: Judge
) -> None:
    write_records(images, [replace(record, relation="insid") for record in read_records(images)])
    with pytest.raises(UserError, match=r"Unknown relation 'insid'\. Did you mean 'inside'"):
        score_images(read_image_folder(images, exemplar_folder), benchmark, judge, batch_size=3)


@pytest.mark.parametrize(("side", "pair"), [("head", "'canoe' and 'box'"), ("tail", "'cat' and 'canoe'")])
def test_an_image_of_entities_the_benchmark_lacks_is_named(
    side: str, pair: str, images: Path, exemplar_folder: Path, benchmark: Benchmark, judge: Judge
) -> None:
    write_records(images, [replace(record, **{side: "canoe"}) for record in read_records(images)])
    with pytest.raises(UserError, match=rf"000\.png of 'inside' shows {pair}, which the benchmark has no"):
        score_images(read_image_folder(images, exemplar_folder), benchmark, judge, batch_size=3)


# The two stages, in a small project folder


@pytest.fixture
def project(
    tmp_path: Path,
    tiny_base: Path,
    judge_folder: Path,
    exemplar_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A project folder with a learned concept, as current directory."""
    model = TINY_MODEL | {"source": str(tiny_base)}
    judge = {"model": str(judge_folder), "pretrained": None, "device": "cpu"}
    sampling = {"steps": 2, "guidance_scale": 5.0, "scheduler": "ddim", "batch_size": 3, "precision": None}
    base = {"benchmark": "benchmark.yaml", "model": model, "sampling": sampling, "judge": judge}
    params: dict[str, Any] = {
        "base": "tiny",
        "bases": {"tiny": base},
        "generate": {"pairs": "all", "seed": 0},
        "score": {"batch_size": 3},
    }
    (tmp_path / "params.yaml").write_text(json.dumps(params))  # JSON is YAML
    (tmp_path / "benchmark.yaml").write_text(json.dumps(BENCHMARK))
    (tmp_path / "data/relations").mkdir(parents=True)
    (tmp_path / "data/relations/inside").symlink_to(exemplar_folder)
    keep(tmp_path, made(load_base(ModelSettings(**model))))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stages.generate.check_settings", lambda params: None)  # of parameters cut down for this
    return tmp_path


class Reader:
    """A judge of three dimensions, one per relation, which reads 20 letters and sees what it likes in four pictures."""

    resolution, fingerprint = 64, "reader"
    SEES = ((1.0, 0.0, 0.0), (0.6, 0.5, 0.6), (0.0, 0.0, 1.0), (0.9, 0.1, 0.0))  # the second: a tie

    def reads(self, texts: Sequence[str]) -> list[bool]:
        """Return which texts are short enough."""
        return [len(text) <= 20 for text in texts]

    def encode_images(self, images: Sequence[Any], batch_size: int) -> np.ndarray:
        """Return what it sees in the pictures, (images, 3)."""
        assert batch_size == 2
        return np.array(self.SEES[: len(images)])

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return the axis of the relation that each text names, (texts, 3)."""
        assert all(self.reads(texts))
        return np.array([[float(name in text) for name in ("inside", "hugging", "under")] for text in texts])


def test_a_judge_is_asked_which_relation_each_picture_shows(exemplar_folder: Path, benchmark: Benchmark) -> None:
    others = {"below": replace_words(benchmark, "under"), "within": replace_words(benchmark, "Inside")}  # no rival
    asked = replace(benchmark, relations=benchmark.relations | others)

    exemplars = read_exemplars(exemplar_folder)

    def found(benchmark: Benchmark, exemplars: ExemplarSet = exemplars) -> Judged:
        return ask_of_exemplars(Reader(), exemplars, benchmark, 2)  # type: ignore[arg-type]

    without_vqa: Any = {"vqa_right": None, "judge": "reader"}
    assert found(asked) == Judged(pictures=4, right=2, choices=3, unread=0, **without_vqa)
    turned = tuple(replace(each, templates=each.templates[::-1]) for each in exemplars.exemplars)
    assert found(asked, replace(exemplars, exemplars=turned)) == found(asked)  # by the shortest caption, wherever it is
    long = replace(asked, relations=asked.relations | {"far": replace_words(benchmark, "under, far")})
    assert found(long) == Judged(pictures=2, right=1, choices=4, unread=2, **without_vqa)
    longer = replace(asked, relations=asked.relations | {"far": replace_words(benchmark, "under it all, not inside")})
    assert found(longer) == Judged(pictures=0, right=0, choices=4, unread=4, **without_vqa)
    assert found(replace(benchmark, relations={"inside": benchmark.relation("inside")})).choices == 1


class Answerer:
    """A model that says yes more probably to "hugging" for the second picture shown, and cannot decide on the last."""

    def ask(self, pictures: Sequence[Any], texts: Sequence[str], batch_size: int) -> np.ndarray:
        """Return the probability of yes for each picture with its text."""
        shown = list(dict.fromkeys(map(id, pictures)))
        assert batch_size == 2 and all(picture.size == (512, 512) for picture in pictures) and len(shown) == 4
        answers = [(0.9, 0.1), (0.2, 0.3), (0.6, 0.5), (0.4, 0.4)]
        pairs = zip(pictures, texts, strict=True)
        return np.array([answers[shown.index(id(picture))]["hugging" in text] for picture, text in pairs])


def test_vqa_score_is_judged_by_the_same_pictures(exemplar_folder: Path, benchmark: Benchmark) -> None:
    shown: Any = (Reader(), read_exemplars(exemplar_folder), benchmark, 2, Answerer())
    assert ask_of_exemplars(*shown).vqa_right == 2
    far = replace(benchmark, relations=benchmark.relations | {"far": replace_words(benchmark, "not inside " * 3)})
    found = ask_of_exemplars(*shown[:2], far, *shown[3:])
    assert (found.pictures, found.vqa_right) == (0, 0)


def replace_words(benchmark: Benchmark, words: str) -> Relation:
    """Return the relation `hug` in other words."""
    return replace(benchmark.relation("hug"), words=words)


def test_the_stage_asks_the_judge_of_a_relation(project: Path) -> None:
    result = CliRunner().invoke(judge_stage.app, ["inside"])
    assert result.exception is None, result.output
    found = read_judged(project / "data/judged/inside.json", "make it")
    assert (found.pictures, found.choices) == (4, 2) and 0 <= found.right <= 4
    assert found.judge == judge_fingerprint(load_params().judge())


def test_a_scenario_that_the_judge_cannot_read_is_told_before_anything_is_learned(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = replace(load_benchmark(load_params().benchmark()).relation("inside"), tails=("box", "b o x " * 20))
    monkeypatch.setattr(Benchmark, "relation", lambda self, name: own)
    result = CliRunner().invoke(judge_stage.app, ["inside"])
    assert isinstance(result.exception, UserError)
    assert re.search(r"The judge '.*' reads \d+ tokens at most: shorten the entities of ", str(result.exception))
    assert not (project / "data/judged/inside.json").exists()


def test_a_judge_is_to_read_every_scenario_in_the_words_of_every_relation(benchmark: Benchmark) -> None:
    judge = MagicMock()
    require_scenarios_read(judge, "inside", benchmark)
    ((texts,), _) = judge.require_read.call_args
    pairs = [("cat", "box"), ("cat", "cup"), ("box", "box"), ("box", "cup")]
    assert sorted(texts) == sorted(f"{head} {words} {tail}" for words in ("inside", "hugging") for head, tail in pairs)


def test_metrics_see_the_pictures_drawn_and_those_learned_from(
    images: Path, exemplar_folder: Path, benchmark: Benchmark, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Context] = []
    monkeypatch.setattr("relinv.scoring.score_rows", lambda records, context: seen.append(context) or pd.DataFrame())
    drawn = read_image_folder(images, exemplar_folder)
    score_images(drawn, benchmark, judge, batch_size=3)
    assert seen[0].pictures is drawn.pictures
    assert [picture.size for picture in seen[0].exemplar_pictures] == [(judge.resolution,) * 2] * 4


def test_no_more_pictures_than_a_batch_are_looked_at_at_once(
    images: Path, exemplar_folder: Path, benchmark: Benchmark, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, vqa = read_image_folder(images, exemplar_folder), MagicMock()
    vqa.ask.return_value = np.zeros(4)
    encode = MagicMock(side_effect=judge.encode_images)
    monkeypatch.setattr(judge, "encode_images", encode)
    score_images(drawn, benchmark, judge, batch_size=3, vqa=vqa)
    assert [call.args[1] for call in encode.call_args_list] == [3, 3]  # of the images, of the exemplars
    assert [call.kwargs["batch_size"] for call in vqa.ask.call_args_list] == [3]


def test_the_stages_draw_and_score_a_relation(project: Path) -> None:
    for stage in (generate, score):
        result = CliRunner().invoke(stage.app, ["inside", "reversion"])
        assert result.exception is None, result.output
    images = project / "data/images/inside/reversion"
    assert sorted(path.name for path in images.iterdir()) == [
        *(f"00{i}.png" for i in range(4)),
        "records.jsonl",
    ]
    table = pd.read_csv(project / "data/scores/inside/reversion.csv")
    assert table["head"].tolist() == ["cat", "cat", "box", "box"]
    assert table["method"].tolist() == ["reversion"] * 4
    assert list((project / ".scratch").glob("*/")) == []


def test_images_are_drawn_in_the_precision_that_is_set_for_drawing(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = json.loads((project / "params.yaml").read_text())
    params["bases"]["tiny"]["sampling"]["precision"] = "bf16"
    (project / "params.yaml").write_text(json.dumps(params))
    load = MagicMock(side_effect=UserError("to here"))
    monkeypatch.setattr("stages.generate.load_base", load)
    assert str(CliRunner().invoke(generate.app, ["inside", "reversion"]).exception) == "to here"
    assert load.call_args.args[0].precision == "bf16"


def test_images_drawn_by_code_that_is_not_what_is_there_now_are_not_kept(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited = unchanged.PACKAGE / "generation.py"
    monkeypatch.setattr(unchanged, "AT_START", {**unchanged.AT_START, edited: "of other code"})
    result = CliRunner().invoke(generate.app, ["inside", "reversion"])
    assert isinstance(result.exception, UserError)
    assert re.search(r"Code was changed while this ran, .*: relinv/generation\.py\.", str(result.exception))
    assert not (project / "data/images/inside/reversion").exists()


def test_the_stages_score_by_the_vision_language_model_that_the_judge_names(project: Path, tmp_path: Path) -> None:
    vqa = {"model": str(build_tiny_vqa(tmp_path / "vqa")), "revision": None, "precision": "fp32"}
    params = json.loads((project / "params.yaml").read_text())
    params["bases"]["tiny"]["judge"]["vqa"] = vqa
    (project / "params.yaml").write_text(json.dumps(params))
    for command in ([judge_stage, "inside"], [generate, "inside", "reversion"], [score, "inside", "reversion"]):
        result = CliRunner().invoke(command[0].app, command[1:])
        assert result.exception is None, result.output
    found = read_judged(project / "data/judged/inside.json", "make it")
    assert found.vqa_right is not None and 0 <= found.vqa_right <= found.pictures == 4
    table = pd.read_csv(project / "data/scores/inside/reversion.csv")
    model, images = load_vqa_model(load_params().judge()), project / "data/images/inside/reversion"
    assert model is not None
    shown = [load_image(images / name, 64) for name in table["file"]]
    texts = [f"{head} inside {tail}" for head, tail in zip(table["head"], table["tail"], strict=True)]
    np.testing.assert_allclose(table["vqa_score"], model.ask(shown, texts, 4), rtol=1e-4)
    assert table["vqa_score"].nunique() == 4
    assert set(table[JUDGE]) == {found.judge} == {judge_fingerprint(load_params().judge())}


def test_a_relation_without_scenarios_is_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Benchmark, "scenarios", lambda *names: [])
    result = CliRunner().invoke(generate.app, ["inside", "reversion"])
    assert isinstance(result.exception, UserError)
    assert re.search(r"'inside' has no \w+ scenarios: set generate\.pairs to all", str(result.exception))


@pytest.mark.parametrize(
    ("stage", "arguments", "message"),
    [
        (generate, ["insid", "reversion"], "Unknown relation 'insid'. Did you mean 'inside'"),
        (
            generate,
            ["inside", "revers"],
            "Unknown method 'revers'. Did you mean 'reversion'? Available: ",
        ),
        (
            generate,
            ["inside", "../inside/reversion"],
            "Unknown method '../inside/reversion'. Did you mean 'reversion'?",
        ),
        (generate, ["inside", "publishd"], "Unknown method 'publishd'. Did you mean 'published'?"),
        (generate, ["inside", "multires"], "make it with `python -m stages.invert inside multires`."),
        (judge_stage, ["insid"], "Unknown relation 'insid'. Did you mean 'inside'"),
        (score, ["insid", "reversion"], "Unknown relation 'insid'. Did you mean 'inside'"),
        (score, ["inside", "revers"], "Unknown method 'revers'. Did you mean 'reversion'?"),
        (score, ["inside", "multires"], "make it with `python -m stages.generate inside multires`."),
    ],
)
def test_a_wrong_name_is_one_sentence_and_exit_code_1(
    project: Path,
    stage: Any,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (project / "data/concepts/inside/published").mkdir()  # as an imported one
    monkeypatch.setattr("sys.argv", ["stage", *arguments])
    assert cli.exit_status(stage.app) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
