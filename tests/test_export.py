"""An exported run is the same model to transformers, to independent scorers, and to us."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from minicons.scorer import MaskedLMScorer
from safetensors import safe_open
from small_runs import random_run, small_tokenizer
from small_text import NANO_FLAGS, sentences, write_corpus
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

import mlsm
import train
from mlsm import export
from mlsm.evaluation.pseudo_likelihood import Text, score_sentences, score_texts
from mlsm.files import read_json, read_tensors, write_json
from mlsm.runs.checkpoint import (
    Checkpoint,
    TrainingState,
    fingerprint,
    save_checkpoint,
    save_milestone,
    words_name,
)
from mlsm.runs.hub_tokenizer import huggingface_tokenizer, replacement_rules
from mlsm.runs.run import load_run
from mlsm.text.corpus import embedded_corpus
from mlsm.text.sequences import Sequences
from mlsm.text.tokenizer import (
    CLS_ID,
    MASK_ID,
    PAD_ID,
    SEP_ID,
    SPECIAL_PIECES,
    JsonTokenizer,
    Tokenizer,
    train_tokenizer,
)

LINES = [
    *sentences(40, seed=3),
    "``It rains,'' he said: it's ```late'''.",
    "a\tb\r\nc\u00a0d  e ",
    "Who sees?\nThe cat sees.",
    "  two blanks at the ends  ",
    "",
    "   ",
    "\0 \x07\x1b[0m\u200b\ufeff",
    "1,024.50 and 3/4",
    "caf\u00e9 cafe\u0301 \uff21\uff11 \U0001f600\U0001f1ed\U0001f1fa",
    "\u2581the\u2581 cat \u2581",
    "\u732b the cat \u732b\u732b \u00e9 \u00bd \ufb01",
]
TOKENIZER = small_tokenizer()


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


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("padding", [0, 1, 9, 40])
def test_logits_equal_ours_whatever_the_padding(pair: tuple[Path, Path], padding: int, side: str) -> None:
    run, directory = load_run(pair[0]), pair[1]
    theirs = AutoModelForMaskedLM.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side=side)
    rows = [[CLS_ID, *run.tokenizer.encode(s), SEP_ID] for s in sentences(4)]
    for ids in rows:
        ids[2] = MASK_ID
    longest = max(map(len, rows))
    batch = tokenizer.pad(
        {"input_ids": rows}, padding="max_length", max_length=longest + padding, return_tensors="pt"
    )
    sequences = Sequences.of([torch.tensor(ids) for ids in rows])
    with torch.no_grad():
        hidden_TD = run.model.hidden_at(sequences, torch.arange(len(sequences.ids_T)))
        ours_TV = run.model.token_logits(hidden_TD)
        theirs_TV = theirs(**batch).logits[batch["attention_mask"].bool()]
    torch.testing.assert_close(theirs_TV, ours_TV, atol=1e-5, rtol=1e-5)


def test_the_encoder_alone_and_with_a_new_head_for_fine_tuning(pair: tuple[Path, Path]) -> None:
    run, directory = load_run(pair[0]), pair[1]
    ids = [CLS_ID, *run.tokenizer.encode("The cat sees the river."), SEP_ID]
    with torch.no_grad():
        ours_TD = run.model.encoder(Sequences.of([torch.tensor(ids)]))
        alone = AutoModel.from_pretrained(directory).eval()
        torch.testing.assert_close(
            alone(torch.tensor([ids])).last_hidden_state[0], ours_TD, atol=1e-5, rtol=1e-5
        )
    classifier, loading = AutoModelForSequenceClassification.from_pretrained(
        directory, num_labels=3, output_loading_info=True
    )
    assert {name.split(".")[0] for name in loading["missing_keys"]} == {"pooler", "classifier"}
    first = {name: w.clone() for name, w in classifier.named_parameters()}
    encoded = AutoTokenizer.from_pretrained(directory)(
        ["A dog.", "It sees."], ["Why?", "No."], return_tensors="pt", padding=True
    )
    optimizer = torch.optim.AdamW(classifier.parameters(), 0.1)
    classifier(**encoded, labels=torch.tensor([0, 2])).loss.backward()
    optimizer.step()
    changed = [name for name, w in classifier.named_parameters() if not torch.equal(w, first[name])]
    assert {"deberta.embeddings.word_embeddings.weight", "classifier.weight"} <= set(changed)


def test_token_ids_equal_ours(pair: tuple[Path, Path]) -> None:
    run, theirs = load_run(pair[0]), AutoTokenizer.from_pretrained(pair[1])
    for line in LINES:
        assert theirs(line)["input_ids"] == [CLS_ID, *run.tokenizer.encode(line), SEP_ID], line
    first, second = LINES[:2]
    expected = [CLS_ID, *run.tokenizer.encode(first), SEP_ID, *run.tokenizer.encode(second), SEP_ID]
    assert theirs(first, second)["input_ids"] == expected
    assert (theirs.mask_token_id, theirs.eos_token, theirs.bos_token) == (MASK_ID, "[SEP]", "[CLS]")
    assert theirs.decode(theirs(first)["input_ids"], skip_special_tokens=True) == first


FRAGMENTS = [
    "the cat",
    "``",
    "''",
    "'",
    " ",
    "  ",
    "\u2581",
    "\t",
    "\0",
    "\u00a0",
    "\uff11",
    "e\u0301",
    "[",
    "MASK]",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(max_size=6) | st.sampled_from(FRAGMENTS), max_size=8).map("".join))
def test_token_ids_of_any_text_equal_ours(line: str) -> None:
    theirs = huggingface_tokenizer(TOKENIZER).encode(line).ids
    if not any(piece in line for piece in SPECIAL_PIECES):
        assert theirs == [CLS_ID, *TOKENIZER.encode(line), SEP_ID]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(max_size=4) | st.sampled_from([*FRAGMENTS, "[MASK]"]), max_size=8).map("".join))
def test_ids_of_any_text_with_masks_equal_ours(line: str) -> None:
    if not any(piece in line for piece in SPECIAL_PIECES[:MASK_ID]):
        ids = TOKENIZER.encode_with_masks(line)
        fast = huggingface_tokenizer(TOKENIZER)
        assert fast.encode(line).ids == [CLS_ID, *ids, SEP_ID]
        assert JsonTokenizer(fast.to_str().encode()).encode_with_masks(line) == ids


class MaskedWord(NamedTuple):
    """A text with [MASK] for a word, and the ids of the text with the mask in place of the word's piece."""

    text: str
    ids: list[int]


