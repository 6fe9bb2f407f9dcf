"""The eleven GLUE and SuperGLUE rows of the paper as data: files, text forms, labels, metrics.

Legend: N examples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from mlsm.evaluation.jsonl import read_examples
from mlsm.text.tokenizer import CLS_ID, SEP_ID, Tokenizer

FOLDER = "glue_filtered"


class Item(NamedTuple):
    """One example: its segments (one or two) and its label."""

    segments: tuple[str, ...]
    label: int


class Task(NamedTuple):
    """One row of the paper's tables."""

    title: str
    fields: tuple[str, ...]  # texts that every line must have
    segments: Callable[[dict], tuple[str, ...]]
    num_labels: int
    metric: Callable[[Sequence[int], Sequence[int]], float]  # (predicted, true)
    trained_on: str  # the task whose model is scored


def accuracy(predicted: Sequence[int], true: Sequence[int]) -> float:
    """Share of equal labels."""
    return sum(p == t for p, t in zip(predicted, true, strict=True)) / len(true)


def f1(predicted: Sequence[int], true: Sequence[int]) -> float:
    """F1 of label 1; 0 if it is neither predicted nor true."""
    count = Counter(zip(predicted, true, strict=True))
    errors = sum(n for (p, t), n in count.items() if (p == 1) != (t == 1))
    right = count[1, 1]
    return 2 * right / (2 * right + errors) if right else 0.0


def matthews(predicted: Sequence[int], true: Sequence[int]) -> float:
    """Matthews correlation coefficient of two labels; 0 if either side has only one label."""
    count = Counter(zip(predicted, true, strict=True))
    tp, tn, fp, fn = count[1, 1], count[0, 0], count[1, 0], count[0, 1]
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / math.sqrt(product) if product else 0.0


def _fields(*names: str) -> dict:
    """Fields that are the segments as they stand."""
    return {"fields": names, "segments": lambda values: tuple(values[name] for name in names)}


def _multirc(values: dict) -> tuple[str, ...]:
    return f"Question: {values['question']} Answer: {values['answer']}", values["paragraph"]


def _wsc(values: dict) -> tuple[str, ...]:
    return f'Does "{values["span2_text"]}" refer to "{values["span1_text"]}" in this passage?', values["text"]


TASKS = {
    "boolq": Task(
        "BoolQ", **_fields("question", "passage"), num_labels=2, metric=accuracy, trained_on="boolq"
    ),
    "cola": Task("CoLA", **_fields("sentence"), num_labels=2, metric=matthews, trained_on="cola"),
    "mnli": Task(
        "MNLI", **_fields("premise", "hypothesis"), num_labels=3, metric=accuracy, trained_on="mnli"
    ),
    "mnli-mm": Task(
        "MNLI-mm", **_fields("premise", "hypothesis"), num_labels=3, metric=accuracy, trained_on="mnli"
    ),
    "mrpc": Task("MRPC", **_fields("sentence1", "sentence2"), num_labels=2, metric=f1, trained_on="mrpc"),
    "multirc": Task(
        "MultiRC", ("paragraph", "question", "answer"), _multirc, 2, accuracy, trained_on="multirc"
    ),
    "qnli": Task("QNLI", **_fields("question", "sentence"), num_labels=2, metric=accuracy, trained_on="qnli"),
    "qqp": Task("QQP", **_fields("question1", "question2"), num_labels=2, metric=f1, trained_on="qqp"),
    "rte": Task("RTE", **_fields("sentence1", "sentence2"), num_labels=2, metric=accuracy, trained_on="rte"),
    "sst2": Task("SST2", **_fields("sentence"), num_labels=2, metric=accuracy, trained_on="sst2"),
    "wsc": Task("WSC", ("text", "span1_text", "span2_text"), _wsc, 2, accuracy, trained_on="wsc"),
}


def task_file(data: Path, task: str, part: str) -> Path:
    """`part` is train or valid."""
    return data / FOLDER / f"{task}.{part}.jsonl"


def read_items(data: Path, task: str, part: str) -> list[Item]:
    """Raises ValueError naming file and line of what cannot be used, also of a label out of range. A text may
    be empty: two questions of QQP's training set are.
    """
    path, row = task_file(data, task, part), TASKS[task]
    fields = {**dict.fromkeys(row.fields, str), "label": int}
    examples = read_examples(path, fields, may_be_empty=True)
    for example in examples:
        label = example.values["label"]
        if not 0 <= label < row.num_labels:
            raise ValueError(
                f"{path}, line {example.line}: label must be in 0..{row.num_labels - 1}, got {label}"
            )
    return [Item(row.segments(example.values), example.values["label"]) for example in examples]


def majority_score(train: Sequence[Item], valid: Sequence[Item], task: str) -> float:
    """The metric of always answering the label that is most frequent in training."""
    [(label, _)] = Counter(item.label for item in train).most_common(1)
    return TASKS[task].metric([label] * len(valid), [item.label for item in valid])


def encode_item(tokenizer: Tokenizer, segments: Sequence[str], longest: int) -> tuple[list[int], int]:
    """[CLS] first [SEP] second [SEP], and how many tokens were taken off the longer segment's end to keep
    them within `longest`.
    """
    parts = [tokenizer.encode(segment) for segment in segments]
    num_cut = max(0, sum(map(len, parts)) + len(parts) + 1 - longest)
    for _ in range(num_cut):
        max(reversed(parts), key=len).pop()
    return [CLS_ID, *(token for part in parts for token in (*part, SEP_ID))], num_cut
