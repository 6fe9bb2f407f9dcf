"""A finished run with random weights, without training: for tests that read a run and do not care what it
knows.
"""

import dataclasses
from pathlib import Path

import torch
from small_text import sentences

from mlsm.coding.dictionary import Dictionary
from mlsm.config import DataConfig, ModelConfig, TrainConfig
from mlsm.files import write_json, write_tensors
from mlsm.model.language_model import LanguageModel
from mlsm.runs.checkpoint import MODEL_FILE, fingerprint
from mlsm.text.tokenizer import Tokenizer, train_tokenizer

LETTERS = ["The quick brown fox jumps over the lazy dog.", "Numbers 1 2 3 4 5 6 7 8 9 0, and ? ! \" ' - ; :"]


def small_tokenizer() -> Tokenizer:
    """A tokenizer of about 120 pieces, trained on the sentences of small_text and on all letters."""
    return train_tokenizer([*sentences(300), *LETTERS * 3], 120)


def random_run(
    folder: Path,
    *,
    num_concepts: int = 0,
    seed: int = 0,
    max_positions: int = 128,
    tokenizer: Tokenizer | None = None,
    has_token_head: bool = True,  # if there are concepts
) -> Path:
    """Weights far from their small start, so that no two words and no two positions are alike."""
    tokenizer = tokenizer or small_tokenizer()
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        width=32,
        depth=2,
        num_heads=2,
        ffn_width=64,
        max_positions=max_positions,
        num_concepts=num_concepts,
        has_token_head=has_token_head and num_concepts > 0,
    )
    model = LanguageModel(config)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: w + 0.2 * torch.randn(w.shape, generator=generator) for name, w in model.state_dict().items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / MODEL_FILE, tensors)
    (folder / tokenizer.file_name).write_bytes(tokenizer.model)
    record = {
        "preset": "tiny",
        "model": dataclasses.asdict(config),
        "data": dataclasses.asdict(DataConfig()),
        "train": dataclasses.asdict(TrainConfig(seed=seed)),
        "tokenizer": tokenizer.fingerprint,
        "concepts": None,
    }
    write_json(folder / "config.json", record)
    return folder


def write_dictionary(run: Path, seed: int = 0, layer: int = 1) -> Path:
    """A dictionary of 40 random atoms for a layer of such a run; returns its file."""
    atoms_DK = torch.randn(32, 40, generator=torch.Generator().manual_seed(seed))
    atoms_DK = torch.nn.functional.normalize(atoms_DK, dim=0)
    path = run / f"dictionary-{seed}.safetensors"
    Dictionary(atoms_DK, 0.05, layer=layer, teacher=fingerprint(run)).save(path)
    return path
