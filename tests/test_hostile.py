"""Runs that collide, outputs that cannot be written, numbers that are not finite, disks that fill up."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pipeline import ROOT
from small_runs import random_run
from small_text import NANO_FLAGS, write_corpus

import evaluate
import fit_dictionary
import train
from mlsm import divergence
from mlsm.config import TrainConfig
from mlsm.data import MicroBatch
from mlsm.directory import LOCK_FILE, check_writable, only_process
from mlsm.objectives import Outcome


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus, encoded once."""
    folder = tmp_path_factory.mktemp("shared")
    write_corpus(folder / "text.txt")
    return folder


def flags(shared: Path, output: Path, *more: str) -> list[str]:
    """Of a run of six updates."""
    data = [f"--corpus={shared / 'text.txt'}", f"--cache-dir={shared / 'cache'}"]
    return ["--objective=mlm", *data, *NANO_FLAGS, f"--output={output}", *more]


# ---- two runs, one directory


def test_a_second_run_is_refused_with_the_process_that_holds_the_directory(
    shared: Path, tmp_path: Path
) -> None:
    command = [sys.executable, str(ROOT / "train.py"), *flags(shared, tmp_path / "run", "--num-steps=100000")]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("run/checkpoints/step-*")):
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(ValueError, match=rf"run is in use by process {first.pid} on \S+; wait"):
            train.main(flags(shared, tmp_path / "run", "--resume"))
        first.send_signal(signal.SIGKILL)
        first.wait()
        with only_process(tmp_path / "run"):
            assert (tmp_path / "run" / LOCK_FILE).read_text().startswith(f"{os.getpid()} on ")
    finally:
        first.kill()
        first.wait()


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("mlsm.directory.fcntl.flock", no_locks)
    with only_process(tmp_path / "run"):
        assert "cannot be locked" in capsys.readouterr().err


# ---- outputs


@pytest.mark.parametrize("place", ["a-file", "a-file/below", "/proc/here", "/proc/1/here/below"])
def test_an_output_that_cannot_be_written_is_found_first(
    place: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even a prerequisite is built: `nowhere` would be the next complaint."""
    (tmp_path / "a-file").write_text("in the way")
    output = tmp_path / place  # an absolute place stays itself
    with pytest.raises(ValueError, match=r"cannot write in .*; name another --output"):
        train.main(["--objective=lsm", "--teacher=nowhere", f"--output={output}"])
    with pytest.raises(ValueError, match=r"cannot write in"):
        fit_dictionary.main(["--teacher=nowhere", f"--output={output / 'dictionary.safetensors'}"])
    with pytest.raises(ValueError, match=r"is a directory; --output names a file"):
        fit_dictionary.main(["--teacher=nowhere", f"--output={tmp_path}"])
    with pytest.raises(ValueError, match="no teacher at nowhere"):
        train.main(["--objective=lsm", "--teacher=nowhere", f"--output={tmp_path / 'new/run'}"])
    assert sorted(tmp_path.iterdir()) == [tmp_path / "a-file"]


def test_a_run_that_cannot_be_written_to_is_not_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = random_run(tmp_path / "run")

    def read_only(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("mlsm.directory.tempfile.TemporaryFile", read_only)
    with pytest.raises(ValueError, match="Read-only file system"):
        evaluate.main([str(run)])
    with pytest.raises(ValueError, match="Read-only file system"):
        check_writable(run)


# ---- numbers that are not finite


def test_a_diverged_update_can_be_computed_again(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with pytest.raises(ValueError, match=r"micro-batches 0, 1, 2 of 3: loss nan") as stopped:
        train.main(flags(shared, run, "--num-steps=90", "--init-std=1e30"))
    [record] = run.glob("divergence-step-*.json")
    assert str(record) in str(stopped.value)
    told = json.loads(record.read_text())
    assert told["step"] == 10
    assert len(told["sequences"]) == 8
    assert told["learning_rate"] < TrainConfig().learning_rate
    assert all(math.isnan(micro["loss"]) for micro in told["micro_batches"])
    divergence.main([str(record)])
    assert capsys.readouterr().out.count("loss nan, gradient norm nan") == 3


def test_the_record_names_the_micro_batch_and_holds_all_of_it(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = train.make_plan(vars(train.flags().parse_args(flags(shared, tmp_path / "run"))))
    corpus = train.Corpus(plan.data, plan.tokenizer)
    config, precision = plan.train, train.choose_precision("off", torch.device("cpu"))
    model, objective = train.LanguageModel(plan.model), train.OBJECTIVES["mlm"]
    update = corpus.update(0, 8, 64, objective.selection(0.15), seed=1)
    bad = update.micro_batches[1]

    def loss(model: object, micro: MicroBatch, *rest: object) -> Outcome:
        outcome = objective.loss(model, micro, *rest)
        return Outcome(outcome.loss * (math.nan if torch.equal(micro.text.ids_T, bad.text.ids_T) else 1), {})

    monkeypatch.setitem(divergence.OBJECTIVES, "mlm", objective._replace(loss=loss))
    record = divergence.describe("it broke", 1, 1e-4, update, corpus.sequences(0, 8, 1), config, precision)
    said = divergence.record_update(plan.directory, record, model, update, None, config, precision)
    assert f"(learning rate 0.0001; micro-batches 1 of {len(update.micro_batches)}: loss nan" in said
    again, weights, micro_batches = divergence.read_record(plan.directory / "divergence-step-1.json")
    assert again == record
    assert weights.keys() == model.state_dict().keys()
    for one, other in zip(update.micro_batches, micro_batches, strict=True):
        assert one.text.max_length == other.text.max_length
        for part in ("text", "inputs"):
            stored = zip(getattr(one, part)[:2], getattr(other, part)[:2], strict=True)
            assert all(torch.equal(a, b) for a, b in stored)
        assert torch.equal(one.selected_N, other.selected_N)


def test_a_loss_scale_that_has_collapsed_ends_a_run() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(torch.ones(()))
    watch = divergence.Watch()
    assert watch.problem(scaler) is None
    assert watch.add(math.inf)
    assert watch.problem(scaler) is None
    scaler.update(0.5)
    assert watch.problem(scaler) == "the loss scale of fp16 has fallen to 0.5"
    assert not watch.add(1.0)
    assert watch.problem(scaler) is None
