"""Show what the concepts of a run stand for, and measure how good they are.

    python -m mlsm.concepts runs/teacher
    python -m mlsm.concepts runs/lsm-random --text "In the beginning God created the heavens." --page

The concepts of a teacher are its sparse codes; those of a student are its predictions, shown beside the codes
of its teacher. The measures and the largest concepts are printed. The run's directory gets concepts.json
(everything), concepts.png, with --text concepts-text.png, and with --page concepts.html: one file to search
and click through, without a network.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlsm import cli
from mlsm.coding.dictionary import Dictionary
from mlsm.coding.targets import EVERY_TOKEN
from mlsm.config import DEVICE_HELP
from mlsm.device import choose_device
from mlsm.directory import check_writable
from mlsm.evaluation.tables import as_text, printable
from mlsm.files import write_text
from mlsm.log import progress, say
from mlsm.pages import concept_view
from mlsm.pages.concept_reading import Readers, read_sentence, read_text
from mlsm.pages.concept_report import About, ConceptReport, build_report, concept_rows, sentence_rows
from mlsm.runs.checkpoint import MODEL_FILE
from mlsm.runs.record import RunRecord, read_record
from mlsm.runs.run import load_run
from mlsm.runs.teacher import find_dictionary, load_dictionary, load_teacher
from mlsm.seeds import generator_for
from mlsm.settings import argument, check_fields, check_positive, option
from mlsm.text.batches import Corpus, Selection
from mlsm.text.tokenizer import run_tokenizer
from mlsm.training.objectives import find_objective

TOKEN_BUDGET = 8192  # tokens in one forward pass
MASK_SHARE = 0.15  # of the positions, for students that learn from masked tokens


def concepts(args: Settings) -> None:
    """Read a text, then measure, print and write the concepts. Raises ValueError for what does not fit."""
    output, record = args.output or args.run, read_record(args.run)
    readers, tokenizer = make_readers(record, args), run_tokenizer(args.run)
    dictionary = readers.teacher.dictionary if readers.teacher else None
    atoms_KD = dictionary.atoms_DK.mT.cpu().numpy() if dictionary else None
    others_JD = _other_atoms(args.compare, dictionary) if args.compare else None
    check_writable(output)
    sentence = None
    if args.text is not None:
        ids, longest = tokenizer.encode(args.text), record.model.max_positions
        sentence = read_sentence(readers, ids, longest=longest, token_budget=TOKEN_BUDGET)
    data = dataclasses.replace(record.data, corpus=args.corpus or record.data.corpus)
    corpus = Corpus(data, tokenizer)
    micro_batches = corpus.sample(
        [corpus.heldout, corpus.training],
        readers.selection,
        num_selected=args.num_tokens,
        token_budget=TOKEN_BUDGET,
        generator=generator_for("concept sample", args.seed),
    )
    with progress(args.num_tokens, "concepts", unit="token") as bar:
        reading = read_text(readers, micro_batches, bar)
    origin = dictionary or record.concepts
    assert origin is not None
    about = About(
        run=printable(str(args.run)),
        corpus=[*map(printable, data.corpus)],
        layer=origin.layer,
        lam=origin.lam,
        k=next(iter(reading.codes.values())).num_concepts,
        seed=args.seed,
        positions=len(reading.ids_N),
        types=len(np.unique(reading.ids_N)),
    )
    with progress(len(reading.codes), "statistics", unit="reader") as bar:
        report = build_report(
            reading, tokenizer, about, bar, atoms_KD=atoms_KD, others_JD=others_JD, sentence=sentence
        )
    _print(report, args.top)
    _write(report, output, has_page=args.page)


def make_readers(record: RunRecord, args: Settings) -> Readers:
    """The models whose concepts are read. A student whose teacher was removed is read alone."""
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
    directory, path = args.teacher or Path(origin.teacher), args.dictionary or Path(origin.dictionary)
    if args.teacher and not args.dictionary:
        path = directory / path.name
    if not (args.teacher or args.dictionary or ((directory / MODEL_FILE).exists() and path.exists())):
        say(f"the student alone: no teacher at {directory} with the dictionary {path} (see --teacher)")
        return Readers(None, student, selection)
    if not (args.dictionary or path.exists()):
        raise ValueError(
            f"no dictionary {path.name} in {directory}; is it the teacher of {args.run}? "
            "(--dictionary names another)"
        )
    teacher = load_teacher(directory, load_dictionary(path, directory, origin), record.train, device)
    return Readers(teacher, student, selection)


def _other_atoms(path: Path, dictionary: Dictionary | None) -> np.ndarray:
    """The atoms (J, D) of another dictionary of the same hidden states."""
    if dictionary is None:
        raise ValueError("--compare needs the dictionary of the run, and it is not there (see --teacher)")
    return Dictionary.load(path, teacher=dictionary.teacher, layer=dictionary.layer).atoms_DK.mT.numpy()


def _print(report: ConceptReport, count: int) -> None:
    about, reader = report.about, list(report.sources)[-1]
    print(
        f"{about.k} concepts of layer {about.layer}, lambda {about.lam:g}, "
        f"in {about.positions:,} tokens of {about.types:,} types\n"
    )
    for title, table in report.tables.items():
        print(as_text(table, title) + "\n")
    print(as_text(concept_rows(report, reader, count), f"The largest concepts of the {reader}"))
    if report.sentence:
        print("\n" + as_text(sentence_rows(report.sentence), "Concepts in the text"))


def _write(report: ConceptReport, folder: Path, *, has_page: bool) -> None:
    write_text(folder / "concepts.json", report.to_json() + "\n")
    concept_view.draw_concepts(folder / "concepts.png", report)
    written = ["concepts.json", "concepts.png"]
    if report.sentence:
        concept_view.draw_sentence(folder / "concepts-text.png", report)
        written.append("concepts-text.png")
    if has_page:
        write_text(folder / "concepts.html", concept_view.concept_page(report))
        written.append("concepts.html")
    print(f"\nwritten to {folder}: {', '.join(written)}")


@dataclass(frozen=True)
class Settings:
    """The run whose concepts are read, the text, and what is written."""

    run: Path = argument("directory of a finished teacher or student", "RUN")
    text: str | None = option(
        None, "also show the concepts of each token of this text, as a table and a heat map", metavar="TEXT"
    )
    page: bool = option(False, "also write concepts.html, to search and click through")
    num_tokens: int = option(100_000, "tokens read, held-out text first")
    top: int = option(20, "concepts shown on the screen")
    compare: Path | None = option(
        None, "another dictionary of the same teacher and layer, to compare with", metavar="DICTIONARY"
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
    seed: int = option(12, "seed of the sample of text and of the statistics")
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
