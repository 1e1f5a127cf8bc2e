"""The two pages of the report, filled from its story: self-contained HTML, and Markdown."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import jinja2
from markupsafe import Markup

from relinv.exemplars import load_image
from relinv.files import opened_picture
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
HEADLINE_NOTE = (
    "Scene accuracy is the share of images in which the judge finds both the relation and the two entities. The method "
    "“relation words” draws from the relation’s plain words and learns nothing. Leakage is how much more an image "
    "resembles the exemplars than the image of the plain words does, where both have the relation."
)
TRAININGS = (
    "Each method learned each relation once. The intervals do not say how much other exemplars or noise would change "
    "the results: only a study over seeds does."
)
INTERVALS = (
    "Intervals that are about relations in general take into account how few relations there are. In simulations, 95 % "
    "intervals held the true mean in 95 of 100 cases for ten relations, 94 for five and 93 for three; where relations "
    "differ as unevenly as they do from the plain words, in 89, 74 and 78. With one relation, they are about that one "
    "alone."
)
METRICS_NOTE = (
    "Arrows show which direction is better. The best mean of a column is bold, which says nothing about whether its "
    "lead is certain; a difference is bold if its own interval excludes zero, however many differences there are."
)
LEAKAGE = (
    "Exemplar similarity minus that of the plain words’ image on the same scenario and seed, for the images in which "
    "the judge finds the right relation in both: an image that lacks the relation is less like the exemplars whatever "
    "else it shows. It sees copied entities, and copied backdrops and colours as far as the judge distinguishes them; "
    "it cannot say which of them came along. Below zero, images are less like the exemplars than the plain words’ are, "
    "which may also mean that they are drawn worse."
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
    with opened_picture(path) as image:
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
    notes = {"headline_note": HEADLINE_NOTE, "trainings": TRAININGS, "metrics_note": METRICS_NOTE}
    shared = {"titles": TITLES, "intervals": INTERVALS, "leakage": LEAKAGE, "reproduce": REPRODUCE} | notes
    return template.render(style=Markup((HERE / "style.css").read_text(encoding="utf-8")), **shared, **values)
