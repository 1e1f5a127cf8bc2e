"""Contact sheets: the same scenarios with the same seeds, one column per method, the exemplars on top."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from relinv.exemplars import load_image
from relinv.images import FORMS_FILE
from relinv.report.collect import Run
from relinv.report.tables import label

PANEL_LINES = 5  # scenarios shown of each kind
CELL = 112  # pixels a side of a generated image on the sheet
LEAST = 28  # pixels a side of an exemplar, at least
GAP = 6
LABEL = 84  # pixels left of a row for its entities' names, at least
NAMES = 13  # font size of those names
PAPER, INK, QUIET, RIGHT, WRONG = "#ffffff", "#24292f", "#6b737c", "#2b9a7b", "#c9506b"


@dataclass(frozen=True)
class Shot:
    """One generated image, and whether the judge found the relation and the entities right in it; None: no choice."""

    path: Path
    relation_right: bool | None
    entities_right: bool | None


@dataclass(frozen=True)
class Line:
    """One scenario on a sheet: head, tail, and a shot for each method in the sheet's order."""

    head: str
    tail: str
    shots: list[Shot]


@dataclass(frozen=True)
class Panel:
    """Scenarios of one kind under a heading, such as those held out of the base's training."""

    heading: str
    lines: list[Line]


@dataclass(frozen=True)
class Sheet:
    """All that the contact sheet of a relation shows."""

    relation: str
    title: str
    words: str
    methods: list[str]  # as words
    exemplars: list[Path]
    panels: list[Panel]
    forms: dict[str, Path]  # by method: a scenario with each form of its token, for those with several


def build(run: Run, relation: str) -> Sheet:
    """Return what a relation's sheet shows: scenarios spread evenly over its grid, the same in every run.

    Pairs that an exemplar shows are left out.
    """
    rows = run.rows[(run.rows["relation"] == relation) & ~run.rows["exemplar_pair"]]
    kinds = {
        "held out of the base’s training": rows["held_out"].isin([True]),
        "seen in the base’s training": rows["held_out"].isin([False]),
        "scenarios": rows["held_out"].isna(),
    }
    panels = [Panel(words, _lines(run, rows[chosen])) for words, chosen in kinds.items() if chosen.any()]
    concept = run.benchmark.relation(relation)
    # an object, which has no heads, is not what its plain words say
    title = concept.words if any(concept.heads) else f"{label(relation)} (plain words: {concept.words})"
    pictures = {method: run.images / relation / method / FORMS_FILE for method in run.methods}
    forms = {method: path for method, path in pictures.items() if path.is_file()}
    exemplars = [exemplar.path for exemplar in run.exemplars[relation].exemplars]
    return Sheet(relation, title, concept.words, [label(method) for method in run.methods], exemplars, panels, forms)


def _lines(run: Run, rows: pd.DataFrame) -> list[Line]:
    """Return the lines of one panel: for each chosen scenario one shot per method, all with the same seed."""
    scenarios = rows[["index", "seed"]].drop_duplicates().sort_values(["index", "seed"])
    chosen = scenarios.iloc[spread(len(scenarios), PANEL_LINES)]
    return [
        _line(run, rows[(rows["index"] == index) & (rows["seed"] == seed)])
        for index, seed in chosen.itertuples(index=False)
    ]


def _line(run: Run, rows: pd.DataFrame) -> Line:
    by_method = rows.set_index("method").loc[run.methods]
    shots = [
        Shot(
            run.images / row.relation / method / row.file,
            None if pd.isna(row.relation_accuracy) else row.relation_accuracy == 1,
            None if pd.isna(row.entity_accuracy) else row.entity_accuracy == 1,
        )
        for method, row in zip(run.methods, by_method.itertuples(), strict=True)
    ]
    return Line(str(by_method["head"].iloc[0]), str(by_method["tail"].iloc[0]), shots)


