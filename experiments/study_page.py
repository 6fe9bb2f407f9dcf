"""The page of a study: tables as the paper's, curves, answers. Every number comes from the files of runs."""

from __future__ import annotations

import datetime
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path

from answers import answers
from findings import RANDOM_WEIGHTS, TITLES, Findings
from study import Commands, Student

from mlsm.coding.dictionary import Dictionary
from mlsm.evaluation.circumstances import circumstances
from mlsm.evaluation.tables import Cell, as_markdown
from mlsm.evaluation.tasks import GLUE
from mlsm.figures import new_figure, stroke_of
from mlsm.files import read_json, write_text
from mlsm.log import duration
from mlsm.pages.run_facts import compute_row

Row = dict[str, Cell | str]


def write(commands: Commands, path: Path) -> None:
    """Write the page, and its figure beside it."""
    findings, figure = Findings(commands), path.with_suffix(".png")
    draw(findings, figure)
    write_text(path, page(findings, figure.name))


def page(findings: Findings, figure: str) -> str:
    study, commands = findings.study, findings.commands
    steps = [read_json(file) for file in sorted((commands.folder / "steps").glob("*.json"))]
    tasks = ", ".join(GLUE[task].title for task in study.glue)
    seeds, files = ", ".join(map(str, study.seeds)), ", ".join(Path(name).stem for name in study.corpus)
    flags = f"--budget {study.budget} --preset {study.preset} --glue {','.join(study.glue)}"
    about = f"""A teacher of {study.num_updates:,} updates and {len(commands.students)} students of a tenth
    of them, preset `{study.preset}`, on {len(study.corpus)} files of text ({files}). {study.batch_size}
    sequences per update, learning rate {study.learning_rate:g}, 5% of the updates to warm up, 15% of the
    tokens masked or selected. BLiMP and its supplement: the first {study.pairs_a_file} pairs of each file;
    {tasks}: at most {study.examples_a_task:,} examples to train on, {study.max_epochs} epochs, seeds {seeds}.
    Commands took {duration(sum(step["seconds"] for step in steps))} together, some side by side."""
    return f"""# The paper in miniature

{textwrap.fill(" ".join(about.split()), 110)}

{circumstances(f"python experiments/miniature.py --corpus ... --data ... {flags}")}
- {datetime.date.today()}; seed of all training: {study.seed}

By sampling alone, a BLiMP average has a standard error of about {findings.blimp_error:.3f}. The row "seed 13"
of the variations shows how much a run depends on its seed.

## Answers

{answers(findings)}

## Fine-tuning (the paper's Tables 2 and 3)

{as_markdown(fine_tuning_rows(findings))}
Mean ± standard deviation over seeds of fine-tuning.

## Zero-shot, without and with the third phase (Table 4)

{as_markdown(zero_shot_rows(findings))}
Word accuracy and concept KL (in nats) are those of held-out text. The KL of a student is measured at the
positions of its objective. MLSM sees masks there and the others do not: compare within an objective only.

## Variations of LSM from random weights

{as_markdown(variation_rows(findings))}
"With words" is after the third phase. KL is against a student's own dictionary and codes. Compare it only
where those are the same.

![Curves]({figure})

## Compute (Table 1)

{as_markdown({name: compute_row(run) for name, run in findings.runs.items()})}
## Commands

```
{chr(10).join(f"{step['seconds']:7.0f} s  {_command_line(step['command'], study.corpus)}" for step in steps)}
```
"""


def _command_line(command: Sequence[str], corpus: Sequence[str]) -> str:
    """A command with only the names of its text files."""
    names = {path: Path(path).name for path in corpus}
    return shlex.join(["python", *(names.get(part, part) for part in command)])


def _title(student: Student) -> str:
    origin = "random weights" if student.init == "random" else "the teacher"
    return f"{TITLES[student.objective]} from {origin}"


