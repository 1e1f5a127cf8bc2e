"""How well a judge reads real pictures whose relation is known: the exemplars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from relinv.benchmark import Benchmark
from relinv.exemplars import ExemplarSet, load_image
from relinv.judge import Judge
from relinv.results import Judged
from relinv.vqa import RESOLUTION, VqaModel


def require_scenarios_read(judge: Judge, relation: str, benchmark: Benchmark) -> None:
    """Raise UserError if the judge cannot read all of a relation's scenarios, in its own and in the others' words."""
    own = benchmark.relation(relation)
    others = benchmark.relations.values()
    judge.require_read([other.phrase(head, tail) for other in others for head in own.heads for tail in own.tails])


def ask_of_exemplars(
    judge: Judge, exemplars: ExemplarSet, benchmark: Benchmark, batch_size: int, vqa: VqaModel | None = None
) -> Judged:
    """Return in how many of a relation's pictures a judge, and its vision-language model, find the one they show.

    A picture's caption is the shortest it has.
    """
    own = benchmark.relation(exemplars.relation)
    others = [other.words for other in benchmark.relations.values() if not other.has_words_of(own)]
    words = [own.words, *dict.fromkeys(others)]
    captions = {}
    for exemplar in exemplars.exemplars:
        caption = min(exemplar.templates, key=len)
        texts = [caption.replace("{}", each) for each in words]
        if all(judge.reads(texts)):
            captions[exemplar.path] = texts
    right, vqa_right = 0, None if vqa is None else 0
    if captions:
        right = _count_first(_cosines(judge, captions, batch_size))
    if captions and vqa is not None:
        vqa_right = _count_first(_yes(vqa, captions, batch_size))
    return Judged(
        pictures=len(captions),
        right=right,
        choices=len(words),
        unread=len(exemplars.exemplars) - len(captions),
        vqa_right=vqa_right,
        judge=judge.fingerprint,
    )


def _cosines(judge: Judge, captions: Mapping[Path, Sequence[str]], batch_size: int) -> np.ndarray:
    """Return each picture's cosine to each of its captions, (pictures, words)."""
    pictures = [load_image(path, judge.resolution) for path in captions]
    images = judge.encode_images(pictures, batch_size)  # (pictures, dim)
    read = judge.encode_texts([text for texts in captions.values() for text in texts])  # (pictures * words, dim)
    return np.einsum("pd,pwd->pw", images, read.reshape(len(captions), -1, images.shape[1]))


def _yes(vqa: VqaModel, captions: Mapping[Path, Sequence[str]], batch_size: int) -> np.ndarray:
    """Return the probability of yes for each picture with each of its captions, (pictures, words)."""
    pictures = [load_image(path, RESOLUTION) for path in captions]
    pairs = [(picture, text) for picture, texts in zip(pictures, captions.values(), strict=True) for text in texts]
    shown, texts = zip(*pairs, strict=True)
    return vqa.ask(shown, texts, batch_size).reshape(len(pictures), -1)


def _count_first(scores: np.ndarray) -> int:
    """Return in how many rows of `scores` (pictures, words) the first, of the true words, is above all others."""
    return int((scores[:, 0] > scores[:, 1:].max(axis=1, initial=-np.inf)).sum())
