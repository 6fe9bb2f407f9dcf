"""Runs that collide, outputs that cannot be written, numbers that are not finite, files from strangers, disks
that fill up.
"""

import ast
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fuzz
import pytest
import torch
from pipeline import ROOT
from small_runs import random_run
from small_text import NANO_FLAGS, text_flags, write_corpus

import evaluate
import fit_dictionary
import train
from mlsm import cli, command_line
from mlsm.config import DataConfig, ModelConfig, TrainConfig
from mlsm.directory import LOCK_FILE, check_writable, only_process
from mlsm.evaluation import summary
from mlsm.evaluation.results import Results
from mlsm.files import read_json, read_tensors, write_json
from mlsm.log import read_metrics
from mlsm.runs.checkpoint import MODEL_FILE
from mlsm.runs.record import RunRecord
from mlsm.runs.teacher import text_of
from mlsm.text.batches import MicroBatch
from mlsm.training import divergence
from mlsm.training.objectives import OBJECTIVES, Outcome
from mlsm.training.optim import load_scaler_


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus, encoded once."""
    folder = tmp_path_factory.mktemp("shared")
    write_corpus(folder / "text.txt")
    return folder


def flags(shared: Path, output: Path, *more: str) -> list[str]:
    """The flags of a run of six updates."""
    return ["--objective=mlm", *text_flags(shared), *NANO_FLAGS, f"--output={output}", *more]


# ---- two runs, one directory


def test_a_second_run_is_refused_with_the_process_that_holds_the_directory(
    shared: Path, tmp_path: Path
) -> None:
    long = flags(shared, tmp_path / "run", "--num-steps=100000")
    command = [sys.executable, str(ROOT / "train.py"), *long]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("run/checkpoints/step-*")):
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(ValueError, match=rf"run is in use by process {first.pid} on \S+; wait"):
            train.main([*long, "--resume"])
        first.send_signal(signal.SIGKILL)
        first.wait()
        with only_process(tmp_path / "run"):
            assert (tmp_path / "run" / LOCK_FILE).read_text().startswith(f"{os.getpid()} on ")
    finally:
        first.kill()
        first.wait()


def test_a_run_is_evaluated_by_one_process_at_a_time(tmp_path: Path) -> None:
    run = random_run(tmp_path / "run")
    with (
        only_process(run),
        pytest.raises(
            ValueError, match=rf"run is in use by process {os.getpid()} on \S+; wait for it to end"
        ),
    ):
        evaluate.main([str(run), "--tasks=blimp"])


# ---- outputs


@pytest.mark.parametrize("place", ["a-file", "a-file/below", "/proc/here", "/proc/1/here/below"])
def test_an_output_that_cannot_be_written_is_found_first(
    place: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even a prerequisite is built: `nowhere` would be the next complaint."""
    (tmp_path / "a-file").write_text("in the way")
    output = tmp_path / place  # an absolute place stays itself
    with pytest.raises(ValueError, match=r"cannot write in .*; name another directory"):
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
    skipped = json.loads(record.read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    assert skipped["step"] == 10
    assert skipped["learning_rate"] < TrainConfig().learning_rate
    divergence.main([str(record)])
    assert capsys.readouterr().out.count("loss nan, gradient norm nan") == 3


def test_the_message_names_the_micro_batch_that_is_not_finite(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = train.make_plan(command_line.parse_flags(train.flags(), flags(shared, tmp_path / "run")))
    corpus = train.Corpus(plan.record.data, plan.tokenizer)
    config, precision = plan.record.train, train.choose_precision("off", torch.device("cpu"), 16)
    model, objective = train.LanguageModel(plan.record.model), OBJECTIVES["mlm"]
    update = corpus.update(0, 8, 64, objective.selection(0.15), seed=1)
    bad = update.micro_batches[1]

    def loss(model: object, micro: MicroBatch, *rest: object) -> Outcome:
        outcome = objective.loss(model, micro, *rest)
        return Outcome(outcome.loss * (math.nan if torch.equal(micro.text.ids_T, bad.text.ids_T) else 1), {})

    monkeypatch.setitem(OBJECTIVES, "mlm", dataclasses.replace(objective, loss=loss))
    said = divergence.record_update(
        plan.directory, "it broke", 1, 1e-4, model, update, None, config, precision
    )
    assert f"(learning rate 0.0001; micro-batches 1 of {len(update.micro_batches)}: loss nan" in said
    weights = read_tensors(plan.directory / "divergence-step-1.safetensors")
    assert weights.keys() == model.state_dict().keys()


def test_a_loss_scale_that_has_collapsed_ends_a_run() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(torch.ones(()))
    monitor = divergence.DivergenceMonitor()
    assert monitor.problem(scaler) is None
    assert monitor.add(math.inf)
    assert monitor.problem(scaler) is None
    scaler.update(0.5)
    assert monitor.problem(scaler) == "the loss scale of fp16 has fallen to 0.5"
    assert not monitor.add(1.0)
    assert monitor.problem(scaler) is None


# ---- files from strangers


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    """Some cases of every format; `python tests/fuzz.py` runs as many as one likes."""
    fuzz.write_material(tmp_path)
    cases = [(name, number) for name in fuzz.FORMATS for number in range(12)]
    outcomes = fuzz.run_cases(tmp_path, cases, seed=1)
    outcome_by_case = dict(zip(cases, outcomes, strict=True))
    assert not {case: what for case, what in outcome_by_case.items() if what.startswith("FAILED")}
    assert {"accepted", "refused"} == set(outcomes)


def test_the_fuzz_driver_sees_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "_sandbox", tmp_path)
    assert fuzz.outcome(lambda: None) == "accepted"
    assert fuzz.outcome(lambda: int("x")).startswith("refused")
    assert fuzz.outcome(lambda: b"\xff".decode()).startswith("FAILED UnicodeDecodeError")
    assert fuzz.outcome(lambda: {}["x"]).startswith("FAILED KeyError")
    fuzz._watch("open", (str(tmp_path / "inside"), "w", os.O_WRONLY))
    fuzz._watch("os.rename", (str(tmp_path / "inside"), "/outside"))
    assert fuzz.outcome(lambda: None) == "FAILED wrote /outside"
    fuzz._written_outside.clear()


def test_nothing_that_can_execute_code_is_read() -> None:
    sources = [*ROOT.glob("*.py"), *ROOT.glob("mlsm/**/*.py"), *ROOT.glob("kernels/**/*.py")]
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            names |= {node.module} if isinstance(node, ast.ImportFrom) else set()
            assert not names & {"dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
                called = ast.unparse(node.func)
                settings = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert called != "torch.load" or settings.get("weights_only") == "True", path
                assert not called.endswith("np.load") or settings.get("allow_pickle") == "False", path
                assert called not in ("eval", "exec", "load", "loads", "pickle.load", "pickle.loads"), path
                assert "Unpickler" not in called, path


def test_a_cache_folder_that_a_config_names_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved = RunRecord("tiny", ModelConfig(), DataConfig(), TrainConfig(), "")
    (tmp_path / "mine").mkdir()
    for outside in ("/nowhere/at/all", "../escaped", str(tmp_path.parent), "", ".", "mine/.."):
        saved = dataclasses.replace(saved, data=DataConfig(cache_dir=outside))
        assert text_of(saved, {}).cache_dir == "corpora"
        assert text_of(saved, {"cache_dir": outside}).cache_dir == outside
    saved = dataclasses.replace(saved, data=DataConfig(cache_dir="below/here"))
    assert text_of(saved, {}).cache_dir == "below/here"
    elsewhere = tmp_path.parent / f"{tmp_path.name}-cache"
    (elsewhere / "0123" / "ids-0123").mkdir(parents=True)
    saved = dataclasses.replace(saved, data=DataConfig(cache_dir=str(elsewhere)))
    assert text_of(saved, {}).cache_dir == str(elsewhere)


def test_what_else_stands_in_a_checkpoint_is_not_told(shared: Path, tmp_path: Path) -> None:
    train.main(flags(shared, tmp_path / "run"))
    (tmp_path / "run" / MODEL_FILE).unlink()
    shutil.rmtree(tmp_path / "run/checkpoints/step-6")
    path = tmp_path / "run/checkpoints/step-4/state.json"
    write_json(path, read_json(path) | {"text": "\\ud800", "nest": {}})
    path.write_text(path.read_text().replace("\\\\", "\\"))  # a lone surrogate
    train.main(flags(shared, tmp_path / "run", "--resume"))
    assert read_metrics(tmp_path / "run")[-2].keys().isdisjoint({"text", "nest"})


@pytest.mark.parametrize("place", ["demo baseline", "what no page shows"])
def test_results_with_a_lone_surrogate_are_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(f'{{"{place}": {{"\\ud800": 0.5}}}}')
    with pytest.raises(ValueError, match=r"results\.json holds no results of this program"):
        summary.store(tmp_path, "run", Results("weights", {"minimal pairs": 0.5}))


def test_a_loss_scale_is_put_back_or_begins_anew() -> None:
    scaler = torch.amp.GradScaler("cpu")
    load_scaler_(scaler, {})  # of a run in another precision
    state = scaler.state_dict()
    load_scaler_(scaler, state | {"scale": 8.0})
    assert scaler.state_dict()["scale"] == 8.0
    for damaged in ([], {"scale": 1.0}, state | {"scale": "x"}, state | {"scale": math.nan}):
        with pytest.raises(ValueError, match="the loss scale in the checkpoint is damaged"):
            load_scaler_(scaler, damaged)


# ---- disks that fill up


def test_a_file_that_cannot_grow_leaves_the_last_good_checkpoint(shared: Path, tmp_path: Path) -> None:
    """A limit of the file size stands for the full disk: a write fails in the middle of a checkpoint."""
    run = tmp_path / "run"
    train.main(flags(shared, run, "--num-steps=4"))
    (run / MODEL_FILE).unlink()
    whole = (run / "checkpoints" / "step-4" / MODEL_FILE).read_bytes()
    limited = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limited += f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(whole) - 100},) * 2); "
    limited += "import train; from mlsm import cli; cli.run(train.main)"
    shutil.rmtree(run / "checkpoints" / "step-4")
    result = subprocess.run(
        [sys.executable, "-c", limited, *flags(shared, run, "--num-steps=4", "--resume")],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == cli.EXIT_MISTAKE, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("error: ")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-2"]
    train.main(flags(shared, run, "--num-steps=4", "--resume"))
    assert (run / MODEL_FILE).read_bytes() == whole
