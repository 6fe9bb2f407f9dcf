"""Held-out text during training: measuring changes nothing, the best model is kept, patience ends a run."""

from pathlib import Path

import pytest
from pipeline import flags_for, learnt

import train
from mlsm.config import TrainConfig
from mlsm.files import read_json
from mlsm.runs.checkpoint import MODEL_FILE
from mlsm.runs.run import load_run
from mlsm.training.objectives import heldout_loss


def losses_of(run: Path) -> dict[int, float]:
    """The held-out loss of each measurement by its step."""
    lines = learnt(run)
    shown = [{n.removeprefix("heldout_"): v for n, v in line.items() if n != "step"} for line in lines]
    return {
        line["step"]: heldout_loss(values, TrainConfig())
        for line, values in zip(lines, shown, strict=True)
        if any(name.startswith("heldout_") for name in line)
    }


@pytest.mark.parametrize("objective", ["mlm", "mlm+mlsm"])
def test_a_run_that_is_measured_learns_the_same(objective: str, teacher: Path, tmp_path: Path) -> None:
    plain, measured = tmp_path / "plain", tmp_path / "measured"
    flags = [*flags_for(objective, teacher, teacher, plain), "--dropout=0.1", "--num-steps=8"]
    train.main(flags)
    train.main([*flags, f"--output={measured}", "--eval-every=3"])
    assert (plain / MODEL_FILE).read_bytes() == (measured / MODEL_FILE).read_bytes()
    assert [*losses_of(measured)] == [3, 6, 8]
    lines = learnt(plain)
    assert [line for line in learnt(measured) if line in lines] == lines


def test_the_best_model_is_kept_and_patience_ends_the_run(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*flags_for("mlm", teacher, teacher, tmp_path / "run"), "--num-steps=90", "--schedule=wsd"]
    # The rate rises until the weights are useless.
    train.main([*flags, "--learning-rate=3", "--warmup-share=1", "--eval-every=1", "--patience=4"])
    losses = losses_of(tmp_path / "run")
    last = max(losses)
    best = min(losses, key=lambda step: losses[step])
    assert last < 90
    assert [*losses] == [*range(1, last + 1)]
    assert best == last - 4
    assert f"no better for 4 measurements: stopped after update {last}" in capsys.readouterr().err
    kept = tmp_path / "run" / "checkpoints" / "best"
    assert read_json(kept / "state.json")["step"] == best
    assert load_run(kept).model.config == load_run(tmp_path / "run").model.config


def test_a_resumed_run_remembers_its_best_model_and_what_is_left_of_its_patience(
    teacher: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    flags = [*flags_for("mlm", teacher, teacher, run), "--num-steps=90", "--checkpoint-every=1"]
    flags += ["--learning-rate=3", "--warmup-share=1", "--eval-every=1", "--patience=2"]
    train.main(flags)
    model, lines = (run / MODEL_FILE).read_bytes(), learnt(run)
    last = f"step-{lines[-1]['step']}"
    for gone in (MODEL_FILE, f"checkpoints/{last}/{MODEL_FILE}"):  # after the last update, and before it
        (run / MODEL_FILE).unlink(missing_ok=True)
        (run / gone).unlink(missing_ok=True)
        train.main([*flags, "--resume"])
        assert (run / MODEL_FILE).read_bytes() == model
        assert learnt(run) == lines


def test_without_held_out_text_there_is_nothing_to_watch(teacher: Path, tmp_path: Path) -> None:
    flags = [*flags_for("mlm", teacher, teacher, tmp_path / "run"), "--heldout-share=0", "--eval-every=2"]
    with pytest.raises(ValueError, match="--eval-every measures held-out text, and none was held out"):
        train.main(flags)
    with pytest.raises(ValueError, match="patience counts measurements: set --eval-every, too"):
        TrainConfig(patience=3)
