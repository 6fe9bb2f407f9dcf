"""Measures the models of a run on the tasks of BabyLM 2026, and writes the files that the organisers' program
`collate_preds` reads.

The scores of each file of each model are stored, so that an interrupted evaluation continues with the next
file. All results come from the stored scores, so that another seed for equal scores needs no model.

    RUN/evaluation/babylm2026/scores/WEIGHTS/...                      scores of the model of these weights
    RUN/evaluation/babylm2026/results/NAME/REVISION/zero_shot/mlm/... predictions, in the organisers' layout
    RUN/evaluation/babylm2026/results.json                            accuracies

What is measured on the first items of each file only is in RUN/evaluation/babylm2026-limit-N.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from mlsm import distributed
from mlsm.evaluation.babylm import acquisition, reading
from mlsm.evaluation.babylm.choices import TaskResult, encode_file, judge, score_items
from mlsm.evaluation.babylm.formats import FAST, FULL, TASKS, TaskFile, read_task
from mlsm.evaluation.pseudo_likelihood import Score
from mlsm.files import file_digest, folder_within, read_json, write_json, write_text
from mlsm.log import progress, say
from mlsm.model.language_model import LanguageModel
from mlsm.runs.checkpoint import fingerprint
from mlsm.runs.hub_tokenizer import huggingface_tokenizer
from mlsm.runs.record import read_record
from mlsm.runs.revisions import MAIN, Revision
from mlsm.runs.run import load_run, load_tokenizer
from mlsm.settings import check_fields, from_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

TOKEN_BUDGET = 4096  # tokens of a batch
BACKEND = "mlm"  # the organisers' name for masked language models
Rows = list[list[float]]


class Data(NamedTuple):
    """The evaluation data that was found, checked."""

    is_fast: bool
    tasks: dict[str, list[TaskFile]]  # by the keys of TASKS
    words: list[reading.Word]  # with reading times; empty if the file is missing
    words_digest: str  # of the content of their file
    occurrences: list[acquisition.Occurrence]  # of children's words; empty if the file is missing
    occurrences_digest: str


def read_data(folder: Path, *, is_fast: bool, limit: int | None = None) -> Data:
    """The tasks in a folder of evaluation data; those that are missing are named on the screen. With a
    `limit`, only so many items of each file.

    Raises ValueError naming the file and the line of what cannot be used, and if no task is there.
    """
    root = folder / (FAST if is_fast else FULL)
    names = {name: task.fast if is_fast else task.full for name, task in TASKS.items()}
    folders = {name: root / folder for name, folder in names.items() if folder}
    times, contexts = root / "reading" / "reading_data.csv", root / "aoa" / "cdi_childes.json"
    wanted = [*folders.values(), times, *([] if is_fast else [contexts])]
    if missing := [path for path in wanted if not path.exists()]:
        if len(missing) == len(wanted):
            raise ValueError(
                f"{root} has no task of BabyLM 2026: --data names the folder of full_eval and fast_eval"
            )
        say(f"left out, because the files are missing: {', '.join(map(str, missing))}")
    has_times, has_contexts = times.exists(), contexts.exists() and not is_fast
    return Data(
        is_fast,
        {name: _cut(read_task(path, TASKS[name]), limit) for name, path in folders.items() if path.exists()},
        reading.read_words(times) if has_times and not limit else [],
        file_digest(times) if has_times else "",
        acquisition.read_occurrences(contexts) if has_contexts and not limit else [],
        file_digest(contexts) if has_contexts else "",
    )


def _cut(files: Sequence[TaskFile], limit: int | None) -> list[TaskFile]:
    """The files with the first items of each."""
    return [file._replace(items=dict(itertools.islice(file.items.items(), limit))) for file in files]


@dataclass(frozen=True)
class RevisionResult:
    """What was measured of one model."""

    words: int  # seen in training
    weights: str  # identifies the weights
    tasks: Mapping[str, TaskResult] = field(default_factory=dict)  # by the folder of their data
    reading: Mapping[str, float] = field(default_factory=dict)  # shares of variance explained
    glue: Mapping[str, float] = field(default_factory=dict)  # mean metric over seeds, by task

    def __post_init__(self) -> None:
        check_fields(self)


class Place(NamedTuple):
    """Where a run's results are written."""

    run: Path
    folder: Path

    @property
    def name(self) -> str:
        """The name of the model in the organisers' layout, which is cut at its last dot."""
        return Path(self.run.resolve().name).stem

    def predictions(self, revision: str, *parts: str) -> Path:
        """A file of predictions in the organisers' layout."""
        return self.folder.joinpath("results", self.name, revision, "zero_shot", BACKEND, *parts)


