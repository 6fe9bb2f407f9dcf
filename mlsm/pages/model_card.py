"""The model card of a run: what it is, how it was made, what it scored, how to use it.

Everything comes from the files of the run and of the runs that it was made from. What is not there (an
ancestor that was removed, results that were never measured) is left out; paths are cut to their last part.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlsm.config import EMBEDDED_CORPUS
from mlsm.evaluation import summary
from mlsm.files import read_json
from mlsm.log import read_metrics
from mlsm.runs.checkpoint import MODEL_FILE, STATE_FILE, fingerprint
from mlsm.runs.record import RunRecord, read_record
from mlsm.runs.run import Run
from mlsm.training.objectives import find_objective


def model_card(run: Run) -> str:
    """README.md of an exported run, in Markdown with the header of the Hugging Face hub."""
    sections = [
        _header(run),
        f"# {full_name(run.directory)}",
        _summary(run),
        "## How it was trained",
        _table(["", "objective", "learns", "start", "updates", "words seen", "seed"], _phases(run.directory)),
    ]
    if run.record.source is None:
        sections.append(_text(run.record))
    if origin := run.record.concepts:
        sections.append(
            f"Concepts: {origin.k} atoms of a dictionary learnt from the unit-norm hidden states of layer "
            f"{origin.layer} of the teacher `{Path(origin.teacher).name}` (fingerprint "
            f"{origin.teacher_fingerprint}), lambda {origin.lam:g}, dictionary fingerprint "
            f"{origin.dictionary_fingerprint}. Targets are the sparse codes of Eq. 2 of the paper, "
            "divided by their L1 norm."
        )
    sections.append("## Results")
    sections.append(_results(run.directory) or "None were found beside the run.")
    sections += ["## Use", _use(run)]
    return "\n\n".join(sections) + "\n"


def full_name(directory: Path) -> str:
    """The name of a run; of a checkpoint, also that of its run."""
    directory = directory.resolve()
    is_checkpoint = directory.parent.name == "checkpoints"
    return f"{directory.parent.parent.name}, checkpoint {directory.name}" if is_checkpoint else directory.name


def lineage(run: Path) -> list[Path]:
    """The run and what it was made from, oldest first, each once: as far as they are still there, and a
    teacher only if its weights have not changed since.
    """
    record = read_record(run)
    parents = []
    if (origin := record.concepts) and (Path(origin.teacher) / MODEL_FILE).exists():
        teacher = Path(origin.teacher)
        parents += [teacher] * (fingerprint(teacher) == origin.teacher_fingerprint)
    init = record.train.init
    if init not in ("random", "teacher") and (Path(init) / "config.json").exists():
        parents.append(Path(init))
    ancestors = [ancestor for parent in parents for ancestor in lineage(parent)]
    return list(dict.fromkeys([*ancestors, run]))


def _predicts_words(run: Run) -> bool:
    return find_objective(run.record.train.objective).predicts_words


def _header(run: Run) -> str:
    pipeline = "pipeline_tag: fill-mask\n" if _predicts_words(run) else ""
    return f"---\nlibrary_name: transformers\n{pipeline}tags:\n- deberta\n- mlsm\n---"


def _summary(run: Run) -> str:
    shape, train = run.record.model, run.record.train
    num_weights = sum(w.numel() for w in run.model.parameters())
    text = (
        f"A language model (DeBERTa v1, {shape.depth} layers of width {shape.width}, "
        f"{shape.vocab_size:,} pieces, {num_weights / 1e6:.1f}M parameters with all heads), "
    )
    if run.record.source:
        return text + "which came from outside: it was not trained here."
    text += (
        f"trained {find_objective(train.objective).learns}, after [MLSM](https://github.com/SzegedAI/MLSM) "
        "(Berend, BabyLM 2024)."
    )
    if not _predicts_words(run):
        text += (
            "\n\n**It does not fill in words**: its objective does not train the rows of the vocabulary. "
            "Fine-tune it, or read its concepts."
        )
    return text


def _phases(run: Path) -> list[list[str]]:
    rows = []
    for directory in lineage(run):
        record, progress = read_record(directory), _progress(directory)
        if source := record.source:
            rows.append(
                [full_name(directory), "", "came from outside", Path(source.directory).name, *[""] * 3]
            )
            continue
        config = record.train
        words = progress.get("words_seen")
        rows.append(
            [
                full_name(directory),
                f"`{config.objective}`",
                find_objective(config.objective).learns,
                Path(config.init).name,
                f"{progress.get('step', config.num_steps):,} of {config.batch_size:,} sequences",
                "" if words is None else f"{words:,}",
                str(config.seed),
            ]
        )
    return rows


def _progress(directory: Path) -> dict[str, Any]:
    """The step and the words seen: of a checkpoint as it tells them, of a run by its last metrics."""
    if (directory / STATE_FILE).exists():
        return read_json(directory / STATE_FILE)
    return next((m for m in reversed(read_metrics(directory)) if "words_seen" in m), {})


def _text(record: RunRecord) -> str:
    data, train, corpus = record.data, record.train, record.corpus
    names = [
        "the World English Bible (public domain)" if name == EMBEDDED_CORPUS else f"`{Path(name).name}`"
        for name in data.corpus
    ]
    words = f" ({corpus.words:,} words, {corpus.lines:,} lines)" if corpus else ""
    masked = (
        f", share of masked tokens {train.mask_share}" if find_objective(train.objective).is_masked else ""
    )
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    return (
        f"Text: {', '.join(names)}{words}, as {data.sequence_mode} of lines, at most {data.max_length} "
        f"tokens{masked}. AdamW at {train.learning_rate:g}, warm-up {train.warmup_share:.0%} of the "
        f"updates, weight decay {train.weight_decay:g}." + (f" Versions: {versions}." if versions else "")
    )


def _results(directory: Path) -> str:
    """What was measured, as far as it lies beside the run."""
    heldout = [m for m in read_metrics(directory) if any(name.startswith("heldout_") for name in m)]
    parts = []
    if heldout:
        values = {n: v for n, v in heldout[-1].items() if n.startswith("heldout_") and "gap" not in n}
        parts.append(
            "Held-out text, by the objective's own measures: "
            + ", ".join(f"{n.removeprefix('heldout_').replace('_', ' ')} {v:.4g}" for n, v in values.items())
            + "."
        )
    if results := summary.read_results(directory):
        measured = summary.markdown(full_name(directory), results)
        parts.append(measured.replace("## ", "### ").strip())
    return "\n\n".join(parts)


def _use(run: Run) -> str:
    text = """```python
from transformers import AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("DIRECTORY")
model = AutoModelForMaskedLM.from_pretrained("DIRECTORY")  # or AutoModelForSequenceClassification, AutoModel
```

The texts `[CLS]`, `[SEP]`, `[MASK]`, `<unk>` and `<pad>` become special tokens wherever they stand."""
    if run.model.config.has_token_head:
        text += " Words come from concepts: both linear layers are folded into the one decoder."
    if run.model.concepts is not None:
        text += """

The concepts are in `concepts.safetensors`, for this project's code:

```python
import mlsm

model = mlsm.load("DIRECTORY")
model.concepts("The cat sat.")  # [(token, [(concept, weight), ...]), ...]
```"""
    return text


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
