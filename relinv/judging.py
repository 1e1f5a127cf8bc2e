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
    """Return for how many captions a judge finds the right relation in their pictures.

    {"captions": how many there are, "right": for how many the picture is more like the caption in the relation's words
    than in any other's of the benchmark, "choices": how many relations compete, "judge": its fingerprint}.
    """
    own = benchmark.relation(exemplars.relation).words
    words = list(dict.fromkeys([own, *(relation.words for relation in benchmark.relations.values())]))
    pictures = [load_image(exemplar.path, judge.resolution) for exemplar in exemplars.exemplars]
    shown = [(place, text) for place, exemplar in enumerate(exemplars.exemplars) for text in exemplar.templates]
    images = judge.encode_images(pictures, batch_size)[[place for place, _ in shown]]  # (captions, dim)
    texts = judge.encode_texts([text.replace("{}", each) for _, text in shown for each in words])
    cosines = np.einsum("cd,cwd->cw", images, texts.reshape(len(shown), len(words), -1))  # (captions, words)
    right = cosines[:, 0] > cosines[:, 1:].max(axis=1, initial=-np.inf)
    return {"captions": len(shown), "right": int(right.sum()), "choices": len(words), "judge": judge.fingerprint}
