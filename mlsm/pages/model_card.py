"""The model card of a run: what it is, how it was trained, what it scored, what it cannot do, how to use it.

Everything comes from the files of the run and of the runs that it was made from. What is not there, such as a
run that was removed or results that were never measured, is left out. Paths are cut to their last part.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from mlsm.board import HELDOUT
from mlsm.config import EMBEDDED_CORPUS
from mlsm.evaluation import summary
from mlsm.evaluation.babylm.curves import full_section
from mlsm.evaluation.babylm.entry import place_of
from mlsm.evaluation.babylm.entry import read_results as read_entry
from mlsm.evaluation.results import read_results
from mlsm.evaluation.tables import Row, as_markdown
from mlsm.files import read_json
from mlsm.log import printable, read_metrics
from mlsm.runs.checkpoint import MODEL_FILE, STATE_FILE, fingerprint
from mlsm.runs.record import ConceptsRecord, RunRecord, read_record
from mlsm.runs.revisions import MAIN
from mlsm.runs.run import Run
from mlsm.training.objectives import find_objective

PAPER = "https://github.com/SzegedAI/MLSM"


class Publication(NamedTuple):
    """What the header of a card says and no run can know. Empty parts are filled in for a run on the embedded
    text.
    """

    license: str | None = None  # of the weights, an identifier of the hub: mit
    language: tuple[str, ...] = ()  # codes: en
    datasets: tuple[str, ...] = ()  # names on the hub, or others


NOTHING_SAID = Publication()
EMBEDDED = Publication(None, ("en",), ("world-english-bible",))


def model_card(run: Run, publication: Publication = NOTHING_SAID) -> str:
    """README.md of an exported run: Markdown with the header of the Hugging Face hub."""
    record, directories = run.record, training_runs(run.directory)
    sections = [
        _header(publication, predicts_words(record), _has_only_embedded_text(directories)),
        f"# {full_name(run.directory)}",
        _summary(run),
        "## Training",
        as_markdown([_training_row(directory) for directory in directories]).rstrip(),
        "Words count each time they are read; those in all are with the models and dictionaries that a run "
        "stands on.",
        _text(record) if record.source is None else "",
        _concepts(record.concepts) if record.concepts else "",
        "## Results",
        _results(run.directory) or "There are no results in the directory of the run.",
        "## Limits",
        _limits(record),
        "## Use",
        _example(run),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _header(publication: Publication, has_words: bool, is_embedded: bool) -> str:
    """The header in YAML. Texts are quoted as in JSON, which is YAML."""
    known = EMBEDDED if is_embedded else NOTHING_SAID
    if publication.license:
        lines = [f"license: {json.dumps(publication.license)}"]
    elif is_embedded:
        lines = ["license: other  # of the text; mlsm.export --license names that of the weights"]
        lines.append("license_name: public-domain-text")
    else:
        lines = ["license: unknown  # before you publish this: mlsm.export --license --language --datasets"]
    for name in ("language", "datasets"):
        if values := getattr(publication, name) or getattr(known, name):
            lines += [f"{name}:", *(f"- {json.dumps(value)}" for value in values)]
    lines += ["library_name: transformers", *["pipeline_tag: fill-mask"] * has_words]
    return "\n".join(["---", *lines, "tags:", "- deberta", "- mlsm", "---"])


def full_name(directory: Path) -> str:
    """The name of a run; of a checkpoint, with the name of its run."""
    directory = directory.resolve()
    is_checkpoint = directory.parent.name == "checkpoints"
    name = f"{directory.parent.parent.name}, checkpoint {directory.name}" if is_checkpoint else directory.name
    return printable(name)


def training_runs(run: Path) -> list[Path]:
    """The run and what it was made from, oldest first, each once. Runs that were removed are left out, and a
    teacher whose weights have changed since.
    """
    record = read_record(run)
    expected = {Path(origin.teacher): origin.teacher_fingerprint} if (origin := record.concepts) else {}
    available = [
        parent
        for parent in _parents(record)
        if (parent / MODEL_FILE).exists() and expected.get(parent) in (None, fingerprint(parent))
    ]
    earlier = [directory for parent in available for directory in training_runs(parent)]
    return list(dict.fromkeys([*earlier, run]))


def _parents(record: RunRecord) -> list[Path]:
    """The teacher and the run whose weights training started from, as far as there are any."""
    teacher = [record.concepts.teacher] if record.concepts else []
    start = [record.train.init] if record.train.init not in ("random", "teacher") else []
    return [Path(name) for name in dict.fromkeys(teacher + start)]


def _has_only_embedded_text(directories: list[Path]) -> bool:
    """Whether these runs were trained on the embedded corpus only, and all that they were made from are
    among them.
    """
    records = [read_record(directory) for directory in directories]
    return all(
        record.source is None
        and record.data.corpus == (EMBEDDED_CORPUS,)
        and set(_parents(record)) <= {*directories}
        for record in records
    )


def predicts_words(record: RunRecord) -> bool:
    """Whether the words that a run predicts were trained."""
    return find_objective(record.train.objective).predicts_words


def _summary(run: Run) -> str:
    shape, record = run.record.model, run.record
    objective = find_objective(record.train.objective)
    num_weights = sum(weight.numel() for weight in run.model.parameters())
    origin = f"trained {objective.learns}, after [MLSM]({PAPER}) (Berend, BabyLM 2024)."
    if record.source:
        origin = "converted from another checkpoint."
    return (
        f"A language model (DeBERTa v1, {shape.depth} layers of width {shape.width}, {shape.vocab_size:,} "
        f"pieces, {num_weights / 1e6:.1f}M parameters with all heads), {origin}"
    )


def _training_row(directory: Path) -> Row:
    record = read_record(directory)
    train, objective = record.train, find_objective(record.train.objective)
    if record.source:
        start = printable(Path(record.source.directory).name)
        return {"": full_name(directory), "learns": "converted from another checkpoint", "start": start}
    if (directory / STATE_FILE).exists():
        progress = read_json(directory / STATE_FILE)
    else:
        progress = next((line for line in reversed(read_metrics(directory)) if "words_seen" in line), {})
    return {
        "": full_name(directory),
        "objective": f"`{train.objective}`",
        "learns": objective.learns,
        "start": Path(train.init).name,
        "updates": f"{progress.get('step', train.num_steps):,} of {train.batch_size:,} sequences",
        "words seen": f"{progress['words_seen']:,}" if "words_seen" in progress else "",
        "words in all": record.words_in_all(progress["words_seen"]) if "words_seen" in progress else "",
        "seed": train.seed,
    }


def _text(record: RunRecord) -> str:
    data, train, corpus = record.data, record.train, record.corpus
    names = [
        "the World English Bible (public domain)" if name == EMBEDDED_CORPUS else f"`{Path(name).name}`"
        for name in data.corpus
    ]
    size = f" ({corpus.words:,} words, {corpus.lines:,} lines)" if corpus else ""
    is_masked = find_objective(train.objective).is_masked
    masked = f", share of masked tokens {train.mask_share}" if is_masked else ""
    optimizer = {"adamw": "AdamW", "muon": "Muon and AdamW"}[train.optimizer]
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    return printable(
        f"Text: {', '.join(names)}{size}, as {data.sequence_mode} of lines, at most {data.max_length} "
        f"tokens{masked}. {optimizer} at {train.learning_rate:g} ({train.schedule} schedule), warm-up "
        f"{train.warmup_share:.0%} of the updates, weight decay {train.weight_decay:g}."
        + (f" Versions: {versions}." if versions else "")
    )


def _concepts(origin: ConceptsRecord) -> str:
    targets = "the sparse codes of Eq. 2 of the paper"
    if origin.coder == "sae":
        targets = "the codes of the encoder that belongs to the dictionary, a sparse autoencoder"
    return printable(
        f"Concepts: {origin.k} atoms of a dictionary of the hidden states of layer "
        f"{origin.layer} of the teacher `{Path(origin.teacher).name}` (fingerprint "
        f"{origin.teacher_fingerprint}), lambda {origin.lam:g}, dictionary fingerprint "
        f"{origin.dictionary_fingerprint}. Targets are {targets}, divided by their L1 norm."
    )


def _results(directory: Path) -> str:
    """The measurements in the directory of the run; empty without any."""
    sections = []
    heldout = [line for line in read_metrics(directory) if any(name.startswith(HELDOUT) for name in line)]
    if heldout:
        values = [
            f"{name.removeprefix(HELDOUT).replace('_', ' ')} {value:.4g}"
            for name, value in heldout[-1].items()
            if name.startswith(HELDOUT) and "gap" not in name
        ]
        sections.append(f"Held-out text, by the objective's own measures: {printable(', '.join(values))}.")
    if measured := summary.markdown(full_name(directory), read_results(directory)):
        sections.append(measured.replace("## ", "### ").strip())
    entry = read_entry(place_of(directory))
    if section := full_section({full_name(directory): entry[MAIN]} if MAIN in entry else {}):
        sections.append(f"### BabyLM 2026\n\n{section.strip()}")
    return "\n\n".join(sections)


def _limits(record: RunRecord) -> str:
    limits = [
        f"- It reads at most {record.model.max_positions:,} tokens at once. It does not generate text.",
        "- What it knows comes from the text that it was trained on, with its languages, errors and biases. "
        "It follows no instructions, and its answers are not checked for truth.",
    ]
    if not predicts_words(record):
        limits.append(
            "- **It does not fill in words**: its objective does not train the rows of the vocabulary. "
            "Fine-tune it, or read its concepts."
        )
    return "\n".join(limits)


def _example(run: Run) -> str:
    main, others = "AutoModelForMaskedLM", "AutoModelForSequenceClassification, AutoModel"
    if not predicts_words(run.record):
        main, others = "AutoModel", "AutoModelForSequenceClassification, to be fine-tuned"
    text = f"""```python
from transformers import {main}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("DIRECTORY")
model = {main}.from_pretrained("DIRECTORY")  # or {others}
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
