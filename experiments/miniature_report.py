"""The page of a study in miniature: tables as the paper's, curves, and what they answer.

Every number comes from the files of the runs; verdicts follow the rules that the page states. What has not
been measured yet stays empty.
"""

from __future__ import annotations

import datetime
import math
import shlex
import statistics
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.result_page import circumstances
from mlsm.coding.dictionary import Dictionary
from mlsm.evaluation.glue import TASKS
from mlsm.evaluation.results import Results, read_results
from mlsm.evaluation.tables import Cell, Spread, as_markdown
from mlsm.files import read_json, write_text, write_whole
from mlsm.pages.run_facts import RunFacts, compute_row, duration, read_facts

if TYPE_CHECKING:
    from miniature import Plan

TITLES = {"mlsm": "MLSM", "lsm15": "LSM15", "lsm": "LSM"}
NUM_BLIMP_FILES = 67
CLOSE = 0.9  # of the way from random weights to the teacher
BEHIND = 0.8  # of the way that LSM has come
LEAST_ACCURACY = 0.02  # of masked words
Rows = dict[str, dict[str, Cell | str]]


class Findings:
    """What the directories of a study hold so far."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.study = plan, plan.study
        names = ["teacher", *(name for s in plan.students for name in (s.name, f"{s.name}-words"))]
        self.runs: dict[str, RunFacts] = {
            name: read_facts(plan.folder / name, name)
            for name in names
            if (plan.folder / name / "config.json").exists()
        }
        self.random = read_results(plan.teacher / "evaluation" / "random-weights")

    def results(self, name: str) -> Results:
        """The results of a run, or of random weights; empty if there are none."""
        if name == "random weights":
            return self.random
        return self.runs[name].results if name in self.runs else Results()

    def value(self, name: str, what: str) -> float | None:
        """A zero-shot average, a number of the demo, or None."""
        results = self.results(name)
        if what in ("blimp", "supplement"):
            return results.suites[what].average if what in results.suites else None
        return results.demo.get(what)

    def glue(self, name: str, task: str) -> Spread | None:
        result = self.results(name).glue.get(task)
        return result.spread if result and result.spread.num_seeds else None

    def glue_average(self, name: str) -> Spread | None:
        """The average over tasks of each seed, over seeds; None while a task or seed is missing."""
        averages = []
        for seed in self.study.seeds:
            results = [self.results(name).glue.get(task) for task in self.study.glue]
            found = [result.seeds.get(seed) if result else None for result in results]
            scores = [one.score for one in found if one and one.score is not None]
            if len(scores) < len(self.study.glue):
                return None
            averages.append(statistics.fmean(scores))
        deviation = statistics.stdev(averages) if len(averages) > 1 else 0.0
        return Spread(statistics.fmean(averages), deviation, len(averages))


def write(plan: Plan, path: Path) -> None:
    """The page, and its picture beside it."""
    found = Findings(plan)
    picture = path.with_suffix(".png")
    draw(found, picture)
    write_text(path, page(found, picture.name))


def page(found: Findings, picture: str) -> str:
    study, plan = found.study, found.plan
    num_students, tasks = len(plan.students), ", ".join(TASKS[task].title for task in study.glue)
    steps = [read_json(file) for file in sorted((plan.folder / "steps").glob("*.json"))]
    spent = sum(step["seconds"] for step in steps)
    seeds, names = ", ".join(map(str, study.seeds)), ", ".join(Path(name).stem for name in study.corpus)
    command = f"--budget {study.budget} --preset {study.preset} --glue {','.join(study.glue)}"
    about = f"""A teacher of {study.num_updates:,} updates and {num_students} students of a tenth of them,
    preset `{study.preset}`, on {len(study.corpus)} files of text ({names}). {study.batch_size} sequences per
    update, learning rate {study.learning_rate:g}, 5% of the updates to warm up, 15% of the tokens masked or
    selected. BLiMP and its supplement: the first {study.pairs_a_file} pairs of each file; {tasks}: at most
    {study.examples_a_task:,} examples to train on, {study.max_epochs} epochs, seeds {seeds}. Commands took
    {duration(spent)} together, some side by side."""
    return f"""# The paper in miniature

{textwrap.fill(" ".join(about.split()), 110)}

{circumstances(f"python experiments/miniature.py --corpus ... --data ... {command}")}
- {datetime.date.today()}; seed of all training: {study.seed}

