"""The rows of the report of `mlsm.report`, from the files of runs.

Nothing is measured here: settings come from config.json and measurements from metrics.jsonl and results.json,
so that the report also takes runs that are still training, or whose weights are gone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from mlsm.board import HELDOUT
from mlsm.coding.dictionary import Dictionary
from mlsm.evaluation.babylm.entry import RevisionResult, place_of
from mlsm.evaluation.babylm.entry import read_results as read_entry
from mlsm.evaluation.results import Results, read_results
from mlsm.evaluation.tasks import GLUE, SUITES
from mlsm.files import open_tensors
from mlsm.log import duration, printable, read_metrics
from mlsm.runs.checkpoint import MODEL_FILE
from mlsm.runs.record import RunRecord, read_record
from mlsm.settings import as_text
from mlsm.training.objectives import find_objective

SETTINGS_PARTS = ("preset", "data", "model", "train")  # parts of config.json that a user sets
ENVIRONMENT_PARTS = ("corpus", "concepts", "versions", "tokenizer")  # parts that a run records


class RunFacts(NamedTuple):
    """What the files of a run hold."""

    name: str
    record: RunRecord
    training: list[dict[str, float]]  # lines of metrics.jsonl without held-out values
    heldout_lines: list[dict[str, float]]  # lines with held-out values
    results: Results  # empty for a run that was not evaluated
    babylm: dict[str, RevisionResult]  # of BabyLM 2026, by the name of the model; empty if not measured
    sizes: dict[str, int]  # number of weights by the name of their tensor; empty without a model

    @property
    def heldout(self) -> dict[str, float]:
        """The last held-out values."""
        return {name: value for line in self.heldout_lines for name, value in line.items()}


def read_facts(run: Path, name: str) -> RunFacts:
    """Raises ValueError if `run` is no run, or one of its files is damaged."""
    record, metrics = read_record(run), read_metrics(run)
    training: list[dict[str, float]] = []
    heldout: list[dict[str, float]] = []
    for line in metrics:
        (heldout if any(key.startswith(HELDOUT) for key in line) else training).append(line)
    return RunFacts(
        printable(name),
        record,
        training,
        heldout,
        read_results(run),
        read_entry(place_of(run)),
        _sizes(run / MODEL_FILE),
    )


def _sizes(path: Path) -> dict[str, int]:
    if not path.exists():
        return {}
    with open_tensors(path) as file:
        return {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def compute_row(run: RunFacts) -> dict[str, str]:
    """What the run took, under the columns of the paper's Table 1, as far as its files hold it."""
    train, last = run.record.train, run.training[-1] if run.training else {"step": 0}
    objective = find_objective(train.objective)
    is_finished = last["step"] == train.num_steps
    row = {
        "phase": str(objective.phase),
        "objective": train.objective,
        "updates": f"{last['step']:,}" if is_finished else f"{last['step']:,} of {train.num_steps:,}",
        "sequences per update": f"{train.batch_size:,}",
    }
    if "epoch" in last:
        row |= {"epochs": f"{last['epoch']:.3g}", "words seen": f"{last['words_seen']:,}"}
        row["words in all"] = run.record.words_in_all(int(last["words_seen"]))
    if run.training and all("seconds" in line for line in run.training):
        row["tokens seen"] = f"{sum(line['seconds'] * line['tokens_per_s'] for line in run.training):,.0f}"
        row["time"] = duration(sum(line["seconds"] for line in run.training))
    if run.sizes:
        prefix = "token_head." if objective.trains_only_token_head else ""
        num_trained = sum(size for name, size in run.sizes.items() if name.startswith(prefix))
        row |= {"parameters": f"{sum(run.sizes.values()):,}", "of them trained": f"{num_trained:,}"}
    return row


def learning_rows(runs: Sequence[RunFacts], titles: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The last value of each measure that `titles` names (title by name) and the held-out value below it,
    with a column for each run.
    """
    rows = {}
    for name, title in titles.items():
        last = {run.name: run.training[-1].get(name) for run in runs if run.training}
        heldout = {run.name: run.heldout.get(HELDOUT + name) for run in runs}
        for row, values in ((title, last), (f"{title}, held out", heldout)):
            shown = {run.name: _number(values.get(run.name)) for run in runs}
            if any(shown.values()):
                rows[row] = shown
    return rows


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def dictionary_rows(runs: Iterable[RunFacts]) -> dict[str, dict[str, str]]:
    """A row for each dictionary that a student learnt from and that is still there."""
    rows: dict[str, dict[str, str]] = {}
    for run in runs:
        if not (run.record.concepts and (path := Path(run.record.concepts.dictionary)).is_file()):
            continue
        dictionary = Dictionary.load(path)
        rows[str(path)] = {
            "concepts": f"{dictionary.atoms_DK.shape[1]:,}",
            "layer": str(dictionary.layer),
            "lambda": f"{dictionary.lam:g}",
        }
        if statistics := dictionary.statistics:
            rows[str(path)] |= {
                "non-zeros per code": f"{statistics.mean_nonzeros:.1f}",
                "energy explained": f"{statistics.explained_share:.1%}",
                "unused atoms": f"{statistics.unused_atoms:,}",
                "measured on": f"{statistics.num_signals:,} held-out states",
            }
            if statistics.explained_variance is not None:
                rows[str(path)]["variance explained"] = f"{statistics.explained_variance:.1%}"
            if statistics.dense_atoms is not None:
                rows[str(path)]["dense atoms"] = f"{statistics.dense_atoms:,}"
            if statistics.spliced:
                rows[str(path)]["loss recovered"] = f"{statistics.spliced.loss_recovered:.1%}"
    return rows


def record_rows(runs: Sequence[RunFacts], parts: Sequence[str]) -> dict[str, dict[str, str]]:
    """The fields in these parts of config.json, with a column for each run."""
    rows: dict[str, dict[str, str]] = {}
    for run in runs:
        record = asdict(run.record)
        for part in parts:
            fields = record[part] if isinstance(record[part], dict) else {"": record[part]}
            for name, value in fields.items():
                shown = "" if value is None else as_text(value, ", ")
                rows.setdefault(f"{part} {name}".strip(), {})[run.name] = shown
    return {name: row for name, row in rows.items() if any(row.values())}


def differing(
    rows: Mapping[str, Mapping[str, str]], runs: Sequence[RunFacts]
) -> dict[str, Mapping[str, str]]:
    """The rows in which not all runs have the same value."""
    return {name: row for name, row in rows.items() if len({row.get(run.name, "") for run in runs}) > 1}


def subtask_rows(runs: Sequence[RunFacts]) -> dict[str, dict[str, dict[str, float | str]]]:
    """For each suite that was scored, a table with a row for each sub-task and a column for each run."""
    tables: dict[str, dict[str, dict[str, float | str]]] = {}
    for name, suite in SUITES.items():
        for run in runs:
            if result := run.results.suites.get(name):
                for subtask, value in result.subtasks.items():
                    tables.setdefault(suite.title, {}).setdefault(subtask, {})[run.name] = value
    return tables


def glue_rows(runs: Sequence[RunFacts]) -> dict[str, dict[str, float | str]]:
    """A row for each task and seed of fine-tuning and a column for each run, with "failed" for a seed without
    a score.
    """
    rows: dict[str, dict[str, float | str]] = {}
    for run in runs:
        for task, result in run.results.glue.items():
            for seed, one in result.seeds.items():
                score = "failed" if one.score is None else one.score
                rows.setdefault(f"{GLUE[task].title}, seed {seed}", {})[run.name] = score
    return rows
