"""The codes of a text in the format of delphi: what numpy and delphi read back is what was coded."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from mlsm import concepts
from mlsm.coding.targets import EVERY_TOKEN, states_at
from mlsm.pages import concept_shards
from mlsm.pages.concept_source import ConceptSource, open_source
from mlsm.text.batches import Corpus
from mlsm.text.masking import is_ordinary
from mlsm.text.tokenizer import PAD_ID

NUM_TOKENS = 900


@pytest.fixture(scope="module")
def source(teacher: Path) -> ConceptSource:
    return open_source(teacher, num_tokens=NUM_TOKENS, device="cpu")


@pytest.fixture(scope="module")
def folder(source: ConceptSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return source.write_codes(tmp_path_factory.mktemp("cache"))


def expected(source: ConceptSource) -> tuple[np.ndarray, np.ndarray]:
    """The ids of the text (T) and the codes (T, K) of all of its tokens, zero for [CLS] and [SEP]."""
    teacher = source.readers.teacher
    assert teacher is not None
    ids, codes = [], []
    for micro in source._sample(Corpus(source.data, source.tokenizer), EVERY_TOKEN):
        with teacher.precision.autocast():
            states_ND = states_at(teacher.encoder, micro, teacher.dictionary.layer)
        codes_TK = torch.zeros(len(micro.text.ids_T), 24)
        codes_TK[micro.selected_N] = teacher.codes(states_ND)
        ids.append(micro.text.ids_T)
        codes.append(codes_TK)
    stop = len(torch.cat(ids)) - len(ids[-1]) + int(micro.selected_N[-1]) + 1
    ids_T, codes_TK = torch.cat(ids)[:stop], torch.cat(codes)[:stop]
    assert int(is_ordinary(ids_T).sum()) == NUM_TOKENS
    return ids_T.numpy(), codes_TK.numpy()


def test_the_shards_hold_every_weight_once(source: ConceptSource, folder: Path) -> None:
    assert folder.name == "layer-2"
    files = sorted(folder.glob("*.safetensors"), key=lambda path: int(path.stem.split("_")[0]))
    assert [path.stem for path in files] == ["0_3", "4_8", "9_13", "14_18", "19_23"]
    ids_T, codes_TK = expected(source)
    read_TK = np.zeros_like(codes_TK)
    num_weights = 0
    for path in files:
        shard = load_file(path)
        locations, weights, tokens = (shard[name] for name in ("locations", "activations", "tokens"))
        assert (locations.dtype, weights.dtype, tokens.dtype) == (np.uint16, np.float32, np.int64)
        assert tokens.shape[1] == concept_shards.ROW_TOKENS
        assert tokens.ravel()[: len(ids_T)].tolist() == ids_T.tolist()
        assert set(tokens.ravel()[len(ids_T) :].tolist()) <= {PAD_ID}
        row, column, concept = locations.T.astype(int)
        read_TK[row * tokens.shape[1] + column, concept + int(path.stem.split("_")[0])] = weights
        num_weights += len(weights)
    assert np.array_equal(read_TK, codes_TK)
    assert num_weights == np.count_nonzero(codes_TK)
    has_code_T = codes_TK.any(1)
    assert has_code_T.sum() > 0.9 * NUM_TOKENS


def test_delphi_reads_the_same_codes(source: ConceptSource, folder: Path) -> None:
    loader = pytest.importorskip("delphi.latents.loader", reason="needs eai-delphi 0.1.3")
    config = pytest.importorskip("delphi.config")
    windows = config.ConstructorConfig(min_examples=1, n_non_activating=0)
    dataset = loader.LatentDataset(folder.parent, config.SamplerConfig(), windows)  # also its tokenizer
    ids_T, codes_TK = expected(source)
    assert dataset.tokens.ravel()[: len(ids_T)].tolist() == ids_T.tolist()
    assert dataset.tokenizer.convert_ids_to_tokens(int(ids_T[1])) == source.tokenizer.piece(int(ids_T[1]))
    read_TK = np.zeros_like(codes_TK)
    for buffer in dataset.buffers:
        for data in buffer:
            row, column, _ = data.activation_data.locations.T
            place = row * dataset.tokens.shape[1] + column
            read_TK[place, data.latent.latent_index] = data.activation_data.activations
    assert np.array_equal(read_TK, codes_TK)
    records = list(dataset)
    assert {record.latent.latent_index for record in records} == set(np.flatnonzero(codes_TK.any(0)))
    chosen = {folder.name: torch.tensor([3, 4, 23])}
    few = loader.LatentDataset(folder.parent, config.SamplerConfig(), windows, latents=chosen)
    assert {data.latent.latent_index for buffer in few.buffers for data in buffer} <= {3, 4, 23}


def test_transformers_reads_the_tokenizer(source: ConceptSource, folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    about = json.loads((folder / "config.json").read_text())
    assert about["model_name"] == str(folder)
    assert (about["layer"], about["n_tokens"], about["cache_ctx_len"]) == (2, NUM_TOKENS, 256)
    theirs = transformers.AutoTokenizer.from_pretrained(about["model_name"])
    ids = source.tokenizer.encode("The old king sees a dog.")
    assert theirs("The old king sees a dog.").input_ids[1:-1] == ids
    assert theirs.decode(ids).strip() == "The old king sees a dog."


def test_many_rows_need_the_larger_integers() -> None:
    for largest, kind in ((65_535, torch.uint16), (65_536, torch.uint32)):
        assert concept_shards._compact(torch.tensor([[largest, 255, 3]])).dtype == kind
    assert concept_shards._compact(torch.zeros(0, 3, dtype=torch.long)).dtype == torch.uint16


def test_the_command_writes_codes_and_never_over_others(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concepts.concept_view, "draw_concepts", lambda *_: None)
    command = [str(teacher), "--num-tokens=200", f"--output={tmp_path}", f"--cache={tmp_path / 'cache'}"]
    concepts.main(command)
    assert f"codes of the teacher: {tmp_path / 'cache' / 'layer-2'}" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"layer-2 exists; remove it, or name another folder with --cache"):
        concepts.main(command)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write in"):
        concepts.main([*command[:3], f"--cache={tmp_path / 'file'}"])