def place_of(run: Path, limit: int | None = None) -> Place:
    """The place of a run's results; those of a `limit` are apart. Raises ValueError if the folder is a link
    that leaves the run.
    """
    return Place(
        run, folder_within(run, "evaluation", f"babylm2026-limit-{limit}" if limit else "babylm2026")
    )


class Scorer:
    """The scores of a model of a run. Those that are stored need no model."""

    def __init__(
        self, place: Place, revision: Revision, tokenizer: FastTokenizer, device: torch.device
    ) -> None:
        self.revision, self.tokenizer, self.device = revision, tokenizer, device
        self.weights = fingerprint(revision.directory)
        self.folder = place.folder / "scores" / self.weights

    @functools.cached_property
    def model(self) -> LanguageModel:
        """The model, which is loaded at the first use."""
        return load_run(self.revision.directory, self.device).model

    def rows(self, name: str, digest: str, num_rows: int, compute: Callable[[], Rows]) -> Rows:
        """The rows that `compute` returns, or those that are stored for the same weights and data."""
        path = self.folder / f"{name}.json"
        origin = {"data": digest}
        stored = distributed.broadcast_from_zero(_stored(path, origin, num_rows))
        if stored is not None:
            return stored
        rows = compute()
        write_text(path, json.dumps({"origin": origin, "rows": rows}) + "\n")
        return rows

    def choices(self, dataset: str, file: TaskFile) -> list[list[Score]]:
        """The scores of the candidates of each item of a file."""

        def compute() -> Rows:
            items = encode_file(self.tokenizer, file, self.model.config.max_positions, dataset)
            num_tokens = sum(len(text.scored) for item in items for text in item)
            with progress(num_tokens, f"{self.revision.name}: {dataset}/{file.name}", unit="token") as bar:
                scores = score_items(self.model, items, TOKEN_BUDGET, bar)
            return [[number for score in item for number in score] for item in scores]

        rows = self.rows(f"{dataset}/{file.name}", file.digest, len(file.items), compute)
        return [[Score(t, int(n)) for t, n in zip(row[::2], row[1::2], strict=True)] for row in rows]

    def reading(self, data: Data) -> list[reading.Surprisal]:
        """The surprisal of each word that has reading times."""

        def compute() -> Rows:
            with progress(len(data.words), f"{self.revision.name}: reading", unit="token") as bar:
                found = reading.surprisals(self.model, self.tokenizer, data.words, TOKEN_BUDGET, bar)
            return [list(one) for one in found]

        rows = self.rows("reading", data.words_digest, len(data.words), compute)
        return [reading.Surprisal(*row) for row in rows]

    def acquisition(self, data: Data) -> list[float]:
        """The surprisal of each word of children in its contexts."""

        def compute() -> Rows:
            with progress(len(data.occurrences), f"{self.revision.name}: AoA", unit="token") as bar:
                found = acquisition.surprisals(
                    self.model, self.tokenizer, data.occurrences, TOKEN_BUDGET, bar
                )
            return [[value] for value in found]

        rows = self.rows("aoa", data.occurrences_digest, len(data.occurrences), compute)
        return [value for [value] in rows]


