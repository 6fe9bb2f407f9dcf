"""Children's words in contexts: the texts that are scored, and mistakes in their file."""

import json
from pathlib import Path

import pytest
from small_runs import random_run

from mlsm.evaluation.babylm.acquisition import Occurrence, read_occurrences, surprisals
from mlsm.evaluation.pseudo_likelihood import score_sentences
from mlsm.runs.hub_tokenizer import huggingface_tokenizer
from mlsm.runs.run import load_run


def test_words_of_one_letter_are_left_out_and_blanks_are_trimmed(tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    path.write_text(json.dumps({"dog": [{"context": "I see a "}, {"context": ""}], "I": [{"context": "am"}]}))
    found = read_occurrences(path)
    assert found == [Occurrence("dog", 0, "I see a "), Occurrence("dog", 1, "")]
    assert found[0].candidate == ("I see a dog", "dog")
    assert found[1].candidate == (" dog", "dog")


@pytest.mark.parametrize(
    "values", [[], {}, {"dog": {}}, {"dog": ["I see a"]}, {"dog": [{"text": "a"}]}, {"dog": [{"context": 1}]}]
)
def test_mistakes_are_named(tmp_path: Path, values: object) -> None:
    path = tmp_path / "words.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"words\.json(, word 'dog'| must be an object)"):
        read_occurrences(path)


def test_the_surprisal_of_a_word_alone_is_its_negative_score(tmp_path: Path) -> None:
    run = load_run(random_run(tmp_path / "run", max_positions=16))
    tokenizer = huggingface_tokenizer(run.tokenizer)
    words = ["river", "cat", "teacher"]
    found = surprisals(run.model, tokenizer, [Occurrence(word, 0, "") for word in words], 256)
    assert found == pytest.approx([-s for s in score_sentences(run, words, reduction="sum")], abs=1e-4)
    with pytest.raises(ValueError, match=r"word 'cat', context 4: \d+ tokens, the model reads 16"):
        surprisals(run.model, tokenizer, [Occurrence("cat", 4, "cat " * 20)], 256)