What sampling alone does: a BLiMP average has a standard error of about {blimp_error(found):.3f}; how much
a run depends on its seed is shown by the row "seed 13" of the variations.

## Answers

{chr(10).join(answers(found))}

## Fine-tuning (the paper's Tables 2 and 3)

{as_markdown(fine_tuning_rows(found))}
Mean ± standard deviation over seeds of fine-tuning.

## Zero-shot, without and with the third phase (Table 4)

{as_markdown(zero_shot_rows(found))}
Word accuracy and concept KL (in nats): held-out text. A student's KL is at the positions of its objective;
MLSM sees masks there and the others do not, so that it compares within an objective only.

## Variations of LSM from random weights

{as_markdown(variation_rows(found))}
"with words": after the third phase. KL is against a student's own dictionary and codes, and compares only
where those are the same.

![Curves]({picture})

## Compute (Table 1)

{as_markdown({name: dict(compute_row(run)) for name, run in found.runs.items()})}
## Commands

{commands(steps, study.corpus)}
"""


def commands(steps: Sequence[Mapping[str, Any]], corpus: Sequence[str]) -> str:
    """Every command that has ended, and the seconds that it took; of the text only the names of its files."""
    names = {path: Path(path).name for path in corpus}
    lines = [
        f"{step['seconds']:7.0f} s  python {shlex.join(names.get(part, part) for part in step['command'])}"
        for step in steps
    ]
    return "```\n" + "\n".join(lines) + "\n```"


def _named(found: Findings) -> dict[str, str]:
    """Rows of the paper's tables: title to run."""
    rows = {"MLM, the teacher": "teacher", "random weights": "random weights"}
    for student in found.plan.of_the_paper:
        rows[f"{TITLES[student.objective]} from {_origin(student.init)}"] = student.name
    return rows


def _origin(init: str) -> str:
    return "random weights" if init == "random" else "the teacher"


def fine_tuning_rows(found: Findings) -> Rows:
    rows: Rows = {}
    for title, name in _named(found).items():
        cells = {TASKS[task].title: found.glue(name, task) for task in found.study.glue}
        cells["average"] = found.glue_average(name)
        rows[title] = {column: cell for column, cell in cells.items() if cell is not None}
    return rows


def zero_shot_rows(found: Findings) -> Rows:
    rows: Rows = {}
    for title, name in _named(found).items():
        cells: dict[str, Cell | None] = {}
        for suite, short in (("blimp", "BLiMP"), ("supplement", "supplement")):
            cells[short] = found.value(name, suite)
            cells[f"{short}, with words"] = found.value(f"{name}-words", suite)
        cells["word accuracy"] = found.value(name, "word accuracy")
        cells["word accuracy, with words"] = found.value(f"{name}-words", "word accuracy")
        cells["concept KL"] = found.value(name, "concept KL")
        rows[title] = {column: cell for column, cell in cells.items() if cell is not None}
    return rows


def variation_rows(found: Findings) -> Rows:
    rows: Rows = {}
    for student in found.plan.students:
        if student.name != "lsm-random" and student in found.plan.of_the_paper:
            continue
        title = "as usual" if student.name == "lsm-random" else student.name.replace("-", " ")
        rows[title] = _dictionary_cells(found, student.name) | _coding_cells(found, student.name)
        measured = {
            "KL": found.value(f"{student.name}-words", "concept KL"),
            "word accuracy, with words": found.value(f"{student.name}-words", "word accuracy"),
            "BLiMP, with words": found.value(f"{student.name}-words", "blimp"),
            "supplement, with words": found.value(f"{student.name}-words", "supplement"),
        }
        rows[title] |= {column: cell for column, cell in measured.items() if cell is not None}
    return rows


def _dictionary_cells(found: Findings, name: str) -> dict[str, Cell | str]:
    if name not in found.runs:
        return {}
    concepts = found.runs[name].record.concepts
    assert concepts is not None
    dictionary = Dictionary.load(concepts.dictionary)
    statistics_ = dictionary.statistics
    assert statistics_ is not None, "fit_dictionary.py measures every dictionary"
    return {"non-zeros per code": statistics_.mean_nonzeros, "energy explained": statistics_.explained_share}