def _stored(path: Path, origin: Mapping[str, str], num_rows: int) -> Rows | None:
    """Stored rows with this origin; None if there are none or their file is damaged."""
    try:
        values = read_json(path)
        rows = values["rows"]
        is_whole = values["origin"] == origin and len(rows) == num_rows
        return [[float(number) for number in row] for row in rows] if is_whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def measure(
    place: Place, revisions: Sequence[Revision], data: Data, seed: int, device: torch.device
) -> dict[str, RevisionResult]:
    """Measure these models of a run, write their predictions, and return their results by revision. Each
    model's results are in results.json before the next one is measured.
    """
    tokenizer = huggingface_tokenizer(load_tokenizer(place.run, read_record(place.run)))
    results = {}
    for revision in revisions:
        scorer = Scorer(place, revision, tokenizer, device)
        results[revision.name] = _measure_one(place, scorer, data, seed)
        _store(place, revision.name, results[revision.name])
    return results


def _measure_one(place: Place, scorer: Scorer, data: Data, seed: int) -> RevisionResult:
    """Measure one model and write its predictions."""
    revision, tasks = scorer.revision, {}
    for name, files in data.tasks.items():
        task = TASKS[name]
        dataset = task.fast if data.is_fast and task.fast else task.full
        scores = {file.name: scorer.choices(dataset, file) for file in files}
        tasks[dataset], predictions = judge(task, files, scores, seed)
        path = place.predictions(revision.name, task.task, dataset, "predictions.json")
        write_text(path, json.dumps(predictions, ensure_ascii=False) + "\n")
    times: dict[str, float] = {}
    if data.words:
        found = scorer.reading(data)
        rows = [{"id": i, "pred": one.word, "prev_pred": one.before} for i, one in enumerate(found)]
        path = place.predictions(revision.name, "reading", "predictions.json")
        write_text(path, json.dumps({"reading": {"predictions": rows}}) + "\n")
        times = reading.explained(data.words, found)._asdict()
    return RevisionResult(revision.words, scorer.weights, tasks, times)


def write_surprisals(place: Place, revisions: Sequence[Revision], data: Data, device: torch.device) -> Path:
    """Write surprisal.json, with the surprisal of children's words at each of these models, and return it."""
    tokenizer = huggingface_tokenizer(load_tokenizer(place.run, read_record(place.run)))
    rows = [
        {
            "step": revision.name,
            "word_count": revision.words,
            "target_word": occurrence.word,
            "context_id": occurrence.number,
            "context": occurrence.context,
            "surprisal": value,
        }
        for revision in revisions
        for occurrence, value in zip(
            data.occurrences, Scorer(place, revision, tokenizer, device).acquisition(data), strict=True
        )
    ]
    facts = {
        "model_name": place.name,
        "use_bos_only": False,
        "total_steps": len(revisions),
        "completed_steps": len(revisions),
    }
    path = place.predictions(MAIN, "AoA_word", "surprisal.json")
    write_json(path, {"metadata": facts, "results": rows})
    return path


def store_glue(
    run: Path, weights: str, metrics: Mapping[str, float], predictions: Mapping[str, Sequence[int]]
) -> None:
    """Add GLUE metrics of the finished model by task to results.json, and write these predicted labels."""
    place = place_of(run)
    for task, labels in predictions.items():
        rows = [{"id": f"{task}_{i}", "pred": label} for i, label in enumerate(labels)]
        path = place.folder / "results" / place.name / MAIN / "finetune" / task / "predictions.json"
        write_text(path, json.dumps({task: {"predictions": rows}}) + "\n")
    old = read_results(place).get(MAIN)
    _store(place, MAIN, RevisionResult(old.words if old else 0, weights, glue=metrics))


def read_results(place: Place) -> dict[str, RevisionResult]:
    """The results of a run by revision; none if nothing was measured. Raises ValueError for another file."""
    path = place.folder / "results.json"
    if not path.exists():
        return {}
    try:
        return {name: from_json(RevisionResult, values) for name, values in read_json(path).items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no results of this program ({error!r}); remove it") from None


def _store(place: Place, name: str, new: RevisionResult) -> None:
    """Add a result to results.json; earlier ones of other weights are dropped."""
    results = read_results(place)
    if (old := results.get(name)) and old.weights == new.weights:
        new = RevisionResult(
            new.words,
            new.weights,
            {**old.tasks, **new.tasks},
            {**old.reading, **new.reading},
            {**old.glue, **new.glue},
        )
    results[name] = new
    write_json(place.folder / "results.json", {key: asdict(one) for key, one in results.items()})
