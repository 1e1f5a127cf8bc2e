"""The two pages of the report, filled from its story: self-contained HTML, and Markdown."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import jinja2
from markupsafe import Markup

from relinv.exemplars import load_image
from relinv.report.story import Story
from relinv.report.tables import figure, label

HERE = Path(__file__).parent
INLINE_SIDE = 160  # pixels: larger images are reduced to this in the HTML page, which holds hundreds
TITLES = {
    "metrics": "Methods and metrics",
    "relations": "Relation by relation",
    "pictures": "What it looks like",
    "groups": "Scenarios by kind",
    "losses": "Loss curves",
    "judge": "How far to trust the judge",
    "readings": "What each metric can and cannot see",
    "warnings": "What validation warned of",
    "parameters": "Exact parameters",
    "reproduce": "How to reproduce this page",
}
INTERVALS = (
    "Intervals for which relations are drawn take into account how few these are: in simulations, 95 % intervals held "
    "the true mean in 95 of 100 cases for ten relations, 94 for five and 93 for three; but where relations differ as "
    "unevenly as they do from the plain words, in 89, 74 and 78. With one, they are about that relation alone."
)
METRICS_NOTE = (
    "Arrows show which direction is better. The best mean of a column is bold, which says nothing about whether its "
    "lead is certain; a difference is bold if its own interval excludes zero, however many there are beside it. "
    f"{INTERVALS} All take the trainings as they were: how much other exemplars or noise would change them, only a "
    "study over seeds tells. Similarities and the margin are plain cosines; leakage is the similarity to the exemplars "
    "beyond that of plain text-to-image."
)
LEAKAGE = (
    "Exemplar similarity minus that of the plain relation words on the same scenario and seed: how much of the "
    "exemplars’ own look came along with the relation. It cannot say which part of the look."
)
REPRODUCE = """make reproduce      # environment, then dvc repro: everything, or only what changed
dvc exp run -S {change}      # another setting: re-runs only what depends on it
python -m stages.compare HEAD workspace      # two revisions or experiments beside each other"""


def html(story: Story) -> str:
    """Return the report as one HTML document: images, charts and style inlined, nothing fetched."""
    skipped = {"groups": not story.groups, "losses": not story.curves}
    contents = [(key, words) for key, words in TITLES.items() if not skipped.get(key)]
    return fill("report.html.jinja", story=story, facts=story.facts, contents=contents)


def markdown(story: Story) -> str:
    """Return the report as Markdown that shows the contact sheets of `grids/` beside it."""
    return fill("report.md.jinja", story=story, facts=story.facts)


def data_uri(path: Path) -> str:
    """Return an image as a JPEG data URI, at its own size or reduced to `INLINE_SIDE` pixels."""
    from PIL import Image

    with Image.open(path) as image:
        side = min(*image.size, INLINE_SIDE)
    stream = io.BytesIO()
    load_image(path, side).save(stream, "JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def whole_uri(path: Path) -> str:
    """Return a PNG as a data URI of its unchanged bytes."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def environment() -> jinja2.Environment:
    """Return the templates' environment: HTML is escaped, and a missing name is an error."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"figure": figure, "words": label, "inline": data_uri, "whole": whole_uri}
    return made


def fill(name: str, **values: object) -> str:
    """Return template `name` filled with `values` and the texts that all pages share."""
    template = environment().get_template(name)
    notes = {"metrics_note": METRICS_NOTE, "intervals": INTERVALS, "leakage": LEAKAGE}
    shared = {"titles": TITLES, "reproduce": REPRODUCE} | notes
    return template.render(style=Markup((HERE / "style.css").read_text(encoding="utf-8")), **shared, **values)
