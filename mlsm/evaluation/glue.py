"""The files of the GLUE and SuperGLUE tasks, and their examples as a model reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from mlsm.evaluation.jsonl import read_examples, spaced
from mlsm.evaluation.tasks import GLUE
from mlsm.files import file_digest
from mlsm.text.tokenizer import CLS_ID, SEP_ID, Tokenizer

FOLDER = "glue_filtered"


class Item(NamedTuple):
    """One example of a task."""

    segments: tuple[str, ...]  # one or two
    label: int


def task_file(data: Path, task: str, part: str) -> Path:
    """The file of a task; `part` is train or valid."""
    return data / FOLDER / f"{task}.{part}.jsonl"


def read_items(data: Path, name: str, part: str) -> list[Item]:
    """The examples of a task. A text may be empty: two questions of QQP's training set are.

    Raises ValueError naming the file and the line of what cannot be used.
    """
    task = GLUE[name]
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
        for name, task in GLUE.items()
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
    return GLUE[task].metric([label] * len(true), true)


def encode_item(tokenizer: Tokenizer, segments: Sequence[str], longest: int) -> tuple[list[int], int]:
    """The ids of [CLS] first [SEP] second [SEP], and how many tokens were removed to keep them within
    `longest`, each from the end of the segment that was the longer one at that moment.
    """
    parts = [tokenizer.encode(segment) for segment in segments]
    num_cut = max(0, sum(map(len, parts)) + len(parts) + 1 - longest)
    for _ in range(num_cut):
        max(reversed(parts), key=len).pop()
    return [CLS_ID, *(token for part in parts for token in (*part, SEP_ID))], num_cut