def _coding_cells(found: Findings, name: str) -> dict[str, Cell | str]:
    lines = [line for line in found.runs[name].training if "gap_max" in line] if name in found.runs else []
    if not lines:
        return {}
    seconds = sum(line["seconds"] for line in lines)
    coding = sum(line["seconds"] * line["coding_share"] for line in lines)
    worst = max(line["gap_max"] for line in lines)
    return {
        "worst gap": f"{worst:.1e}",
        "time spent coding": f"{coding / seconds:.0%}",
        "training": duration(seconds),
    }


def answers(found: Findings) -> list[str]:
    """The five questions, each with numbers and a verdict."""
    return [
        textwrap.fill(f"{number}. **{question}** {answer(found)}", 110, subsequent_indent="   ")
        for number, (question, answer) in enumerate(QUESTIONS.items(), start=1)
    ]


class Measure(NamedTuple):
    """What students are compared by."""

    title: str
    of: Callable[[str], float | None]  # a run
    least: float  # by which a teacher has to exceed random weights for the measure to tell anything
    key: str = ""  # of Findings.value; none for what the token head takes no part in


def measures(found: Findings) -> list[Measure]:
    """Fine-tuning, BLiMP and masked words; the last two with words, where a run has them."""

    def deviation(name: str) -> float:
        spread = found.glue_average(name)
        return spread.deviation if spread else 0.0

    return [
        Measure(
            "fine-tuning average",
            lambda name: _mean(found.glue_average(name)),
            2 * math.hypot(deviation("teacher"), deviation("random weights")),
        ),
        Measure(
            "BLiMP", lambda name: found.value(_with_words(name), "blimp"), 4 * blimp_error(found), "blimp"
        ),
        Measure(
            "accuracy of masked words", lambda name: _words(found, name), LEAST_ACCURACY, "word accuracy"
        ),
    ]


def blimp_error(found: Findings) -> float:
    """Standard error of an average over BLiMP's files, by sampling alone."""
    return math.sqrt(0.25 / (NUM_BLIMP_FILES * found.study.pairs_a_file))


def _words(found: Findings, name: str) -> float | None:
    return 0.0 if name == "random weights" else found.value(_with_words(name), "word accuracy")


def _with_words(name: str) -> str:
    return name if name in ("teacher", "random weights") else f"{name}-words"


def _mean(spread: Spread | None) -> float | None:
    return spread.mean if spread else None


def _verdict(holds: Sequence[bool]) -> str:
    return "yes" if all(holds) else "in part" if any(holds) else "no"


def _sentences(said: Sequence[str]) -> str:
    return " ".join(f"{text[0].upper()}{text[1:]}." for text in said)


def _telling(among: Sequence[Measure], said: list[str]) -> Iterator[tuple[Measure, float, float]]:
    """Measures in which the teacher stands clear of random weights, with the values of these and of the
    teacher; of the others `said` gets the reason why they tell nothing.
    """
    for measure in among:
        floor, goal = measure.of("random weights"), measure.of("teacher")
        if floor is None or goal is None:
            continue
        if goal - floor > measure.least:
            yield measure, floor, goal
        else:
            values = f"the teacher has {goal:.3f} and random weights {floor:.3f}"
            said.append(f"{measure.title}: **cannot tell**, {values}")


def close_to_the_teacher(found: Findings) -> str:
    """Table 3: students from random weights, between random weights and the teacher."""
    said: list[str] = []
    for measure, floor, goal in _telling(measures(found), said):
        values = {objective: measure.of(f"{objective}-random") for objective in TITLES}
        if (lsm := values["lsm"]) is None or (mlsm := values["mlsm"]) is None:
            continue
        ways = {TITLES[o]: (v - floor) / (goal - floor) for o, v in values.items() if v is not None}
        verdict = _verdict([lsm - floor >= CLOSE * (goal - floor), mlsm - floor < BEHIND * (lsm - floor)])
        told = ", ".join(f"{name} {way:.0%}" for name, way in ways.items())
        said.append(f"{measure.title}: {told}: **{verdict}**")
    if not said:
        return "Not measured yet."
    return (
        f"Of the way from random weights to the teacher, close is {CLOSE:.0%}, and behind less than "
        f"{BEHIND:.0%} of LSM's. {_sentences(said)}"
    )


