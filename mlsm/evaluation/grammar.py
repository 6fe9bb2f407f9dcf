"""Minimal pairs made by a small grammar of our own: a linguistic check that needs no data.

Each phenomenon changes one word between a good and a bad sentence. Words come from a fixed list; those that
the tokenizer has as whole pieces are taken, so that the pairs ask about grammar and not about rare words.
Deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch

from mlsm.seeds import generator_for
from mlsm.text.tokenizer import NUM_SPECIALS, Tokenizer

T = TypeVar("T")
PAIRS_A_PHENOMENON = 120
FEWEST_WORDS = 4  # of a class that must be whole pieces; otherwise the whole class is used


class Pair(NamedTuple):
    """Two sentences that differ in one word."""

    good: str
    bad: str


class Noun(NamedTuple):
    """A person, in both numbers; `reflexive` is the pronoun of the singular."""

    singular: str
    plural: str
    reflexive: str


NOUNS = [
    Noun("king", "kings", "himself"),
    Noun("man", "men", "himself"),
    Noun("son", "sons", "himself"),
    Noun("father", "fathers", "himself"),
    Noun("brother", "brothers", "himself"),
    Noun("priest", "priests", "himself"),
    Noun("boy", "boys", "himself"),
    Noun("woman", "women", "herself"),
    Noun("daughter", "daughters", "herself"),
    Noun("mother", "mothers", "herself"),
    Noun("sister", "sisters", "herself"),
    Noun("girl", "girls", "herself"),
]
PLACES = ["house", "city", "land", "field", "mountain", "river", "garden", "school", "room", "street"]
AGREEING = [
    ("is", "are"),
    ("was", "were"),
    ("has", "have"),
    ("goes", "go"),
    ("comes", "come"),
    ("knows", "know"),
]
ENDINGS = {
    "is": ["in the {place}", "good", "great"],
    "was": ["in the {place}", "good", "great"],
    "has": ["a {place}", "the {place}"],
    "goes": ["to the {place}", "out"],
    "comes": ["to the {place}", "out"],
    "knows": ["the {place}", "it"],
}
REFLEXIVE_VERBS = ["saw", "made", "gave", "hid", "called", "found"]
REFLEXIVE_ENDINGS = ["", " there", " again"]
TRANSITIVE = ["saw", "took", "made", "sent", "found", "called", "told", "brought"]
INTRANSITIVE = ["went", "came", "died", "stood", "fell", "slept", "lived", "arose"]


class _Words:
    """Draws words of a class, preferring those that are whole pieces."""

    def __init__(self, tokenizer: Tokenizer, phenomenon: str) -> None:
        self._pieces = {tokenizer.piece(i) for i in range(NUM_SPECIALS, tokenizer.vocab_size)}
        self._generator = generator_for(phenomenon)

    def one(self, choices: list[T]) -> T:
        return choices[int(torch.randint(len(choices), (), generator=self._generator))]

    def known(self, choices: list[T], forms: Callable[[T], list[str]]) -> list[T]:
        whole = [c for c in choices if all("▁" + form in self._pieces for form in forms(c))]
        return whole if len(whole) >= FEWEST_WORDS else choices

    def noun(self) -> Noun:
        return self.one(self.known(NOUNS, lambda n: [n.singular, n.plural]))

    def place(self) -> str:
        return self.one(self.known(PLACES, lambda p: [p]))


def _agreement(words: _Words, subject: Callable[[Noun, bool], str]) -> Pair:
    is_plural = words.one([False, True])
    singular, plural = words.one(AGREEING)
    ending = words.one(ENDINGS[singular]).format(place=words.place())
    right, wrong = (plural, singular) if is_plural else (singular, plural)
    start = subject(words.noun(), is_plural)
    return Pair(f"The {start} {right} {ending}.", f"The {start} {wrong} {ending}.")


def subject_verb_agreement(words: _Words) -> Pair:
    """The king is / are in the house."""
    return _agreement(words, lambda noun, is_plural: noun.plural if is_plural else noun.singular)


def agreement_with_attractor(words: _Words) -> Pair:
    """The sons of the king are / is good: a noun of the other number stands before the verb."""
    other = words.noun()

    def subject(noun: Noun, is_plural: bool) -> str:
        if is_plural:
            return f"{noun.plural} of the {other.singular}"
        return f"{noun.singular} of the {other.plural}"

    return _agreement(words, subject)


def reflexive_number(words: _Words) -> Pair:
    """The men saw themselves / himself."""
    noun, verb, ending = words.noun(), words.one(REFLEXIVE_VERBS), words.one(REFLEXIVE_ENDINGS)
    is_plural = words.one([False, True])
    subject = noun.plural if is_plural else noun.singular
    right, wrong = ("themselves", noun.reflexive) if is_plural else (noun.reflexive, "themselves")
    return Pair(f"The {subject} {verb} {right}{ending}.", f"The {subject} {verb} {wrong}{ending}.")


def reflexive_gender(words: _Words) -> Pair:
    """The woman saw herself / himself."""
    noun, verb, ending = words.noun(), words.one(REFLEXIVE_VERBS), words.one(REFLEXIVE_ENDINGS)
    wrong = "himself" if noun.reflexive == "herself" else "herself"
    start = f"The {noun.singular} {verb}"
    return Pair(f"{start} {noun.reflexive}{ending}.", f"{start} {wrong}{ending}.")


def determiner_noun(words: _Words) -> Pair:
    """These kings / king came to the house."""
    noun, verb = words.noun(), words.one(["came", "went"])
    right, wrong = (noun.singular, noun.plural) if words.one([False, True]) else (noun.plural, noun.singular)
    determiner = words.one(["this", "that"] if right == noun.singular else ["these", "those"])
    ending = f"{verb} to the {words.place()}"
    return Pair(f"And {determiner} {right} {ending}.", f"And {determiner} {wrong} {ending}.")


def argument_structure(words: _Words) -> Pair:
    """The king took / went the child: only a transitive verb takes an object."""
    subject, thing = words.noun(), words.noun()
    right = words.one(words.known(TRANSITIVE, lambda v: [v]))
    wrong = words.one(words.known(INTRANSITIVE, lambda v: [v]))
    return Pair(
        f"The {subject.singular} {right} the {thing.plural}.",
        f"The {subject.singular} {wrong} the {thing.plural}.",
    )


PHENOMENA = (
    subject_verb_agreement,
    agreement_with_attractor,
    reflexive_number,
    reflexive_gender,
    determiner_noun,
    argument_structure,
)


def demo_pairs(tokenizer: Tokenizer) -> dict[str, list[Pair]]:
    """Distinct pairs of each phenomenon, by its name; the same every time for a tokenizer."""
    return {make.__name__: list(_distinct(make, tokenizer)) for make in PHENOMENA}


def _distinct(make: Callable[[_Words], Pair], tokenizer: Tokenizer) -> Iterator[Pair]:
    words = _Words(tokenizer, make.__name__)
    seen: set[Pair] = set()
    for _ in range(50 * PAIRS_A_PHENOMENON):  # a class of few words may not have that many pairs
        pair = make(words)
        if pair not in seen:
            seen.add(pair)
            yield pair
        if len(seen) == PAIRS_A_PHENOMENON:
            return
