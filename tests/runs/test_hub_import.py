"""Imported teachers: the same hidden states as in transformers, the same pieces, and every checkpoint refused
that this project computes differently.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from hub_checkpoints import set_config, shaken, v1_checkpoint, v2_checkpoint, write, write_sentencepiece
from outside_checkpoints import write_authors_checkpoint
from small_runs import random_run
from small_text import sentences, small_flags
from tokenizers import Tokenizer as FastTokenizer
from torch import Tensor
from transformers import AutoTokenizer, DebertaForMaskedLM, DebertaTokenizer, DebertaV2Tokenizer

import fit_dictionary
import train
from mlsm import export
from mlsm.files import read_json, read_tensors, write_json, write_tensors
from mlsm.runs import hub_import
from mlsm.runs.checkpoint import MODEL_FILE, fingerprint
from mlsm.runs.run import Run, load_encoder, load_run
from mlsm.text.sequences import Sequences
from mlsm.text.tokenizer import CLS_ID, MASK_ID, SEP_ID, SPECIAL_PIECES, JsonTokenizer, renumbered_json

TEXTS = [*sentences(4, seed=5), " ".join(sentences(3, seed=6)), "Déjà vu: 3 - 2 = 1?  Two blanks [MASK]"]


def check_states(run: Path, theirs: torch.nn.Module, texts: list[str], their_rows: list[list[int]]) -> None:
    """Every layer of every text: ours, all texts at once, against transformers, one by one."""
    loaded = load_encoder(run)
    encoder, tokenizer = loaded.encoder, loaded.tokenizer
    rows = [torch.tensor([CLS_ID, *tokenizer.encode(text), SEP_ID]) for text in texts]
    for layer in range(3):
        with torch.no_grad():
            ours_TD = encoder(Sequences.of(rows), num_layers=layer)
            expected = [
                theirs(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0]
                for ids in their_rows
            ]
        torch.testing.assert_close(ours_TD, torch.cat(expected), atol=2e-5, rtol=1e-4)


def their_byte_pairs(folder: Path, texts: list[str]) -> list[list[int]]:
    theirs = DebertaTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    return theirs(texts)["input_ids"]


@pytest.mark.parametrize("legacy", [True, False])
def test_v1_has_the_states_and_words_of_transformers(
    legacy: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`legacy` decides the names of the masked-LM head."""
    theirs = v1_checkpoint(tmp_path / "v1", legacy=legacy)
    hub_import.main([str(tmp_path / "v1"), str(tmp_path / "run")])
    assert "random" not in capsys.readouterr().err
    texts, their_rows = TEXTS[:-1], their_byte_pairs(tmp_path / "v1", TEXTS[:-1])
    check_states(tmp_path / "run", theirs, texts, their_rows)

    run = load_run(tmp_path / "run")
    tokenizer = run.tokenizer
    _, their_ids = hub_import._read_tokenizer(tmp_path / "v1")
    for text, ids in zip(texts, their_rows, strict=True):
        ours = [CLS_ID, *tokenizer.encode(text), SEP_ID]
        assert [their_ids[i] for i in ours] == ids
        ours[3], ids[3] = MASK_ID, their_ids[MASK_ID]
        with torch.no_grad():
            hidden_ND = run.model.hidden_at(Sequences.of([torch.tensor(ours)]), torch.arange(len(ours)))
            expected_NV = theirs(torch.tensor([ids])).logits[0]
        logits_NV = run.model.token_logits(hidden_ND)
        torch.testing.assert_close(logits_NV, expected_NV[:, their_ids], atol=1e-4, rtol=1e-4)


