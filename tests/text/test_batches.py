"""From text files to micro-batches: what is in an update, and that nothing but (seed, step) decides it."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from small_text import sentences, write_corpus

from mlsm.config import DataConfig
from mlsm.text.batches import (
    Corpus,
    MicroBatch,
    Selection,
    Update,
    cut_by_token_budget,
    heldout_lines,
    num_leaking_lines,
    split_slices,
)
from mlsm.text.corpus import corpus_tokenizer
from mlsm.text.sequences import Sequences
from mlsm.text.tokenizer import CLS_ID, MASK_ID, NUM_SPECIALS, SEP_ID

MASKED = Selection(0.15, is_masked=True)
EVERYTHING = Selection(1.0, is_masked=False)


def make_corpus(folder: Path, lines: list[str] | None = None, **settings: object) -> Corpus:
    path = folder / "text.txt"
    path.write_text("\n".join(lines or sentences(400)) + "\n", encoding="utf-8")
    config = DataConfig(corpus=(str(path),), cache_dir=str(folder / "cache"), **settings)  # type: ignore[arg-type]
    return Corpus(config, corpus_tokenizer(config, 80))


def rows_of(update: Update, name: str = "text") -> list[tuple[int, ...]]:
    """The sequences of an update, in a fixed order."""
    sides = [getattr(micro, name) for micro in update.micro_batches]
    return sorted(
        tuple(ids.tolist()) for side in sides for ids in side.ids_T.split(side.cu_seqlens.diff().tolist())
    )


def asked(corpus: Corpus, step: int, **changes: object) -> Update:
    settings = {"batch_size": 16, "token_budget": 200, "selection": MASKED, "seed": 1} | changes
    return corpus.update(step, **settings)  # type: ignore[arg-type]


def test_a_pair_is_two_consecutive_lines(tmp_path: Path) -> None:
    lines = [
        "The cat sees the river.",
        "A dog likes an apple today.",
        "My sister calls again.",
        "One bird hears two.",
    ]
    corpus = make_corpus(tmp_path, [*sentences(200), *lines])
    tokenizer = corpus_tokenizer(
        DataConfig(corpus=(str(tmp_path / "text.txt"),), cache_dir=str(tmp_path / "cache")), 80
    )
    last = len(corpus.index.starts_S) - 1
    [row] = rows_of(corpus.cut(np.array([last - 1]), 999, EVERYTHING, torch.Generator()))
    expected = [CLS_ID, *tokenizer.encode(lines[0]), SEP_ID, *tokenizer.encode(lines[1]), SEP_ID]
    assert row == tuple(expected)
    assert corpus.index.words_S[last - 1] == 5 + 6


def test_pairs_that_say_too_little_are_dropped(tmp_path: Path) -> None:
    short = ["Long enough for a pair this is.", "No.", "Two words", "only here", *sentences(100)]
    assert len(make_corpus(tmp_path, short).index.starts_S) == 50


def test_packed_sequences_hold_every_token_once(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, sequence_mode="packed", max_length=40)
    lengths = corpus.index.stops_S - corpus.index.starts_S + 1
    assert lengths.max() <= 40
    assert (corpus.index.starts_S[1:] == corpus.index.stops_S[:-1]).all()
    assert corpus.index.stops_S[-1] == len(corpus.text.ids)
    assert corpus.index.words_S.sum() == corpus.text.line_words.sum()


@pytest.mark.parametrize("mode", ["pairs", "packed"])
def test_a_line_longer_than_a_sequence_is_cut_and_ends_with_sep(tmp_path: Path, mode: str) -> None:
    lines = [*sentences(100), " ".join(sentences(30)), "And then one line more follows."]
    corpus = make_corpus(tmp_path, lines, sequence_mode=mode, max_length=24, heldout_share=0.0)
    update = corpus.cut(np.arange(len(corpus.index.starts_S)), 10_000, EVERYTHING, torch.Generator())
    rows = rows_of(update)
    assert max(map(len, rows)) == 24
    assert all(row[0] == CLS_ID and row[-1] == SEP_ID for row in rows)
    # 30 sentences on one line are about 300 words, of which the 22 or so tokens left hold few
    assert corpus.index.words_S.max() <= 24
    assert corpus.index.words_S.min() >= 5


def test_an_update_depends_on_nothing_but_seed_and_step(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    first = asked(corpus, 7)
    for step in (3, 0, 12):
        asked(corpus, step)
    again = asked(make_corpus(tmp_path), 7)
    for one, other in zip(first.micro_batches, again.micro_batches, strict=True):
        assert torch.equal(one.text.ids_T, other.text.ids_T)
        assert torch.equal(one.inputs.ids_T, other.inputs.ids_T)
        assert torch.equal(one.selected_N, other.selected_N)
    assert rows_of(asked(corpus, 7, seed=2)) != rows_of(first)
    assert rows_of(asked(corpus, 8)) != rows_of(first)


def test_the_token_budget_changes_no_position(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    small, large = asked(corpus, 4, token_budget=60), asked(corpus, 4, token_budget=10_000)
    assert len(small.micro_batches) > len(large.micro_batches) == 1
    assert rows_of(small, "inputs") == rows_of(large, "inputs") != rows_of(large)
    assert small[1:] == large[1:]


@pytest.mark.parametrize("longest", [4, 7, 12, 1000])
def test_a_split_update_has_the_same_words_in_shorter_sequences(longest: int, tmp_path: Path) -> None:
    """A part ends in [SEP] in place of its last token, and no token is in two parts."""
    corpus = make_corpus(tmp_path)
    whole = asked(corpus, 4, selection=EVERYTHING)
    split = asked(corpus, 4, selection=EVERYTHING, longest=longest)
    lengths = [len(row) for row in rows_of(split)]
    assert max(lengths) <= longest
    assert split.num_words == whole.num_words
    assert split.num_tokens - len(lengths) == whole.num_tokens - len(rows_of(whole))  # without [CLS]
    assert all(row[0] == CLS_ID and row[-1] == SEP_ID for row in rows_of(split))
    if longest == 1000:
        assert rows_of(split) == rows_of(whole)


def test_slices_are_split_into_equal_parts() -> None:
    starts_B, stops_B = split_slices(np.array([5, 40, 60]), np.array([15, 44, 61]), 4)
    assert starts_B.tolist() == [5, 8, 11, 40, 60]
    assert stops_B.tolist() == [8, 11, 15, 44, 61]


def test_micro_batches_keep_the_budget_and_waste_little(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, [" ".join(sentences(1 + n % 4, seed=n)) for n in range(400)])
    update = asked(corpus, 0, batch_size=128, token_budget=500)
    sizes = [(len(m.text.cu_seqlens) - 1) * m.text.max_length for m in update.micro_batches]
    assert sum(len(micro.text.ids_T) for micro in update.micro_batches) == update.num_tokens
    assert max(sizes) <= 500
    assert sum(sizes) < 1.1 * update.num_tokens


def test_a_sample_is_fair_wherever_it_is_cut(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, [" ".join(sentences(1 + n % 4, seed=n)) for n in range(400)])
    parts = [np.array([], int), corpus.heldout, corpus.training]

    def drawn(**changes: int) -> list[MicroBatch]:
        settings = {"num_selected": 10**9, "token_budget": 10**9} | changes
        return list(corpus.sample(parts, EVERYTHING, generator=torch.Generator(), **settings))

    heldout, training = drawn()
    update = corpus.heldout_update(10**9, EVERYTHING, 0)
    assert sorted(heldout.text.cu_seqlens.diff()) == sorted(update.micro_batches[0].text.cu_seqlens.diff())
    lengths = training.text.cu_seqlens.diff().double()
    assert len(lengths) == len(corpus.training)
    for part in lengths.split(len(lengths) // 4)[:4]:
        assert float(part.mean()) == pytest.approx(float(lengths.mean()), rel=0.1)
    small = drawn(token_budget=500, num_selected=5000)
    assert max((len(m.text.cu_seqlens) - 1) * m.text.max_length for m in small) <= 500
    assert sum(len(micro.selected_N) for micro in small) == 5000
    assert sum(len(m.text.cu_seqlens) - 1 for m in small) > len(corpus.heldout)


def test_an_epoch_reads_every_training_sequence_once(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, heldout_share=0.1)
    size = len(corpus.training)
    assert size == 180
    assert len(corpus.heldout) == 20
    assert not set(corpus.heldout) & set(corpus.training)
    epoch = [row for step in range(6) for row in rows_of(asked(corpus, step, batch_size=size // 6))]
    everything = corpus.cut(corpus.training, 10_000, EVERYTHING, torch.Generator())
    assert sorted(epoch) == rows_of(everything)
    # the second half of this update is of the next epoch
    first, second = corpus._epoch(1, 0), corpus._epoch(1, 1)
    across = np.concatenate([first[120:], second[:60]])
    expected = corpus.cut(across, 10_000, EVERYTHING, torch.Generator())
    assert rows_of(asked(corpus, 1, batch_size=120)) == rows_of(expected)


def test_heldout_lines_of_a_small_share_are_among_those_of_a_larger_one() -> None:
    shares = [0.0, 0.003, 0.02, 0.05, 0.3, 0.31, 0.99]
    for num_lines in (1, 2, 7, 400, 401, 12_345, 1_000_000):
        masks = [heldout_lines(num_lines, share) for share in shares]
        for share, small, large in zip(shares, masks, masks[1:], strict=False):
            assert len(small) == num_lines
            assert not (small & ~large).any()
            assert small.sum() <= min(share * num_lines + 1, 4_000)
            assert (small[1::2] == small[: num_lines // 2 * 2 : 2]).all()  # a pair stays together
        assert not masks[0].any()


def test_heldout_lines_are_spread_evenly_over_the_text() -> None:
    for num_lines, share in ((1000, 0.02), (40_000, 0.02), (1_000_000, 0.5)):
        places = np.flatnonzero(heldout_lines(num_lines, share))
        assert len(places) == pytest.approx(min(share * num_lines, 4_000), rel=0.02)
        gaps = np.diff(places, prepend=0, append=num_lines)
        assert gaps.max() < 3 * num_lines / (np.sum(gaps > 1) - 1)


def lines_of(corpus: Corpus, sequences: np.ndarray) -> set[int]:
    """The lines of which the sequences hold at least the first token."""
    starts = np.concatenate([[0], corpus.text.line_stops[:-1]])
    first_S = np.searchsorted(starts, corpus.index.starts_S[sequences])
    stop_S = np.searchsorted(starts, corpus.index.stops_S[sequences])
    return {line for first, stop in zip(first_S, stop_S, strict=True) for line in range(first, stop)}


@pytest.mark.parametrize("num_lines", [401, 9_001])
def test_no_run_is_trained_on_lines_that_another_with_the_same_share_holds_out(
    tmp_path: Path, num_lines: int
) -> None:
    """Whatever the sequence modes and lengths; `num_leaking_lines` counts them for other shares."""
    lines = sentences(num_lines)
    corpora = [
        (share, make_corpus(tmp_path, lines, sequence_mode=mode, max_length=length, heldout_share=share))
        for mode in ("pairs", "packed")
        for length, share in ((24, 0.05), (64, 0.05), (64, 0.02))
    ]
    for heldout_share, one in corpora:
        heldout = lines_of(one, one.heldout)
        assert len(heldout) > 0.5 * heldout_share * num_lines
        for share, other in corpora:
            common = heldout & lines_of(other, other.training)
            assert len(common) <= num_leaking_lines(num_lines, heldout_share, share)
            if share >= heldout_share:
                assert not common
            elif one.max_length == other.max_length:
                assert common


def test_a_leak_between_runs_is_one_sentence(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, heldout_share=0.1)
    assert corpus.leak("runs/teacher", corpus.digest, 0.1) == ""
    assert corpus.leak("runs/teacher", "", 0.1) == ""
    assert "runs/teacher was trained on 32 lines" in corpus.leak("runs/teacher", corpus.digest, 0.02)
    assert "runs/teacher holds out 40 lines" in corpus.leak("runs/teacher", corpus.digest, 0.2)
    assert "runs/teacher read another text" in corpus.leak("runs/teacher", "0123456789ab", 0.1)


def test_selection_hides_what_it_selects(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    update = corpus.cut(corpus.training, 100_000, MASKED, torch.Generator().manual_seed(0))
    num_ordinary = 0
    for micro in update.micro_batches:
        ids, inputs = micro.text.ids_T, micro.inputs.ids_T
        is_selected = torch.zeros_like(ids, dtype=torch.bool)
        is_selected[micro.selected_N] = True
        assert (ids[is_selected] >= NUM_SPECIALS).all()
        assert (inputs[is_selected] == MASK_ID).all()
        assert torch.equal(inputs[~is_selected], ids[~is_selected])
        assert torch.equal(micro.labels_N(), ids[is_selected])
        num_ordinary += int((ids >= NUM_SPECIALS).sum())
    assert abs(update.num_selected / num_ordinary - 0.15) < 0.02


def test_every_ordinary_token_is_selected_for_lsm(tmp_path: Path) -> None:
    update = asked(make_corpus(tmp_path), 0, selection=EVERYTHING)
    for micro in update.micro_batches:
        assert torch.equal(micro.inputs.ids_T, micro.text.ids_T)
        assert len(micro.selected_N) == int((micro.text.ids_T >= NUM_SPECIALS).sum())


def test_bad_corpora_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no corpus file at"):
        Corpus(DataConfig(corpus=("missing.txt",), cache_dir=str(tmp_path)), None)  # type: ignore[arg-type]
    tokenizer_text = DataConfig(corpus=(str(write_corpus(tmp_path / "good.txt")),), cache_dir=str(tmp_path))
    tokenizer = corpus_tokenizer(tokenizer_text, 80)
    for content, message in (
        (b"", "no text"),
        (b"\n \n", "no text"),
        (b"fine\nnot \xff utf-8\n", r"bad\.txt: line 2 is not UTF-8"),
        (b"one\ntwo\n", "no pair of lines with 5 words"),
    ):
        (tmp_path / "bad.txt").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            Corpus(DataConfig(corpus=(str(tmp_path / "bad.txt"),), cache_dir=str(tmp_path)), tokenizer)
    with pytest.raises(ValueError, match="an update needs 400 sequences, the corpus has"):
        asked(make_corpus(tmp_path), 0, batch_size=400)


@pytest.mark.parametrize("is_masked", [False, True])
def test_micro_batches_move_whole_and_no_tensor_twice(is_masked: bool) -> None:
    row, selected = torch.full((5,), 7), torch.tensor([True, False, True, False, False])
    micro = MicroBatch.of(Sequences.of([row]), selected, Selection(0.5, is_masked)).to(torch.device("meta"))
    tensors = [micro.selected_N, *micro.text[:2], *micro.inputs[:2]]
    assert all(x.device.type == "meta" for x in tensors)
    assert len({id(x) for x in tensors}) == 3 + is_masked


@pytest.mark.parametrize(("shortest_share", "is_sorted"), [(0.0, True), (0.75, True), (0.0, False)])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("counts_padding", [True, False])
def test_micro_batches_are_as_large_as_the_budget_allows(
    seed: int, shortest_share: float, is_sorted: bool, counts_padding: bool
) -> None:
    lengths = np.random.default_rng(seed).integers(1, 60, 200).tolist()
    cut = cut_by_token_budget(
        lengths, 50, is_sorted=is_sorted, shortest_share=shortest_share, counts_padding=counts_padding
    )
    order = [number for numbers in cut for number in numbers]
    expected = sorted(range(200), key=lambda number: (-lengths[number], number))
    assert order == (expected if is_sorted else list(range(200)))

    def fits(numbers: list[int]) -> bool:
        these = [lengths[number] for number in numbers]
        size = len(these) * max(these) if counts_padding else sum(these)
        return size <= 50 and min(these[1:], default=99) >= shortest_share * max(these)

    assert all(len(numbers) == 1 or fits(numbers) for numbers in cut)
    assert not any(fits([*numbers, after[0]]) for numbers, after in pairwise(cut))
    assert cut_by_token_budget([], 50) == []
