"""The tasks of evaluate.py as tables, and the names that its command line takes. Nothing here needs PyTorch,
so that --help shows the names at once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

RECIPES = ("2024", "2026")  # of fine-tuning
REDUCTIONS = ("mean", "sum")  # of log p over the tokens of a sentence
TIES = {"wrong": 0.0, "half": 0.5, "correct": 1.0}  # what equal scores of a pair count as
SIZES = ("10M", "100M")  # words of the corpora whose results the paper prints


class Suite(NamedTuple):
    """One of the organisers' suites."""

    title: str
    folder: str
    num_files: int  # in the official data
    fields: Collection[str]  # texts that every line must have
    pair: Callable[[Mapping[str, str]], tuple[str, str, str]]  # texts of a line to (context, good, bad)
    group: str | None  # the field by which sub-tasks are also averaged


def _good_and_bad(texts: Mapping[str, str]) -> tuple[str, str, str]:
    return "", texts["sentence_good"], texts["sentence_bad"]


def _first_target(texts: Mapping[str, str]) -> tuple[str, str, str]:
    """The first target fits the first context. The official files hold each item a second time with contexts
    and targets swapped, so that one pair a line is all.
    """
    return texts["Context1"], texts["Target1"], texts["Target2"]


_BLIMP_FIELDS = ("sentence_good", "sentence_bad")
_EWOK_FIELDS = ("Domain", "Context1", "Context2", "Target1", "Target2")
SUITES = {
    "blimp": Suite("BLiMP", "blimp_filtered", 67, (*_BLIMP_FIELDS, "field"), _good_and_bad, "field"),
    "supplement": Suite("supplement", "supplement_filtered", 5, _BLIMP_FIELDS, _good_and_bad, None),
    "ewok": Suite("EWoK", "ewok_filtered", 11, _EWOK_FIELDS, _first_target, None),
}


def accuracy(predicted: Sequence[int], true: Sequence[int]) -> float:
    """The share of equal labels."""
    return sum(p == t for p, t in zip(predicted, true, strict=True)) / len(true)


def f1(predicted: Sequence[int], true: Sequence[int]) -> float:
    """The F1 score of label 1; 0 if no prediction of label 1 is right."""
    count = Counter(zip(predicted, true, strict=True))
    errors = sum(n for (p, t), n in count.items() if (p == 1) != (t == 1))
    right = count[1, 1]
    return 2 * right / (2 * right + errors) if right else 0.0


def matthews(predicted: Sequence[int], true: Sequence[int]) -> float:
    """The Matthews correlation coefficient of two labels; 0 if either side has one label only."""
    count = Counter(zip(predicted, true, strict=True))
    tp, tn, fp, fn = count[1, 1], count[0, 0], count[1, 0], count[0, 1]
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / math.sqrt(product) if product else 0.0


def _as_they_stand(texts: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(texts.values())


def _multirc(texts: Mapping[str, str]) -> tuple[str, ...]:
    return f"Question: {texts['question']} Answer: {texts['answer']}", texts["paragraph"]


def _wsc(texts: Mapping[str, str]) -> tuple[str, ...]:
    return f'Does "{texts["span2_text"]}" refer to "{texts["span1_text"]}" in this passage?', texts["text"]


class GlueTask(NamedTuple):
    """A column of the paper's tables."""

    title: str
    trained_on: str  # the task whose fine-tuned model is scored
    fields: tuple[str, ...]  # texts that every line must have
    metric: Callable[[Sequence[int], Sequence[int]], float] = accuracy  # of (predicted, true)
    segments: Callable[[Mapping[str, str]], tuple[str, ...]] = _as_they_stand  # from the texts of the fields
    num_labels: int = 2


GLUE = {
    "boolq": GlueTask("BoolQ", "boolq", ("question", "passage")),
    "cola": GlueTask("CoLA", "cola", ("sentence",), matthews),
    "mnli": GlueTask("MNLI", "mnli", ("premise", "hypothesis"), num_labels=3),
    "mnli-mm": GlueTask("MNLI-mm", "mnli", ("premise", "hypothesis"), num_labels=3),
    "mrpc": GlueTask("MRPC", "mrpc", ("sentence1", "sentence2"), f1),
    "multirc": GlueTask("MultiRC", "multirc", ("paragraph", "question", "answer"), segments=_multirc),
    "qnli": GlueTask("QNLI", "qnli", ("question", "sentence")),
    "qqp": GlueTask("QQP", "qqp", ("question1", "question2"), f1),
    "rte": GlueTask("RTE", "rte", ("sentence1", "sentence2")),
    "sst2": GlueTask("SST2", "sst2", ("sentence",)),
    "wsc": GlueTask("WSC", "wsc", ("text", "span1_text", "span2_text"), segments=_wsc),
}

GLUE_OF_2026 = ("boolq", "mnli", "mrpc", "multirc", "qqp", "rte", "wsc")
BABYLM, FAST = "babylm2026", "fast"
TASKS = ("demo", *SUITES, "glue", *GLUE, BABYLM, FAST)
