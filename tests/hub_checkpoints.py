"""Small DeBERTa checkpoints of random weights, as transformers saves them; and changes of a checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from small_runs import LETTERS
from small_text import sentences
from tokenizers import ByteLevelBPETokenizer
from transformers import DebertaConfig, DebertaForMaskedLM, DebertaV2Config, DebertaV2Model

from mlsm.files import read_json, write_json

SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 90,
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": ["p2c", "c2p"],
}
LETTER_LINES = [*sentences(300), *LETTERS * 3]


def shaken(model: torch.nn.Module) -> Any:
    """The model in eval mode with every weight, also biases and norms, far from its start."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    return model.eval()


def write_byte_pairs(folder: Path) -> int:
    """vocab.json and merges.txt with the special pieces where DeBERTa v1 has them. Returns their number."""
    tokenizer = ByteLevelBPETokenizer()
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    tokenizer.train_from_iterator(LETTER_LINES, vocab_size=340, special_tokens=special, show_progress=False)
    tokenizer.save_model(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text())
    write_json(folder / "vocab.json", vocabulary | {"[MASK]": len(vocabulary)})
    return len(vocabulary) + 1


def write_sentencepiece(folder: Path) -> int:
    """spm.model with the special pieces where DeBERTa v2 and v3 have them, [MASK] behind the last."""
    with open(folder / "spm.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(LETTER_LINES), model_writer=file, vocab_size=100, hard_vocab_limit=False,
            pad_id=0, pad_piece="[PAD]", bos_id=1, bos_piece="[CLS]", eos_id=2, eos_piece="[SEP]", unk_id=3,
            unk_piece="[UNK]", minloglevel=2,
        )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model")).get_piece_size()


def v1_checkpoint(folder: Path, **changes: Any) -> DebertaForMaskedLM:
    folder.mkdir()
    num_pieces = write_byte_pairs(folder)
    model = shaken(DebertaForMaskedLM(DebertaConfig(vocab_size=num_pieces, **(SIZE | changes))))
    model.save_pretrained(folder)
    return model


def v2_checkpoint(folder: Path, **changes: Any) -> DebertaV2Model:
    folder.mkdir()
    num_rows = write_sentencepiece(folder) + 7  # more rows than pieces, as in the published models
    settings = {"position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm"} | changes
    model = shaken(DebertaV2Model(DebertaV2Config(vocab_size=num_rows, **SIZE, **settings)))
    model.save_pretrained(folder)
    return model


def set_config(**changes: object) -> Callable[[Path], None]:
    """A function that changes settings in the config.json of a checkpoint."""

    def damage(folder: Path) -> None:
        write_json(folder / "config.json", read_json(folder / "config.json") | changes)

    return damage


def write(name: str, content: bytes) -> Callable[[Path], None]:
    """A function that writes a file of a checkpoint."""
    return lambda folder: (folder / name).write_bytes(content) and None
