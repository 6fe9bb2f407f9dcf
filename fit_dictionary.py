"""Learn the dictionary of latent concepts from a teacher's hidden states (Eq. 1 of the paper).

    python fit_dictionary.py --layer 12 --k 1500 --lam 0.05
    python fit_dictionary.py --layer 4,8,12 --lam 0.02,0.05,0.1

The file goes into the teacher's directory, where train.py finds it. A file that exists is never overwritten.
If there is no teacher at the default place, it is trained first. Several layers or lambdas, with commas
between them, give a dictionary for each pair, and a table that shows what is lost for shorter codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlsm.command_line import Parser, parse_flags, parser, show_help
from mlsm.config import PRESETS, DataConfig, DictionaryConfig
from mlsm.settings import option, override


@dataclass(frozen=True)
class Output:
    """Where the dictionary is written."""

    output: Path | None = option(None, "file to write (default: in the teacher's directory)", metavar="FILE")


def flags() -> Parser:
    """The parser of the command line."""
    groups = {"dictionary": DictionaryConfig, "data": DataConfig, "output": Output}
    return parser(__doc__ or "", groups, has_presets=True)


show_help(__name__, flags)  # before the imports below, which take seconds

import dataclasses
import itertools
from collections.abc import Sequence

from torch import Tensor

from mlsm import cli, distributed
from mlsm.coding.dictionary import Dictionary, measure
from mlsm.coding.dictionary_learning import learn_dictionary
from mlsm.coding.targets import Sample, Teacher, sample_states
from mlsm.device import choose_device, choose_num_threads, choose_precision
from mlsm.directory import check_writable
from mlsm.evaluation.splicing import recovered_loss
from mlsm.evaluation.tables import Row, Rows, as_text
from mlsm.log import say
from mlsm.naming import find_teacher_name
from mlsm.runs.checkpoint import fingerprint
from mlsm.runs.hub_import import with_converted_checkpoints
from mlsm.runs.record import read_record
from mlsm.runs.run import load_encoder
from mlsm.runs.teacher import text_of
from mlsm.seeds import generator_for
from mlsm.text.batches import Corpus
from mlsm.text.corpus import corpus_digest
from mlsm.training.prerequisites import find_teacher

SWEPT = ("--layer", "--lam")  # flags that take several values, with commas between them
HELDOUT_SHARE = 0.05  # share of the sampled states that the statistics are computed from


def fit(
    config: DictionaryConfig,
    layer: int,
    data: DataConfig,
    token_budget: int,
    output: Path | None,
    samples: dict[int, Sample],
) -> Path:
    """Sample states, learn the atoms, measure them on other states, save. Returns the path of the file.
    `samples` keeps the states for the next dictionary of the same layer.

    Raises ValueError for a text that is too small, and for a file that exists and was learnt with other
    settings or from another text.
    """
    directory, device = Path(config.teacher), choose_device(config.device)
    _, record, encoder, tokenizer = load_encoder(directory, device)
    path, teacher = output or directory / config.file_name(layer), fingerprint(directory)
    asked = dataclasses.asdict(config) | dataclasses.asdict(data)
    asked |= {"layer": layer, "teacher": teacher, "corpus": [*data.corpus], "text": corpus_digest(data)}
    settings = {
        name: value for name, value in asked.items() if name not in ("device", "threads", "cache_dir")
    }
    if path.exists():
        if changed := _changed_settings(Dictionary.load(path).settings or {}, settings):
            raise ValueError(
                f"{path} exists; students may depend on it: remove it, or write another with --output "
                f"(it was learnt with another {changed})"
            )
        say(f"{path} exists, learnt with these settings")
        return path
    corpus, precision = Corpus(data, tokenizer), choose_precision("auto", device, encoder.width)
    if record.corpus and record.corpus.digest:
        name = f"the teacher {directory}"
        if leak := corpus.leak(name, record.corpus.digest, record.data.heldout_share):
            say(leak)
    if layer not in samples:
        samples.clear()
        samples[layer] = sample_states(
            encoder,
            layer,
            corpus,
            num_tokens=config.num_tokens,
            token_budget=token_budget,
            seed=config.seed,
            precision=precision,
            device=device,
        )
    sample_ND, num_words = samples[layer]
    heldout_ND, sample_ND = split(sample_ND)
    if config.k > len(sample_ND):
        raise ValueError(
            f"{config.k} concepts need at least as many hidden states, the corpus gave {len(sample_ND)}: "
            "lower --k"
        )
    atoms_DK = learn_dictionary(
        sample_ND,
        config.k,
        config.lam,
        num_updates=config.num_updates,
        batch_size=config.batch_size,
        generator=generator_for("dictionary", config.seed),
        device=device,
        solver=config.solver,
    )
    dictionary = Dictionary(atoms_DK, config.lam, layer, teacher, settings=settings, words=num_words)
    statistics = measure(dictionary, heldout_ND, solver=config.solver)
    spliced = recovered_loss(directory, Teacher(encoder, dictionary, precision, solver=config.solver), corpus)
    statistics = dataclasses.replace(statistics, spliced=spliced)
    dataclasses.replace(dictionary, statistics=statistics).save(path)
    say(f"{path}: {config.k} concepts, {statistics}")
    return path


def split(states_ND: Tensor) -> tuple[Tensor, Tensor]:
    """The states that a dictionary is measured on, and those that it is learnt from."""
    num_heldout = max(1, int(len(states_ND) * HELDOUT_SHARE))
    return states_ND[:num_heldout], states_ND[num_heldout:]


def _changed_settings(before: dict[str, object], now: dict[str, object]) -> str:
    """The names of the settings that differ. The text is compared by its digest, or by the names of its
    files if the dictionary was saved before digests were.
    """
    names = (before.keys() | now.keys()) - {"corpus" if "text" in before else "text"}
    return ", ".join(sorted(name for name in names if before.get(name) != now.get(name)))


def each_alone(argv: list[str]) -> list[list[str]]:
    """The command lines with one value of --layer and --lam each, where these have several, with commas."""
    words = [*argv]
    for flag in SWEPT:
        for at in [i for i, word in enumerate(words[:-1]) if word == flag][::-1]:
            words[at : at + 2] = [f"{flag}={words[at + 1]}"]
    choices = []
    for word in words:
        flag, is_given, values = word.partition("=")
        is_swept = is_given and flag in SWEPT
        choices.append([f"{flag}={value}" for value in values.split(",")] if is_swept else [word])
    return [[*line] for line in itertools.product(*choices)]


def summary(paths: Sequence[Path]) -> Rows:
    """A row for each dictionary: how long its codes are, and what they keep of the states and of the loss."""
    rows: dict[str, Row] = {}
    for dictionary in map(Dictionary.load, paths):
        measured = dictionary.statistics
        assert measured is not None, "every dictionary of this command was measured"
        row: dict[str, float | str] = {"non-zeros per code": measured.mean_nonzeros}
        if measured.explained_variance is not None:
            row["variance explained"] = measured.explained_variance
        if measured.spliced:
            row["loss recovered"] = measured.spliced.loss_recovered
            row["KL recovered"] = measured.spliced.kl_recovered
        row["dead"] = measured.unused_atoms
        if measured.dense_atoms is not None:
            row["dense"] = measured.dense_atoms
        rows[f"layer {dictionary.layer}, lambda {dictionary.lam:g}"] = row
    return rows


def main(argv: list[str], samples: dict[int, Sample] | None = None) -> None:
    """Read the command line, find or train the teacher, fit one dictionary, or several and compare them.
    `samples` is for callers that need the states, too: those of the last layer, by its number.
    """
    commands = [parse_flags(flags(), line) for line in each_alone(argv)]
    with distributed.rank_zero_first():
        given = with_converted_checkpoints(commands[0], "teacher")
        output = override(Output(), given).output
        if output is not None and output.is_dir():
            raise ValueError(f"{output} is a directory; --output names a file")
        if output is not None and len(commands) > 1:
            raise ValueError(
                "--output names the file of one dictionary: leave it out, or name one layer and lambda"
            )
        teacher = find_teacher_name(given)
        check_writable(output.parent if output else teacher)
        record = read_record(find_teacher(teacher, given))
        preset = PRESETS[str(given.get("preset", record.preset))]()
        data = text_of(record, given)
    configs = []
    for command in commands:
        config = dataclasses.replace(override(preset.dictionary, command), teacher=str(teacher))
        layer = record.model.depth if config.layer is None else config.layer
        if not 0 <= layer <= record.model.depth:
            raise ValueError(
                f"the teacher {teacher} has layers 0 (the embeddings) to {record.model.depth}, "
                f"--layer asks for {layer}"
            )
        configs.append((layer, config))
    choose_num_threads(configs[0][1].threads, choose_device(configs[0][1].device))
    kept = {} if samples is None else samples
    paths = [
        fit(config, layer, data, preset.teacher.token_budget, output, kept)
        for layer, config in sorted(configs, key=lambda pair: pair[0])
    ]
    if len(paths) > 1 and distributed.is_rank_zero():
        print(as_text(summary(paths), "Shorter codes, and what they lose"))


if __name__ == "__main__":
    cli.run(main)
