"""Score rows: leakage, and how they are read and written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from relinv.errors import UserError
from relinv.report.rows import FURTHER, format_rows, means, parse_rows, with_leakage
from tests.reporting import score_table, scored


def test_leakage_is_the_similarity_beyond_plain_words_where_both_have_the_relation(rows: pd.DataFrame) -> None:
    """Where one of the two lacks it, similarity would say that the relation was learned, for exemplars show it."""
    similarity, right, leakage = (
        rows.pivot(index=["relation", "index"], columns="method", values=column)
        for column in ("exemplar_similarity", "relation_accuracy", "leakage")
    )
    both_right = (right["reversion"] == 1) & (right["relation_words"] == 1)
    expected = (similarity["reversion"] - similarity["relation_words"])[both_right]
    assert 0 < both_right.sum() < len(right)
    pd.testing.assert_series_equal(leakage["reversion"].dropna(), expected, check_names=False)
    assert leakage["relation_words"].isna().all()


def test_leakage_stays_with_its_row_whatever_the_rows_order(rows: pd.DataFrame) -> None:
    mixed = rows.drop(columns="leakage").sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(with_leakage(mixed).sort_index(), rows)


def test_leakage_is_defined_where_a_relation_stands_alone(rows: pd.DataFrame) -> None:
    alone = with_leakage(rows.assign(relation_accuracy=float("nan")))
    assert alone.loc[rows["method"] == "reversion", "leakage"].notna().all()


def test_leakage_is_beyond_plain_words_of_the_same_seed() -> None:
    methods = ("relation_words", "reversion")
    alone = [scored(*(score_table("hug", method, seed) for method in methods)) for seed in (0, 1)]
    together = scored(*(score_table("hug", method, seed) for seed in (0, 1) for method in methods))
    pd.testing.assert_frame_equal(together, pd.concat(alone, ignore_index=True))


def test_leakage_is_undefined_without_plain_words() -> None:
    rows = scored(score_table("hug", "reversion"))
    assert rows["leakage"].isna().all()
    assert means(rows, ["reversion"])["reversion"]["leakage"] is None


def test_rows_survive_being_written_and_read(rows: pd.DataFrame) -> None:
    text = format_rows(rows)
    again = parse_rows(text.encode(), "scores.csv")
    assert format_rows(again) == text
    assert again["direction"].isna().sum() == (rows["relation"] == "hug").sum()


def test_leakage_may_be_as_large_as_two_cosines_differ(rows: pd.DataFrame) -> None:
    for leakage in (-2.0, 2.0):
        again = parse_rows(format_rows(rows.assign(leakage=leakage)).encode(), "scores.csv")
        assert set(again["leakage"]) == {leakage}


def test_an_entity_may_be_called_nan() -> None:
    table = score_table("hug", "reversion").assign(head="nan")
    assert set(parse_rows(table.to_csv(index=False).encode(), "x")["head"]) == {"nan"}


def test_names_of_digits_stay_as_they_are() -> None:
    table = score_table("hug", "reversion").assign(relation="2001", method="007", head="042", judge="0123456789012345")
    rows = parse_rows(table.to_csv(index=False).encode(), "x")
    assert set(rows["head"]) == {"042"} and set(rows["judge"]) == {"0123456789012345"}
    assert means(with_leakage(rows), ["007"])["007"]["scene_accuracy"] == pytest.approx(table["scene_accuracy"].mean())
    assert set(rows["relation"]) == {"2001"}


EMPTY = score_table("hug", "reversion").head(0).to_csv(index=False)


@pytest.mark.parametrize("text", ["", "relation,method\nhug,reversion\n", "a,b\n1,2,3\n4\n", EMPTY])
def test_damaged_rows_are_named(text: str) -> None:
    with pytest.raises(UserError, match=r"The scores 'hug\.csv' .*dvc repro"):
        parse_rows(text.encode(), "hug.csv")


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda text: text.replace(",box,", ",caf\udce9,", 1), "are damaged .*utf-8"),
        (lambda text: text[:-9], "end within a row"),
        (lambda text: text + text.splitlines()[-1] + "\n", r"hold a row twice, that of 011\.png"),
    ],
)
def test_a_file_that_is_not_as_it_was_written_is_damaged(
    damage: Callable[[str], str], fault: str, rows: pd.DataFrame
) -> None:
    text = format_rows(rows)
    content = damage(text).encode("utf-8", "surrogateescape")
    with pytest.raises(UserError, match=rf"^The scores 'scores\.csv' {fault}.*: delete them and run `dvc repro`\.$"):
        parse_rows(content, "scores.csv")


@pytest.mark.parametrize(
    ("column", "value", "fault"),
    [
        ("scene_accuracy", "much", "are damaged .*much"),
        ("index", 0.5, "are damaged"),
        ("seed", "", "are damaged"),
        ("scene_accuracy", -5, "hold a value of 'scene_accuracy' that is not between 0 and 1"),
        ("exemplar_similarity", np.inf, "hold a value of 'exemplar_similarity' that is not between -1 and 1"),
        (FURTHER[0], 7, f"hold a value of '{FURTHER[0]}' that is not between"),
    ],
)
def test_a_number_that_cannot_be_is_damage(column: str, value: object, fault: str, rows: pd.DataFrame) -> None:
    with pytest.raises(UserError, match=rf"^The scores 'scores\.csv' {fault}.*: delete them and run `dvc repro`\.$"):
        parse_rows(format_rows(rows.assign(**{column: value})).encode(), "scores.csv")


def test_a_metric_added_since_rows_were_written_is_undefined_for_them(
    rows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relinv.report.rows.FURTHER", ["no_such_metric"])
    assert parse_rows(format_rows(rows).encode(), "scores.csv")["no_such_metric"].isna().all()


def test_rows_older_than_the_column_of_the_judge_are_by_one_not_known(rows: pd.DataFrame) -> None:
    content = rows.drop(columns="judge").to_csv(index=False).encode()
    assert (parse_rows(content, "scores.csv")["judge"] == "").all()
