"""The benchmark that waits for a GPU runs from end to end with tiny shapes, and its model adds up."""

import bench_gpu
import pytest
import result_page
import torch
import update_model


def test_a_dry_run_fills_every_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["bench_gpu.py", "--dry-run"])
    bench_gpu.main()
    printed = capsys.readouterr().out
    for name in (
        "| ours |",
        "dense FISTA, TF32",
        "| strided |",
        "lsm | ours: teacher and coder",
        "eager, sorted",
    ):
        assert name in printed
    rows = [line for line in printed.splitlines() if "transformers, eager" in line]
    assert len(rows) == 2
    assert all("tokens/s" in row for row in rows)


def test_without_a_gpu_it_says_so_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["bench_gpu.py"])
    bench_gpu.main()
    assert capsys.readouterr().out.count("\n") == 1


def test_fista_with_steps_enough_has_the_gap_that_the_coder_has() -> None:
    rows, _ = bench_gpu.coder_rows(bench_gpu.tiny_sizes(), torch.device("cpu"))
    gaps = [float(str(row[3])) for row in rows]
    assert max(gaps[1:]) <= gaps[0] < 1e-3


def test_no_part_of_the_modelled_update_becomes_slower() -> None:
    parts = update_model.parts()
    assert all(0 < part.after_ms <= part.before_ms for part in parts)
    assert f"| sum | {sum(part.before_ms for part in parts):.1f} |" in update_model.table()
    before, after = (sum(getattr(part, side) for part in parts) for side in ("before_ms", "after_ms"))
    page = (result_page.REPOSITORY / "docs" / "performance.md").read_text()
    assert f"from {before:.0f} to {after:.0f} ms" in page
