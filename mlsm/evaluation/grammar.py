"""Minimal pairs of a small grammar of our own: a test of grammar that needs no data.

A pair differs in one word, and each phenomenon comes in twins: the word that is right in one pair of a twin
is wrong in the other. So a model that knows the frequency of words and no grammar is right in exactly one
pair of each twin. Words come from fixed lists. Those that the tokenizer has as whole pieces are preferred, so
that the pairs ask about grammar and not about rare words. The pairs of a tokenizer are always the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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


Twin = tuple[SentencePair, SentencePair]


class Noun(NamedTuple):
    """A person in both numbers, and the reflexive pronoun of the singular."""

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
TRANSITIVE = ["took", "made", "sent", "found", "brought", "gave", "killed", "built"]  # need an object
INTRANSITIVE = ["went", "came", "died", "stood", "fell", "slept", "lived", "arose"]  # take no object
ENDINGS_OF_ANY_VERB = [" there", " again", " then"]


class _Words:
    """Draws words from lists, from the whole pieces of the tokenizer where there are enough."""

    def __init__(self, tokenizer: Tokenizer, phenomenon: str) -> None:
        self._pieces = {tokenizer.piece(i) for i in range(NUM_SPECIALS, tokenizer.vocab_size)}
        self._generator = generator_for(phenomenon)

    def one(self, choices: list[T]) -> T:
        return choices[int(torch.randint(len(choices), (), generator=self._generator))]

    def known(self, choices: list[str]) -> str:
        whole = [word for word in choices if "▁" + word in self._pieces]
        return self.one(whole if len(whole) >= MIN_WORDS else choices)

    def noun(self, reflexive: str = "") -> Noun:
        """A noun, of one gender if its pronoun is given."""
        nouns = [noun for noun in NOUNS if reflexive in ("", noun.reflexive)]
        whole = [n for n in nouns if {"▁" + n.singular, "▁" + n.plural} <= self._pieces]
        return self.one(whole if len(whole) >= MIN_WORDS else nouns)


def _twin(sentences: Sequence[str], right: str, wrong: str) -> Twin:
    """A twin of two sentences with a gap, "{}": `right` belongs in the first one, and `wrong` in the second
    one.
    """
    first, second = sentences
    return (
        SentencePair(first.format(right), first.format(wrong)),
        SentencePair(second.format(wrong), second.format(right)),
    )


def _agreement(words: _Words, singular_subject: str, plural_subject: str) -> Twin:
    singular, plural = words.one(AGREEING)
    ending = words.one(ENDINGS[singular]).format(place=words.known(PLACES))
    sentences = [f"The {subject} {{}} {ending}." for subject in (singular_subject, plural_subject)]
    return _twin(sentences, singular, plural)


def subject_verb_agreement(words: _Words) -> Twin:
    """The king is / *are in the house. The kings are / *is in the house."""
    noun = words.noun()
    return _agreement(words, noun.singular, noun.plural)


def agreement_with_attractor(words: _Words) -> Twin:
    """The son of the kings is / *are good: a noun of the other number is next to the verb."""
    noun, other = words.noun(), words.noun()
    return _agreement(
        words, f"{noun.singular} of the {other.plural}", f"{noun.plural} of the {other.singular}"
    )


def reflexive_number(words: _Words) -> Twin:
    """The man saw himself / *themselves there. The men saw themselves / *himself there."""
    noun, verb, ending = words.noun(), words.one(REFLEXIVE_VERBS), words.one(ENDINGS_OF_ANY_VERB)
    sentences = [f"The {subject} {verb} {{}}{ending}." for subject in (noun.singular, noun.plural)]
    return _twin(sentences, noun.reflexive, "themselves")


def reflexive_gender(words: _Words) -> Twin:
    """The man saw himself / *herself there. The woman saw herself / *himself there."""
    verb, ending = words.one(REFLEXIVE_VERBS), words.one(ENDINGS_OF_ANY_VERB)
    pronouns = ("himself", "herself")
    sentences = [f"The {words.noun(pronoun).singular} {verb} {{}}{ending}." for pronoun in pronouns]
    return _twin(sentences, *pronouns)


def determiner_noun(words: _Words) -> Twin:
    """And this king / *kings came to the house. And these kings / *king came to the house."""
    noun, verb, place = words.noun(), words.one(["came", "went"]), words.known(PLACES)
    determiners = words.one([("this", "these"), ("that", "those")])
    sentences = [f"And {determiner} {{}} {verb} to the {place}." for determiner in determiners]
    return _twin(sentences, noun.singular, noun.plural)


def argument_structure(words: _Words) -> Twin:
    """The king took / *went the sons. The king went / *took there: some verbs need an object, and others take
    none.
    """
    subject, thing, ending = words.noun(), words.noun(), words.one(ENDINGS_OF_ANY_VERB)
    sentences = [f"The {subject.singular} {{}} the {thing.plural}.", f"The {subject.singular} {{}}{ending}."]
    return _twin(sentences, words.known(TRANSITIVE), words.known(INTRANSITIVE))


PHENOMENA = (
    subject_verb_agreement,
    agreement_with_attractor,
    reflexive_number,
    reflexive_gender,
    determiner_noun,
    argument_structure,
)


def demo_pairs(tokenizer: Tokenizer) -> dict[str, list[SentencePair]]:
    """Distinct pairs of each phenomenon, by its name; both pairs of a twin or none."""
    return {make.__name__: list(_distinct(make, tokenizer)) for make in PHENOMENA}


def _distinct(make: Callable[[_Words], Twin], tokenizer: Tokenizer) -> Iterator[SentencePair]:
    words = _Words(tokenizer, make.__name__)
    seen: set[SentencePair] = set()
    for _ in range(50 * TWINS_PER_PHENOMENON):  # short lists of words may not give that many twins
        twin = make(words)
        if seen.isdisjoint(twin):
            seen.update(twin)
            yield from twin
        if len(seen) == 2 * TWINS_PER_PHENOMENON:
            return
