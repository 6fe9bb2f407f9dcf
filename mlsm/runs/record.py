"""config.json of a run as typed records: everything that made the run, checked when it is read."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from mlsm.config import PRESETS, DataConfig, ModelConfig, TrainConfig
from mlsm.files import read_json
from mlsm.model.deberta_v2 import Layout
from mlsm.runs.hub_names import RUN_FILE
from mlsm.settings import check_fields, from_json


@dataclass(frozen=True)
class _Record:
    """A record whose fields are checked against their types."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class CorpusRecord(_Record):
    """The text that a run was trained on: its content, and its size."""

    digest: str = ""  # of the content of the files; empty in records that lack it
    lines: int = 0
    words: int = 0
    tokens: int = 0
    training_sequences: int = 0
    heldout_sequences: int = 0


@dataclass(frozen=True)
class ConceptsRecord(_Record):
    """Where the concepts of a student come from; a token head has the concepts of its student."""

    objective: str  # of the student
    teacher: str  # directory
    teacher_fingerprint: str
    dictionary: str  # file
    dictionary_fingerprint: str
    layer: int
    k: int
    lam: float
    coder: str = "lasso"  # of mlsm.config.CODERS


@dataclass(frozen=True)
class SourceRecord(_Record):
    """The checkpoint that a converted run was made from."""

    directory: str
    weights: str  # SHA-256 of the file


@dataclass(frozen=True)
class WordsRecord(_Record):
    """Words that training sees, repeats counted."""

    own: int  # in all updates of the run
    before: dict[str, int] | None  # by each model and dictionary that the run stands on; None: not known

    def __post_init__(self) -> None:
        super().__post_init__()
        if min([self.own, *(self.before or {}).values()]) < 0:
            raise ValueError("words must not be below 0")


@dataclass(frozen=True)
class OutsideRecord(_Record):
    """The encoder of a converted run that the package transformers computes."""

    model_type: str  # as transformers names it
    transformers: str  # version that read the checkpoint


@dataclass(frozen=True)
class RunRecord:
    """config.json of a run."""

    preset: str
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    tokenizer: str  # fingerprint
    corpus: CorpusRecord | None = None  # None: converted from another checkpoint
    concepts: ConceptsRecord | None = None  # None: the objective has no teacher
    leak: str = ""  # how this run's held-out lines were trained on by the runs it stands on, if they were
    versions: dict[str, str] = dataclasses.field(default_factory=dict)  # of mlsm, torch and Python
    precision: str | None = None  # that training runs in: bf16, fp16 or off (float32)
    num_threads: int | None = None  # on a CPU, in each process
    layout: Layout | None = None  # of the encoder of a DeBERTa v2 or v3; None: DeBERTa v1
    source: SourceRecord | None = None  # None: trained here
    words: WordsRecord | None = None  # None: not counted, by an earlier version or another program
    outside: OutsideRecord | None = None  # None: the encoder is a DeBERTa

    def __post_init__(self) -> None:
        check_fields(self)
        if self.preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {self.preset!r}")

    def words_before(self) -> dict[str, int] | None:
        """The words that each model and dictionary has seen that the run stands on; None if not known."""
        if self.words:
            return self.words.before
        stands_on_nothing = self.source is None and self.concepts is None and self.train.init == "random"
        return {} if stands_on_nothing else None

    def words_in_all(self, own: int) -> str:
        """The words that the run, with `own` words, and all it stands on have seen, as tables show them."""
        before = self.words_before()
        return "unknown" if before is None else f"{own + sum(before.values()):,}"

    @property
    def is_encoder_alone(self) -> bool:
        """Whether the run has no heads: it can teach, and nothing else."""
        return self.layout is not None or self.outside is not None

    def heldout_note(self) -> str:
        """Why numbers on this run's held-out text may be too good; empty if they are not."""
        if self.source is None and not (self.corpus and self.corpus.digest):
            return "trained by an earlier version, which held out other lines of its text"
        return self.leak


def read_record(run: Path) -> RunRecord:
    """The record of a run, a checkpoint or an exported directory. Raises ValueError, naming file and field,
    if anything in it is missing, unknown or of another type than a run writes.
    """
    path = run / (RUN_FILE if (run / RUN_FILE).exists() else "config.json")
    if not path.exists():
        raise ValueError(f"no run at {run}: a run is a directory such as runs/lsm-random")
    values = read_json(path)
    try:
        return from_json(RunRecord, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def record_json(record: RunRecord) -> dict[str, object]:
    """The record as config.json holds it."""
    return dataclasses.asdict(record)
