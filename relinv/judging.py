"""How well a judge reads real pictures whose relation is known: the exemplars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from relinv.exemplars import load_image

if TYPE_CHECKING:
    from relinv.benchmark import Benchmark
    from relinv.exemplars import ExemplarSet
    from relinv.judge import Judge


def read_exemplars_by(judge: Judge, exemplars: ExemplarSet, benchmark: Benchmark, batch_size: int) -> dict[str, Any]:
    """Return for how many of a relation's pictures a judge finds the relation they show.

    {"pictures": how many were shown, "right": how many are more like their caption in the relation's words than in any
    other's of the benchmark, "choices": how many relations compete, "judge": its fingerprint}. Of a picture's captions
    the shortest counts; a picture whose captions are all too long for the judge is not shown.
    """
    own = benchmark.relation(exemplars.relation).words
    words = list(dict.fromkeys([own, *(relation.words for relation in benchmark.relations.values())]))
    shortest = {exemplar.path: min(exemplar.templates, key=len) for exemplar in exemplars.exemplars}
    questions = {path: [caption.replace("{}", each) for each in words] for path, caption in shortest.items()}
    shown = {path: texts for path, texts in questions.items() if all(judge.reads(texts))}
    found = {"pictures": len(shown), "right": 0, "choices": len(words), "judge": judge.fingerprint}
    if shown:
        images = judge.encode_images(
            [load_image(path, judge.resolution) for path in shown], batch_size
        )  # (pictures, d)
        texts = np.stack([judge.encode_texts(each) for each in shown.values()])  # (pictures, words, dim)
        cosines = np.einsum("pd,pwd->pw", images, texts)  # (pictures, words)
        right = cosines[:, 0] > cosines[:, 1:].max(axis=1, initial=-np.inf)
        found["right"] = int(right.sum())
    return found
