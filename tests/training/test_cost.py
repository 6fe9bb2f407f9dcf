"""What a run takes, said before it starts: measuring changes nothing, and days on a CPU need --yes."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from pipeline import flags_for, learnt

import train
from mlsm.device import choose_precision
from mlsm.runs.checkpoint import MODEL_FILE
from mlsm.runs.record import read_record
from mlsm.runs.run import load_run
from mlsm.runs.teacher import teacher_of
from mlsm.text.batches import Corpus
from mlsm.training import cost
from mlsm.training.cost import measure_cost
from mlsm.training.objectives import OBJECTIVES


@pytest.fixture(scope="module")
def student(teacher: Path) -> Path:
    path = teacher.parent / "student"
    train.main(flags_for("mlm+mlsm", teacher, teacher, path))
    return path


@pytest.mark.parametrize("objective", ["mlm", "mlm+mlsm", "token-head"])
def test_a_run_that_was_measured_learns_the_same(
    objective: str,
    teacher: Path,
    student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = flags_for(objective, teacher, student, tmp_path / "plain")
    if objective != "token-head":
        flags.append("--dropout=0.1")
    train.main(flags)
    assert "GB of memory" not in capsys.readouterr().err  # six updates are over soon
    monkeypatch.setattr(cost, "LEAST_RATIO", 0)
    train.main([*flags, f"--output={tmp_path / 'measured'}"])
    said = capsys.readouterr().err
    measured = tmp_path / "measured"
    words = read_record(measured).words
    assert words
    assert re.search(rf"6 updates, {words.own} words, 0\.\d+ epochs\n", said)
    assert re.search(r"about \d+ s, and \d\.\d GB of memory, on this CPU\n", said)
    assert (measured / MODEL_FILE).read_bytes() == (tmp_path / "plain" / MODEL_FILE).read_bytes()
    assert learnt(measured) == learnt(tmp_path / "plain")


def test_measuring_leaves_neither_gradients_nor_another_random_state(
    student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(cost, "_now", lambda device: float(next(seconds)))  # each micro-batch takes a second
    run, cpu = load_run(student), torch.device("cpu")
    assert run.record.concepts
    config = run.record.train
    guide = teacher_of(run.record.concepts, config, cpu)
    corpus = Corpus(run.record.data, run.tokenizer)
    update = corpus.update(0, 8, 64, OBJECTIVES["mlm+mlsm"].selection(0.5), 0)
    before = torch.get_rng_state()
    result = measure_cost(run.model.train(), guide, update, config, choose_precision("off", cpu, 16))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(weight.grad is None for weight in run.model.parameters())
    assert guide.coding_time.read() == 0
    _, *timed = cost.measured_micro_batches(update)
    seconds_per_token = 2 / sum(len(micro.inputs.ids_T) for micro in timed)
    assert result.seconds == pytest.approx(config.num_steps * update.num_tokens * seconds_per_token)
    assert 1e8 < result.memory < 1e11  # this process has PyTorch in its memory


def test_days_on_a_cpu_need_a_confirmation_and_a_resumed_run_does_not(
    teacher: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "LEAST_RATIO", 0)
    monkeypatch.setattr(cost, "DAY_S", -1)
    flags = flags_for("mlm", teacher, student, tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"takes about .* here: --preset tiny takes .*, --yes starts it anyway"
    ):
        train.main([*flags])
    with pytest.raises(ValueError, match=r"here: --num-steps -?[0-9]+ takes a day, --yes starts it anyway"):
        train.main([*flags, "--preset=tiny"])
    train.main([*flags, "--yes"])
    (tmp_path / "run" / MODEL_FILE).unlink()
    train.main([*flags, "--resume"])
    assert (tmp_path / "run" / MODEL_FILE).exists()


def test_memory_that_is_saved_for_the_backward_pass_is_counted_once(student: Path) -> None:
    model = load_run(student).model
    vector = torch.ones(1013, requires_grad=True)
    with (saved := cost._SavedTensors(model)):
        shared = vector.exp()  # saved by exp and by both products
        (shared * shared).sum()
    assert 4052 <= saved.num_bytes() <= 2 * 4052