def masked_words(tokenizer: Tokenizer, line: str) -> Iterator[MaskedWord]:
    """Every word of a line that is one piece, masked. Lines that the tokenizer changes have none."""
    ids = tokenizer.encode(line)
    pieces = [tokenizer.piece(i).replace("▁", " ") for i in ids]
    spaced = " " + line + " "
    if "".join(pieces) + " " != spaced:
        return
    stop = 0
    for place, piece in enumerate(pieces):
        start, stop = stop, stop + len(piece)
        word_start = start + piece.startswith(" ")
        is_word = spaced[word_start:stop].isalpha() and not spaced[stop].isalnum()
        if is_word and (
            piece.startswith(" ") or not (spaced[start - 1].isalnum() or spaced[start - 1] == " ")
        ):
            text = spaced[1:word_start] + "[MASK]" + spaced[stop:-1]
            yield MaskedWord(text, [*ids[:place], MASK_ID, *ids[place + 1 :]])


def test_a_masked_word_has_the_ids_of_the_text_with_its_piece_replaced(tmp_path: Path) -> None:
    lines = embedded_corpus(tmp_path).read_text(encoding="utf-8").splitlines()
    tokenizer = train_tokenizer(lines[::4], 4000)
    words = [word for line in lines[::60] for word in masked_words(tokenizer, line)]
    assert len(words) > 10_000
    assert sum(not re.search(r"\[MASK\]( |$)", word.text) for word in words) > 1_000  # before punctuation
    texts, expected = zip(*words, strict=True)
    assert [tokenizer.encode_with_masks(text) for text in texts] == [*expected]
    random_run(tmp_path / "run", tokenizer=tokenizer)
    export.main([str(tmp_path / "run"), str(tmp_path / "exported")])
    theirs = AutoTokenizer.from_pretrained(tmp_path / "exported")([*texts], add_special_tokens=False)
    assert theirs["input_ids"] == [*expected]


