"""Scores: from images, as a judge embeds them, to one row of metrics per image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image

from relinv.benchmark import Benchmark, Relation
from relinv.errors import UserError
from relinv.exemplars import ExemplarSet, load_image, read_exemplars
from relinv.files import atomic_write_text
from relinv.images import ImageRecord, read_pictures, read_records
from relinv.plugins import find_plugin, plugin_names

if TYPE_CHECKING:  # a report, which asks metrics for their titles, does not depend on the judge's code
    from relinv.judge import Judge
    from relinv.vqa import VqaModel

METRICS = "relinv.metrics"
PARTS = ("TITLE", "SOURCE", "DESCRIPTION", "HIGHER_IS_BETTER", "BOUNDS", "score")  # of a metric's file
KEYS = ["relation", "method", "index", "head", "tail", "held_out", "seed", "file"]
ROUNDING = 1e-4  # of a cosine
JUDGE = "judge"  # the column, the last, that holds the fingerprint of the judge that scored


@dataclass(frozen=True)
class Context:
    """What metrics see of one relation's images: pictures, unit embeddings, scenarios' words; never the method."""

    relation: Relation
    relations: tuple[Relation, ...]  # all of the benchmark, `relation` among them
    pairs: tuple[tuple[str, str], ...]  # head and tail of each image
    images: np.ndarray  # (images, dim)
    exemplars: np.ndarray  # (exemplars, dim)
    encode_texts: Callable[[Sequence[str]], np.ndarray]  # (texts, dim); called often, so it remembers
    # for metrics of pixels, or with a model of their own, all RGB:
    pictures: Sequence[Image.Image] = ()  # as they were drawn
    exemplar_pictures: Sequence[Image.Image] = ()  # their centre squares, of the judge's resolution
    # VQAScore of each image with its own text, (images,), if the judge names a model for it
    vqa: Callable[[Sequence[str]], np.ndarray] | None = None

    def similarity(self, texts: Sequence[Sequence[str]]) -> np.ndarray:
        """Return each image's cosine to each of its own texts, (images, texts); all have equally many texts."""
        flat = [text for row in texts for text in row]
        if not flat:
            return np.zeros((len(texts), 0))
        embeddings = self.encode_texts(flat).reshape(len(texts), -1, self.images.shape[1])  # (images, texts, dim)
        return np.einsum("id,itd->it", self.images, embeddings)

    def scene(self) -> np.ndarray:
        """Return each image's cosine to its own "HEAD relation TAIL", (images,)."""
        return self.similarity([[self.relation.phrase(head, tail)] for head, tail in self.pairs])[:, 0]

    def other_relations(self) -> np.ndarray:
        """Return each image's cosine to its own entities in each other relation, (images, other relations).

        One in the same words, such as the benchmark's beside the user's own, is the same phrase and does not compete.
        """
        others = [other for other in self.relations if not other.has_words_of(self.relation)]
        return self.similarity([[other.phrase(head, tail) for other in others] for head, tail in self.pairs])

    def other_entities(self) -> np.ndarray:
        """Return each image's cosine to its phrase with one entity replaced, (images, heads - 1 + tails - 1).

        The head is replaced by each other head of the relation's grid, then the tail by each other tail.
        """
        return self.similarity([self._replaced(head, tail) for head, tail in self.pairs])

    def _replaced(self, head: str, tail: str) -> list[str]:
        heads = [self.relation.phrase(other, tail) for other in self.relation.heads if other != head]
        tails = [self.relation.phrase(head, other) for other in self.relation.tails if other != tail]
        return heads + tails


