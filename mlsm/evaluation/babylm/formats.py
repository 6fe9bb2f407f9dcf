"""The zero-shot tasks of BabyLM 2026 in which a model chooses one of several texts: their files and items.

An item has candidates: sentences of which the end, the completion, is scored. The name of an item's group is
the organisers' UID. Formats, names and folders are those of babylm-org/babylm-eval (July 2026, strict track).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from mlsm.evaluation.jsonl import Line, read_lines
from mlsm.files import file_digest

FULL, FAST = "full_eval", "fast_eval"  # folders of the evaluation data
MOST_OPERATIONS = 1000  # of an item of entity tracking


class Candidate(NamedTuple):
    """One of the texts between which a model chooses."""

    sentence: str
    completion: str  # its end, whose tokens are scored


class Item(NamedTuple):
    """A choice between candidates."""

    group: str
    candidates: tuple[Candidate, ...]
    label: int  # the right candidate


class TaskFile(NamedTuple):
    """One file of a task."""

    name: str  # without its ending
    digest: str  # of its content
    items: dict[int, Item]  # by the number of their line


Decoder = Callable[[Line, str], Item | None]  # of (line, name of its file); None leaves the line out


def _pair(line: Line, file: str) -> Item:
    """A pair of BLiMP, whose lines name their group, or of its supplement, where each file is a group."""
    good, bad = line.text("sentence_good"), line.text("sentence_bad")
    group = line.text("UID") if "field" in line.values else file
    return Item(group, (Candidate(good, good), Candidate(bad, bad)), 0)


def _ewok(line: Line, file: str) -> Item:
    """One target after two contexts. The files hold each item twice, for both targets."""
    target = line.text("Target1")
    contexts = line.text("Context1"), line.text("Context2")
    candidates = tuple(Candidate(f"{context} {target}", f" {target}") for context in contexts)
    return Item(line.text("Domain"), candidates, 0)


def _entity_tracking(line: Line, file: str) -> Item | None:
    """The first option is right. Items with "nothing" in an option are left out."""
    prefix, options = line.text("input_prefix"), line.texts("options")
    num_operations = line.whole_number("numops", MOST_OPERATIONS)
    if any("nothing" in option for option in options):
        return None
    candidates = tuple(Candidate(prefix + option, option) for option in options)
    return Item(f"{file}_{num_operations}_ops", candidates, 0)


def _comps(line: Line, file: str) -> Item:
    """One property after two prefixes."""
    phrase = line.text("property_phrase")
    prefixes = line.text("prefix_acceptable"), line.text("prefix_unacceptable")
    groups = {"comps_base": "base", "comps_wugs": "wugs", "comps_wugs_dist-before": "wugs_dist_before"}
    group = groups.get(file, "wugs_dist_in_between")
    return Item(group, tuple(Candidate(f"{prefix} {phrase}", phrase) for prefix in prefixes), 0)


def _global_piqa(num_solutions: int) -> Decoder:
    """Solutions after one prompt. Each item is a group of its own."""

    def decode(line: Line, file: str) -> Item:
        prompt = line.text("prompt")
        solutions = [line.text(f"solution{number}") for number in range(num_solutions)]
        candidates = tuple(Candidate(f"{prompt} {solution}", f" {solution}") for solution in solutions)
        return Item(line.text("example_id"), candidates, line.whole_number("label", num_solutions))

    return decode


class Task(NamedTuple):
    """A task, by the names that the organisers' programs use."""

    title: str
    task: str  # their name, and a folder of results
    full: str  # folder in full_eval
    fast: str | None  # folder in fast_eval; None: measured in full only
    decode: Decoder
    reduction: str = "sum"  # of log p over the tokens of a completion
    stores_sentences: bool = False  # whether a prediction is the whole sentence, or the completion

    def prediction(self, candidate: Candidate) -> str:
        """What the file of predictions holds for a candidate that was chosen."""
        return candidate.sentence if self.stores_sentences else candidate.completion


TASKS = {
    "blimp": Task("BLiMP", "blimp", "blimp_filtered", "blimp_fast", _pair),
    "supplement": Task("supplement", "blimp", "supplement_filtered", "supplement_fast", _pair),
    "ewok": Task("EWoK", "ewok", "ewok_filtered", "ewok_fast", _ewok, stores_sentences=True),
    "entity": Task(
        "entity tracking", "entity_tracking", "entity_tracking", "entity_tracking_fast", _entity_tracking
    ),
    "comps": Task("COMPS", "comps", "comps", None, _comps, stores_sentences=True),
    **{
        name: Task(f"GlobalPIQA {kind}", name, name, name, _global_piqa(num_solutions), "mean")
        for kind, num_solutions in (("parallel", 4), ("nonparallel", 2))
        for name in [f"global_piqa_{kind}"]
    },
}


def read_task(folder: Path, task: Task) -> list[TaskFile]:
    """The files of a task. Raises ValueError naming the file and the line of what cannot be used."""
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        raise ValueError(f"no .jsonl files in {folder}")
    files = []
    for path in paths:
        decoded = {line.number: task.decode(line, path.stem) for line in read_lines(path)}
        items = {number: item for number, item in decoded.items() if item is not None}
        files.append(TaskFile(path.stem, file_digest(path), items))
    return files


def average(task: Task, by_group: Mapping[str, float]) -> float:
    """The organisers' average of the accuracies by group. That of entity tracking is over its three kinds of
    items, and for each of them over the numbers of operations.
    """
    if task.task != "entity_tracking":
        return statistics.fmean(by_group.values())
    kinds: dict[str, list[float]] = {}
    for group, share in by_group.items():
        kinds.setdefault(group.rsplit("_", 2)[0], []).append(share)
    return statistics.fmean(statistics.fmean(shares) for shares in kinds.values())
