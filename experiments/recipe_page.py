"""The page of the searches for a recipe. Every number comes from the file that each search wrote."""

from __future__ import annotations

import datetime
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlsm.evaluation.circumstances import circumstances
from mlsm.evaluation.tables import Cell, as_markdown
from mlsm.files import read_json, write_text
from mlsm.settings import from_json

FILE = "search.json"
Row = dict[str, Cell | str]
Ingredients = dict[str, tuple[str, ...]]  # values by the name of an ingredient
MEASURES = {
    "teacher": {"heldout_cross_entropy": "held-out loss", "heldout_token_accuracy": "words found"},
    "student": {"heldout_concept_kl": "held-out KL", "heldout_top_concept_accuracy": "largest concept found"},
}  # the first decides, and less is better


@dataclass(frozen=True)
class Trial:
    """One training of a search."""

    recipe: dict[str, str]
    rung: int
    seed: int
    num_updates: int
    words: int
    processor_s: float
    values: dict[str, float]  # by the names of MEASURES
    blimp: float | None = None  # None: not scored

    def loss(self, phase: str) -> float:
        """The measure that decides; a loss that is not finite is the worst."""
        loss = self.values[next(iter(MEASURES[phase]))]
        return loss if math.isfinite(loss) else math.inf


@dataclass(frozen=True)
class Found:
    """The file of a search."""

    phase: str
    equal: str
    budget: float
    preset: str
    start: dict[str, str]
    trials: tuple[dict[str, object], ...]
    command: str

    def rungs(self) -> list[list[Trial]]:
        """The trials by rung, the best first."""
        trials = [from_json(Trial, trial) for trial in self.trials]
        rungs = {trial.rung: [t for t in trials if t.rung == trial.rung] for trial in trials}
        return [sorted(rungs[rung], key=lambda trial: trial.loss(self.phase)) for rung in sorted(rungs)]


def write(folder: Path, path: Path) -> None:
    """Write the page of all searches in a folder. Raises ValueError if there are none."""
    searches = [from_json(Found, read_json(file)) for file in sorted(folder.glob(f"*/{FILE}"))]
    if not searches:
        raise ValueError(f"no search in {folder}: run one first, without --report")
    searches.sort(key=lambda found: (found.phase, found.equal, found.budget))
    text = f"""# Recipes of training

One training takes the processor time that is named, or the words that the preset's recipe reads in it.
The preset's recipe and others were trained for a ninth of it, the best third for a third, and the best of
those for all of it, with three seeds. Each training had one thread. Loss and KL are nats per token. Compare
differences with those between seeds.

{circumstances("python experiments/recipe.py --report")}
- {datetime.date.today()}

{chr(10).join(section(found) for found in searches)}"""
    write_text(path, text)


def section(found: Found) -> str:
    """The part of the page about one search."""
    rungs = found.rungs()
    best, is_whole = rungs[-1][0], len({trial.seed for trial in rungs[-1]}) > 1
    title = f"{found.phase.capitalize()}, {found.budget:g} processor minutes, equal {found.equal}"
    if is_whole:
        best = min(rungs[-1], key=lambda trial: mean_loss(found, rungs[-1], trial.recipe))
    changes = ", ".join(f"{n} {v}" for n, v in best.recipe.items() if v != found.start[n])
    with_changes = f" with {changes}" if changes else ""
    unfinished = "" if is_whole else " This search has not come to its last rung."
    tables = [rung_table(found, trials) for trials in reversed(rungs)]
    start = ", ".join(f"{name} {value}" for name, value in found.start.items())
    return f"""## {title}

**The best recipe is the preset's{with_changes}.**{unfinished} The preset's recipe (`{found.preset}`, when
the search began) was {start}.

    {found.command}

### What one ingredient alone is worth

The preset's recipe with one change, trained for a ninth of the budget. Below zero is better.

{alone_table(found, rungs[0])}
### All trainings

{chr(10).join(tables)}"""


def mean_loss(found: Found, trials: Sequence[Trial], recipe: dict[str, str]) -> float:
    """The mean over the seeds of a recipe."""
    return statistics.mean(t.loss(found.phase) for t in trials if t.recipe == recipe)


def alone_table(found: Found, trials: Sequence[Trial]) -> str:
    """A row for each recipe that differs from the start in one ingredient, as differences to the start."""
    starts = [trial for trial in trials if trial.recipe == found.start]
    if not starts:
        return "The preset's recipe was not trained yet."
    [start], rows = starts, list[Row]()
    for trial in trials:
        changed = [name for name, value in trial.recipe.items() if value != found.start[name]]
        if len(changed) == 1:
            [name] = changed
            row: Row = {"ingredient": name, "instead of": found.start[name], "is": trial.recipe[name]}
            for measure, title in MEASURES[found.phase].items():
                row[f"{title}, difference"] = f"{trial.values[measure] - start.values[measure]:+.3f}"
            rows.append(row)
    return as_markdown(rows)


def rung_table(found: Found, trials: Sequence[Trial]) -> str:
    """A row for each training of a rung, the best first."""
    rows: list[Row] = []
    for trial in trials:
        row: Row = {**trial.recipe, "seed": trial.seed, "updates": f"{trial.num_updates:,}"}
        row |= {"words": f"{trial.words:,}", "processor minutes": f"{trial.processor_s / 60:.1f}"}
        row |= {title: f"{trial.values[name]:.3f}" for name, title in MEASURES[found.phase].items()}
        if trial.blimp is not None:
            row["BLiMP"] = f"{trial.blimp:.3f}"
        rows.append(row)
    return as_markdown(rows)
