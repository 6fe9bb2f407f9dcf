"""The codes of a text in the format of the package delphi, which explains latents of sparse autoencoders by
language models.

FOLDER/layer-12/0_299.safetensors has the weights of the concepts 0 to 299, and so on: each concept is in one
file. A file has `locations` (M, 3: row and column of the token, number of the concept within the file),
`activations` (M) and `tokens` (R, C). The text is one stream of its sequences with [CLS] and [SEP], cut into
rows of equal length; <pad> fills the last one. delphi cuts rows into windows of 32 tokens by default, so that
padding each sequence would fill most windows with <pad>. The layout is that of `LatentCache.save_splits` in
delphi 0.1.3, which rounds weights to float16; here they stay in float32.

Legend: T tokens, N of them that have a code, M non-zero weights, R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mlsm.coding.targets import Teacher, states_at
from mlsm.files import write_directory, write_json, write_tensors
from mlsm.runs.hub_tokenizer import write_tokenizer
from mlsm.text.batches import MicroBatch
from mlsm.text.masking import is_ordinary
from mlsm.text.tokenizer import PAD_ID, Tokenizer

ROW_TOKENS = 256  # as many as delphi caches by default, and a multiple of its windows
NUM_SHARDS = 5  # delphi's default


def shard_folder(folder: Path, layer: int) -> Path:
    """Where the shards of a layer go. Raises ValueError if something is there already."""
    path = folder / f"layer-{layer}"
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path} exists; remove it, or name another folder with --cache")
    return path


@torch.no_grad()
def write_shards(
    path: Path,
    teacher: Teacher,
    tokenizer: Tokenizer,
    micro_batches: Iterable[MicroBatch],
    about: dict[str, object],
    bar: tqdm,
) -> None:
    """Write the codes of all ordinary tokens of a text to a folder, complete or not at all. The text ends
    with the last selected position. `about` is put into config.json. Memory: 16 bytes for each weight. Raises
    ValueError without the package tokenizers.
    """
    num_concepts = teacher.dictionary.atoms_DK.shape[1]
    ids, places, concepts, weights = [], [], [], []
    num_tokens = 0
    device = teacher.dictionary.atoms_DK.device
    for micro in micro_batches:
        micro = micro.to(device)
        with teacher.precision.autocast():
            states_ND = states_at(teacher.encoder, micro, teacher.dictionary.layer)
        codes_NK = teacher.codes(states_ND)
        at_M, concept_M = codes_NK.nonzero(as_tuple=True)
        ids_T = micro.text.ids_T.cpu()
        if len(micro.selected_N) < int(is_ordinary(ids_T).sum()):  # the sample ends within these sequences
            ids_T = ids_T[: int(micro.selected_N[-1]) + 1]
        ids.append(ids_T)
        places.append((micro.selected_N[at_M] + num_tokens).cpu())
        concepts.append(concept_M.int().cpu())
        weights.append(codes_NK[at_M, concept_M].cpu())
        num_tokens += len(ids_T)
        bar.update(len(micro.selected_N))
    if not ids:
        raise ValueError("the text has no token to code; give more of it")
    tokens_RC = _rows(torch.cat(ids))
    place_M, concept_M, weight_M = (torch.cat(parts) for parts in (places, concepts, weights))
    bounds = [num_concepts * number // NUM_SHARDS for number in range(NUM_SHARDS + 1)]

    def fill(folder: Path) -> None:
        for first, stop in pairwise(sorted(set(bounds))):
            is_here_M = (concept_M >= first) & (concept_M < stop)
            here_M = place_M[is_here_M]
            locations_M3 = torch.stack(
                [here_M // ROW_TOKENS, here_M % ROW_TOKENS, concept_M[is_here_M] - first], dim=1
            )
            tensors = {"locations": _compact(locations_M3), "activations": weight_M[is_here_M]}
            write_tensors(folder / f"{first}_{stop - 1}.safetensors", tensors | {"tokens": tokens_RC})
        write_tokenizer(folder, tokenizer, ROW_TOKENS)
        write_json(folder / "config.json", {"model_name": str(path), "cache_ctx_len": ROW_TOKENS, **about})

    write_directory(path, fill)


def _rows(ids_T: Tensor) -> Tensor:
    """The ids in rows (R, C), with <pad> after the last one."""
    num_rows = -(-len(ids_T) // ROW_TOKENS)
    tokens = torch.full((num_rows * ROW_TOKENS,), PAD_ID, dtype=torch.int64)
    tokens[: len(ids_T)] = ids_T
    return tokens.view(num_rows, ROW_TOKENS)


def _compact(locations_M3: Tensor) -> Tensor:
    """The locations in the smaller of the two integer types that delphi writes."""
    array = locations_M3.numpy()
    return torch.from_numpy(array.astype(np.uint16 if array.max(initial=0) < 1 << 16 else np.uint32))
