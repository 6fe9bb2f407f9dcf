"""The page of a study: for each question its answer, a picture and a table, and then how it was done. Every
number comes from the files of the runs.
"""

from __future__ import annotations

import datetime
import shlex
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path

from steps import step_file
from study_design import (
    BAR_ERRORS,
    BEHIND,
    CLOSE,
    EFFECT,
    EPOCHS,
    ERRORS,
    HELDOUT_SHARE,
    MEASURES,
    RANDOM,
    SEEDS,
    STARTS,
    Claim,
    Question,
)
from study_findings import Findings, spread
from study_jobs import Job, Jobs
from study_verdicts import UNFINISHED, Verdict, estimate

from mlsm.evaluation.circumstances import circumstances
from mlsm.evaluation.tables import Cell, as_markdown
from mlsm.evaluation.tasks import GLUE
from mlsm.figures import COLORS, new_figure
from mlsm.files import read_json, write_text
from mlsm.log import duration

Row = dict[str, Cell | str]
RULES = f"""Every verdict follows a rule that was fixed before the first run, in
`experiments/study_design.py`. The bar of a measure is the distance from random weights to the teacher;
for held-out words, it begins at a model that knows their frequency alone. Close is {CLOSE:.0%} of the
bar, behind is less than {BEHIND:.0%} of another model's way along it, and a difference between two
models counts from {EFFECT:.0%} of the bar. Yes and no are at least {ERRORS:g} standard errors over seeds
away from the threshold; else we cannot tell. Nor can we where the bar is not {BAR_ERRORS:g} standard
errors wide. A standard error counts as at least that of sampling the examples. Two models are compared
with the same seeds. Beside a verdict stands a share of the bar with its standard error: the way along
the bar, or what a model is ahead of the other."""
WITH_TARGETS = (3, 4)  # questions whose tables say what students learnt from
WITH_ALL = 6  # the question that compares all that a model stands on


def write(jobs: Jobs, every: Sequence[Job], path: Path) -> None:
    """Write the page of a study, and a figure of each question beside it."""
    findings = Findings(jobs)
    sections = []
    for number, question in jobs.questions.items():
        figure = path.with_name(f"{path.stem}-{number}.png")
        draw(findings, question, figure)
        sections.append(section(findings, number, question, figure.name))
    write_text(path, page(findings, every, sections))


def page(findings: Findings, every: Sequence[Job], sections: Sequence[str]) -> str:
    """The text of the page."""
    study, folder = findings.study, findings.jobs.folder
    done = [job for job in every if step_file(folder, job.name).exists()]
    steps = [read_json(step_file(folder, job.name)) for job in done]
    left = [job.name for job in every if job not in done]
    unfinished = ""
    if left:
        text = f"**Unfinished**: {len(left)} of {len(every)} commands are left, the next ones are"
        unfinished = _filled(f"{text} {', '.join(left[:8])}.") + "\n\n"
    taken = duration(sum(step["seconds"] for step in steps))
    shown = [pair for pair in zip(done, steps, strict=True) if _is_shown(pair[0])]
    commands = [_command_line(findings, step) for _, step in shown]
    strong = f" The strong teacher is {Path(study.strong_teacher).name}." if study.strong_teacher else ""
    files = ", ".join(Path(file).stem for file in study.corpus)
    tasks = ", ".join(GLUE[task].title for task in study.tasks)
    flags = f"--budget {study.budget:g} --preset {study.preset}"
    flags += f" --questions {','.join(map(str, study.questions))} --tasks {','.join(study.tasks)}"
    flags += " --strong-teacher ..." if study.strong_teacher else ""
    about = f"""Teachers make N = {study.num_updates:,} updates, and students, token heads and controls a
    tenth of them, with the recipes of the preset `{study.preset}`, on the text of {files}. Every model is
    trained with the seeds {", ".join(map(str, SEEDS))}. A seed has its own teacher, dictionaries, students
    and token heads; the text that is held out ({HELDOUT_SHARE:.1%}) and the examples are the same. BLiMP:
    {study.pairs} pairs of each of 67 files. Fine-tuning: {tasks}, at most {study.examples} examples of each
    file, {EPOCHS} epochs, one seed for each model, average of the tasks.{strong}"""
    return f"""# The paper's claims, with small models

{unfinished}{_filled(RULES)}

{chr(10).join(sections)}
## Method

{_filled(about)}

In the tables: mean ± standard deviation (number of seeds). Held-out loss is in nats a masked token. Words and
minutes are those of a model with its dictionary and token head; "in all" adds the models that it stands on.
Minutes are processor time of the updates (on a GPU, wall time), and the wall time of fitting a dictionary.

{circumstances(f"python experiments/study.py --corpus ... --data ... {flags}")}
- {datetime.date.today()}; the commands took {taken} together, some side by side

## Commands

Those of the first seed, and all that measure. Other seeds differ in their number.

```
{chr(10).join(commands)}
```
"""


def _filled(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 110)


def _item(sentence: str) -> str:
    return textwrap.fill(f"- {sentence}", 110, subsequent_indent="  ")


def _is_shown(job: Job) -> bool:
    return not any(f"-{seed}" in job.name for seed in SEEDS[1:])


