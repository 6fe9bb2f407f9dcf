"""Text files become ids on disk: odd text is read, damaged text and damaged files are refused in one line."""

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small_text import sentences

from mlsm.config import DataConfig
from mlsm.text import corpus as data
from mlsm.text.batches import Corpus
from mlsm.text.corpus import EncodedText, corpus_tokenizer, encode_corpus, unigram_log_probabilities
from mlsm.text.tokenizer import NUM_SPECIALS


def corpus_of(folder: Path, *contents: bytes) -> DataConfig:
    paths = [folder / f"{number}.txt" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return DataConfig(corpus=tuple(map(str, paths)), cache_dir=str(folder / "cache"))


def encoded(folder: Path, lines: list[str]) -> EncodedText:
    config = corpus_of(folder, "\n".join(lines).encode())
    return encode_corpus(config, corpus_tokenizer(config, 80))


def test_ids_stay_on_disk(tmp_path: Path) -> None:
    *arrays, _ = encoded(tmp_path, sentences(400))
    assert all(isinstance(array, np.memmap) for array in arrays)
    assert arrays[0].dtype == np.uint16


def test_a_text_is_known_by_its_content(tmp_path: Path) -> None:
    """Neither path nor time of the files counts; one letter does, and so does the order of the files."""
    one, two = "\n".join(sentences(300)).encode(), "\n".join(sentences(100, seed=1)).encode()
    for folder in ("a", "b", "c", "d"):
        (tmp_path / folder).mkdir()
    same = [corpus_of(tmp_path / folder, one, two) for folder in "ab"]
    assert data.corpus_digest(same[0]) == data.corpus_digest(same[1])
    changed, swapped = corpus_of(tmp_path / "c", one, two[:-2] + b"!"), corpus_of(tmp_path / "d", two, one)
    assert len({data.corpus_digest(config) for config in (*same, changed, swapped)}) == 3
    text = encode_corpus(same[0], corpus_tokenizer(same[0], 80))
    assert text.digest == data.corpus_digest(same[0])
    corpus_of(tmp_path / "a", one, two + b"\nOne line more.")
    assert data.corpus_digest(same[0]) != text.digest


def test_a_corpus_that_changed_is_encoded_anew(tmp_path: Path) -> None:
    before = len(encoded(tmp_path, sentences(400)).ids)
    assert len(encoded(tmp_path, sentences(500)).ids) > before


def test_byte_order_mark_and_carriage_returns_are_no_text(tmp_path: Path) -> None:
    plain = encoded(tmp_path, sentences(100)).counts_V
    odd = corpus_of(tmp_path, b"\xef\xbb\xbf" + "\r\n\r\n".join(sentences(100)).encode())
    assert encode_corpus(odd, corpus_tokenizer(odd, 80)).counts_V.sum() == plain.sum()


def test_unigram_probabilities_sum_to_one(tmp_path: Path) -> None:
    text = encoded(tmp_path, sentences(400))
    log_probability_V = unigram_log_probabilities(text)
    assert float(log_probability_V.exp().sum()) == pytest.approx(1.0, abs=1e-5)
    assert int(log_probability_V.argmax()) == int(text.counts_V[NUM_SPECIALS:].argmax()) + NUM_SPECIALS


def test_the_embedded_text_has_a_sentence_per_line_without_numbers_of_verses(tmp_path: Path) -> None:
    lines = data.embedded_corpus(tmp_path).read_text(encoding="utf-8").splitlines()
    assert len(lines) > len(data.embedded_verses()) > 31_000
    assert lines[0] == "In the beginning God created the heavens and the earth."
    assert not any(re.match(r"\d+\.", line) for line in lines)


def test_an_encoded_corpus_that_is_damaged_is_refused(tmp_path: Path) -> None:
    config = corpus_of(tmp_path, "\n".join(sentences(300)).encode())
    tokenizer = corpus_tokenizer(config, 80)
    encode_corpus(config, tokenizer)
    [folder] = (tmp_path / "cache").glob("*/ids-*")
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name, content in {
        "ids.npy": whole["ids.npy"].replace(b"(", b"(99999"),  # more than the file holds
        "line_stops.npy": whole["line_stops.npy"][:200],
        "line_words.npy": b"",
        "line_characters.npy": whole["line_characters.npy"].replace(b"{", b"(", 1),
        "counts_V.npy": whole["line_words.npy"],
        # as Python 2 wrote it: numpy reads that, with a warning
        "./ids.npy": re.sub(rb"\((\d+),\)(.*) \n", rb"(\1L,)\2\n", whole["ids.npy"], count=1),
    }.items():
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"ids-\S+ is damaged \(.*\); remove it"):
            encode_corpus(config, tokenizer)
        (folder / name).write_bytes(whole[Path(name).name])
    ids = np.load(folder / "ids.npy")
    ids[7] = 60_000
    np.save(folder / "ids.npy", ids)
    with pytest.raises(ValueError, match="do not belong together"):
        encode_corpus(config, tokenizer)