def _main_runs(findings: Findings) -> dict[str, str]:
    """The rows of the paper's tables: title to name."""
    students = {_title(student): student.name for student in findings.commands.main_students}
    return {"MLM, the teacher": "teacher", RANDOM_WEIGHTS: RANDOM_WEIGHTS} | students


def _measured(cells: dict[str, Cell | None]) -> Row:
    return {column: cell for column, cell in cells.items() if cell is not None}


def fine_tuning_rows(findings: Findings) -> dict[str, Row]:
    rows = {}
    for title, name in _main_runs(findings).items():
        cells = {GLUE[task].title: findings.glue(name, task) for task in findings.study.glue}
        rows[title] = _measured({**cells, "average": findings.glue_average(name)})
    return rows


def zero_shot_rows(findings: Findings) -> dict[str, Row]:
    measures = {"BLiMP": "blimp", "supplement": "supplement", "word accuracy": "word accuracy"}
    rows = {}
    for title, name in _main_runs(findings).items():
        cells = {}
        for column, measure in measures.items():
            cells[column] = findings.value(name, measure)
            cells[f"{column}, with words"] = findings.value(f"{name}-words", measure)
        rows[title] = _measured({**cells, "concept KL": findings.value(name, "concept KL")})
    return rows


def variation_rows(findings: Findings) -> dict[str, Row]:
    measures = {"KL": "concept KL", "word accuracy, with words": "word accuracy"}
    measures |= {"BLiMP, with words": "blimp", "supplement, with words": "supplement"}
    rows = {}
    for student in findings.commands.students:
        if student.name != "lsm-random" and student in findings.commands.main_students:
            continue
        title = "as usual" if student.name == "lsm-random" else student.name.replace("-", " ")
        cells = {column: findings.value(f"{student.name}-words", name) for column, name in measures.items()}
        rows[title] = _coding_cells(findings, student.name) | _measured({**cells})
    return rows


def _coding_cells(findings: Findings, name: str) -> Row:
    """What the dictionary of a run explains, and what its codes cost."""
    if name not in findings.runs:
        return {}
    run = findings.runs[name]
    assert run.record.concepts is not None
    statistics = Dictionary.load(run.record.concepts.dictionary).statistics
    assert statistics is not None, "fit_dictionary.py measures every dictionary"
    cells: Row = {
        "non-zeros per code": statistics.mean_nonzeros,
        "energy explained": statistics.explained_share,
    }
    if lines := [line for line in run.training if "gap_max" in line]:
        seconds = sum(line["seconds"] for line in lines)
        coding = sum(line["seconds"] * line["coding_share"] for line in lines)
        cells["worst gap"] = f"{max(line['gap_max'] for line in lines):.1e}"
        cells |= {"time spent coding": f"{coding / seconds:.0%}", "training": duration(seconds)}
    return cells


def draw(findings: Findings, path: Path) -> None:
    """Draw what the six students learn, and the words learnt from their concepts, over updates."""
    strokes = {objective: stroke_of(number) for number, objective in enumerate(("lsm", "lsm15", "mlsm"))}
    with new_figure(path, 11, 3.4) as figure:
        left, right = figure.subplots(1, 2)
        for student in findings.commands.main_students:
            curves = ((left, student.name, "concept_kl"), (right, f"{student.name}-words", "token_accuracy"))
            for axes, name, key in curves:
                lines = findings.runs[name].training if name in findings.runs else []
                points = [(line["step"], line[key]) for line in lines if key in line]
                (curve,) = axes.plot(
                    *zip(*points, strict=True) if points else ([], []), label=_title(student)
                )
                curve.set_color(strokes[student.objective].color)
                curve.set_linestyle("-" if student.init == "random" else "--")
        left.set(xlabel="update of phase 2", ylabel="KL to the teacher's concepts, nats")
        right.set(xlabel="update of phase 3", ylabel="accuracy of masked words")
        figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", frameon=False)
