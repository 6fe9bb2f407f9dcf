"""Show what the concepts of a run stand for, and measure how good they are.

    python -m mlsm.concepts runs/teacher
    python -m mlsm.concepts runs/lsm-random --text "In the beginning God created the heavens." --page
    python -m mlsm.concepts runs/lsm-random --serve

The concepts of a teacher are its sparse codes; those of a student are its predictions, shown beside the codes
of its teacher. The measures and the most interesting concepts are printed. The run's directory gets
concepts.json (everything), concepts.png, and with --page concepts.html: one file to search and click through,
without a network. A text is read once: later calls take the statistics from concepts.json.
--cache FOLDER also writes the codes themselves, for the package delphi (eai-delphi), which explains concepts.
--serve shows the page at an address of this machine until Ctrl-C, with a field for sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlsm import command_line
from mlsm.command_line import Parser, show_help
from mlsm.config import CONCEPT_TOKENS, DEVICE_HELP, THREADS_HELP, TrainConfig, check_threads
from mlsm.settings import argument, check_fields, check_positive, option


@dataclass(frozen=True)
class Settings:
    """The run whose concepts are read, the text, and what is written."""

    run: Path = argument("directory of a finished teacher or student", "RUN")
    text: str | None = option(
        None, "also show the concepts of each token of this text, as a table and on the page", metavar="TEXT"
    )
    page: bool = option(False, "also write concepts.html, to search and click through")
    serve: bool = option(False, "show the page at http://127.0.0.1:PORT/ and answer sentences there")
    port: int = option(8765, "port of --serve; 0 is any free one")
    num_tokens: int = option(CONCEPT_TOKENS, "tokens read, held-out text first")
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
    cache: Path | None = option(
        None,
        "also write the teacher's codes of the text to this folder, in the format of the package delphi",
        metavar="FOLDER",
    )
    output: Path | None = option(None, "where to write (default: RUN)", metavar="DIRECTORY")
    seed: int = option(TrainConfig.seed, "seed of the sample of text and of the statistics")
    device: str = option("auto", DEVICE_HELP, metavar="DEVICE")
    threads: int | None = option(None, THREADS_HELP, metavar="NUMBER")

    def __post_init__(self) -> None:
        check_fields(self)
        check_threads(self.threads)
        check_positive(self, "num_tokens", "top")
        if not 0 <= self.port < 1 << 16:
            raise ValueError(f"port must be between 0 and 65535, got {self.port}")


def parser() -> Parser:
    """The command line."""
    return command_line.parser(__doc__ or "", {"settings": Settings})


show_help(__name__, parser)  # before the imports below, which take seconds

from mlsm import cli
from mlsm.coding.dictionary import Dictionary
from mlsm.device import choose_num_threads
from mlsm.directory import check_writable
from mlsm.evaluation.tables import as_text
from mlsm.files import write_text
from mlsm.log import printable
from mlsm.pages import concept_view
from mlsm.pages.concept_file import REPORT_FILE
from mlsm.pages.concept_report import ConceptReport, SentenceConcepts, concept_rows, sentence_rows
from mlsm.pages.concept_server import ConceptServer
from mlsm.pages.concept_source import open_source


def concepts(args: Settings) -> None:
    """Read a text, then measure, print and write the concepts. Raises ValueError for what does not fit."""
    source = open_source(
        args.run,
        corpus=args.corpus,
        teacher=args.teacher,
        dictionary=args.dictionary,
        num_tokens=args.num_tokens,
        seed=args.seed,
        device=args.device,
    )
    choose_num_threads(args.threads, source.device)
    other = None
    if args.compare:
        if source.dictionary is None:
            raise ValueError("--compare needs the dictionary of the run, and it is not there (see --teacher)")
        atoms = source.dictionary
        other = Dictionary.load(args.compare, teacher=atoms.teacher, layer=atoms.layer)
    folder = args.output or args.run
    check_writable(folder)
    sentence = None if args.text is None else source.sentence(args.text)
    server = ConceptServer(args.port) if args.serve else None  # a port that is taken is said at once
    codes = source.write_codes(args.cache) if args.cache else None
    report = source.report(folder, other)
    _print(report, sentence, args.top)
    _write(report, sentence, folder, has_page=args.page)
    if codes:
        print(f"codes of the teacher: {printable(str(codes))}")
    if server:
        page = concept_view.concept_page(report, sentence, is_served=True)
        source.sentence("a")  # loads the models, so that the first answer is as fast as the others
        server.serve(page, lambda text: source.sentence(text).to_json())


def _print(report: ConceptReport, sentence: SentenceConcepts | None, count: int) -> None:
    about, reader = report.about, list(report.sources)[-1]
    print(
        f"{about.k} concepts of layer {about.layer}, lambda {about.lam:g}, "
        f"in {about.positions:,} tokens of {about.types:,} types\n"
    )
    for title, table in report.tables.items():
        print(as_text(table, title) + "\n")
    title = f"The most interesting concepts of the {reader}, one of each group of near-duplicates"
    print(as_text(concept_rows(report, reader, count), title))
    if sentence:
        print("\n" + as_text(sentence_rows(report, sentence), "Concepts in the text"))


def _write(report: ConceptReport, sentence: SentenceConcepts | None, folder: Path, *, has_page: bool) -> None:
    picture = folder / "concepts.png"
    if not picture.exists() or picture.stat().st_mtime < (folder / REPORT_FILE).stat().st_mtime:
        concept_view.draw_concepts(picture, report)
    written = [REPORT_FILE, "concepts.png"]
    if has_page:
        write_text(folder / "concepts.html", concept_view.concept_page(report, sentence))
        written.append("concepts.html")
    print(f"\nwritten to {printable(str(folder))}: {', '.join(written)}")


def main(argv: list[str]) -> None:
    """Read the command line, then read, measure, write and show the concepts."""
    concepts(command_line.parse(Settings, argv, __doc__ or ""))


if __name__ == "__main__":
    cli.run(main)
