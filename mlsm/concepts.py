"""See what the concepts of a run are: what each is used for, and whether they are any good.

    python -m mlsm.concepts runs/teacher
    python -m mlsm.concepts runs/lsm-random --text "In the beginning God created the heavens." --page

Of a teacher, its sparse codes are read; of a student, what it predicts, beside the codes of its teacher. The
measures and the largest concepts go to the screen; into the run's directory go concepts.json (everything),
concepts.png, with --text concepts-text.png, and with --page concepts.html: one file to search and click
through, without a network.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlsm import cli
from mlsm.coding.dictionary import Dictionary
from mlsm.coding.targets import EVERY_TOKEN
from mlsm.config import DEVICE_HELP
from mlsm.device import choose_device
from mlsm.directory import check_writable
from mlsm.evaluation.tables import as_text
from mlsm.files import write_text
from mlsm.log import progress, say
from mlsm.pages import concept_report, concept_view
from mlsm.pages.concept_reading import Readers, Reading, read, read_sentence
from mlsm.pages.tagged import read_tagged
from mlsm.runs.checkpoint import MODEL_FILE
from mlsm.runs.record import RunRecord, read_record
from mlsm.runs.run import load_run
from mlsm.runs.teacher import find_dictionary, load_dictionary, load_teacher
from mlsm.seeds import generator_for
from mlsm.settings import argument, check_fields, check_positive, option
from mlsm.text.batches import Corpus, MicroBatch, Selection
from mlsm.text.tokenizer import run_tokenizer
from mlsm.training.objectives import find_objective

TOKEN_BUDGET = 8192  # tokens a forward pass holds
MASK_SHARE = 0.15  # of the positions, for students that learn from masked tokens


def concepts(args: Settings) -> None:
    """Read, measure, write, show. Raises ValueError for what cannot be."""
    output = args.output or args.run
    record = read_record(args.run)
    readers = make_readers(record, args)
    dictionary = readers.teacher.dictionary if readers.teacher else None
    atoms_KD = dictionary.atoms_DK.mT.cpu().numpy() if dictionary else None
    others_JD = _other_atoms(args.compare, dictionary)
    tokenizer = run_tokenizer(args.run)
    where = {"longest": record.model.max_positions, "token_budget": TOKEN_BUDGET}
    check_writable(output)
    sentence = tagged = None
    if args.text is not None:
        sentence = read_sentence(readers, tokenizer.encode(args.text), **where)
    if args.tags:
        tagged = read_tagged(args.tags, tokenizer, readers.selection, seed=args.seed, **where)

    data = dataclasses.replace(record.data, corpus=args.corpus or record.data.corpus)
    corpus = Corpus(data, tokenizer)
    batches = corpus.sample(
        [corpus.heldout, corpus.training],
        readers.selection,
        num_selected=args.num_tokens,
        token_budget=TOKEN_BUDGET,
        generator=generator_for("concept sample", args.seed),
    )
    reading = _read(readers, batches, args.num_tokens, "concepts")
    origin = dictionary or record.concepts
    assert origin is not None
    about = {
        "run": str(args.run),
        "corpus": list(data.corpus),
        "layer": origin.layer,
        "lam": origin.lam,
        "k": next(iter(reading.codes.values())).num_concepts,
        "seed": args.seed,
    }
    with progress(concept_report.num_stages(reading), "statistics", unit="stage") as bar:
        told = concept_report.report(
            reading, tokenizer, atoms_KD, about=about, seed=args.seed, advance=bar.update
        )
    if tagged:
        tagged_reading = _read(readers, tagged.micro_batches, len(tagged.labels_N), "tagged text")
        concept_report.add_tags(told, tagged_reading, tagged.labels_N, tagged.names, args.seed)
    if atoms_KD is not None and others_JD is not None:
        concept_report.add_comparison(told, atoms_KD, others_JD, args.seed)
    if sentence:
        concept_report.add_sentence(told, sentence, tokenizer)
    _show(told, args.top)
    _write(told, output, has_page=args.page)


def make_readers(record: RunRecord, args: Settings) -> Readers:
    """Who reads, by the record of the run; a student's teacher that has gone is done without, and said."""
    origin, device = record.concepts, choose_device(args.device)
    if origin is None:
        if args.teacher:
            raise ValueError(f"{args.run} is a teacher itself; --teacher is for students")
        path = args.dictionary or find_dictionary(args.run)
        if path is None:
            raise ValueError(f"{args.run} has no dictionary: python fit_dictionary.py --teacher {args.run}")
        teacher = load_teacher(args.run, load_dictionary(path, args.run), record.train, device)
        return Readers(teacher, None, EVERY_TOKEN)
    student = load_run(args.run, device).model
    is_masked = find_objective(origin.objective).is_masked
    selection = Selection(MASK_SHARE, is_masked=True) if is_masked else EVERY_TOKEN
    before = Path(origin.dictionary)
    directory = args.teacher or Path(origin.teacher)
    path = args.dictionary or (args.teacher / before.name if args.teacher else before)
    is_named = args.teacher or args.dictionary
    if not is_named and not ((directory / MODEL_FILE).exists() and path.exists()):
        say(f"the student alone: no teacher at {directory} with the dictionary {path} (see --teacher)")
        return Readers(None, student, selection)
    if not (args.dictionary or path.exists()):
        raise ValueError(
            f"no dictionary {path.name} in {directory}; is it the teacher of {args.run}? "
            "(--dictionary names another)"
        )
    dictionary = load_dictionary(path, directory, origin)
    teacher = load_teacher(directory, dictionary, record.train, device)
    return Readers(teacher, student, selection)