def words_restored(found: Findings) -> str:
    """Table 4: students from the teacher, after the third phase."""
    said: list[str] = []
    for measure, floor, goal in _telling([m for m in measures(found) if m.key], said):
        told, is_there, was_there = [], [], []
        for objective, name in TITLES.items():
            before = found.value(f"{objective}-teacher", measure.key)
            if before is None or (after := measure.of(f"{objective}-teacher")) is None:
                continue
            told.append(f"{name} {before:.3f} to {after:.3f}")
            is_there.append(after - floor >= CLOSE * (goal - floor))
            was_there.append(before - floor >= CLOSE * (goal - floor))
        if told:
            said.append(
                f"{measure.title}: the teacher {goal:.3f}, students from it, without and with the head, "
                f"{', '.join(told)}: **{_verdict(is_there)}**; "
                f"{sum(was_there)} of {len(told)} already without it"
            )
    if not said:
        return "Not measured yet."
    return (
        f"Restored is at least {CLOSE:.0%} of the way from random weights to the teacher. {_sentences(said)}"
    )


def what_matters(found: Findings) -> str:
    """Three values each of k, lambda and the layer."""
    groups = {"k": "k-", "lambda": "lam-", "layer": "layer-"}
    return _compared(
        found, {title: [n for n in _names(found) if n.startswith(p)] for title, p in groups.items()}
    )


def cheaper_codes(found: Findings) -> str:
    return _compared(found, {"tolerance 0.01": ["tol-0.01"], "25 FISTA steps": ["fista-25"]})


def half_the_width(found: Findings) -> str:
    return _compared(found, {"half the width": ["half-width"]})


def _names(found: Findings) -> list[str]:
    return [student.name for student in found.plan.students]


def _compared(found: Findings, groups: Mapping[str, Sequence[str]]) -> str:
    """Differences to the usual student, and whether they exceed that of another seed and sampling."""

    def both(name: str) -> tuple[float, float] | None:
        accuracy = found.value(f"{name}-words", "word accuracy")
        blimp = found.value(f"{name}-words", "blimp")
        return None if accuracy is None or blimp is None else (accuracy, blimp)

    usual, other = both("lsm-random"), both("seed-13")
    if usual is None or other is None:
        return "Not measured yet."
    sampling = (0.005, math.sqrt(2) * blimp_error(found))
    noise = [2 * max(abs(a - b), least) for a, b, least in zip(usual, other, sampling, strict=True)]
    said = []
    for title, names in groups.items():
        told, matters = [], False
        for name in names:
            if (values := both(name)) is None:
                continue
            changes = [value - base for value, base in zip(values, usual, strict=True)]
            matters |= any(abs(change) > least for change, least in zip(changes, noise, strict=True))
            told.append(f"{name.replace('-', ' ')} {changes[0]:+.3f} and {changes[1]:+.3f}")
        if told:
            seen = "a difference" if matters else "no difference that we can see"
            said.append(f"{'; '.join(told)}: **{title}, {seen}**")
    return (
        f"Against the usual student (word accuracy {usual[0]:.3f}, BLiMP {usual[1]:.3f}, with words), and "
        f"counting as a difference what exceeds {noise[0]:.3f} and {noise[1]:.3f} (twice the change of "
        f"another seed, or of sampling): "
        + ". ".join(said or ["nothing measured yet"]) + "."
    )  # fmt: skip


QUESTIONS = {
    "Does LSM from random weights come close to its teacher in a tenth of the updates, and MLSM not?": (
        close_to_the_teacher
    ),
    "Does the token head restore BLiMP?": words_restored,
    "Do k, lambda and the layer matter?": what_matters,
    "Would cheaper codes do?": cheaper_codes,
    "Can a student have half its teacher's width?": half_the_width,
}


def draw(found: Findings, path: Path) -> None:
    """Training curves of the six students: what they learn, and the words from their concepts."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = {"mlsm": ":", "lsm15": "--", "lsm": "-"}
    for student in found.plan.of_the_paper:
        colour = "0.0" if student.init == "random" else "0.55"
        label = f"{TITLES[student.objective]} from {_origin(student.init)}"
        for axes, name, key in (
            (left, student.name, "concept_kl"),
            (right, f"{student.name}-words", "token_accuracy"),
        ):
            lines = [line for line in found.runs[name].training if key in line] if name in found.runs else []
            axes.plot(
                [line["step"] for line in lines],
                [line[key] for line in lines],
                styles[student.objective],
                color=colour,
                label=label,
                linewidth=1.2,
            )
    left.set(xlabel="update of phase 2", ylabel="KL to the teacher's concepts, nats")
    right.set(xlabel="update of phase 3", ylabel="accuracy of masked words")
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    write_whole(path, lambda p: figure.savefig(p, format="png", dpi=120))