def test_odd_text_is_tokenised(tmp_path: Path) -> None:
    """Long lines, NUL, carriage returns, byte order marks, blank lines, U+2028, 200 files."""
    plain = "\n".join(sentences(300)).encode()
    long = (" ".join(sentences(30_000)) + "\n").encode()
    assert len(long) > 1_000_000
    odd = "\ufeff\0 \0\n\r\n\u2028The cat\u2028sees\u2029it.\u0085\n\n\r\rA dog\x1f likes\x0bit.\n".encode()
    config = corpus_of(tmp_path, plain, long, odd, b"", *[b"The cat sees.\n"] * 200)
    tokenizer = corpus_tokenizer(config, 90)
    text = encode_corpus(config, tokenizer)
    assert len(text.line_stops) == 300 + 1 + 3 + 200
    assert text.line_characters[300] == len(long) - 1
    for mode in ("pairs", "packed"):
        Corpus(dataclasses.replace(config, sequence_mode=mode), tokenizer)


@pytest.mark.parametrize("odd", [b"\xed\xa0\x80", b"\xc3(", b"\xf8\x88\x80\x80\x80", b"\xe2\x82"])
def test_what_is_not_utf8_is_told_with_file_and_line(odd: bytes, tmp_path: Path) -> None:
    """Also by the tokenizer's training, where SentencePiece would take the fault for the end of the text."""
    for before in (b"A dog.\n\n", "\n".join([*sentences(300), "", ""]).encode()):
        config = corpus_of(tmp_path, before + odd + b"\n")
        line = before.count(b"\n") + 1
        with pytest.raises(ValueError, match=rf"0\.txt: line {line} is not UTF-8"):
            corpus_tokenizer(config, 80)


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "LONGEST_LINE", 100)
    with pytest.raises(
        ValueError, match=r"0\.txt: line 2 has more than 100 bytes; put one sentence per line"
    ):
        list(data.read_lines([Path(corpus_of(tmp_path, b"x\n" + b"y" * 101).corpus[0])]))
    assert len(list(data.read_lines([Path(corpus_of(tmp_path, b"x\n" + b"y" * 99 + b"\n").corpus[0])]))) == 2


def test_a_corpus_is_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "missing"):
        with pytest.raises(ValueError, match="no corpus file at"):
            corpus_tokenizer(DataConfig(corpus=(str(tmp_path / name),), cache_dir=str(tmp_path)), 80)


@pytest.mark.parametrize("is_link", [True, False])
def test_a_cache_that_is_no_folder_is_named(is_link: bool, tmp_path: Path) -> None:
    place = tmp_path / "cache"
    if is_link:
        place.symlink_to("nowhere")
    else:
        place.write_text("in the way")
    with pytest.raises(
        ValueError, match=r"cannot use .*cache as --cache-dir: it is not a directory; remove it"
    ):
        corpus_tokenizer(DataConfig(cache_dir=str(place)), 80)


def test_a_corpus_that_may_not_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = corpus_of(tmp_path, b"x")

    def forbidden(*_: object) -> str:  # permissions do not bind root, who may run the tests
        raise PermissionError(13, "Permission denied", config.corpus[0])

    monkeypatch.setattr(data, "file_digest", forbidden)
    with pytest.raises(OSError, match=r"Permission denied: .*0\.txt"):
        corpus_tokenizer(config, 80)


def test_text_that_changes_while_it_is_read_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = corpus_of(tmp_path, "\n".join(sentences(300)).encode())
    tokenizer = corpus_tokenizer(config, 80)
    read = data.read_lines

    def changing(files: list[Path]) -> Iterator[str]:
        for number, line in enumerate(read(files)):
            if number == 100:
                with open(files[0], "a") as file:
                    file.write("One line more.\n")
            yield line

    monkeypatch.setattr(data, "read_lines", changing)
    with pytest.raises(ValueError, match="changed while it was read; run the command again"):
        encode_corpus(config, tokenizer)
    assert not list((tmp_path / "cache").glob("*/ids-*"))
    with pytest.raises(ValueError, match="changed while it was read"):
        corpus_tokenizer(config, 70)
    monkeypatch.undo()
    assert len(encode_corpus(config, tokenizer).line_stops) == 301

    def vanishing(files: list[Path]) -> Iterator[str]:
        files[0].unlink()
        yield from read(files)

    monkeypatch.setattr(data, "read_lines", vanishing)
    with pytest.raises(FileNotFoundError, match=r"0\.txt"):
        corpus_tokenizer(config, 70)


def test_a_corpus_is_read_once_for_its_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = corpus_of(tmp_path, "\n".join(sentences(300)).encode())
    read: list[Path] = []
    digest = data.file_digest
    monkeypatch.setattr(data, "file_digest", lambda path: read.append(path) or digest(path))
    encode_corpus(config, corpus_tokenizer(config, 80))
    assert len(read) == 1