def ranked_first(true: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return 1.0 where `true` (images,) is above all `others` (images, choices), else 0.0; NaN if there are no others.

    A tie counts as wrong: an image that fits two phrases equally well supports neither.
    """
    if not others.shape[1]:
        return np.full(len(true), np.nan)
    return (true > others.max(axis=1)).astype(float)


def load_metric(name: str) -> ModuleType:
    """Return the metric of that file name.

    Raises UserError if there is none, it lacks one of its parts, or another score column has its name.
    """
    if name in (*KEYS, JUDGE, "leakage"):
        raise UserError(f"A metric cannot be called '{name}', as another column of score files is: rename its file.")
    metric = find_plugin(METRICS, name)
    if lacking := [part for part in PARTS if not hasattr(metric, part)]:
        raise UserError(
            f"The metric '{name}' lacks {', '.join(lacking)}: relinv/metrics/__init__.py tells what each is."
        )
    return metric


@dataclass(frozen=True)
class ImageFolder:
    """A generated folder's records and pictures, and the exemplars its relation was learned from."""

    records: list[ImageRecord]
    pictures: list[Image.Image]
    exemplars: ExemplarSet


def read_image_folder(folder: Path, exemplar_folder: Path) -> ImageFolder:
    """Return what is to be scored, read before any judge is loaded; UserError if a file is missing or damaged."""
    records = read_records(folder)
    return ImageFolder(records, read_pictures(folder, records), read_exemplars(exemplar_folder))


def score_images(
    drawn: ImageFolder, benchmark: Benchmark, judge: Judge, batch_size: int, vqa: VqaModel | None = None
) -> pd.DataFrame:
    """Return one row per image: what it shows, then every metric there is, then which judge scored.

    vqa: the vision-language model; without it, the metric `vqa_score` is NaN.

    Raises UserError if the benchmark lacks the relation or the records' entities.
    """
    records = drawn.records
    relation = benchmark.relation(records[0].relation)
    _require_known(records, relation)
    exemplars = [load_image(exemplar.path, judge.resolution) for exemplar in drawn.exemplars.exemplars]
    context = Context(
        relation=relation,
        relations=tuple(benchmark.relations.values()),
        pairs=tuple((record.head, record.tail) for record in records),
        images=judge.encode_images(drawn.pictures, batch_size),
        exemplars=judge.encode_images(exemplars, batch_size),
        encode_texts=judge.encode_texts,
        pictures=drawn.pictures,
        exemplar_pictures=exemplars,
        vqa=None if vqa is None else partial(vqa.ask, drawn.pictures, batch_size=batch_size),
    )
    return score_rows(records, context).assign(**{JUDGE: judge.fingerprint})


def _require_known(records: Sequence[ImageRecord], relation: Relation) -> None:
    """Raise UserError if an image shows entities that are no longer in the relation's grid."""
    for record in records:
        if record.head not in relation.heads or record.tail not in relation.tails:
            raise UserError(
                f"The image {record.file} of '{relation.name}' shows '{record.head}' and '{record.tail}', which the "
                "benchmark has no longer: generate the images again."
            )


def score_rows(records: Sequence[ImageRecord], context: Context) -> pd.DataFrame:
    """Return one row per record: the columns `KEYS`, then one per metric in alphabetical order."""
    rows = pd.DataFrame([{key: getattr(record, key) for key in KEYS} for record in records])
    return rows.assign(**{name: _values(name, context) for name in plugin_names(METRICS)})


def _values(name: str, context: Context) -> np.ndarray:
    """Return a metric's values, (images,), within its BOUNDS but for rounding, which is cut off; UserError if not."""
    metric = load_metric(name)
    lowest, highest = metric.BOUNDS
    values = np.asarray(metric.score(context), dtype=float)
    images = len(context.pairs)
    if values.shape != (images,):
        raise UserError(
            f"The metric '{name}' gives values of shape {values.shape} for {images} images: give all a value."
        )
    if np.isinf(values).any():
        raise UserError(f"The metric '{name}' gives infinite values: give NaN where it is undefined.")
    within = values.clip(lowest, highest)
    if (np.abs(values - within) > ROUNDING).any():
        raise UserError(f"The metric '{name}' gives values beyond its BOUNDS, {lowest:g} and {highest:g}: correct one.")
    return within


def as_csv(rows: pd.DataFrame) -> str:
    """Return score rows as CSV: six digits, blank where a metric is undefined; same rows, same bytes."""
    return rows.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def write_scores(path: Path, rows: pd.DataFrame) -> None:
    """Write score rows as CSV, whole or not at all."""
    atomic_write_text(path, as_csv(rows))
