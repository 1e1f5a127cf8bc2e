"""How well a judge reads real pictures whose relation is known: the exemplars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from relinv.exemplars import load_image

if TYPE_CHECKING:
    from relinv.benchmark import Benchmark
    from relinv.exemplars import ExemplarSet
    from relinv.judge import Judge


def require_scenarios_read(judge: Judge, relation: str, benchmark: Benchmark) -> None:
    """Raise UserError if the judge cannot read all of a relation's scenarios, in its own and in the others' words."""
    own = benchmark.relation(relation)
    others = benchmark.relations.values()
    judge.require_read([other.phrase(head, tail) for other in others for head in own.heads for tail in own.tails])


def ask_of_exemplars(judge: Judge, exemplars: ExemplarSet, benchmark: Benchmark, batch_size: int) -> dict[str, Any]:
    """Return in how many of a relation's pictures a judge finds the relation they show.

    {"pictures": how many it was shown, "right": how many are more like their caption in the relation's words than in
    any other's of the benchmark, "choices": how many relations compete, "unread": how many it was not shown, because
    it cannot read their caption whole, "judge": its fingerprint}. A picture's caption is the shortest it has.
    """
    own = benchmark.relation(exemplars.relation)
    others = [other.words for other in benchmark.relations.values() if not other.has_words_of(own)]
    words = [own.words, *dict.fromkeys(others)]
    asked = {}
    for exemplar in exemplars.exemplars:
        caption = min(exemplar.templates, key=len)
        texts = [caption.replace("{}", each) for each in words]
        if all(judge.reads(texts)):
            asked[exemplar.path] = texts
    right = 0
    if asked:
        pictures = [load_image(path, judge.resolution) for path in asked]
        images = judge.encode_images(pictures, batch_size)  # (pictures, dim)
        read = judge.encode_texts([text for texts in asked.values() for text in texts])  # (pictures * words, dim)
        cosines = np.einsum("pd,pwd->pw", images, read.reshape(len(asked), len(words), -1))  # (pictures, words)
        right = int((cosines[:, 0] > cosines[:, 1:].max(axis=1, initial=-np.inf)).sum())
    unread = len(exemplars.exemplars) - len(asked)
    return {"pictures": len(asked), "right": right, "choices": len(words), "unread": unread, "judge": judge.fingerprint}
