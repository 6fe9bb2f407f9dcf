"""The precision of a run: how it is chosen, recorded, kept on a resume, and what it changes."""

from pathlib import Path

import pytest
import torch
from small_text import NANO_FLAGS, text_flags, write_corpus

import train
from mlsm import device
from mlsm.device import LEAST_BF16_WIDTH, choose_precision
from mlsm.files import read_json, read_tensors, write_json
from mlsm.runs.checkpoint import MODEL_FILE

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("is_native", "width", "before", "expected"),
    [
        (True, LEAST_BF16_WIDTH, None, "bf16"),
        (True, LEAST_BF16_WIDTH - 1, None, "off"),
        (False, 768, None, "off"),
        (True, 768, "off", "off"),
        (False, 768, "bf16", "bf16"),
        (True, 16, "bf16", "bf16"),
    ],
)
def test_auto_on_a_cpu(
    is_native: bool, width: int, before: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "has_native_bf16", lambda: is_native)
    precision = choose_precision("auto", CPU, width, before=before)
    assert precision.name == expected
    assert ("slow" in precision.reason) == (before == "bf16" and not is_native)
    assert choose_precision("bf16", CPU, width, before=before).name == "bf16"
    with precision.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if expected == "bf16" else torch.float32)


def flags(folder: Path, *more: str) -> list[str]:
    write_corpus(folder / "text.txt")
    wide = [flag.replace("--width=16", "--width=64") for flag in NANO_FLAGS]
    return ["--objective=mlm", *text_flags(folder), *wide, *more]


def test_a_run_in_bf16_resumes_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device, "has_native_bf16", lambda: True)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train.main(flags(tmp_path, f"--output={whole}"))
    assert "precision: bf16 (this processor multiplies it natively)" in capsys.readouterr().err
    assert read_json(whole / "config.json")["precision"] == "bf16"
    train.main(flags(tmp_path, f"--output={stopped}"))
    (stopped / MODEL_FILE).unlink()
    for name in ("step-4", "step-6"):
        (stopped / "checkpoints" / name / MODEL_FILE).unlink()
    monkeypatch.setattr(device, "has_native_bf16", lambda: False)
    train.main(flags(tmp_path, f"--output={stopped}", "--resume"))
    said = capsys.readouterr().err
    assert "after update 2" in said
    assert "precision: bf16 (as before; this processor has no native bf16" in said
    one, other = read_tensors(whole / MODEL_FILE), read_tensors(stopped / MODEL_FILE)
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())
    train.main(flags(tmp_path, f"--output={tmp_path / 'float32'}", "--amp=off"))
    float32 = read_tensors(tmp_path / "float32" / MODEL_FILE)
    assert not all(torch.equal(weight, float32[name]) for name, weight in one.items())


def test_a_resumed_run_keeps_its_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device, "used_by_others", lambda: 0.0)
    monkeypatch.setattr(device, "num_processors", lambda: 2.0)
    monkeypatch.setattr(device, "watch", lambda number: None)  # it would go on in the tests after this one
    run, threads = tmp_path / "run", torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        train.main(flags(tmp_path, f"--output={run}"))
        (run / MODEL_FILE).unlink()
        torch.set_num_threads(1)
        train.main(flags(tmp_path, f"--output={run}", "--resume"))
        assert torch.get_num_threads() == 2
        assert "threads: 2 (as before" in capsys.readouterr().err
        assert read_json(run / "config.json")["num_threads"] == 2
    finally:
        torch.set_num_threads(threads)


def test_a_run_from_before_there_was_a_choice_stays_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device, "has_native_bf16", lambda: True)
    run = tmp_path / "run"
    train.main(flags(tmp_path, f"--output={run}", "--amp=off"))
    record = read_json(run / "config.json")
    del record["precision"]
    record["train"]["amp"] = "auto"
    write_json(run / "config.json", record)
    (run / MODEL_FILE).unlink()
    train.main(flags(tmp_path, f"--output={run}", "--resume"))
    assert "precision: off (as before)" in capsys.readouterr().err
