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
from pathlib import Path
from typing import Any

import numpy as np

from mlsm import cli
from mlsm.coding.dictionary import Dictionary
from mlsm.coding.targets import EVERY_TOKEN
from mlsm.config import DataConfig, TrainConfig, from_json
from mlsm.device import choose_device
from mlsm.directory import check_writable
from mlsm.evaluation.tables import as_text
from mlsm.files import write_text
from mlsm.log import progress, say
from mlsm.pages import concept_report, concept_view
from mlsm.pages.concept_reading import Readers, Reading, read, read_sentence
from mlsm.pages.tagged import read_tagged
from mlsm.runs.checkpoint import MODEL_FILE
from mlsm.runs.run import load_run, model_config, run_config
from mlsm.runs.teacher import find_dictionary, load_teacher
from mlsm.seeds import generator_for
from mlsm.text.batches import Corpus, MicroBatch, Selection
from mlsm.text.tokenizer import run_tokenizer
from mlsm.training.objectives import OBJECTIVES

TOKEN_BUDGET = 8192  # tokens a forward pass holds
MASK_SHARE = 0.15  # of the positions, for students that learn from masked tokens


def concepts(args: argparse.Namespace) -> None:
    """Read, measure, write, show. Raises ValueError for what cannot be."""
    output = args.output or args.run
    config = run_config(args.run)
    readers = make_readers(config, args)
    dictionary = readers.teacher.dictionary if readers.teacher else None
    atoms_KD = dictionary.atoms_DK.mT.cpu().numpy() if dictionary else None
    others_JD = _other_atoms(args.compare, dictionary)
    tokenizer = run_tokenizer(args.run)
    where = {"longest": model_config(args.run).max_positions, "token_budget": TOKEN_BUDGET}
    check_writable(output)
    sentence = tagged = None
    if args.text is not None:
        sentence = read_sentence(readers, tokenizer.encode(args.text), **where)
    if args.tags:
        tagged = read_tagged(args.tags, tokenizer, readers.selection, seed=args.seed, **where)

    data = from_json(DataConfig, config["data"])
    if args.corpus:
        data = dataclasses.replace(data, corpus=tuple(args.corpus))
    corpus = Corpus(data, tokenizer, say)
    batches = corpus.sample(
        [corpus.heldout, corpus.training],
        readers.selection,
        num_selected=args.num_tokens,
        token_budget=TOKEN_BUDGET,
        generator=generator_for("concept sample", args.seed),
    )
    reading = _read(readers, batches, args.num_tokens, "concepts")
    about = {
        "run": str(args.run),
        "corpus": list(data.corpus),
        "layer": dictionary.layer if dictionary else config["concepts"]["layer"],
        "lam": dictionary.lam if dictionary else config["concepts"]["lam"],
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


def make_readers(config: dict[str, Any], args: argparse.Namespace) -> Readers:
    """Who reads, by the config of the run; a student's teacher that has gone is done without, and said."""
    origin, device = config["concepts"], choose_device(args.device)
    settings = from_json(TrainConfig, config["train"])
    if origin is None:
        if args.teacher:
            raise ValueError(f"{args.run} is a teacher itself; --teacher is for students")
        path = args.dictionary or find_dictionary(args.run)
        if path is None:
            raise ValueError(f"{args.run} has no dictionary: python fit_dictionary.py --teacher {args.run}")
        return Readers(load_teacher(args.run, path, settings, device), None, EVERY_TOKEN)
    student = load_run(args.run, device).model
    is_masked = OBJECTIVES[origin["objective"]].is_masked
    selection = Selection(MASK_SHARE, is_masked=True) if is_masked else EVERY_TOKEN
    before = Path(origin["dictionary"])
    directory = args.teacher or Path(origin["teacher"])
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
    teacher = load_teacher(directory, path, settings, device, origin["dictionary_fingerprint"])
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


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = cli.plain_parser(__doc__ or "")
    made.add_argument("run", type=Path, metavar="RUN", help="directory of a finished teacher or student")
    made.add_argument(
        "--text", help="also the concepts of each token of this text, as a table and a heat map"
    )
    made.add_argument("--page", action="store_true", help="also concepts.html, to search and click through")
    made.add_argument(
        "--num-tokens",
        type=_above_zero,
        default=100_000,
        help="tokens read, held-out text first (default: 100000)",
    )
    made.add_argument(
        "--top", type=_above_zero, default=20, help="concepts shown on the screen (default: 20)"
    )
    made.add_argument(
        "--compare", type=Path, metavar="DICTIONARY", help="another dictionary of the same teacher and layer"
    )
    made.add_argument(
        "--tags",
        type=Path,
        metavar="FILE",
        help="tagged text to hold concepts against: a word, a tab and its tag per line with an empty line "
        "after each sentence, or a sentence per line of word/tag",
    )
    made.add_argument(
        "--corpus", nargs="+", metavar="FILE", help="text to read (default: the text the run was trained on)"
    )
    made.add_argument("--teacher", type=Path, help="where a student's teacher is now (default: where it was)")
    made.add_argument(
        "--dictionary",
        type=Path,
        metavar="FILE",
        help="the concepts' dictionary (default: the one the teacher has, or the student learnt from)",
    )
    made.add_argument("--output", type=Path, metavar="DIRECTORY", help="where to write (default: RUN)")
    made.add_argument("--seed", type=int, default=12, help="seed of everything that is drawn (default: 12)")
    made.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    return made


def _above_zero(text: str) -> int:
    if not (text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"a whole number above 0, got {text!r}")
    return int(text)


def main(argv: list[str]) -> None:
    """Read the command line and do it."""
    concepts(parser().parse_args(argv))


if __name__ == "__main__":
    cli.run(main)