def _read(readers: Readers, batches: Iterable[MicroBatch], num_tokens: int, title: str) -> Reading:
    with progress(num_tokens, title, unit="token") as bar:
        return read(readers, batches, bar)


def _other_atoms(path: Path | None, dictionary: Dictionary | None) -> np.ndarray | None:
    """The atoms (J, D) of another dictionary of the same states; None if none is asked for."""
    if path is None:
        return None
    if dictionary is None:
        raise ValueError("--compare needs the dictionary of the run, and it is not there (see --teacher)")
    other = Dictionary.load(path, teacher=dictionary.teacher, layer=dictionary.layer)
    return other.atoms_DK.mT.numpy()


def _show(told: dict[str, Any], count: int) -> None:
    about = told["about"]
    print(
        f"{about['k']} concepts of layer {about['layer']}, lambda {about['lam']:g}, "
        f"in {about['positions']:,} tokens of {about['types']:,} types\n"
    )
    for title, rows in told["tables"].items():
        print(as_text(rows, title) + "\n")
    source = list(told["sources"])[-1]
    print(as_text(concept_report.concept_rows(told, source, count), f"The largest concepts of the {source}"))
    if told["sentence"]:
        print("\n" + as_text(concept_report.sentence_rows(told), "Concepts in the text"))


def _write(told: dict[str, Any], folder: Path, *, has_page: bool) -> None:
    write_text(folder / "concepts.json", concept_view.as_json(told) + "\n")
    written = ["concepts.json", "concepts.png"]
    concept_view.draw_concepts(folder / "concepts.png", told)
    if told["sentence"]:
        concept_view.draw_sentence(folder / "concepts-text.png", told)
        written.append("concepts-text.png")
    if has_page:
        write_text(folder / "concepts.html", concept_view.page(told))
        written.append("concepts.html")
    print(f"\nwritten to {folder}: {', '.join(written)}")


@dataclass(frozen=True)
class Settings:
    """Whose concepts are read, in which text, and what is written."""

    run: Path = argument("directory of a finished teacher or student", "RUN")
    text: str | None = option(
        None, "also the concepts of each token of this text, as a table and a heat map", metavar="TEXT"
    )
    page: bool = option(False, "also concepts.html, to search and click through")
    num_tokens: int = option(100_000, "tokens read, held-out text first")
    top: int = option(20, "concepts shown on the screen")
    compare: Path | None = option(
        None, "another dictionary of the same teacher and layer", metavar="DICTIONARY"
    )
    tags: Path | None = option(
        None,
        "tagged text to hold concepts against: a word, a tab and its tag per line with an empty line "
        "after each sentence, or a sentence per line of word/tag",
        metavar="FILE",
    )
    corpus: tuple[str, ...] | None = option(
        None, "text to read (default: the text the run was trained on)", metavar="FILE"
    )
    teacher: Path | None = option(
        None, "where a student's teacher is now (default: where it was)", metavar="DIRECTORY"
    )
    dictionary: Path | None = option(
        None,
        "the concepts' dictionary (default: the one the teacher has, or the student learnt from)",
        metavar="FILE",
    )
    output: Path | None = option(None, "where to write (default: RUN)", metavar="DIRECTORY")
    seed: int = option(12, "seed of everything that is drawn")
    device: str = option("auto", DEVICE_HELP, metavar="DEVICE")

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive(self, "num_tokens", "top")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    return cli.parser(__doc__ or "", {"settings": Settings})


def main(argv: list[str]) -> None:
    """Read the command line, then read, measure, write and show the concepts."""
    concepts(cli.parse(Settings, argv, __doc__ or ""))


if __name__ == "__main__":
    cli.run(main)
