"""Write a run as a directory that transformers loads without code of this project.

    python -m mlsm.export runs/token-head-lsm-random exported
    python -m mlsm.export runs/teacher/checkpoints/words-10M exported-10M
    python -m mlsm.export runs/teacher entry --babylm strict-small

A run that predicts words becomes a masked language model. If it has a token head, concept head and token head
are folded into one decoder, which is exact because both are linear. A student that predicts concepts alone
becomes an encoder. Weights that have no place in the exported model lie beside it in concepts.safetensors,
and the settings of the run in mlsm.json, so that mlsm.load reads the directory as it reads the run. README.md
is a model card. Exporting needs the package `tokenizers`, which comes with transformers.

With --babylm, each model that a track of the BabyLM challenge asks for goes into a directory of its own, with
a script that uploads them as branches of a repository (docs/babylm.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlsm import command_line
from mlsm.command_line import Parser, show_help
from mlsm.config import ModelConfig, parse_word_counts
from mlsm.settings import argument, check_fields, option


@dataclass(frozen=True)
class Settings:
    """What is exported, and where it is written."""

    run: Path = argument("a finished run, or a checkpoint: runs/teacher/checkpoints/words-10M", "RUN")
    directory: Path = argument("where to write", "DIRECTORY")
    folded: bool = option(
        False, "refuse a run without a token head (one that has a token head is always folded)"
    )
    license: str | None = option(
        None, "licence of the weights, for the model card: mit, cc-by-4.0", metavar="NAME"
    )
    language: tuple[str, ...] = option(
        (), "languages of the text, for the model card (default: en for the embedded text)", metavar="CODE"
    )
    datasets: tuple[str, ...] = option(
        (), "data sets of the text, for the model card (default: the embedded text)", metavar="NAME"
    )

    babylm: str | None = option(
        None,
        "write an entry to the BabyLM challenge: a directory for each model that the track asks for, of "
        "strict-small, strict; or for each of these numbers of words, such as 0,1M,20M",
        metavar="TRACK",
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def publication(self) -> Publication:
        """What the model cards say that no run knows."""
        return Publication(self.license, self.language, self.datasets)

    def word_counts(self) -> tuple[int, ...]:
        """The numbers of `babylm`. Raises ValueError if it is not a track and not a list of numbers."""
        counts = parse_word_counts(self.babylm or "", "--babylm")
        if not counts:
            raise ValueError("--babylm needs a track, or numbers of words such as 0,1M,20M")
        return counts


def parser() -> Parser:
    """The command line."""
    return command_line.parser(__doc__ or "", {"settings": Settings})


show_help(__name__, parser)  # before the imports below, which take seconds

from collections.abc import Sequence

import torch
from torch import Tensor

from mlsm import cli
from mlsm.files import write_json, write_tensors, write_text, write_whole
from mlsm.log import say
from mlsm.model.deberta import LAYER_NORM_EPS
from mlsm.model.language_model import LanguageModel
from mlsm.pages.model_card import NOTHING_SAID, Publication, model_card, predicts_words
from mlsm.runs.checkpoint import MODEL_FILE, STATE_FILE, read_state
from mlsm.runs.hub_names import OWN_WEIGHTS_FILE, RUN_FILE, from_huggingface, to_huggingface
from mlsm.runs.hub_tokenizer import huggingface_tokenizer, write_tokenizer
from mlsm.runs.record import read_record, record_json
from mlsm.runs.revisions import MAIN, Revision, find_revisions, upload_script
from mlsm.runs.run import Run, load_run
from mlsm.text.tokenizer import CLS_ID, PAD_ID, SEP_ID


def export(
    run: Path, directory: Path, *, folded: bool = False, publication: Publication = NOTHING_SAID
) -> Run:
    """Write everything, and return the run that was written. `folded` requires a token head, and
    `publication` is for the model card.

    Raises ValueError if there is no run, no required token head or no package `tokenizers`, and if the
    directory holds other files, which might be those of a run.
    """
    if directory.is_dir() and any(directory.iterdir()) and not (directory / RUN_FILE).exists():
        raise ValueError(f"{directory} holds other files; name a new directory, or one that was exported to")
    if (run / STATE_FILE).exists():
        read_state(run)  # raises ValueError for a damaged checkpoint
    loaded = load_run(run)
    model, tokenizer = loaded.model, loaded.tokenizer
    if folded and model.token_head is None:
        raise ValueError(
            f"{run} has no token head to fold in: train one with --objective token-head --init {run}"
        )
    huggingface_tokenizer(tokenizer)  # raises ValueError without its package, before anything is written
    has_words = predicts_words(loaded.record)
    tensors = exported_tensors(model, has_words)
    readable = from_huggingface(tensors)
    own = {n: w for n, w in model.state_dict().items() if n not in readable or not readable[n].equal(w)}
    write_json(directory / RUN_FILE, record_json(loaded.record))
    write_json(directory / "config.json", huggingface_config(model.config, has_words))
    write_tensors(directory / MODEL_FILE, tensors, {"format": "pt"})
    if own:
        write_tensors(directory / OWN_WEIGHTS_FILE, own)
    write_whole(directory / tokenizer.file_name, lambda path: path.write_bytes(tokenizer.model))
    write_tokenizer(directory, tokenizer, model.config.max_positions)
    write_text(directory / "README.md", model_card(loaded, publication))
    return loaded


def huggingface_config(config: ModelConfig, has_words: bool = True) -> dict[str, object]:
    """config.json of a masked language model, or of an encoder. Every field is written: the defaults of
    DebertaConfig are those of another model.
    """
    return {
        "architectures": ["DebertaForMaskedLM" if has_words else "DebertaModel"],
        "model_type": "deberta",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.ffn_width,
        "hidden_act": "gelu",
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "max_position_embeddings": config.max_positions,
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "max_relative_positions": -1,
        "position_biased_input": False,
        "type_vocab_size": 0,
        "layer_norm_eps": LAYER_NORM_EPS,
        "initializer_range": config.init_std,
        "pooler_hidden_act": "gelu",
        "pooler_dropout": 0,
        "legacy": True,
        "tie_word_embeddings": not config.has_token_head,
        "bos_token_id": CLS_ID,
        "eos_token_id": SEP_ID,
        "pad_token_id": PAD_ID,
        "torch_dtype": "float32",
    }


@torch.no_grad()
def exported_tensors(model: LanguageModel, has_words: bool = True) -> dict[str, Tensor]:
    """Weights under transformers' names: those of the encoder alone, or with a masked-LM head. The heads of
    the third phase are one untied decoder, W2 W1 h + W2 b1 + b2.
    """
    tensors = to_huggingface(model.state_dict())
    if not has_words:
        return {name: tensor for name, tensor in tensors.items() if name.startswith("deberta.")}
    if model.token_head is not None and model.concepts is not None:
        head_VK, concepts_KD = model.token_head.weight.double(), model.concepts.weight.double()
        bias_V = (head_VK @ model.concepts.bias.double() + model.token_head.bias.double()).float()
        tensors["cls.predictions.decoder.weight"] = (head_VK @ concepts_KD).float()
        # transformers 4 reads one of these names, transformers 5 the other.
        tensors["cls.predictions.decoder.bias"] = bias_V
        tensors["cls.predictions.bias"] = bias_V.clone()
    return tensors


def export_entry(
    run: Path, directory: Path, word_counts: Sequence[int], publication: Publication = NOTHING_SAID
) -> list[Revision]:
    """Write the finished model and those after these numbers of words, each as DIRECTORY/REVISION, and the
    script that uploads them. Returns what was written.

    Raises ValueError before anything is written if the run lacks one of them or predicts no words, or if the
    directory holds other files.
    """
    if directory.is_dir() and any(directory.iterdir()) and not (directory / MAIN / RUN_FILE).exists():
        raise ValueError(f"{directory} holds other files; name a new directory, or one that holds an entry")
    if not predicts_words(record := read_record(run)):
        raise ValueError(
            f"{run} trains no words ({record.train.objective}), so it has no words to be judged by"
        )
    revisions = find_revisions(run, word_counts)
    for revision in revisions:
        export(revision.directory, directory / revision.name, publication=publication)
    write_text(directory / "upload.sh", upload_script(revisions))
    return revisions


def main(argv: list[str]) -> None:
    """Read the command line and export."""
    args = command_line.parse(Settings, argv, __doc__ or "")
    if args.babylm is not None:
        revisions = export_entry(args.run, args.directory, args.word_counts(), args.publication())
        names = ", ".join(revision.name for revision in revisions)
        say(f"wrote {args.directory}: {names}; upload them with: sh {args.directory}/upload.sh USER/NAME")
        return
    written = export(args.run, args.directory, folded=args.folded, publication=args.publication())
    if predicts_words(written.record):
        say(f"wrote {args.directory}: AutoModelForMaskedLM and AutoTokenizer load it, mlsm.load too")
    else:
        say(
            f"wrote {args.directory}, an encoder, because {written.record.train.objective} trains no words: "
            "AutoModel and AutoTokenizer load it; mlsm.load also reads its concepts"
        )


if __name__ == "__main__":
    cli.run(main)