def spread(count: int, wanted: int) -> list[int]:
    """Return up to `wanted` of the positions 0 to `count` − 1, evenly spaced."""
    wanted = min(count, wanted)
    return [(2 * place + 1) * count // (2 * wanted) for place in range(wanted)]


def render(sheet: Sheet) -> bytes:
    """Return the PNG bytes of a sheet: exemplars, then the panels side by side; equal input, equal bytes."""
    panel_width = _label_width(sheet) + len(sheet.methods) * (CELL + GAP)
    width = GAP * 2 + max(1, len(sheet.panels)) * (panel_width + GAP * 2)
    exemplars, strip = _strip(sheet, width)
    top = 34 + 20 + strip + 22
    rows = max((len(panel.lines) for panel in sheet.panels), default=0)
    image = Image.new("RGB", (width, top + 44 + rows * (CELL + GAP) + 26), PAPER)
    draw = ImageDraw.Draw(image)
    _write(draw, (GAP * 2, 8), sheet.title, 20)
    of_all = f" ({len(exemplars)} of {len(sheet.exemplars)})" if len(exemplars) < len(sheet.exemplars) else ""
    _write(draw, (GAP * 2, 36), f"exemplars{of_all}", 12, QUIET)
    for place, path in enumerate(exemplars):
        image.paste(load_image(path, strip), (GAP * 2 + place * (strip + GAP), 54))
    for place, panel in enumerate(sheet.panels):
        _paste_panel(image, draw, sheet, panel, (GAP * 2 + place * (panel_width + GAP * 2), top))
    _legend(draw, (GAP * 2, image.height - 22))
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _label_width(sheet: Sheet) -> int:
    """Return the pixels needed left of a row for the longest name of an entity."""
    font = ImageFont.load_default(NAMES)
    names = [name for panel in sheet.panels for line in panel.lines for name in (line.head, line.tail)]
    return max([LABEL, *(math.ceil(font.getlength(name)) + GAP for name in names)])


def _strip(sheet: Sheet, width: int) -> tuple[list[Path], int]:
    """Return the exemplars, or as many as can be told apart in one line, and their side there in pixels."""
    space = width - 3 * GAP  # for exemplars with a gap after each
    shown = [sheet.exemplars[place] for place in spread(len(sheet.exemplars), space // (LEAST + GAP))]
    return shown, min(CELL, space // max(1, len(shown)) - GAP)


def _paste_panel(
    image: Image.Image, draw: ImageDraw.ImageDraw, sheet: Sheet, panel: Panel, corner: tuple[int, int]
) -> None:
    """Paste one panel with its heading and column names at `corner` (x, y in pixels)."""
    left, top = corner
    first = left + _label_width(sheet)
    _write(draw, (left, top), panel.heading, 13)
    for column, method in enumerate(sheet.methods):
        _write(draw, (first + column * (CELL + GAP), top + 22), method, 12, QUIET)
    for row, line in enumerate(panel.lines):
        y = top + 42 + row * (CELL + GAP)
        _write(draw, (left, y + CELL // 2 - 17), line.head, NAMES)
        _write(draw, (left, y + CELL // 2 + 1), line.tail, NAMES)
        for column, shot in enumerate(line.shots):
            x = first + column * (CELL + GAP)
            image.paste(load_image(shot.path, CELL), (x, y))
            _mark(draw, (x + CELL - 22, y + CELL - 11), shot.relation_right)
            _mark(draw, (x + CELL - 11, y + CELL - 11), shot.entities_right)


def _mark(draw: ImageDraw.ImageDraw, corner: tuple[int, int], right: bool | None) -> None:
    """Draw a filled dot for right, a ring for wrong, so that they differ without colour too; for None, nothing."""
    if right is None:
        return
    x, y = corner
    draw.ellipse((x - 1, y - 1, x + 9, y + 9), fill=PAPER)
    draw.ellipse(
        (x + 1, y + 1, x + 7, y + 7),
        fill=RIGHT if right else PAPER,
        outline=RIGHT if right else WRONG,
        width=2,
    )


def _legend(draw: ImageDraw.ImageDraw, corner: tuple[int, int]) -> None:
    x, y = corner
    _mark(draw, (x, y + 3), True)
    _write(draw, (x + 14, y), "right", 12, QUIET)
    _mark(draw, (x + 52, y + 3), False)
    _write(draw, (x + 66, y), "wrong, by the judge: first dot the relation, second dot the entities", 12, QUIET)


def _write(draw: ImageDraw.ImageDraw, corner: tuple[int, int], words: str, size: int, ink: str = INK) -> None:
    draw.text(corner, words, fill=ink, font=ImageFont.load_default(size))
