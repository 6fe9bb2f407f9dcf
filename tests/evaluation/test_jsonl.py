"""Task files: every kind of bad line is named with its number, and marks of other systems are ignored."""

import os
from pathlib import Path

import pytest

from mlsm.evaluation.jsonl import read_examples

BAD_FILES = {
    "empty": (b"", r"task\.jsonl is empty"),
    "blank lines only": (b"\n\r\n\n", r"task\.jsonl is empty"),
    "not JSON": (b'{"sentence_good": "a"\n', r"task\.jsonl, line 1, is not JSON"),
    "not UTF-8": (b'{"sentence_good": "\xff"}\n', r"task\.jsonl, line 1, is not JSON \('utf-8' codec"),
    "not an object": (b"[1, 2]\n", r"task\.jsonl, line 1: a line must be an object"),
    "wrong field": (
        b'{"good": "a", "sentence_bad": "b"}\n',
        r"line 1: no field 'sentence_good'; there are good",
    ),
    "not text": (
        b'{"sentence_good": 3, "sentence_bad": "b"}\n',
        r"line 1: sentence_good must be text, got 3",
    ),
    "empty sentence": (b'{"sentence_good": " ", "sentence_bad": "b"}\n', r"line 1: sentence_good is empty"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_named_with_their_line(kind: str, tmp_path: Path) -> None:
    content, message = BAD_FILES[kind]
    (tmp_path / "task.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_examples(tmp_path / "task.jsonl", ("sentence_good", "sentence_bad"))


def test_the_line_of_a_mistake_counts_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    path.write_bytes(b'{"a": "x"}\n\n\n{"a": 1}\n')
    with pytest.raises(ValueError, match=r"task\.jsonl, line 4: a must be text"):
        read_examples(path, ["a"])


def test_byte_order_mark_and_crlf_are_read_over(tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": "x"}\r\n\r\n{"a": "y"}')
    assert [(e.line, e.texts["a"]) for e in read_examples(path, ["a"])] == [(1, "x"), (3, "y")]


def test_a_missing_file_and_what_is_no_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file .*nowhere\.jsonl"):
        read_examples(tmp_path / "nowhere.jsonl", [])
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path in (tmp_path / "pipe.jsonl", tmp_path, Path("/dev/zero")):
        with pytest.raises(ValueError, match="is not a regular file"):
            read_examples(path, [])
