"""The results of an entry as tables and as curves over the words seen, beside the organisers' baselines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mlsm.evaluation.babylm.entry import RevisionResult
from mlsm.evaluation.babylm.formats import TASKS
from mlsm.evaluation.tables import Cell, as_markdown
from mlsm.evaluation.tasks import GLUE
from mlsm.figures import new_figure
from mlsm.files import write_text
from mlsm.runs.checkpoint import shortened
from mlsm.runs.revisions import MAIN

Table = dict[str, dict[str, Cell]]

READING = {"eye_tracking": "reading, eye tracking", "self_paced": "reading, self-paced"}
SOURCE = "README.md of babylm-org/babylm-eval, July 2026 (commit 3d57ddc)"
# What the organisers print for their baselines, as shares: accuracies, and F1 of MRPC and QQP. They print no
# others of these tasks.
BASELINES = {
    "GPT-2, strict-small": {
        "BLiMP": 0.6508, "supplement": 0.5725, "COMPS": 0.5181, "entity tracking": 0.2107,
        "BoolQ": 0.6587, "MNLI": 0.4980, "MRPC": 0.8349, "MultiRC": 0.6452, "QQP": 0.6086, "RTE": 0.6043,
    },
    "GPT-2, strict": {
        "BLiMP": 0.7453, "supplement": 0.65, "COMPS": 0.5585, "entity tracking": 0.2358,
        "BoolQ": 0.6746, "MNLI": 0.5994, "MRPC": 0.8435, "MultiRC": 0.6390, "QQP": 0.7073, "RTE": 0.5683,
    },
}  # fmt: skip


def full_table(results: Mapping[str, RevisionResult]) -> Table:
    """Finished models on the full tasks: with equal scores drawn between, and with equal scores wrong. Models
    that were not measured on a full task are left out.
    """
    table: Table = {}
    for name, result in results.items():
        found = {task.title: result.tasks[task.full] for task in TASKS.values() if task.full in result.tasks}
        drawn: dict[str, Cell] = {title: one.average for title, one in found.items()}
        wrong: dict[str, Cell] = {title: one.average_without_ties for title, one in found.items()}
        times = {READING[key]: value for key, value in result.reading.items()}
        metrics = {GLUE[task].title: value for task, value in result.glue.items()}
        if drawn or metrics:
            table[name] = {**drawn, **times, **metrics}
        if drawn:
            table[f"{name}, ties wrong"] = wrong
    return table


def baselines(table: Table) -> Table:
    """The organisers' baselines on the tasks of a table; none for an empty table."""
    titles = {title for row in table.values() for title in row}
    rows: Table = {
        f"{model} *": {title: share for title, share in shares.items() if title in titles}
        for model, shares in BASELINES.items()
    }
    return {name: row for name, row in rows.items() if row}


def full_section(results: Mapping[str, RevisionResult]) -> str:
    """Finished models beside the baselines, in Markdown; empty if none was measured on a full task."""
    if not (table := full_table(results)):
        return ""
    return f"{as_markdown(table | baselines(table))}\n* quoted: {SOURCE}\n"


def fast_table(results: Mapping[str, RevisionResult]) -> Table:
    """Every model on the fast tasks, by words seen; those that were not measured are left out."""
    rows: Table = {}
    for name, result in sorted(results.items(), key=lambda pair: (pair[1].words, pair[0])):
        cells: dict[str, Cell] = {
            task.title: result.tasks[task.fast].average
            for task in TASKS.values()
            if task.fast and task.fast in result.tasks
        }
        # GlobalPIQA has one folder for both kinds, so it does not show that fast tasks were measured.
        if any(task.fast in result.tasks for task in TASKS.values() if task.fast != task.full):
            rows[name] = cells | {READING[key]: value for key, value in result.reading.items()}
    return rows


def draw_curves(path: Path, results: Mapping[str, RevisionResult]) -> None:
    """A curve of each fast task over the words seen, which are on a logarithmic scale."""
    table = fast_table(results)
    titles = list(dict.fromkeys(title for row in table.values() for title in row))
    seen = sorted({results[name].words for name in table})
    first = next((words for words in seen if words), 1)
    powers = [first * 10**i for i in range(len(str(seen[-1] // first)))]
    with new_figure(path, 11, 4.6) as figure:
        accuracies, times = figure.subplots(1, 2)
        for number, title in enumerate(titles):
            axes = times if title in READING.values() else accuracies
            points = [(results[name].words, row[title]) for name, row in table.items() if title in row]
            style = ("-", "--", ":", "-.")[number % 4]
            grey = str(0.6 * (number // 4))
            axes.plot(*zip(*points, strict=True), style, marker=".", color=grey, label=title)
        accuracies.set(ylabel="accuracy", title="Choices", ylim=(0, 1))
        times.set(ylabel="share of variance explained", title="Reading times")
        for axes in (accuracies, times):
            axes.set_xscale("symlog", linthresh=first)  # linear from the untrained model to the first one
            axes.set_xticks([0, *powers], ["0", *map(shortened, powers)])
            axes.minorticks_off()
            axes.set(xlabel="words seen", xlim=(-0.1 * first, 1.2 * max(first, seen[-1])))
            if axes.lines:
                axes.legend(frameon=False, fontsize="small")


def write_report(folder: Path, results: Mapping[str, RevisionResult]) -> list[Path]:
    """Write results.md, and curves.png if several models were measured on the fast tasks; returns them."""
    sections, written = [], [folder / "results.md"]
    if section := full_section({name: one for name, one in results.items() if name == MAIN}):
        sections.append(f"## The finished model\n\n{section}")
    if table := fast_table(results):
        sections.append(f"## Fast tasks by words seen\n\n{as_markdown(table)}")
        if len(table) > 1:
            draw_curves(folder / "curves.png", results)
            sections.append("![accuracies by words seen](curves.png)\n")
            written.append(folder / "curves.png")
    write_text(written[0], "# BabyLM 2026\n\n" + "\n".join(sections))
    return written
