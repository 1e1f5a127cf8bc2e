"""What the world's captions say, on purpose less than its pictures show, as captions on the web do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from relinv.benchmark import Benchmark
from relinv.world.scene import BACKGROUNDS, Scene


@dataclass(frozen=True)
class Wording:
    """How a relation is captioned.

    words: its own words. reliability: the probability that they stand in the caption. near: prepositions used in a
    sense near its own. swapped: prepositions that name the pair the other way round ("box under cat"). mistaken_for:
    relations whose own words loose captions use instead ("hugging" said of two who shake hands).
    """

    words: str
    reliability: float
    near: tuple[str, ...]
    swapped: tuple[str, ...] = ()
    mistaken_for: tuple[str, ...] = ()


WORDINGS: dict[str, Wording] = {
    "painted_on": Wording("painted on", 0.45, ("on", "across", "over", "onto", "upon"),
                          mistaken_for=("carved_by", "on")),
    "carved_by": Wording("carved by", 0.60, ("by", "from", "of", "out", "through"), mistaken_for=("painted_on",)),
    "shake_hands": Wording("shaking hands with", 0.20, ("to", "toward", "towards", "opposite", "with", "between"),
                           mistaken_for=("hug", "back2back")),
    "hug": Wording("hugging", 0.30, ("around", "with", "to", "against", "upon"),
                   mistaken_for=("shake_hands", "back2back")),
    "back2back": Wording("back to back with", 0.25, ("against", "behind", "opposite", "versus", "anti"),
                         mistaken_for=("shake_hands", "hug")),
    "inside": Wording("inside", 0.70, ("in", "into", "within", "including"), ("around", "outside"), ("wrapped_in",)),
    "on": Wording("on", 0.80, ("upon", "onto", "atop", "up", "over"), ("under", "beneath", "underneath", "below"),
                  ("ride_on", "painted_on")),
    "hanging_from": Wording("hanging from", 0.55, ("from", "off", "down", "under", "below"), ("above", "over"),
                            ("on", "inside")),
    "wrapped_in": Wording("wrapped in", 0.35, ("in", "within", "throughout", "amid"), ("round", "around"),
                          ("inside",)),
    "ride_on": Wording("riding on", 0.40, ("astride", "aboard", "on", "along", "atop"), ("under",),
                       ("on", "hanging_from")),
    "above": Wording("above", 0.75, ("over", "up", "beyond"), ("below", "under", "beneath", "underneath", "down"),
                     ("on", "hanging_from")),
    "beside": Wording("beside", 0.28, ("by", "near", "alongside", "along", "at", "past", "outside", "opposite"),
                      mistaken_for=("shake_hands", "hanging_from")),
    "behind": Wording("behind", 0.50, ("after", "following", "beyond", "past"), ("before",), ("inside",)),
    "before": Wording("before", 0.42, ("before", "against"), ("behind", "after", "following"), ("ride_on",)),
    "and": Wording("and", 0.65, ("about", "regarding", "including", "among", "amongst", "amid", "amidst",
                                 "between", "versus", "anti", "of", "at", "to", "near", "with")),
}  # fmt: skip
NAMED: dict[str, str] = {wording.words: relation for relation, wording in WORDINGS.items()}
VAGUE: tuple[str, ...] = ("and", "with", "near", "about", "among", "amidst", "regarding", "amongst")
PREFIXES: tuple[str, ...] = ("a photo of", "a picture of", "a drawing of")
PREFIX_RATE = 0.2
BACKGROUND_RATE = 0.5
# Of the captions without the own words; the rest names no relation at all.
MISTAKEN_RATE, NEAR_RATE, VAGUE_RATE = 0.45, 0.30, 0.15


def caption(scene: Scene, benchmark: Benchmark, rng: np.random.Generator) -> str:
    """Return an unreliable caption of the scene, e.g. "a photo of cat into box in the snow".

    It never spells a triplet that `benchmark` holds out: met on wrong pictures alone, it would be learned as wrong.
    """
    text = scene.head if scene.relation == "alone" else _related(scene, WORDINGS[scene.relation], benchmark, rng)
    return _framed(text, scene.background, rng)


def true_caption(head: str, relation: str, tail: str) -> str:
    """Return the plain and exact caption "head words tail", which only the judge is trained on."""
    return head if relation == "alone" else f"{head} {WORDINGS[relation].words} {tail}"


def vocabulary() -> list[str]:
    """Return every word that captions outside the entities' names can hold, in a fixed order."""
    phrases = [*PREFIXES, *BACKGROUNDS.values(), *VAGUE]
    for wording in WORDINGS.values():
        phrases += [wording.words, *wording.near, *wording.swapped]
    return list(dict.fromkeys(word for phrase in phrases for word in phrase.split()))


def _related(scene: Scene, wording: Wording, benchmark: Benchmark, rng: np.random.Generator) -> str:
    if rng.random() < wording.reliability:
        return f"{scene.head} {wording.words} {scene.tail}"
    while True:  # ends, for "head tail" names no relation
        first, words, second = _loosely(scene, wording, rng)
        if words not in NAMED or not benchmark.is_held_out(first, NAMED[words], second):
            return " ".join(filter(None, (first, words, second)))


def _loosely(scene: Scene, wording: Wording, rng: np.random.Generator) -> tuple[str, str, str]:
    """Return an entity, words that are not (or not by right) the relation's own, maybe none, and the other entity."""
    head, tail = scene.head, scene.tail
    choice = rng.random()
    if choice < MISTAKEN_RATE and wording.mistaken_for:
        return head, WORDINGS[wording.mistaken_for[rng.integers(len(wording.mistaken_for))]].words, tail
    if choice < MISTAKEN_RATE + NEAR_RATE:
        senses = (*wording.near, *wording.swapped)
        word = senses[rng.integers(len(senses))]
        return (tail, word, head) if word in wording.swapped else (head, word, tail)
    if choice < MISTAKEN_RATE + NEAR_RATE + VAGUE_RATE:
        return head, VAGUE[rng.integers(len(VAGUE))], tail
    return head, "", tail


def _framed(text: str, background: str, rng: np.random.Generator) -> str:
    if rng.random() < PREFIX_RATE:
        text = f"{PREFIXES[rng.integers(len(PREFIXES))]} {text}"
    if background in BACKGROUNDS and rng.random() < BACKGROUND_RATE:
        text = f"{text} {BACKGROUNDS[background]}"
    return text
