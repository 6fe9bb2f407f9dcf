"""An exported run is the same model to transformers, and to an independent scorer."""

import sys
from pathlib import Path

import pytest
import torch
from minicons.scorer import MaskedLMScorer
from safetensors import safe_open
from small_runs import random_run
from small_text import sentences
from transformers import AutoModelForMaskedLM, AutoTokenizer

from mlsm import export
from mlsm.evaluation.pseudo_likelihood import Text, score_sentences, score_texts
from mlsm.export import replacement_rules
from mlsm.heads import load_run
from mlsm.sequences import Sequences
from mlsm.tokenizer import CLS_ID, MASK_ID, SEP_ID

LINES = [
    *sentences(40, seed=3),
    "``It rains,'' he said: it's ```late'''.",
    "a\tb\r\nc\u00a0d  e ",
    "Who sees?\nThe cat sees.",
    "  two blanks at the ends  ",
    "",
    "猫 the cat 猫猫 é ½ ﬁ",
]


@pytest.fixture(scope="module", params=[0, 6], ids=["vocabulary rows", "token head"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run, and the directory it was exported to."""
    folder = tmp_path_factory.mktemp("export")
    run = random_run(folder / "run", num_concepts=request.param)
    export.main([str(run), str(folder / "exported")])
    return run, folder / "exported"


def minicons_scorer(directory: Path) -> MaskedLMScorer:
    """minicons 0.3.39 calls the tokenizer by a name that transformers 5 has dropped; nothing else changes."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.batch_encode_plus = tokenizer.__call__
    return MaskedLMScorer(AutoModelForMaskedLM.from_pretrained(directory), "cpu", tokenizer=tokenizer)


def test_logits_equal_ours(pair: tuple[Path, Path]) -> None:
    run, directory = load_run(pair[0]), pair[1]
    theirs = AutoModelForMaskedLM.from_pretrained(directory).eval()
    rows = [[CLS_ID, *run.tokenizer.encode(s), SEP_ID] for s in sentences(8)]
    for ids in rows:
        ids[2] = MASK_ID
        everywhere_N = torch.arange(len(ids))
        with torch.no_grad():
            hidden_ND = run.model.hidden_at(Sequences.of([torch.tensor(ids)]), everywhere_N)
            ours_NV = run.model.token_logits(hidden_ND)
            theirs_NV = theirs(input_ids=torch.tensor([ids])).logits[0]
        assert torch.allclose(ours_NV, theirs_NV, atol=1e-5, rtol=1e-5)


def test_token_ids_equal_ours(pair: tuple[Path, Path]) -> None:
    run, theirs = load_run(pair[0]), AutoTokenizer.from_pretrained(pair[1])
    for line in LINES:
        assert theirs(line)["input_ids"] == [CLS_ID, *run.tokenizer.encode(line), SEP_ID], line
    first, second = LINES[:2]
    expected = [CLS_ID, *run.tokenizer.encode(first), SEP_ID, *run.tokenizer.encode(second), SEP_ID]
    assert theirs(first, second)["input_ids"] == expected
    assert (theirs.mask_token_id, theirs.eos_token, theirs.bos_token) == (MASK_ID, "[SEP]", "[CLS]")
    assert theirs.decode(theirs(first)["input_ids"], skip_special_tokens=True) == first


def test_concepts_stand_in_a_file_of_their_own(pair: tuple[Path, Path]) -> None:
    run, path = load_run(pair[0]), pair[1] / "concepts.safetensors"
    assert path.exists() == (run.model.concepts is not None)
    with safe_open(pair[1] / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert not [name for name in file.keys() if "concept" in name]  # noqa: SIM118 -- not a dict


def test_minicons_gives_the_same_scores(pair: tuple[Path, Path]) -> None:
    run = load_run(pair[0])
    theirs = minicons_scorer(pair[1])
    texts = [line for line in LINES if line]
    assert score_sentences(run, texts) == pytest.approx(theirs.sequence_score(texts), abs=1e-4)
    sums = theirs.sequence_score(texts, reduction=lambda scores: float(scores.sum()))
    assert score_sentences(run, texts, reduction="sum") == pytest.approx(sums, abs=1e-4)


def test_minicons_gives_the_same_scores_after_a_context(pair: tuple[Path, Path]) -> None:
    run = load_run(pair[0])
    theirs = minicons_scorer(pair[1])
    contexts, targets = sentences(6), sentences(6, seed=2)
    texts = [
        Text(tuple(run.tokenizer.encode(c)), tuple(run.tokenizer.encode(t)))
        for c, t in zip(contexts, targets, strict=True)
    ]
    ours = [score.reduced("mean") for score in score_texts(run.model, texts, 1000)]
    assert ours == pytest.approx(theirs.conditional_score(contexts, targets), abs=1e-4)
    # the official pipeline's empty context is the tokenizer's eos token
    after_sep = [Text((SEP_ID,), text.scored) for text in texts]
    ours = [score.reduced("mean") for score in score_texts(run.model, after_sep, 1000)]
    assert ours == pytest.approx(theirs.conditional_score(["[SEP]"] * 6, targets), abs=1e-4)


def test_rules_are_read_from_the_tokenizer(pair: tuple[Path, Path]) -> None:
    from sentencepiece import sentencepiece_model_pb2

    model = load_run(pair[0]).tokenizer.model
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]
    rules = dict(replacement_rules(proto.normalizer_spec.precompiled_charsmap))
    assert rules == {"``": '"', "''": '"', "\t": " ", "\r": " ", "\n": " ", "\u00a0": " "}
    assert replacement_rules(b"") == []


def test_without_the_package_tokenizers_one_line_says_so(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match="pip install tokenizers"):
        export.export(pair[0], pair[1].parent / "again")
    assert not (pair[1].parent / "again").exists()