@pytest.mark.parametrize("has_prefix_space", [False, True])
def test_a_masked_word_of_byte_pairs(has_prefix_space: bool) -> None:
    """The text's ids have the mask in place of the word, also if the tokenizer puts a space before a text."""
    lines = sentences(300)
    bpe = ByteLevelBPETokenizer(add_prefix_space=has_prefix_space)
    bpe.train_from_iterator(lines, 400, special_tokens=[*SPECIAL_PIECES], show_progress=False)
    tokenizer = JsonTokenizer(bpe._tokenizer.to_str().encode())
    fast = huggingface_tokenizer(tokenizer)
    ends = 0
    for line in lines:
        ids = tokenizer.encode(line)
        for word in re.finditer(r"\w+", line):
            before = tokenizer.encode(line[: word.start()].rstrip())
            through = tokenizer.encode(line[: word.end()])
            if len(through) == len(before) + 1 and through == ids[: len(through)]:
                text = line[: word.start()] + "[MASK]" + line[word.end() :]
                expected = [*before, MASK_ID, *ids[len(through) :]]
                assert tokenizer.encode_with_masks(text) == expected, text
                assert fast.encode(text).ids == [CLS_ID, *expected, SEP_ID], text
                ends += text.endswith("[MASK].")
    assert ends > 100


def test_masks_for_a_word_of_several_pieces_and_within_a_word() -> None:
    fast = huggingface_tokenizer(TOKENIZER)
    for text, pieces in [
        ("a [MASK][MASK].", ["▁a", "[MASK]", "[MASK]", "."]),
        ("a[MASK]", ["▁a", "[MASK]"]),
        ("[MASK]the [MASK] dog", ["[MASK]", "the", "[MASK]", "▁dog"]),
        ("\t [MASK]  dog ", ["[MASK]", "▁dog"]),
    ]:
        ids = TOKENIZER.encode_with_masks(text)
        assert [TOKENIZER.piece(i) for i in ids] == pieces
        assert fast.encode(text).tokens == ["[CLS]", *pieces, "[SEP]"]


def test_a_text_that_spells_a_special_token_is_text_to_us_and_the_token_to_them() -> None:
    theirs = huggingface_tokenizer(TOKENIZER)
    for special_id, piece in enumerate(SPECIAL_PIECES):
        line = f"the cat {piece} sees"
        ours = TOKENIZER.encode(line)
        assert not {CLS_ID, SEP_ID, PAD_ID, MASK_ID} & set(ours)
        parts = TOKENIZER.encode("the cat"), TOKENIZER.encode("sees")
        assert theirs.encode(line).ids[1:-1] == [*parts[0], special_id, *parts[1]]


def test_words_at_masks_are_those_of_the_fill_mask_pipeline_and_of_minicons(pair: tuple[Path, Path]) -> None:
    run, text, masked = load_run(pair[0]), "a dog sees a dog.", "a [MASK] sees a [MASK]."
    ids = torch.tensor([CLS_ID, *run.tokenizer.encode(text), SEP_ID])
    positions = torch.tensor(
        [i for i, piece_id in enumerate(ids) if run.tokenizer.piece(int(piece_id)) == "▁dog"]
    )
    ids[positions] = MASK_ID
    with torch.no_grad():
        logits_NV = run.model.token_logits(run.model.hidden_at(Sequences.of([ids]), positions))
    best_NK = logits_NV.softmax(-1).topk(4)
    expected = [[run.tokenizer.piece(i) for i in row] for row in best_NK.indices.tolist()]
    fill = pipeline("fill-mask", str(pair[1]), tokenizer=AutoTokenizer.from_pretrained(pair[1]), top_k=4)
    ours = mlsm.load(pair[0], device="cpu").predict(masked, top=4)
    for row, mine, candidates, best in zip(expected, ours, fill(masked), best_NK.values, strict=True):
        assert row == [piece for piece, _ in mine] == [TOKENIZER.piece(f["token"]) for f in candidates]
        assert [p for _, p in mine] == pytest.approx(best.tolist(), rel=1e-3)
        assert [f["score"] for f in candidates] == pytest.approx(best.tolist(), rel=1e-3)
    [theirs_V] = minicons_scorer(pair[1]).cloze_distribution([("a bird sees a [MASK].", "bird")])
    ids[positions[1]] = MASK_ID
    with torch.no_grad():
        hidden_ND = run.model.hidden_at(Sequences.of([ids]), positions[:1])
        torch.testing.assert_close(
            theirs_V, run.model.token_logits(hidden_ND).log_softmax(-1)[0], atol=1e-4, rtol=1e-4
        )


