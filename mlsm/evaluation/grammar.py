"""Minimal pairs of a small grammar of our own: a test of grammar that needs no data.

A pair differs in one word. Pairs come in twins: the word that is right in one pair of a twin is wrong in the
other. So a model that knows the frequency of words and no grammar is right in exactly one pair of each twin.
Words come from fixed lists. Those that the tokenizer has as whole pieces are preferred, so that the pairs ask
about grammar and not about rare words. The pairs of a tokenizer are always the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch

from mlsm.seeds import generator_for
from mlsm.text.tokenizer import NUM_SPECIALS, Tokenizer

T = TypeVar("T")
TWINS_PER_PHENOMENON = 60
MIN_WORDS = 4  # of a list that must be whole pieces; with fewer the whole list is used


class SentencePair(NamedTuple):
    """Two sentences that differ in one word."""

    good: str
    bad: str


class Twin(NamedTuple):
    """Two sentences with a gap, "_", and the words that are right in the first and in the second one."""

    first: str
    second: str
    right_in_first: str
    right_in_second: str


# The slots in braces are filled by `_draw_words`.
PHENOMENA = {
    "subject_verb_agreement": Twin("The {noun} _ {rest}.", "The {nouns} _ {rest}.", "{is_}", "{are}"),
    "agreement_with_attractor": Twin(
        "The {noun} of the {others} _ {rest}.", "The {nouns} of the {other} _ {rest}.", "{is_}", "{are}"
    ),
    "reflexive_number": Twin(
        "The {noun} {saw} _ {there}.", "The {nouns} {saw} _ {there}.", "{himself}", "themselves"
    ),
    "reflexive_gender": Twin(
        "The {man} {saw} _ {there}.", "The {woman} {saw} _ {there}.", "himself", "herself"
    ),
    "determiner_noun": Twin(
        "And {this} _ {went} to the {place}.", "And {these} _ {went} to the {place}.", "{noun}", "{nouns}"
    ),
    "argument_structure": Twin("The {noun} _ the {others}.", "The {noun} _ {there}.", "{took}", "{slept}"),
}
# Singular and plural; the words of a choice are preferred if all of them are whole pieces.
MEN = [
    "king kings",
    "man men",
    "son sons",
    "father fathers",
    "brother brothers",
    "priest priests",
    "boy boys",
]
WOMEN = ["woman women", "daughter daughters", "mother mothers", "sister sisters", "girl girls"]
AGREEING = [  # singular, plural, and what may follow
    ("is", "are", ("in the {place}", "good", "great")),
    ("was", "were", ("in the {place}", "good", "great")),
    ("has", "have", ("a {place}", "the {place}")),
    ("goes", "go", ("to the {place}", "out")),
    ("comes", "come", ("to the {place}", "out")),
    ("knows", "know", ("the {place}", "it")),
]
PLACES = ["house", "city", "land", "field", "mountain", "river", "garden", "school", "room", "street"]
REFLEXIVE = ["saw", "made", "gave", "hid", "called", "found"]
TRANSITIVE = ["took", "made", "sent", "found", "brought", "gave", "killed", "built"]  # need an object
INTRANSITIVE = ["went", "came", "died", "stood", "fell", "slept", "lived", "arose"]  # take no object


def demo_pairs(tokenizer: Tokenizer) -> dict[str, list[SentencePair]]:
    """Distinct pairs of each phenomenon, by its name; both pairs of a twin or none."""
    pieces = {tokenizer.piece(i) for i in range(NUM_SPECIALS, tokenizer.vocab_size)}
    return {name: _distinct_pairs(twin, pieces, generator_for(name)) for name, twin in PHENOMENA.items()}


def _distinct_pairs(twin: Twin, pieces: set[str], generator: torch.Generator) -> list[SentencePair]:
    pairs: dict[SentencePair, None] = {}
    for _ in range(50 * TWINS_PER_PHENOMENON):  # short lists of words may not give that many twins
        words = _draw_words(pieces, generator)
        first, second, right, wrong = (text.format(**words) for text in twin)
        both = [
            SentencePair(first.replace("_", right), first.replace("_", wrong)),
            SentencePair(second.replace("_", wrong), second.replace("_", right)),
        ]
        if pairs.keys().isdisjoint(both):
            pairs |= dict.fromkeys(both)
        if len(pairs) == 2 * TWINS_PER_PHENOMENON:
            break
    return list(pairs)


def _draw_words(pieces: set[str], generator: torch.Generator) -> dict[str, str]:
    """Words for all slots of PHENOMENA."""

    def one(choices: Sequence[T]) -> T:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    def known(choices: list[str]) -> str:
        whole = [words for words in choices if all("▁" + word in pieces for word in words.split())]
        return one(whole if len(whole) >= MIN_WORDS else choices)

    person = known(MEN + WOMEN)
    slots = {"himself": "himself" if person in MEN else "herself"}
    slots["noun"], slots["nouns"] = person.split()
    slots["other"], slots["others"] = known(MEN + WOMEN).split()
    slots["man"], slots["woman"] = known(MEN).split()[0], known(WOMEN).split()[0]
    slots["this"], slots["these"] = one([("this", "these"), ("that", "those")])
    slots["is_"], slots["are"], endings = one(AGREEING)
    slots["place"] = known(PLACES)
    slots["rest"] = one(endings).format(**slots)
    slots |= {"took": known(TRANSITIVE), "slept": known(INTRANSITIVE), "saw": one(REFLEXIVE)}
    return slots | {"went": one(["came", "went"]), "there": one(["there", "again", "then"])}
