"""What the files of a run tell about how it was made: the rows of the report of `mlsm.report`.

Nothing is computed anew: settings come from config.json, everything that was measured from metrics.jsonl, so
that a run that is still training, or whose weights are gone, can be reported too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from mlsm.coding.dictionary import Dictionary
from mlsm.evaluation.glue import TASKS
from mlsm.evaluation.minimal_pairs import SUITES
from mlsm.evaluation.results import Results, read_results
from mlsm.log import read_metrics
from mlsm.runs.checkpoint import MODEL_FILE
from mlsm.runs.record import RunRecord, read_record
from mlsm.training.objectives import find_objective

ASKED_FOR = ("preset", "data", "model", "train")  # parts of config.json that a user sets
FOUND = ("corpus", "concepts", "versions", "tokenizer")  # and what a run found where it was made


class RunFacts(NamedTuple):
    """A run as its files tell of it."""

    name: str
    record: RunRecord
    training: list[dict[str, float]]  # lines of metrics.jsonl but the held-out one
    heldout: dict[str, float]  # the held-out one; empty for a run that is not finished
    results: Results  # empty for a run that was not evaluated
    sizes: dict[str, int]  # weights by the name of their tensor; empty without a model


def read_facts(run: Path, name: str) -> RunFacts:
    """Raises ValueError if `run` is no run, or one of its files is damaged."""
    record, metrics = read_record(run), read_metrics(run)
    heldout = {key: value for line in metrics for key, value in line.items() if key.startswith("heldout_")}
    training = [line for line in metrics if not any(key.startswith("heldout_") for key in line)]
    return RunFacts(
        name,
        record,
        training,
        heldout,
        read_results(run),
        _sizes(run / MODEL_FILE),
    )


def _sizes(path: Path) -> dict[str, int]:
    if not path.exists():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error})") from None


def compute_row(run: RunFacts) -> dict[str, str]:
    """What the run took, as in Table 1 of the paper. What its metrics lack stays empty."""
    train = run.record.train
    objective = find_objective(train.objective)
    last = run.training[-1] if run.training else {"step": 0}
    step, planned = last["step"], train.num_steps
    row: dict[str, str] = {
        "phase": str(objective.phase),
        "objective": train.objective,
        "updates": f"{step:,}" if step == planned else f"{step:,} of {planned:,}",
        "sequences per update": f"{train.batch_size:,}",
    }
    if "epoch" in last:
        row |= {"epochs": f"{last['epoch']:.3g}", "words seen": f"{last['words_seen']:,}"}
    if run.training and all("seconds" in line for line in run.training):
        row["tokens seen"] = f"{sum(line['seconds'] * line['tokens_per_s'] for line in run.training):,.0f}"
        row["time"] = duration(sum(line["seconds"] for line in run.training))
    if run.sizes:
        learning = run.sizes
        if objective.trains_only_token_head:
            learning = {name: size for name, size in run.sizes.items() if name.startswith("token_head.")}
        row |= {
            "parameters": f"{sum(run.sizes.values()):,}",
            "of them trained": f"{sum(learning.values()):,}",
        }
    return row


def duration(seconds: float) -> str:
    """As people say it: 35 s, 12 min, 1.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def learning_rows(runs: Sequence[RunFacts], titles: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The last value of what `titles` names (title by name), the held-out one below it; a column a run."""
    rows: dict[str, dict[str, str]] = {}
    for name, title in titles.items():
        for run in runs:
            last = run.training[-1] if run.training else {}
            for values, key, row in (
                (last, name, title),
                (run.heldout, f"heldout_{name}", f"{title}, held out"),
            ):
                if key in values:
                    rows.setdefault(row, dict.fromkeys((other.name for other in runs), ""))
                    rows[row][run.name] = _plain(values[key])
    return rows


def _plain(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def dictionary_rows(runs: Iterable[RunFacts]) -> dict[str, dict[str, str]]:
    """The dictionaries that students learnt from, as far as their files are still there."""
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
    return rows


def settings_rows(runs: Sequence[RunFacts], parts: Sequence[str]) -> dict[str, dict[str, str]]:
    """A row a setting, a column a run, of these parts of config.json."""
    rows: dict[str, dict[str, str]] = {}
    for run in runs:
        for part in parts:
            if (value := asdict(run.record)[part]) is None:
                continue
            for name, inner in value.items() if isinstance(value, dict) else [("", value)]:
                shown = ", ".join(map(str, inner)) if isinstance(inner, tuple) else str(inner)
                rows.setdefault(f"{part} {name}".strip(), {})[run.name] = "" if inner is None else shown
    return rows


def differing(
    rows: Mapping[str, Mapping[str, str]], runs: Sequence[RunFacts]
) -> dict[str, Mapping[str, str]]:
    """The rows in which the runs are not all alike."""
    return {name: row for name, row in rows.items() if len({row.get(run.name) for run in runs}) > 1}


def subtask_rows(runs: Sequence[RunFacts]) -> dict[str, dict[str, dict[str, float | str]]]:
    """By suite, a row a sub-task and a column a run, for the suites that were scored."""
    tables: dict[str, dict[str, dict[str, float | str]]] = {}
    for name, suite in SUITES.items():
        for run in runs:
            if result := run.results.suites.get(name):
                for subtask, value in result.subtasks.items():
                    tables.setdefault(suite.title, {}).setdefault(subtask, {})[run.name] = value
    return tables


def glue_rows(runs: Sequence[RunFacts]) -> dict[str, dict[str, float | str]]:
    """A row a task and seed of fine-tuning, a column a run; a seed that failed says so."""
    rows: dict[str, dict[str, float | str]] = {}
    for run in runs:
        for task, result in run.results.glue.items():
            for seed, one in result.seeds.items():
                score = "failed" if one.score is None else one.score
                rows.setdefault(f"{TASKS[task].title}, seed {seed}", {})[run.name] = score
    return rows
