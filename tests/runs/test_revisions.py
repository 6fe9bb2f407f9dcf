"""The models of a run by words seen: those a track asks for are found, and missing ones are named."""

from pathlib import Path

import pytest
from small_runs import random_run

from mlsm.files import read_tensors
from mlsm.runs.checkpoint import MODEL_FILE, TrainingState, save_milestone, words_name
from mlsm.runs.revisions import find_revisions, kept_revisions, revision_name, upload_script


def run_with_words(folder: Path, counts: list[int], seen: int) -> Path:
    run = random_run(folder)
    for words in counts:
        weights = read_tensors(run / MODEL_FILE)
        save_milestone(run, words_name(words), words, weights, TrainingState(words, 0))
    (run / "metrics.jsonl").write_text(f'{{"step": 5, "words_seen": {seen}}}\n')
    return run


def test_models_have_the_names_of_the_challenge(tmp_path: Path) -> None:
    run = run_with_words(tmp_path / "run", [0, 2500, 1_000_000], 1_200_000)
    found = find_revisions(run, (0, 2500, 1_000_000))
    assert [revision.name for revision in found] == ["main", "chck_0M", "chck_2500", "chck_1M"]
    assert [revision.words for revision in found] == [1_200_000, 0, 2500, 1_000_000]
    assert found[0].directory == run
    assert found[3].directory == run / "checkpoints" / "words-1M"
    assert [revision.name for revision in kept_revisions(run)] == ["chck_0M", "chck_2500", "chck_1M", "main"]
    assert revision_name(100_000_000) == "chck_100M"


def test_missing_models_are_named(tmp_path: Path) -> None:
    run = run_with_words(tmp_path / "run", [1_000_000], 2_500_000)
    with pytest.raises(ValueError, match=r"seen 2,500,000 words and has no model for chck_0M, chck_3M"):
        find_revisions(run, (0, 1_000_000, 3_000_000))
    (run / "checkpoints" / "words-1M" / MODEL_FILE).write_bytes(b"damaged")
    with pytest.raises(ValueError, match="is damaged"):
        find_revisions(run, (1_000_000,))
    (run / MODEL_FILE).unlink()
    with pytest.raises(ValueError, match="is not finished"):
        find_revisions(run, (1_000_000,))


@pytest.mark.parametrize(("seen", "is_enough"), [(950_000, True), (949_999, False)])
def test_the_finished_model_stands_for_the_last_one_within_five_per_cent(
    tmp_path: Path, seen: int, is_enough: bool
) -> None:
    run = run_with_words(tmp_path / "run", [1000], seen)
    if is_enough:
        assert find_revisions(run, (1000, 1_000_000))[-1] == ("chck_1M", 1_000_000, run)
        with pytest.raises(ValueError, match="no model for chck_960000"):  # only for the last one
            find_revisions(run, (960_000, 1_000_000))
    else:
        with pytest.raises(ValueError, match="no model for chck_1M"):
            find_revisions(run, (1000, 1_000_000))


def test_the_script_uploads_every_directory_to_its_own_branch(tmp_path: Path) -> None:
    run = run_with_words(tmp_path / "run", [0, 1000], 1000)
    lines = upload_script(find_revisions(run, (0, 1000))).splitlines()
    uploads = [line.split()[3:] for line in lines if " upload " in line]
    assert uploads == [[name, ".", "--revision", name] for name in ("chck_0M", "chck_1000", "main")]
