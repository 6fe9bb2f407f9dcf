"""The rows of the report are sums and last values of the files of runs."""

from pathlib import Path

from logged_runs import logged_run

from mlsm.evaluation import paper
from mlsm.evaluation.tasks import SIZES
from mlsm.pages.run_facts import compute_row, duration, learning_rows, read_facts
from mlsm.pages.run_view import MEASURES
from mlsm.runs.run import load_run


def test_what_a_run_took_is_summed_from_its_lines(tmp_path: Path) -> None:
    run = logged_run(tmp_path / "head", objective="token-head")
    model = load_run(run).model
    row = compute_row(read_facts(run, "head"))
    assert row["tokens seen"] == f"{2 * 100 * (1 + 2 + 3 + 4 + 5):,}"
    assert (row["time"], row["updates"], row["phase"], row["words seen"]) == ("10 s", "50", "3", "350")
    assert row["parameters"] == f"{sum(weight.numel() for weight in model.parameters()):,}"
    assert model.token_head is not None
    assert row["of them trained"] == f"{sum(weight.numel() for weight in model.token_head.parameters()):,}"
    assert [duration(s) for s in (35, 720, 5400 * 4, 9e5)] == ["35 s", "12 min", "6.0 h", "10 days"]


def test_what_a_run_does_not_hold_stays_empty(tmp_path: Path) -> None:
    run = logged_run(tmp_path / "old", has_clock=False)
    (run / "model.safetensors").unlink()
    metrics = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(metrics[:2]))
    row = compute_row(read_facts(run, "old"))
    assert row["updates"] == "20 of 50"
    assert not row.keys() & {"time", "tokens seen", "parameters"}
    (run / "metrics.jsonl").unlink()
    assert compute_row(read_facts(run, "old"))["updates"] == "0 of 50"


def test_last_and_held_out_values(tmp_path: Path) -> None:
    facts = [read_facts(logged_run(tmp_path / name), name) for name in ("a", "b")]
    rows = learning_rows(facts, MEASURES)
    kl = MEASURES["concept_kl"]
    assert rows[kl] == {"a": "1", "b": "1"}
    assert rows[f"{kl}, held out"] == {"a": "1.25", "b": "1.25"}


def test_the_papers_compute_has_the_columns_of_ours(tmp_path: Path) -> None:
    columns = compute_row(read_facts(logged_run(tmp_path / "run"), "run")).keys()
    for size in SIZES:
        assert all(row.keys() <= columns for row in paper.quoted_compute(size).values())
    students = {
        size: paper.quoted_compute(size)[f"phase 2 (quoted: {size} words, Table 1)"] for size in SIZES
    }
    assert [(row["updates"], row["time"]) for row in students.values()] == [
        ("10,000", "about 5 h"),
        ("100,000", "about 50 h"),
    ]