def _command_line(findings: Findings, step: dict[str, object]) -> str:
    """A command with its wall time, and with only the names of text files and runs."""
    study, seconds, command = findings.study, step["seconds"], step["command"]
    assert isinstance(command, list)
    names = {path: Path(path).name for path in study.corpus} | {study.data: "evaluation_data"}
    words = [names.get(part, part.replace(f"{findings.jobs.folder}/", "")) for part in command]
    return f"{seconds:7.0f} s  {shlex.join(['python', *words])}"


def section(findings: Findings, number: int, question: Question, figure: str) -> str:
    """The part of the page about one question."""
    verdicts = {
        claim: {measure: findings.verdict(claim, measure) for measure in claim.measures or question.measures}
        for claim in question.claims
    }
    answers = "\n".join(_item(sentence(claim, found)) for claim, found in verdicts.items())
    judged: dict[str, Row] = {
        claim.text: {MEASURES[measure].title: shown(verdict) for measure, verdict in found.items()}
        for claim, found in verdicts.items()
    }
    judged["the bar"] = {
        MEASURES[measure].title: f"{verdict.bar.mean:.3f} ±{verdict.bar.error:.3f}"
        for claim, found in verdicts.items()
        for measure, verdict in found.items()
        if verdict.bar and claim.bar[0] == RANDOM
    }
    why = entropy_note(findings, question) if number == 4 else ""
    return f"""## {number}. {question.title}

{answers}

![Means with standard errors over seeds]({figure})

{as_markdown(judged)}
{as_markdown(rows(findings, number, question))}{why}"""


def sentence(claim: Claim, verdicts: dict[str, Verdict]) -> str:
    """What the measures answer, those that agree together."""
    by_answer: dict[str, list[str]] = {}
    for measure, verdict in verdicts.items():
        by_answer.setdefault(verdict.answer, []).append(MEASURES[measure].title)
    told = "; ".join(f"**{answer}** ({', '.join(titles)})" for answer, titles in by_answer.items())
    return f"{claim.text}: {told}."


def shown(verdict: Verdict) -> str:
    """A verdict as a cell, with the share of the bar if that is wide enough to divide by."""
    if verdict.share:
        seeds = f" ({verdict.share.num_seeds} of {len(SEEDS)} seeds)" if verdict.answer == UNFINISHED else ""
        error = f" ±{verdict.share.error:.0%}" if verdict.share.num_seeds > 1 else ""
        return f"{verdict.answer}{seeds}: {verdict.share.mean:.0%}{error}"
    return f"{verdict.answer}: narrow bar" if verdict.bar else verdict.answer


def title_of(findings: Findings, name: str) -> str:
    """The title of a row."""
    if name in STARTS:
        return "random weights; words by frequency" + ("" if name == RANDOM else ", strong teacher's pieces")
    return findings.jobs.models[name].title


def rows(findings: Findings, number: int, question: Question) -> dict[str, Row]:
    """The table of a question."""
    table = {}
    for name in question.rows:
        row: Row = {}
        for measure in question.measures:
            if found := spread(findings.values(measure, name)):
                row[MEASURES[measure].title] = found
        if "blimp" in question.measures and (found := spread(findings.values("supplement", name))):
            row["BLiMP supplement"] = found
        spent = findings.spent(name)
        row |= {
            column: value for column, value in spent.items() if number == WITH_ALL or "in all" not in column
        }
        if number in WITH_TARGETS:
            row |= findings.targets(name)
        table[title_of(findings, name)] = row
    return table


def entropy_note(findings: Findings, question: Question) -> str:
    """Whether students of softer targets find more words: a correlation over the rows."""
    pairs = []
    for name in question.rows:
        entropy, accuracy = findings.targets(name).get("entropy, nats"), findings.values("accuracy", name)
        if isinstance(entropy, float) and accuracy:
            pairs.append((entropy, statistics.fmean(accuracy)))
    if len(pairs) < 3 or len({entropy for entropy, _ in pairs}) == 1:
        return ""
    correlation = statistics.correlation(*map(list, zip(*pairs, strict=True)))
    return (
        f"\nOver these {len(pairs)} students, entropy of the targets and word accuracy have a correlation "
        f"of {correlation:+.2f}.\n"
    )


def draw(findings: Findings, question: Question, path: Path) -> None:
    """Draw every measure of a question: each seed as a dot, and means with standard errors over seeds. A line
    is at the teacher, another at random weights.
    """
    names = list(question.rows)
    with new_figure(path, 2.6 * len(question.measures) + 3, 0.3 * len(names) + 1) as figure:
        panels = figure.subplots(1, len(question.measures), sharey=True, squeeze=False)[0]
        for axes, measure in zip(panels, question.measures, strict=True):
            for place, name in enumerate(names):
                values = findings.values(measure, name)
                if not values:
                    continue
                if name in (RANDOM, "teacher"):
                    axes.axvline(statistics.fmean(values), color=COLORS[-1], linewidth=0.8, linestyle="--")
                axes.plot(values, [place] * len(values), ".", color=COLORS[5], markersize=4)
                mean = estimate(values, findings.least_error(measure))
                error = mean.error if mean.num_seeds > 1 else 0.0
                axes.errorbar(mean.mean, place, xerr=error, fmt="o", color=COLORS[0], markersize=4, capsize=3)
            axes.set(xlabel=MEASURES[measure].title)
            if MEASURES[measure].sign < 0:
                axes.invert_xaxis()  # better is to the right everywhere
        panels[0].set_yticks(range(len(names)), [title_of(findings, name) for name in names])
        panels[0].invert_yaxis()
