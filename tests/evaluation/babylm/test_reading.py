"""Reading times: surprisal against a loop over texts, and regressions against scikit-learn."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from babylm_files import write_reading
from sklearn.linear_model import LinearRegression
from small_runs import random_run

from mlsm.evaluation.babylm.reading import (
    BASELINE,
    EYE_TRACKING,
    SELF_PACED,
    Surprisal,
    explained,
    read_words,
    surprisals,
)
from mlsm.runs.hub_tokenizer import huggingface_tokenizer
from mlsm.runs.run import load_run
from mlsm.text.sequences import Sequences
from mlsm.text.tokenizer import CLS_ID, MASK_ID, SEP_ID


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reading") / "reading_data.csv"
    write_reading(path, random.Random(3))
    return path


def test_rows(file: Path) -> None:
    words = read_words(file)
    assert (words[0].context, words[0].word, words[0].before) == ("None", "The", None)  # as pandas reads it
    assert words[1].before is None  # the word before has no context
    assert words[2].before is not None
    assert math.isnan(words[0].numbers["prev_length"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("RTgopast", "other", "line 1: no column RTgopast"),
        ("prev_item,", "", "line 1: no column prev_item"),
        (",1,", ",one,", r"line \d+: could not convert string to float: 'one'"),
        (",The,", ",,", r"line \d+: word is empty"),
    ],
)
def test_mistakes_are_named(file: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "reading_data.csv"
    path.write_text(file.read_text().replace(old, new))
    with pytest.raises(ValueError, match=rf"reading_data\.csv, {message}"):
        read_words(path)
    with pytest.raises(ValueError, match="no file"):
        read_words(tmp_path / "absent.csv")


def test_surprisal_at_the_first_of_three_masks(file: Path, tmp_path: Path) -> None:
    """Words of one token and of several; each is asked for at the first mask behind what precedes it."""
    run = load_run(random_run(tmp_path / "run"))
    pieces = [run.tokenizer.piece(i).replace("▁", " ") for i in range(run.tokenizer.vocab_size)]
    alone = next(piece for piece in pieces if len(piece) > 2 and len(run.tokenizer.encode(piece)) == 1)
    words = [word._replace(word=alone) if word.line == 5 else word for word in read_words(file)[:12]]
    found = surprisals(run.model, huggingface_tokenizer(run.tokenizer), words, 256)
    encode = run.tokenizer.encode
    assert {len(encode(word.word)) > 1 for word in words} == {True, False}
    for word, surprisal in zip(words, found, strict=True):
        context, expected = word.context, 0.0
        for number, token in enumerate(encode(word.word)):
            text = run.tokenizer.decode([token])
            ids = [CLS_ID, *encode(context), *[MASK_ID] * 3, SEP_ID]
            with torch.no_grad():
                hidden_ND = run.model.hidden_at(
                    Sequences.of([torch.tensor(ids)]), torch.tensor([len(ids) - 4])
                )
                log_p_V = run.model.token_logits(hidden_ND)[0].log_softmax(-1)
            expected -= float(log_p_V[encode(text)[0] if number else token])
            context += text
        assert surprisal.word == pytest.approx(expected, abs=1e-4)
        assert math.isnan(surprisal.before) == (word.before is None)


def gain(words: list, found: list[Surprisal], time: str, names: list[str]) -> float:
    """The same share with scikit-learn, in float64."""
    rows = [(w.numbers | {"pred": s.word, "prev_pred": s.before}) for w, s in zip(words, found, strict=True)]

    def r_squared(with_surprisal: bool) -> float:
        whole = [row for row in rows if not any(math.isnan(row[name]) for name in [time, *names])]
        features = [[row[a] for a in names] for row in whole]
        products = [[a * b for i, a in enumerate(line) for b in line[i + 1 :]] for line in features]
        extra = [[row["pred"]] * with_surprisal for row in whole]
        design = np.array([a + b + c for a, b, c in zip(features, products, extra, strict=True)])
        observed = np.array([row[time] for row in whole])
        return float(LinearRegression().fit(design, observed).score(design, observed))

    return (r_squared(True) - r_squared(False)) / (1 - r_squared(False))


def test_explained_variance_equals_scikit_learn(file: Path) -> None:
    words, draw = read_words(file), random.Random(1)
    found = [Surprisal(draw.gauss(8, 2), draw.gauss(8, 2) if word.before else math.nan) for word in words]
    result = explained(words, found)
    expected = [gain(words, found, time, [*BASELINE]) for time in EYE_TRACKING]
    assert result.eye_tracking == pytest.approx(sum(expected) / 4, rel=1e-6)
    names = [*BASELINE, "prev_length", "prev_pred"]
    assert result.self_paced == pytest.approx(gain(words, found, SELF_PACED, names), rel=1e-6)


def test_too_few_rows_are_named(file: Path) -> None:
    words = read_words(file)[:6]
    with pytest.raises(ValueError, match="rows have RTfirstfix, too few"):
        explained(words, [Surprisal(1.0, 2.0)] * 6)
