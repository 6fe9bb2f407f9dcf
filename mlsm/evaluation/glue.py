"""The eleven GLUE and SuperGLUE tasks of the paper: files, text forms, labels and metrics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mlsm.evaluation.jsonl import read_examples, spaced
from mlsm.files import file_digest
from mlsm.text.tokenizer import CLS_ID, SEP_ID, Tokenizer

FOLDER = "glue_filtered"


class Item(NamedTuple):
    """One example of a task."""

    segments: tuple[str, ...]  # one or two
    label: int


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


class Task(NamedTuple):
    """A column of the paper's tables."""

    title: str
    trained_on: str  # the task whose fine-tuned model is scored
    fields: tuple[str, ...]  # texts that every line must have
    metric: Callable[[Sequence[int], Sequence[int]], float] = accuracy  # of (predicted, true)
    segments: Callable[[Mapping[str, str]], tuple[str, ...]] = _as_they_stand  # from the texts of the fields
    num_labels: int = 2


TASKS = {
    "boolq": Task("BoolQ", "boolq", ("question", "passage")),
    "cola": Task("CoLA", "cola", ("sentence",), matthews),
    "mnli": Task("MNLI", "mnli", ("premise", "hypothesis"), num_labels=3),
    "mnli-mm": Task("MNLI-mm", "mnli", ("premise", "hypothesis"), num_labels=3),
    "mrpc": Task("MRPC", "mrpc", ("sentence1", "sentence2"), f1),
    "multirc": Task("MultiRC", "multirc", ("paragraph", "question", "answer"), segments=_multirc),
    "qnli": Task("QNLI", "qnli", ("question", "sentence")),
    "qqp": Task("QQP", "qqp", ("question1", "question2"), f1),
    "rte": Task("RTE", "rte", ("sentence1", "sentence2")),
    "sst2": Task("SST2", "sst2", ("sentence",)),
    "wsc": Task("WSC", "wsc", ("text", "span1_text", "span2_text"), segments=_wsc),
}


def task_file(data: Path, task: str, part: str) -> Path:
    """The file of a task; `part` is train or valid."""
    return data / FOLDER / f"{task}.{part}.jsonl"


def read_items(data: Path, name: str, part: str) -> list[Item]:
    """The examples of a task. A text may be empty: two questions of QQP's training set are.

    Raises ValueError naming the file and the line of what cannot be used.
    """
    task = TASKS[name]
    examples = read_examples(
        task_file(data, name, part), task.fields, num_labels=task.num_labels, may_be_empty=True
    )
    return [Item(task.segments(example.texts), example.label) for example in examples]


class TaskData(NamedTuple):
    """The data of one fine-tuning, which may be scored on several tasks."""

    trained_on: str
    training: Sequence[Item]
    validations: dict[str, Sequence[Item]]  # by task; the first one chooses the epoch
    digest: str  # of the content of the files


def read_task_data(data: Path, trained_on: str, tasks: Collection[str], limit: int | None = None) -> TaskData:
    """The training set of a task, and the validation sets of the tasks that its model is scored on: of those
    in `tasks`, and of others whose file is there, so that they need no other training later. With a `limit`
    there are so many examples of each.

    Raises ValueError naming the file and the line of what cannot be used.
    """
    scored = [
        name
        for name, task in TASKS.items()
        if task.trained_on == trained_on
        and (name in (trained_on, *tasks) or task_file(data, name, "valid").exists())
    ]
    files = [task_file(data, trained_on, "train"), *(task_file(data, task, "valid") for task in scored)]
    training = spaced(read_items(data, trained_on, "train"), limit)
    validations = {task: spaced(read_items(data, task, "valid"), limit) for task in scored}
    return TaskData(trained_on, training, validations, "-".join(file_digest(path)[:16] for path in files))


def majority_score(data: TaskData, task: str) -> float:
    """The metric of always predicting the label that is most frequent in the training set."""
    [(label, _)] = Counter(item.label for item in data.training).most_common(1)
    true = [item.label for item in data.validations[task]]
    return TASKS[task].metric([label] * len(true), true)


def encode_item(tokenizer: Tokenizer, segments: Sequence[str], longest: int) -> tuple[list[int], int]:
    """The ids of [CLS] first [SEP] second [SEP], and how many tokens were removed to keep them within
    `longest`, each from the end of the segment that was the longer one at that moment.
    """
    parts = [tokenizer.encode(segment) for segment in segments]
    num_cut = max(0, sum(map(len, parts)) + len(parts) + 1 - longest)
    for _ in range(num_cut):
        max(reversed(parts), key=len).pop()
    return [CLS_ID, *(token for part in parts for token in (*part, SEP_ID))], num_cut
