"""Words: how long a run trains, what it and all it stands on have seen, and a budget for both."""

import dataclasses
from pathlib import Path

import pytest
from pipeline import learnt, student_flags
from small_text import NANO_FLAGS, text_flags, write_corpus

import train
from mlsm import list_runs
from mlsm.coding.dictionary import Dictionary
from mlsm.config import TrainConfig
from mlsm.files import read_json, write_json
from mlsm.log import read_metrics
from mlsm.runs.checkpoint import MODEL_FILE, fingerprint
from mlsm.runs.record import read_record
from mlsm.runs.run import load_run, load_tokenizer
from mlsm.text.batches import Corpus
from mlsm.training.updates import make_update
from mlsm.training.word_budget import with_num_steps, words_seen

UNTIMED = [flag for flag in NANO_FLAGS if not flag.startswith("--num-steps")]


@pytest.fixture(scope="module")
def corpus(teacher: Path) -> Corpus:
    record = read_record(teacher)
    return Corpus(record.data, load_tokenizer(teacher, record))


def words_of_updates(corpus: Corpus, config: TrainConfig) -> list[int]:
    updates = (make_update(corpus, config, step, pads=True) for step in range(config.num_steps))
    return [update.num_words for update in updates]


@pytest.mark.parametrize("words", [70, 1000, 3511, 9000])  # the text has some 4,000
def test_a_number_of_words_is_as_many_updates_as_read_no_more(words: int, corpus: Corpus) -> None:
    config = with_num_steps(TrainConfig(objective="mlm", words=f"{words}", batch_size=7), corpus)
    read = words_of_updates(corpus, dataclasses.replace(config, num_steps=config.num_steps + 1))
    assert sum(read[:-1]) <= words < sum(read)
    assert corpus.num_words(7 * config.num_steps, config.seed) == sum(read[:-1])
    exact = dataclasses.replace(config, words=f"{sum(read)}")
    assert with_num_steps(exact, corpus).num_steps == len(read)


def test_epochs_are_passes_over_the_training_text(corpus: Corpus) -> None:
    size = len(corpus.training)
    config = TrainConfig(objective="mlm", epochs=2.5, batch_size=4)
    assert with_num_steps(config, corpus).num_steps == int(2.5 * size) // 4
    with pytest.raises(ValueError, match=r"--epochs 0\.001 is less than one update"):
        with_num_steps(dataclasses.replace(config, epochs=0.001), corpus)


def test_a_run_of_words_resumes_and_knows_its_words(tmp_path: Path) -> None:
    write_corpus(tmp_path / "text.txt")
    flags = ["--objective=mlm", *text_flags(tmp_path), *UNTIMED, "--words=400"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for run in (whole, stopped):
        train.main([*flags, f"--output={run}"])
    (stopped / MODEL_FILE).unlink()
    newest = max((stopped / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
    (newest / MODEL_FILE).unlink()
    train.main([*flags, f"--output={stopped}", "--resume"])
    assert learnt(whole) == learnt(stopped)
    assert fingerprint(whole) == fingerprint(stopped)
    record = read_record(stopped)
    assert record.words is not None
    assert record.words.before == {}
    assert record.words.own == words_seen(stopped) <= 400
    assert record.train.num_steps == read_metrics(stopped)[-1]["step"]
    with pytest.raises(ValueError, match="words was 400 and is now 500"):
        train.main([*flags, f"--output={stopped}", "--resume", "--words=500"])


def test_each_ancestor_counts_once(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A student that starts from a student of the same teacher stands on that teacher once."""
    [file] = teacher.glob("dictionary-*")
    dictionary, of_teacher = Dictionary.load(file), words_seen(teacher)
    assert of_teacher is not None
    assert dictionary.words is not None
    first, second, head = (tmp_path / name for name in ("first", "second", "head"))
    train.main(student_flags(teacher, "lsm", first))
    flags = [f for f in student_flags(teacher, "mlsm", second) if not f.startswith("--init")]
    train.main([*flags, f"--init={first}/checkpoints/step-4"])
    own = {run: words_seen(run) for run in (first, first / "checkpoints/step-4", second)}
    assert own[first] > own[first / "checkpoints/step-4"]  # type: ignore[operator]
    before = read_record(second).words_before()
    assert before == {
        f"model {fingerprint(teacher)}": of_teacher,
        f"dictionary {dictionary.fingerprint}": dictionary.words,
        f"model {fingerprint(first / 'checkpoints/step-4')}": own[first / "checkpoints/step-4"],
    }
    left = 100_000 - sum(before.values()) - own[second]  # type: ignore[operator]
    small = [flag for flag in UNTIMED if flag.startswith(("--batch", "--token", "--check", "--log"))]
    flags = ["--objective=token-head", f"--init={second}", f"--output={head}", *small, "--word-budget=100000"]
    with pytest.raises(ValueError, match=rf"--word-budget 100000 leaves {left:,}: --words {left}$"):
        train.main([*flags, f"--words={left + 1000}"])
    assert not (head / "config.json").exists()
    capsys.readouterr()
    train.main([*flags, "--words=200"])
    assert f"the budget leaves {left - words_seen(head):,}" in capsys.readouterr().err  # type: ignore[operator]
    list_runs.main([str(head)])
    assert f"{100_000 - left + words_seen(head):,}" in capsys.readouterr().out  # type: ignore[operator]


def test_words_of_an_earlier_version_are_unknown(teacher: Path, tmp_path: Path) -> None:
    student, head = tmp_path / "student", tmp_path / "head"
    train.main(student_flags(teacher, "lsm", student))
    record = read_json(student / "config.json")
    del record["words"]
    write_json(student / "config.json", record)
    assert read_record(student).words_in_all(10) == "unknown"
    assert read_record(teacher).words_in_all(10) == "10"
    flags = ["--objective=token-head", f"--init={student}", f"--output={head}", "--batch-size=8"]
    with pytest.raises(ValueError, match="--word-budget cannot be checked"):
        train.main([*flags, "--word-budget=1M"])


def test_training_goes_on_from_any_checkpoint_on_other_text(teacher: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "text.txt", seed=7)
    flags = ["--objective=mlm", *text_flags(tmp_path), "--epochs=1", "--batch-size=8", "--log-every=1"]
    start = teacher / "checkpoints" / "step-148"
    train.main([*flags, f"--init={start}", f"--output={tmp_path / 'more'}"])
    more = load_run(tmp_path / "more")
    assert more.tokenizer.fingerprint == load_run(teacher).tokenizer.fingerprint
    assert more.record.model == read_record(teacher).model
    assert more.record.words_before() == {f"model {fingerprint(start)}": words_seen(start)}
    assert "another text" in more.record.leak
    assert read_metrics(tmp_path / "more")[0]["cross_entropy"] < 4  # 4.4 with random weights
