"""The words that a run sees and that all models and dictionaries it stands on have seen. Repeated words count
each time, as the BabyLM challenge counts them for its checkpoints.

An update is a function of seed and step, so the words of a run are known before its first update.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mlsm.coding.dictionary import Dictionary
from mlsm.config import TrainConfig, parse_words
from mlsm.log import read_metrics, say
from mlsm.runs.checkpoint import STATE_FILE, fingerprint, read_state
from mlsm.runs.record import WordsRecord, read_record
from mlsm.text.batches import Corpus


def with_num_steps(config: TrainConfig, corpus: Corpus) -> TrainConfig:
    """The settings with the number of updates that --words or --epochs means, rounded down. Raises ValueError
    if that is less than one update.
    """
    if config.words is not None:
        num_sequences = corpus.num_sequences_within(parse_words(config.words, "words"), config.seed)
        flag = f"--words {config.words}"
    elif config.epochs is not None:
        num_sequences = int(config.epochs * len(corpus.training))
        flag = f"--epochs {config.epochs:g}"
    else:
        return config
    if num_sequences < config.batch_size:
        raise ValueError(
            f"{flag} is less than one update of {config.batch_size} sequences; lower --batch-size"
        )
    return dataclasses.replace(config, num_steps=num_sequences // config.batch_size)


def count_words(
    config: TrainConfig, corpus: Corpus, runs: list[Path], dictionary: Dictionary | None
) -> WordsRecord:
    """The words of a run with these settings that stands on other runs and on a dictionary."""
    own = corpus.num_words(config.num_steps * config.batch_size, config.seed)
    before: dict[str, int] | None = {}
    for seen in [*map(_seen_by, runs), *([_seen_by_dictionary(dictionary)] if dictionary else [])]:
        before = None if before is None or seen is None else before | seen
    return WordsRecord(own, before)


def check_word_budget(words: WordsRecord, config: TrainConfig) -> None:
    """Print what a run sees in all and what its word budget leaves. Raises ValueError if it would exceed the
    budget, or if the words of something that it stands on are not known.
    """
    budget = parse_words(config.word_budget, "word_budget") if config.word_budget else None
    if words.before is None:
        if budget is not None:
            raise ValueError(
                "--word-budget cannot be checked: the words of a model or dictionary that this run stands on "
                "were not counted, because an earlier version or another program made it"
            )
        return
    before = sum(words.before.values())
    if budget is not None and words.own + before > budget:
        left = budget - before
        advice = f"leaves {left:,}: --words {left}" if left > 0 else "is used up"
        raise ValueError(
            f"this run would see {words.own:,} words, and what it stands on has seen {before:,}; "
            f"--word-budget {config.word_budget} {advice}"
        )
    if before or budget is not None:
        left_over = "" if budget is None else f"; the budget leaves {budget - words.own - before:,}"
        say(f"words: {words.own:,} in this run, {before:,} by what it stands on{left_over}")


def words_seen(run: Path) -> int | None:
    """The words that a run, without those it stands on, has seen: a checkpoint up to its update, a run up to
    its newest logged update. None if they are not known.
    """
    if (run / STATE_FILE).exists():
        return read_state(run)[1].words_seen
    lines = [line["words_seen"] for line in read_metrics(run) if "words_seen" in line]
    words = read_record(run).words
    return int(lines[-1]) if lines else words.own if words else None


def _seen_by(run: Path) -> dict[str, int] | None:
    """The words of a run and of all it stands on, each under a name of its own."""
    before, own = read_record(run).words_before(), words_seen(run)
    return None if before is None or own is None else before | {f"model {fingerprint(run)}": own}


def _seen_by_dictionary(dictionary: Dictionary) -> dict[str, int] | None:
    return None if dictionary.words is None else {f"dictionary {dictionary.fingerprint}": dictionary.words}
