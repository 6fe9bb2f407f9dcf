"""The page of a comparison with a strong teacher: every number comes from the files of its runs."""

from __future__ import annotations

import datetime
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from steps import processor_seconds, step_file

from mlsm.evaluation.circumstances import circumstances
from mlsm.evaluation.results import Results, read_results
from mlsm.evaluation.tables import Cell, as_markdown
from mlsm.evaluation.tasks import GLUE
from mlsm.files import read_json, write_text
from mlsm.log import read_metrics
from mlsm.runs.record import read_record

# The runs of the table: their title, the run that is fine-tuned, and the run that predicts words.
STUDENT, SAME_WORDS, SAME_TIME = (
    "taught, then a token head",
    "masked LM, as many words",
    "masked LM, as much time",
)
RUNS = {
    STUDENT: ("student", "student-words"),
    SAME_WORDS: ("mlm-words", "mlm-words"),
    SAME_TIME: ("mlm-time", "mlm-time"),
}
RANDOM_WEIGHTS = "random weights"
LEAST_NATS = 0.02  # a difference of held-out cross-entropy that counts
ERRORS = 2.0  # standard errors of a difference that counts


def write(folder: Path, path: Path, command: str, limit: int | None) -> None:
    """Write the page of the comparison in a folder."""
    record = read_record(folder / "student")
    concepts, teacher = record.concepts, read_record(folder / "teacher")
    assert concepts is not None
    results = {name: _results(folder / run, limit) for name, (run, _) in RUNS.items()}
    results[RANDOM_WEIGHTS] = _results(folder / "student" / "evaluation" / "random-weights", limit)
    words = {name: _last(folder / run, "heldout_cross_entropy") for name, (_, run) in RUNS.items()}
    kind = teacher.outside.model_type if teacher.outside else "DeBERTa"
    fitting = f"{read_json(step_file(folder, 'fit dictionary'))['seconds'] / 60:.1f} minutes"
    examples = f"at most {limit} examples of each file" if limit else "all examples"
    about = f"""The student has {record.model.depth} layers of width {record.model.width} and
    {record.model.vocab_size:,} pieces. Its teacher, of type {kind},
    has {teacher.model.depth} layers of width {teacher.model.width}; {concepts.k} concepts of its layer
    {concepts.layer}, lambda {concepts.lam:g}, were learnt once, in {fitting}
    on one core, which no row contains. All models start from the same random weights. Minutes are
    processor time of the updates, and those of the student contain the teacher's forward passes, the codes
    and the token head. Held-out words are masked and predicted; fine-tuning has
    {_num_seeds(results[STUDENT])} seeds and {examples}."""
    text = f"""# A strong teacher against masked LM

{textwrap.fill(" ".join(about.split()), 110)}

{circumstances(command)}
- {datetime.date.today()}; seed of all training: {record.train.seed}

{as_markdown(_pretraining_rows(folder, words))}
{as_markdown({name: _task_row(found) for name, found in results.items()})}
Mean ± standard deviation over the seeds of fine-tuning. CoLA: Matthews correlation; MRPC: F1; otherwise
accuracy.

## Verdict

{textwrap.fill(" ".join([words_verdict(words), tasks_verdict(results)]), 110)}
"""
    write_text(path, text)


def _pretraining_rows(
    folder: Path, words: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, Cell | str]]:
    rows: dict[str, dict[str, Cell | str]] = {}
    for name, (run, with_words) in RUNS.items():
        runs = dict.fromkeys([run, with_words])
        rows[name] = {
            "updates": " + ".join(f"{read_record(folder / part).train.num_steps:,}" for part in runs),
            "words read": f"{sum(_last(folder / part, 'words_seen')['words_seen'] for part in runs):,.0f}",
            "minutes": sum(processor_seconds(folder / part) for part in runs) / 60,
            "held-out cross-entropy": words[name]["heldout_cross_entropy"],
            "held-out accuracy": words[name]["heldout_token_accuracy"],
        }
    return rows


def _last(run: Path, name: str) -> Mapping[str, float]:
    """The last line that a run logged with a measure of this name. Raises ValueError if there is none."""
    line = next((line for line in reversed(read_metrics(run)) if name in line), None)
    if line is None:
        raise ValueError(
            f"{run} has no {name}: it is not finished, or the text is too small to hold words out"
        )
    return line


def _results(folder: Path, limit: int | None) -> Results:
    return read_results(folder / "evaluation" / f"limit-{limit}" if limit else folder)


def _num_seeds(results: Results) -> int:
    return max((len(result.seeds) for result in results.glue.values()), default=0)


def _task_row(results: Results) -> dict[str, Cell | str]:
    row: dict[str, Cell | str] = {GLUE[task].title: found.spread for task, found in results.glue.items()}
    averages = seed_averages(results)
    return row | ({"average": statistics.fmean(averages)} if averages else {})


def seed_averages(results: Results) -> list[float]:
    """The average over the tasks for each seed that finished all of them."""
    seeds = sorted({seed for result in results.glue.values() for seed in result.seeds})
    scores = [[result.seeds[seed].score for result in results.glue.values()] for seed in seeds]
    finished = [[score for score in row if score is not None] for row in scores]
    return [
        statistics.fmean(row)
        for row, all_ in zip(finished, scores, strict=True)
        if row and len(row) == len(all_)
    ]


def words_verdict(words: Mapping[str, Mapping[str, float]]) -> str:
    """Whether the student predicts held-out words better than masked LM of the same time."""
    gained = words[SAME_TIME]["heldout_cross_entropy"] - words[STUDENT]["heldout_cross_entropy"]
    if abs(gained) < LEAST_NATS:
        return f"**Held-out words: no difference** of at least {LEAST_NATS} nats for the same processor time."
    better = "the student is better" if gained > 0 else "masked LM is better"
    return f"**Held-out words: {better}**, by {abs(gained):.2f} nats a token for the same processor time."


def tasks_verdict(results: Mapping[str, Results]) -> str:
    """Whether fine-tuning tells the student from masked LM of the same time, and both from random weights."""
    taught, other, chance = (seed_averages(results[n]) for n in (STUDENT, SAME_TIME, RANDOM_WEIGHTS))
    if min(map(len, (taught, other, chance))) < 2:
        return "**Fine-tuning: not measured** with two seeds or more."
    if not (differs(taught, chance) or differs(other, chance)):
        return (
            "**Fine-tuning: cannot tell.** Neither model differs from random weights by more than "
            f"{ERRORS:g} standard errors, so runs of this length say nothing about it."
        )
    gained = statistics.fmean(taught) - statistics.fmean(other)
    if not differs(taught, other):
        return f"**Fine-tuning: no difference that we can see** for the same time ({gained:+.3f} on average)."
    better = "the student is better" if gained > 0 else "masked LM is better"
    return f"**Fine-tuning: {better}** for the same processor time, by {abs(gained):.3f} on average."


def differs(some: Sequence[float], others: Sequence[float]) -> bool:
    """Whether two means differ by more than `ERRORS` standard errors of their difference over seeds."""
    error = sum(statistics.variance(values) / len(values) for values in (some, others)) ** 0.5
    return abs(statistics.fmean(some) - statistics.fmean(others)) > ERRORS * error
