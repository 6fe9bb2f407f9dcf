"""Small files of evaluation tasks in the organisers' layout."""

import json
from collections.abc import Sequence
from pathlib import Path

from small_text import sentences

from mlsm.evaluation.glue import task_file

VERBS = ("sees", "likes", "finds", "hears")


def write_lines(path: Path, rows: Sequence[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def blimp_rows(good: Sequence[str], bad: Sequence[str], field: str = "syntax") -> list[dict]:
    return [
        {"sentence_good": g, "sentence_bad": b, "field": field, "UID": "x"}
        for g, b in zip(good, bad, strict=True)
    ]


def write_suites(folder: Path) -> Path:
    """Three BLiMP files of two fields, one of the supplement, one of EWoK with its item in both orders."""
    texts = sentences(60, seed=1)
    for number, field in enumerate(["syntax", "syntax", "semantics"]):
        these = texts[10 * number : 10 * number + 10]
        bad = [" ".join(reversed(s.split())) for s in these]
        write_lines(folder / "blimp_filtered" / f"task_{number}.jsonl", blimp_rows(these, bad, field))
    rows = [{"sentence_good": "Who sees?\nThe cat sees.", "sentence_bad": "Who sees?\nThe river sees."}]
    write_lines(folder / "supplement_filtered" / "qa.jsonl", rows)
    item = {"Domain": "sight", "Context1": "The cat sees the river.", "Context2": "The dog hears it."}
    item |= {"Target1": "The cat sees.", "Target2": "The dog hears."}
    swapped = {"Context1": "Context2", "Context2": "Context1", "Target1": "Target2", "Target2": "Target1"}
    again = {name: item[swapped.get(name, name)] for name in item}
    write_lines(folder / "ewok_filtered" / "sight.jsonl", [item, again])
    return folder


def write_cola(data: Path, num_training: int = 160, num_valid: int = 48) -> Path:
    """Sentences that are right (1) if their verb is one of four."""
    for part, count, seed in (("train", num_training, 0), ("valid", num_valid, 9)):
        rows = [
            {"sentence": text, "label": int(any(verb in text for verb in VERBS)), "idx": number}
            for number, text in enumerate(sentences(count, seed))
        ]
        write_lines(task_file(data, "cola", part), rows)
    return data
