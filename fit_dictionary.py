"""Learn the dictionary of latent concepts from a teacher's hidden states (Eq. 1 of the paper).

    python fit_dictionary.py --layer 12 --k 1500 --lam 0.05

The file goes into the teacher's directory, where train.py finds it. A file that exists is never overwritten.
If there is no teacher at the default place, it is trained first.
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

from mlsm import cli, distributed
from mlsm.coding.dictionary import Dictionary, measure
from mlsm.coding.dictionary_learning import learn_dictionary
from mlsm.coding.targets import Teacher, sample_states
from mlsm.device import choose_device, choose_precision
from mlsm.directory import check_writable
from mlsm.evaluation.splicing import recovered_loss
from mlsm.log import say
from mlsm.runs.checkpoint import fingerprint
from mlsm.runs.hub_import import with_converted_checkpoints
from mlsm.runs.record import read_record
from mlsm.runs.run import load_encoder
from mlsm.runs.teacher import text_of
from mlsm.seeds import generator_for
from mlsm.text.batches import Corpus
from mlsm.text.corpus import corpus_digest
from mlsm.training.prerequisites import find_teacher
from mlsm.training.request import find_teacher_name

HELDOUT_SHARE = 0.05  # share of the sampled states that the statistics are computed from


def fit(config: DictionaryConfig, data: DataConfig, token_budget: int, output: Path | None) -> Path:
    """Sample states, learn the atoms, measure them on other states, save. Returns the path of the file.

    Raises ValueError for a layer that the teacher does not have, a text that is too small, and a file that
    exists and was learnt with other settings or from another text.
    """
    directory, device = Path(config.teacher), choose_device(config.device)
    _, record, encoder, tokenizer = load_encoder(directory, device)
    depth = encoder.depth
    layer = depth if config.layer is None else config.layer
    if not 0 <= layer <= depth:
        raise ValueError(
            f"the teacher {directory} has layers 0 (the embeddings) to {depth}, --layer asks for {layer}"
        )
    path, teacher = output or directory / config.file_name(layer), fingerprint(directory)
    asked = dataclasses.asdict(config) | dataclasses.asdict(data)
    asked |= {"layer": layer, "teacher": teacher, "corpus": [*data.corpus], "text": corpus_digest(data)}
    settings = {name: value for name, value in asked.items() if name not in ("device", "cache_dir")}
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
    sample_ND, num_words = sample_states(
        encoder,
        layer,
        corpus,
        num_tokens=config.num_tokens,
        token_budget=token_budget,
        seed=config.seed,
        precision=precision,
        device=device,
    )
    num_heldout = max(1, int(len(sample_ND) * HELDOUT_SHARE))
    heldout_ND, sample_ND = sample_ND[:num_heldout], sample_ND[num_heldout:]
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


def _changed_settings(before: dict[str, object], now: dict[str, object]) -> str:
    """The names of the settings that differ. The text is compared by its digest, or by the names of its
    files if the dictionary was saved before digests were.
    """
    names = (before.keys() | now.keys()) - {"corpus" if "text" in before else "text"}
    return ", ".join(sorted(name for name in names if before.get(name) != now.get(name)))


def main(argv: list[str]) -> None:
    """Read the command line, find or train the teacher, fit."""
    given = parse_flags(flags(), argv)
    with distributed.rank_zero_first():
        given = with_converted_checkpoints(given, "teacher")
        output = override(Output(), given).output
        if output is not None and output.is_dir():
            raise ValueError(f"{output} is a directory; --output names a file")
        teacher = find_teacher_name(given)
        check_writable(output.parent if output else teacher)
        record = read_record(find_teacher(teacher, given))
        preset = PRESETS[str(given.get("preset", record.preset))]()
        config = dataclasses.replace(override(preset.dictionary, given), teacher=str(teacher))
        data = text_of(record, given)
    fit(config, data, preset.teacher.token_budget, output)


if __name__ == "__main__":
    cli.run(main)