def test_byte_pairs_keep_what_every_tokenizer_here_promises(tmp_path: Path) -> None:
    v1_checkpoint(tmp_path / "v1")
    hub_import.main([str(tmp_path / "v1"), str(tmp_path / "run")])
    tokenizer = load_run(tmp_path / "run").tokenizer
    for text in (*TEXTS, "", "猫 \ud800 [MASK][SEP]"):
        ids = tokenizer.encode(text)
        assert all(4 < i < tokenizer.vocab_size for i in ids)
        assert tokenizer.decode(ids) == text.encode("utf-8", "replace").decode()
    assert [tokenizer.piece(i) for i in range(5)] == ["[CLS]", "[SEP]", "[UNK]", "[PAD]", "[MASK]"]
    pieces = [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]
    assert len(set(pieces)) == len(pieces)
    assert "▁river" in pieces


def test_an_encoder_alone_with_pickled_weights_teaches_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names without prefix, half precision, a tokenizer.json; that the head is random is said."""
    theirs = v1_checkpoint(tmp_path / "v1", max_relative_positions=70)
    (tmp_path / "v1" / MODEL_FILE).unlink()
    half = {name: weight.half() for name, weight in theirs.deberta.state_dict().items()}
    torch.save(half, tmp_path / "v1" / hub_import.PICKLE_FILE)
    (tmp_path / "v1" / "tokenizer.json").write_bytes(hub_import._byte_pairs(tmp_path / "v1", False))
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "v1" / name).unlink()
    hub_import.main([str(tmp_path / "v1"), str(tmp_path / "run")])
    assert (
        "random instead: decoder_bias, transform.bias, transform.weight, transform_norm.bias"
        in capsys.readouterr().err
    )
    run = load_run(tmp_path / "run")
    assert run.model.config.max_positions == 70
    weight = theirs.deberta.encoder.layer[1].output.dense.weight.half().float()
    assert torch.equal(run.model.encoder.layers[1].down.weight, weight)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"share_att_key": False},
        {"norm_rel_ebd": "none", "max_relative_positions": 60},
        {"position_buckets": -1},
        {"position_buckets": 5, "max_relative_positions": 20},
    ],
    ids=str,
)
def test_v2_has_the_states_of_transformers(changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = v2_checkpoint(tmp_path / "v2", **changes)
    hub_import.main([str(tmp_path / "v2"), str(tmp_path / "run")])
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "v2" / "spm.model"))
    their_rows = [[1, *pieces.encode(text), 2] for text in TEXTS]
    assert max(map(len, their_rows)) > 40  # so that distances of several buckets occur
    check_states(tmp_path / "run", theirs, TEXTS, their_rows)
    with pytest.raises(ValueError, match="students of it take --init random"):
        load_run(tmp_path / "run")


def test_sentencepiece_models_keep_their_pieces(tmp_path: Path) -> None:
    v2_checkpoint(tmp_path / "v2")
    hub_import.main([str(tmp_path / "v2"), str(tmp_path / "run")])
    ours = load_encoder(tmp_path / "run").tokenizer
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "v2" / "spm.model"))
    assert tuple(ours.piece(i) for i in range(5)) == SPECIAL_PIECES
    assert ours.vocab_size == theirs.get_piece_size() + 1
    for text in TEXTS:
        assert [ours.piece(i) for i in ours.encode(text)] == [
            piece if theirs.piece_to_id(piece) != theirs.unk_id() else ours.piece(2)
            for piece in theirs.encode(text, out_type=str)
        ]


def test_a_unigram_tokenizer_json_keeps_its_pieces(tmp_path: Path) -> None:
    """Its [MASK] is a token added behind the vocabulary."""
    write_sentencepiece(tmp_path)
    spm = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    vocabulary = [(spm.id_to_piece(i), spm.get_score(i)) for i in range(spm.get_piece_size())]
    theirs = DebertaV2Tokenizer(vocab=vocabulary, unk_id=3)
    assert theirs.mask_token_id == len(vocabulary)
    theirs.save_pretrained(tmp_path / "saved")
    ours, their_ids = renumbered_json((tmp_path / "saved" / "tokenizer.json").read_bytes())
    assert ours.vocab_size == len(vocabulary) + 1
    for text in [*TEXTS[:-1], "the 猫 sees"]:
        assert [their_ids[i] for i in ours.encode(text)] == theirs(text)["input_ids"][1:-1]
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs(text)["input_ids"][1:-1])


def test_our_own_export_can_teach(tmp_path: Path) -> None:
    """Also one with a token head, whose words have a decoder of their own."""
    run = random_run(tmp_path / "run", num_concepts=6)
    export.main([str(run), str(tmp_path / "exported")])
    hub_import.main([str(tmp_path / "exported"), str(tmp_path / "again")])
    own, again = load_encoder(run), load_encoder(tmp_path / "again")
    states = []
    for _, _, encoder, tokenizer in (own, again):
        rows = [torch.tensor([CLS_ID, *tokenizer.encode(text), SEP_ID]) for text in sentences(5)]
        with torch.no_grad():
            states.append(encoder(Sequences.of(rows)))
    torch.testing.assert_close(*states)
    assert isinstance(again.tokenizer, JsonTokenizer)
    assert not {CLS_ID, SEP_ID, MASK_ID} & set(again.tokenizer.encode("[CLS] the [MASK][SEP]"))


def test_the_authors_teacher_has_equal_ids_and_logits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = write_authors_checkpoint(tmp_path / "theirs")
    hub_import.main([str(tmp_path / "theirs"), str(tmp_path / "run")])
    assert "not read" not in capsys.readouterr().err
    run = load_run(tmp_path / "run")
    tokenizer = FastTokenizer.from_file(str(tmp_path / "theirs" / "tokenizer.json"))
    for text in TEXTS[:-1]:
        ids = [CLS_ID, *run.tokenizer.encode(text), SEP_ID]
        assert ids[1:-1] == tokenizer.encode(text, add_special_tokens=False).ids
        torch.testing.assert_close(*logits_of(run, theirs, ids), atol=1e-4, rtol=1e-4)


def logits_of(run: Run, theirs: DebertaForMaskedLM, ids: list[int]) -> tuple[Tensor, Tensor]:
    """The logits (L, V) of words by the tied decoder, ours and theirs."""
    with torch.no_grad():
        hidden_ND = run.model.hidden_at(Sequences.of([torch.tensor(ids)]), torch.arange(len(ids)))
        expected_NV = theirs(torch.tensor([ids])).logits[0]
        return run.model.decoder_logits(hidden_ND), expected_NV[:, : run.tokenizer.vocab_size]


@pytest.mark.parametrize("has_concept_pieces", [True, False])
def test_of_the_authors_student_the_weights_are_read(
    has_concept_pieces: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The concepts are the rows of added pieces, or rows that only the decoder has. The matrix of the third
    phase, of which only the shape is known, becomes the token head; other weights are named.
    """
    num_concepts = 17
    theirs = write_authors_checkpoint(tmp_path / "theirs", num_concepts)
    file = tmp_path / "theirs" / MODEL_FILE
    tensors, num_words = read_tensors(file), theirs.config.vocab_size - num_concepts
    matrix_VK = torch.randn(num_words, num_concepts, generator=torch.Generator().manual_seed(1))
    if not has_concept_pieces:
        plain = write_authors_checkpoint(tmp_path / "plain")  # for its tokenizer, without the added pieces
        assert plain.config.vocab_size == num_words
        shutil.copy(tmp_path / "plain" / "tokenizer.json", tmp_path / "theirs")
        tensors["cls.predictions.decoder.weight"] = tensors[WORDS].clone()
        tensors[WORDS] = tensors[WORDS][:num_words].clone()
    write_tensors(
        file, tensors | {"phase3.weight": matrix_VK, "other.thing": torch.ones(3)}, {"format": "pt"}
    )
    write("modeling.py", b"raise SystemExit('this was run')")(tmp_path / "theirs")
    hub_import.main([str(tmp_path / "theirs"), str(tmp_path / "run")])
    said = capsys.readouterr().err
    assert "weights that are not read: other.thing (1 in all)" in said
    assert "the layer from concepts to words: phase3.weight" in said
    run = load_run(tmp_path / "run")
    ids = [CLS_ID, *run.tokenizer.encode(TEXTS[0]), SEP_ID]
    torch.testing.assert_close(*logits_of(run, theirs, ids), atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        expected_NK = theirs(torch.tensor([ids])).logits[0, :, num_words:]
        hidden_ND = run.model.hidden_at(Sequences.of([torch.tensor(ids)]), torch.arange(len(ids)))
        torch.testing.assert_close(run.model.concept_logits(hidden_ND), expected_NK, atol=1e-4, rtol=1e-4)
        logits_NV = run.model.token_logits(hidden_ND)
    torch.testing.assert_close(logits_NV, expected_NK @ matrix_VK.mT, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_a_checkpoint_teaches_by_its_directory_alone(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    {"v1": v1_checkpoint, "v2": v2_checkpoint}[kind](tmp_path / kind)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / kind).iterdir()}
    sample = {"k": 20, "num-tokens": 900, "num-updates": 2, "batch-size": 90}
    fit_dictionary.main([f"--teacher={kind}", *small_flags(tmp_path, **sample)])
    run = tmp_path / "runs" / f"outside-{kind}"
    assert list(run.glob("dictionary-l2-k20-*"))
    updates = {"num-steps": 3, "batch-size": 8, "token-budget": 200, "checkpoint-words": 1}
    flags = ["--objective=lsm", f"--teacher={kind}", *small_flags(tmp_path, **updates)]
    train.main([*flags, "--init=random", "--output=student"])
    train.main([*flags, "--init=random", "--output=student", "--resume"])
    assert "student is finished" in capsys.readouterr().err
    config = read_json(tmp_path / "student" / "config.json")
    assert config["concepts"]["teacher_fingerprint"] == fingerprint(run)
    assert config["model"]["width"] == 32
    tokenizer = load_run(tmp_path / "student" / "checkpoints" / "words-1").tokenizer
    export.main(["student", "exported"])
    exported = AutoTokenizer.from_pretrained(tmp_path / "exported")
    for text in [*TEXTS[:-1], "ﬁne ½  Ⅷ é"]:
        assert exported(text)["input_ids"] == [CLS_ID, *tokenizer.encode(text), SEP_ID]
    if kind == "v1":
        more = [f.replace("lsm", "mlm") for f in flags if not f.startswith("--teacher")]
        train.main([*more, "--init=v1", "--output=more", "--mask-share=0.3"])
        assert "random: none" in capsys.readouterr().err
        train.main([*flags, "--output=started"])
        own = read_tensors(run / MODEL_FILE)["encoder.token_embedding.weight"]
        started = read_tensors(tmp_path / "started" / MODEL_FILE)["encoder.token_embedding.weight"]
        assert 0 < float((own - started).abs().max()) < 0.01
    else:
        with pytest.raises(ValueError, match="students of it take --init random"):
            train.main([*flags, "--output=started"])
    assert before == {p.name: p.stat().st_mtime_ns for p in (tmp_path / kind).iterdir()}, "it was written to"


def test_a_checkpoint_that_changed_is_not_taken_for_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = v2_checkpoint(tmp_path / "v2")
    given = {"teacher": "v2", "init": "random", "output": "x"}
    converted = {"teacher": "runs/outside-v2", "init": "random", "output": "x"}
    assert hub_import.with_converted_checkpoints(given, "teacher", "init") == converted
    stamp = Path("runs/outside-v2", MODEL_FILE).stat().st_mtime_ns
    assert hub_import.with_converted_checkpoints(given, "teacher") == converted
    assert Path("runs/outside-v2", MODEL_FILE).stat().st_mtime_ns == stamp
    shaken(model).save_pretrained(tmp_path / "v2")
    with pytest.raises(ValueError, match="is there and not made from v2 as it is now; remove it"):
        hub_import.with_converted_checkpoints(given, "teacher")


def drop_setting(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = read_json(folder / "config.json")
        del config[name]
        write_json(folder / "config.json", config)

    return damage


def quantized(tensor: Tensor) -> Tensor:
    """8-bit integers with a scale."""
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


def set_tensors(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = read_tensors(folder / MODEL_FILE)
        change(tensors)
        (folder / MODEL_FILE).unlink()
        torch.save(tensors, folder / hub_import.PICKLE_FILE)

    return damage


def with_code(folder: Path) -> None:
    (folder / MODEL_FILE).unlink()
    torch.save(shutil.rmtree, folder / hub_import.PICKLE_FILE)


WORDS = hub_import.EMBEDDINGS
QUERY = "encoder.layer.0.attention.self.query_proj.weight"
MISTAKES: list[tuple[str, Callable[[Path], None], str]] = [
    ("v1", set_config(model_type="bert"), "weights are missing: embeddings.LayerNorm.bias"),
    ("v1", set_config(hidden_act="relu"), "hidden_act is relu, only gelu is computed here"),
    ("v1", set_config(position_biased_input=True), "position_biased_input is True"),
    ("v1", set_config(type_vocab_size=2), "type_vocab_size is 2"),
    ("v1", set_config(relative_attention=False), "relative_attention is False"),
    ("v1", set_config(pos_att_type="c2p"), "pos_att_type is c2p, only"),
    ("v1", set_config(layer_norm_eps=1e-5), "layer_norm_eps is 1e-05"),
    ("v1", set_config(hidden_size="x"), "hidden_size must be int, got 'x'"),
    ("v1", set_config(hidden_size=0), "hidden_size must be above 0"),
    ("v1", drop_setting("vocab_size"), "unknown or missing: vocab_size"),
    ("v1", set_config(hidden_dropout_prob=None), "hidden_dropout_prob must be float, got None"),
    ("v1", set_config(attention_probs_dropout_prob=0.0), "attention_probs_dropout_prob is 0.0, only 0.1"),
    ("v1", set_config(pos_att_type=[1, 2]), "pos_att_type must be"),
    ("v1", set_config(pos_att_type=5), "pos_att_type must be"),
    ("v1", set_config(pos_att_type=None), "pos_att_type is empty"),
    ("v1", set_config(max_relative_positions="a"), "max_relative_positions must be int, got 'a'"),
    ("v1", set_config(max_relative_positions=1 << 40), "must be at most 1048576"),
    ("v1", set_config(max_position_embeddings=-3), "max_positions must be above 0"),
    ("v1", set_config(num_attention_heads=5), "width 32 is not a multiple of num_heads 5"),
    ("v2", set_config(norm_rel_ebd=5), "norm_rel_ebd must be str, got 5"),
    ("v2", set_config(position_buckets="x"), "position_buckets must be int, got 'x'"),
    ("v2", set_config(position_buckets=1 << 40), "must be at most 1048576"),
    ("v1", set_tensors(lambda t: t.update({3: t[WORDS]})), "holds something else than named weights"),
    (
        "v1",
        set_tensors(lambda t: t.update({WORDS: t[WORDS].to("meta")})),
        "something else than named weights",
    ),
    ("v1", set_tensors(lambda t: t.update({WORDS: torch.tensor(1.0)})), "has no word embeddings"),
    (
        "v1",
        set_tensors(lambda t: t.update({WORDS: quantized(t[WORDS])})),
        "something else than named weights",
    ),
    ("v1", set_tensors(lambda t: t.update({WORDS: t[WORDS] * 1j})), "something else than named weights"),
    (
        "v1",
        set_tensors(lambda t: t.update({WORDS: t[WORDS].to_sparse()})),
        "something else than named weights",
    ),
    ("v1", set_tensors(lambda t: t.update({WORDS: t[WORDS][:50]})), "the tokenizer has ids up to"),
    ("v2", set_tensors(lambda t: t.update({QUERY: torch.tensor(1.0)})), "do not fit this model: layers.0"),
    ("v2", set_tensors(lambda t: t.update({QUERY: t[QUERY][:30]})), "do not fit this model: layers.0"),
    (
        "v1",
        set_config(intermediate_size=40),
        "that do not fit this model: encoder.layers.0.down.weight",
    ),
    (
        "v1",
        set_tensors(lambda t: t.pop("deberta.encoder.layer.1.attention.self.q_bias")),
        "that do not fit this model: encoder.layers.1.attention.q_bias (1",
    ),
    ("v1", set_tensors(lambda t: t.pop(WORDS)), "no word embeddings"),
    ("v1", set_tensors(lambda t: t.update(step=3)), "holds something else than named weights"),
    ("v1", with_code, "is damaged, or holds more than weights"),
    ("v1", lambda folder: (folder / MODEL_FILE).unlink(), "no model.safetensors and no pytorch_model.bin"),
    ("v1", write(MODEL_FILE, b"junk"), "model.safetensors is damaged"),
    ("v1", write("vocab.json", b'{"a": 4000000000}'), "vocab.json must number its pieces from 0 to 4194303"),
    ("v1", write("vocab.json", b'{"a": "x"}'), "vocab.json must number its pieces from 0"),
    ("v1", write("vocab.json", b'{"a": 0}'), "vocab.json and merges.txt do not fit together"),
    ("v1", write("tokenizer.json", b"{}"), "not a tokenizer.json"),
    (
        "v1",
        lambda folder: (folder / "merges.txt").unlink(),
        "no spm.model, no tokenizer.json, and no vocab.json",
    ),
    (
        "v1",
        write("tokenizer_config.json", b'{"do_lower_case": true}'),
        "its tokenizer asks for do_lower_case",
    ),
    ("v2", set_config(conv_kernel_size=3), "conv_kernel_size is 3, only 0 is computed here"),
    ("v2", set_config(share_att_key=False), "weights that do not fit this model: layers.0.attention"),
    ("v2", set_config(norm_rel_ebd="none"), "weights that do not fit this model: table_norm"),
    ("v2", write("spm.model", b"junk"), "not a SentencePiece model"),
    ("v2", set_config(position_buckets=6), "weights that do not fit this model: relative_embedding.weight"),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    v1_checkpoint(folder / "v1")
    v2_checkpoint(folder / "v2")
    return folder


@pytest.mark.filterwarnings("ignore:(torch.quantize_per_tensor|TypedStorage)")
@pytest.mark.parametrize(("kind", "damage", "message"), MISTAKES, ids=[message for *_, message in MISTAKES])
def test_what_is_computed_otherwise_or_damaged_is_refused(
    kind: str, damage: Callable[[Path], None], message: str, checkpoints: Path, tmp_path: Path
) -> None:
    shutil.copytree(checkpoints / kind, tmp_path / kind)
    damage(tmp_path / kind)
    with pytest.raises(ValueError) as refused:  # noqa: PT011 -- the message is looked at
        hub_import.main([str(tmp_path / kind), str(tmp_path / "run")])
    assert message in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_without_the_package_tokenizers_one_line_says_so(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match="pip install tokenizers"):
        hub_import.main([str(checkpoints / "v1"), str(tmp_path / "run")])
    hub_import.main([str(checkpoints / "v2"), str(tmp_path / "run")])  # SentencePiece needs none


def test_a_directory_that_is_no_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint in"):
        hub_import.main([str(tmp_path), str(tmp_path / "run")])
    with pytest.raises(ValueError, match="no checkpoint in"):
        hub_import.main([str(random_run(tmp_path / "own")), str(tmp_path / "run")])