def test_concepts_stand_in_a_file_of_their_own(pair: tuple[Path, Path]) -> None:
    run, path = load_run(pair[0]), pair[1] / "concepts.safetensors"
    assert path.exists() == (run.model.concepts is not None)
    with safe_open(pair[1] / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert not [name for name in file.keys() if "concept" in name]  # noqa: SIM118 -- not a dict


def test_an_export_is_a_run_again(pair: tuple[Path, Path], tmp_path: Path) -> None:
    ours = load_run(pair[0])
    export.main([str(pair[1]), str(tmp_path / "twice")])
    for directory in (pair[1], tmp_path / "twice"):
        again = load_run(directory)
        assert again.record == ours.record
        assert again.tokenizer.model == ours.tokenizer.model
        weights = again.model.state_dict()
        assert weights.keys() == ours.model.state_dict().keys()
        assert all(torch.equal(weights[name], w) for name, w in ours.model.state_dict().items())


def test_an_imported_tokenizer_is_exported_too(tmp_path: Path) -> None:
    """Byte-pair pieces, as DeBERTa v1 has them, come and go as a tokenizer.json."""
    bpe = ByteLevelBPETokenizer()
    special = [*SPECIAL_PIECES]
    bpe.train_from_iterator(sentences(300), vocab_size=300, special_tokens=special, show_progress=False)
    ours = JsonTokenizer(bpe._tokenizer.to_str().encode())
    run = random_run(tmp_path / "run", tokenizer=ours)
    export.main([str(run), str(tmp_path / "exported")])
    theirs = AutoTokenizer.from_pretrained(tmp_path / "exported")
    for line in LINES:
        assert theirs(line)["input_ids"] == [CLS_ID, *ours.encode(line), SEP_ID], line
        assert load_run(tmp_path / "exported").tokenizer.encode(line) == ours.encode(line)


@pytest.mark.parametrize("objective", ["lsm", "lsm15", "mlsm"])
def test_a_student_without_words_is_an_encoder(
    objective: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = random_run(tmp_path / "run", num_concepts=6, has_token_head=False)
    config = read_json(run / "config.json")
    config["train"] |= {"objective": objective, "init": "random"}
    write_json(run / "config.json", config)
    export.main([str(run), str(tmp_path / "exported")])
    assert f"an encoder, because {objective} trains no words" in capsys.readouterr().err
    with pytest.raises(
        ValueError, match=rf"trains no words \({objective}\), so it has no words to be judged by"
    ):
        export.main([str(run), str(tmp_path / "entry"), "--babylm=0"])
    assert read_json(tmp_path / "exported" / "config.json")["architectures"] == ["DebertaModel"]
    assert "fill-mask" not in (tmp_path / "exported" / "README.md").read_text(encoding="utf-8")
    ours, again = load_run(run), load_run(tmp_path / "exported")
    for name, weight in ours.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], weight), name
    with safe_open(tmp_path / "exported" / "model.safetensors", "pt") as file:
        assert all(name.startswith("deberta.") for name in file.keys())  # noqa: SIM118 -- not a dict
    theirs, loading = AutoModel.from_pretrained(tmp_path / "exported", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    ids = torch.tensor([CLS_ID, *ours.tokenizer.encode("The cat sees the river."), SEP_ID])
    with torch.no_grad():
        ours_TD = ours.model.encoder(Sequences.of([ids]))
        theirs_TD = theirs.eval()(ids[None]).last_hidden_state[0]
    torch.testing.assert_close(theirs_TD, ours_TD, atol=1e-5, rtol=1e-5)
    _, loading = AutoModelForMaskedLM.from_pretrained(tmp_path / "exported", output_loading_info=True)
    assert "cls.predictions.bias" in loading["missing_keys"]  # transformers says that the head is random


def test_an_export_can_be_trained_further(pair: tuple[Path, Path], tmp_path: Path) -> None:
    text = write_corpus(tmp_path / "text.txt", 60)
    flags = [
        f"--init={pair[1]}",
        f"--corpus={text}",
        f"--cache-dir={tmp_path}",
        f"--output={tmp_path / 'run'}",
    ]
    train.main(["--objective=mlm", *flags, "--num-steps=1", "--learning-rate=1e-9", *NANO_FLAGS[6:8]])
    words = read_tensors(tmp_path / "run" / "model.safetensors")["encoder.token_embedding.weight"]
    torch.testing.assert_close(words, load_run(pair[0]).model.encoder.token_embedding.weight.detach())


def test_folded_insists_on_a_token_head(pair: tuple[Path, Path], tmp_path: Path) -> None:
    has_token_head = load_run(pair[0]).model.token_head is not None
    assert read_json(pair[1] / "config.json")["tie_word_embeddings"] != has_token_head
    if has_token_head:
        export.main([str(pair[0]), str(tmp_path / "folded"), "--folded"])
        folded, plain = (read_tensors(d / "model.safetensors") for d in (tmp_path / "folded", pair[1]))
        assert all(torch.equal(folded[name], w) for name, w in plain.items())
    else:
        with pytest.raises(ValueError, match="has no token head to fold in: train one with"):
            export.main([str(pair[0]), str(tmp_path / "folded"), "--folded"])
        assert not (tmp_path / "folded").exists()


def test_the_card_has_what_the_flags_say(pair: tuple[Path, Path], tmp_path: Path) -> None:
    flags = ["--license=mit", "--language", "en", "de", "--datasets", "mine"]
    export.main([str(pair[0]), str(tmp_path / "exported"), *flags])
    card = (tmp_path / "exported" / "README.md").read_text(encoding="utf-8")
    assert '\nlicense: "mit"\nlanguage:\n- "en"\n- "de"\ndatasets:\n- "mine"\n' in card


def test_a_run_is_never_overwritten_by_an_export(pair: tuple[Path, Path]) -> None:
    before = fingerprint(pair[0])
    with pytest.raises(ValueError, match="holds other files"):
        export.main([str(pair[1]), str(pair[0])])
    assert fingerprint(pair[0]) == before
    export.main([str(pair[0]), str(pair[1])])  # again, over an older export


def test_a_checkpoint_is_exported_if_it_is_whole(tmp_path: Path) -> None:
    run = random_run(tmp_path / "some-run")
    other = read_tensors(random_run(tmp_path / "other", seed=1) / "model.safetensors")
    step = save_checkpoint(run, Checkpoint(7, other, {}, TrainingState(1234, 0)), keep=1)
    export.main([str(step), str(tmp_path / "exported")])
    words = load_run(tmp_path / "exported").model.encoder.token_embedding.weight
    assert torch.equal(words, other["encoder.token_embedding.weight"])
    card = (tmp_path / "exported" / "README.md").read_text(encoding="utf-8")
    assert "# some-run, checkpoint step-7" in card
    assert "| 7 of " in card
    assert "1,234" in card

    weights = bytearray((step / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (step / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match=r"step-7/model.safetensors is damaged"):
        export.main([str(step), str(tmp_path / "damaged")])
    assert not (tmp_path / "damaged").exists()


def test_minicons_gives_the_same_scores(pair: tuple[Path, Path]) -> None:
    run = load_run(pair[0])
    theirs = minicons_scorer(pair[1])
    texts = [line for line in LINES if run.tokenizer.encode(line)]
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


def test_an_entry_has_a_directory_for_each_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each directory holds the weights of its own checkpoint. transformers ignores the revision of a local
    directory, so that one directory for all would be one model.
    """
    run = random_run(tmp_path / "run")
    others = {
        words: read_tensors(random_run(tmp_path / str(words), seed=1) / "model.safetensors")
        for words in (0, 1000)
    }
    others[1000]["decoder_bias"] += 1
    for words, weights in others.items():
        save_milestone(run, words_name(words), words, weights, TrainingState(words, 0))
    with pytest.raises(ValueError, match="no model for chck_1M"):
        export.main([str(run), str(tmp_path / "entry"), "--babylm=0,1000,1M"])
    assert not (tmp_path / "entry").exists()
    for _ in range(2):  # the second time over the first
        export.main([str(run), str(tmp_path / "entry"), "--babylm=0,1000"])
    assert "main, chck_0M, chck_1000" in capsys.readouterr().err
    ids = torch.tensor([[CLS_ID, 7, 8, SEP_ID]])
    for name, source in {
        "main": run,
        "chck_0M": run / "checkpoints/words-0M",
        "chck_1000": run / "checkpoints/words-1000",
    }.items():
        theirs = AutoModelForMaskedLM.from_pretrained(tmp_path / "entry" / name).eval()
        ours = load_run(source).model
        with torch.no_grad():
            hidden_TD = ours.hidden_at(Sequences.of([*ids]), torch.arange(4))
            torch.testing.assert_close(
                theirs(ids).logits[0], ours.token_logits(hidden_TD), atol=1e-5, rtol=1e-5
            )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ValueError, match="holds other files"):
        export.main([str(run), str(tmp_path / "other"), "--babylm=0,1000"])


@pytest.mark.parametrize("words", ["", "none", "-1"])
def test_an_entry_needs_a_track_or_numbers(tmp_path: Path, words: str) -> None:
    with pytest.raises(ValueError, match=r"--babylm (needs|takes)"):
        export.main([str(random_run(tmp_path / "run")), str(tmp_path / "entry"), f"--babylm={words}"])
