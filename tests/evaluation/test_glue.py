"""GLUE: text forms, long texts, and mistakes in files."""

from pathlib import Path

import pytest
from small_runs import small_tokenizer
from task_files import write_lines

from mlsm.evaluation.glue import (
    Item,
    TaskData,
    encode_item,
    majority_score,
    read_items,
    task_file,
)
from mlsm.text.tokenizer import CLS_ID, SEP_ID

FORMS = {  # a line of each task's file, and the segments it becomes
    "boolq": ({"question": "is it", "passage": "It is."}, ("is it", "It is.")),
    "cola": ({"sentence": "It is."}, ("It is.",)),
    "mnli": ({"premise": "A.", "hypothesis": "B."}, ("A.", "B.")),
    "mnli-mm": ({"premise": "A.", "hypothesis": "B."}, ("A.", "B.")),
    "mrpc": ({"sentence1": "A.", "sentence2": "B."}, ("A.", "B.")),
    "multirc": (
        {"paragraph": "P.", "question": "Q?", "answer": "A", "idx": {"paragraph": 0}},
        ("Question: Q? Answer: A", "P."),
    ),
    "qnli": ({"question": "Q?", "sentence": "S."}, ("Q?", "S.")),
    "qqp": ({"question1": "Q?", "question2": "R?"}, ("Q?", "R?")),
    "rte": ({"sentence1": "A.", "sentence2": "B."}, ("A.", "B.")),
    "sst2": ({"sentence": "good"}, ("good",)),
    "wsc": (
        {"text": "Joe beats him.", "span1_text": "Joe", "span2_text": "him", "span1_index": 0},
        ('Does "him" refer to "Joe" in this passage?', "Joe beats him."),
    ),
}


@pytest.mark.parametrize("task", FORMS)
def test_text_forms(task: str, tmp_path: Path) -> None:
    values, segments = FORMS[task]
    write_lines(task_file(tmp_path, task, "valid"), [{**values, "label": 1, "idx": 0}])
    assert read_items(tmp_path, task, "valid") == [Item(segments, 1)]


def test_majority_class() -> None:
    training = [Item(("a",), label) for label in (1, 1, 0)]
    valid = [Item(("a",), label) for label in (1, 0, 0, 0)]
    for task, score in {"rte": 0.25, "mrpc": 0.4, "cola": 0.0}.items():
        assert majority_score(TaskData(task, training, {task: valid}, ""), task) == pytest.approx(score)


def test_long_pairs_are_cut_at_the_longer_segment_and_counted() -> None:
    tokenizer = small_tokenizer()
    short, long = "The cat sees.", "the river " * 40
    first, second = tokenizer.encode(short), tokenizer.encode(long)
    ids, num_cut = encode_item(tokenizer, (short, long), 40)
    assert ids == [CLS_ID, *first, SEP_ID, *second[: 40 - 3 - len(first)], SEP_ID]
    assert num_cut == len(first) + len(second) + 3 - 40
    assert encode_item(tokenizer, (short,), 40) == ([CLS_ID, *first, SEP_ID], 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 2}, r"cola\.valid\.jsonl, line 2: label must be a whole number in 0\.\.1, got 2"),
        ({"label": -1}, "line 2: label must be"),
        ({"label": "1"}, "line 2: label must be a whole number in 0..1, got '1'"),
        ({"label": True}, "line 2: label must be a whole number in 0..1, got True"),
        ({"sentence": None}, "line 2: sentence must be text, got None"),
    ],
)
def test_bad_lines_are_named(change: dict, message: str, tmp_path: Path) -> None:
    good = {"sentence": "It is.", "label": 1}
    write_lines(task_file(tmp_path, "cola", "valid"), [good, good | change])
    with pytest.raises(ValueError, match=message):
        read_items(tmp_path, "cola", "valid")


def test_a_text_may_be_empty(tmp_path: Path) -> None:
    """Two questions of QQP's training set are empty."""
    write_lines(task_file(tmp_path, "qqp", "train"), [{"question1": "Q?", "question2": "", "label": 0}])
    [item] = read_items(tmp_path, "qqp", "train")
    assert encode_item(small_tokenizer(), item.segments, 64)[0][-2:] == [SEP_ID, SEP_ID]
