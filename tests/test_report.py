"""The page about runs: its numbers are those of the files, and whatever a name holds stays text."""

import base64
import dataclasses
import json
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from small_runs import random_run

from mlsm import report
from mlsm.config import TrainConfig
from mlsm.evaluation import paper
from mlsm.evaluation.finetune import FineTuneSettings
from mlsm.evaluation.glue_scores import GlueResult, SeedResult
from mlsm.evaluation.results import Results, results_json
from mlsm.files import write_json
from mlsm.pages import run_view
from mlsm.pages.run_facts import RunFacts, compute_row, duration, learning_rows, read_facts
from mlsm.runs.run import load_run

HOSTILE = "a<script>alert(1)</script>&\"'$\\frac{$"
VOID = {"meta", "link", "img"}


def made_run(folder: Path, *, objective: str = "lsm", num_lines: int = 5, has_clock: bool = True) -> Path:
    """A finished run of `num_lines` logged lines, ten updates and two seconds each."""
    run = random_run(folder, num_concepts=8)
    config = json.loads((run / "config.json").read_text())
    train = TrainConfig(objective=objective, num_steps=10 * num_lines, batch_size=4)
    write_json(run / "config.json", config | {"train": dataclasses.asdict(train)})
    clock = {"seconds": 2.0} if has_clock else {}
    lines = [
        {"step": 10 * n, "concept_kl": 5 / n, "gap_max": 1e-3, "tokens_per_s": 100.0 * n, **clock,
         "words_seen": 70 * n, "epoch": 0.5 * n, "learning_rate": 1e-3, "gradient_norm": 1.0}
        for n in range(1, num_lines + 1)
    ]  # fmt: skip
    lines.append({"step": 10 * num_lines, "heldout_concept_kl": 1.25})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


class Page(HTMLParser):
    """Which tags opened, that all closed, and what is read."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.images: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def written(*flags: str) -> Page:
    report.main(list(flags))
    output = flags[flags.index("--output") + 1] if "--output" in flags else f"{flags[-1]}/report.html"
    page = Page(Path(output).read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_what_a_run_took_is_summed_from_its_lines(tmp_path: Path) -> None:
    run = made_run(tmp_path / "head", objective="token-head")
    model = load_run(run).model
    row = compute_row(read_facts(run, "head"))
    assert row["tokens seen"] == f"{2 * 100 * (1 + 2 + 3 + 4 + 5):,}"
    assert (row["time"], row["updates"], row["phase"], row["words seen"]) == ("10 s", "50", "3", "350")
    assert row["parameters"] == f"{sum(weight.numel() for weight in model.parameters()):,}"
    assert model.token_head is not None
    assert row["of them trained"] == f"{sum(weight.numel() for weight in model.token_head.parameters()):,}"
    assert [duration(s) for s in (35, 720, 5400 * 4)] == ["35 s", "12 min", "6.0 h"]


def test_what_a_run_does_not_hold_stays_empty(tmp_path: Path) -> None:
    run = made_run(tmp_path / "old", has_clock=False)
    (run / "model.safetensors").unlink()
    metrics = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(metrics[:2]))
    row = compute_row(read_facts(run, "old"))
    assert row["updates"] == "20 of 50"
    assert not row.keys() & {"time", "tokens seen", "parameters"}
    (run / "metrics.jsonl").unlink()
    assert compute_row(read_facts(run, "old"))["updates"] == "0 of 50"
    assert "None of these runs has been evaluated" in written(str(run)).text


def test_last_and_held_out_values(tmp_path: Path) -> None:
    facts = [read_facts(made_run(tmp_path / name), name) for name in ("a", "b")]
    rows = learning_rows(facts, run_view.MEASURES)
    kl = run_view.MEASURES["concept_kl"]
    assert rows[kl] == {"a": "1", "b": "1"}
    assert rows[f"{kl}, held out"] == {"a": "1.25", "b": "1.25"}


def test_long_curves_are_means_of_neighbours() -> None:
    points = [(float(x), float(x % 7)) for x in range(run_view.MOST_POINTS * 5)]
    thin = run_view.thinned(points)
    assert len(thin) == run_view.MOST_POINTS
    for axis in (0, 1):
        assert statistics.fmean(p[axis] for p in thin) == pytest.approx(
            statistics.fmean(p[axis] for p in points)
        )
    assert run_view.thinned(points[:3]) == points[:3]


def test_the_page_holds_everything_itself_and_runs_nothing(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / HOSTILE.replace("/", "|")), made_run(tmp_path / "plain", objective="mlm")]
    results = {"demo": {"word accuracy": 0.25, "pairs: a_b": 0.75}, "demo baseline": {"word accuracy": 0.125}}
    write_json(runs[0] / "results.json", results)
    page = written(*map(str, runs))
    assert page.tags.isdisjoint({"script", "iframe", "object"})
    assert HOSTILE.replace("/", "|") in page.text
    assert "0.250" in page.text
    assert "0.125" in page.text
    assert len(page.images) == 2
    for image in page.images:
        head, _, data = image.partition(",")
        assert head == "data:image/svg+xml;base64"
        ElementTree.fromstring(base64.b64decode(data))
    text = (runs[-1] / "report.html").read_text(encoding="utf-8")
    assert set(re.findall(r"(?:src|href)=(.{6})", text)) == {'"data:'}
    written(*map(str, runs))
    assert (runs[-1] / "report.html").read_text(encoding="utf-8") == text  # the same page for the same runs


def suite_of(average: float, subtasks: dict[str, float]) -> dict:
    parts = {"groups": {}, "num_pairs": 1, "num_ties": 0, "score": "mean", "ties": "wrong", "prefix": False}
    return {"average": average, "subtasks": subtasks, "average_by_ties": {"correct": average}, **parts}


DAMAGED = ([], {"blimp": 3}, {"glue": {"cola": {}}}, {"glue": {"nothing": {"mean": 1}}}, {"demo": {"a": []}})


@pytest.mark.parametrize("results", DAMAGED)
def test_damaged_results_are_named(results: object, tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    write_json(run / "results.json", results)
    with pytest.raises(ValueError, match=r"results\.json holds no results of this program"):
        report.main([str(run)])


def test_baselines_that_differ_have_a_row_each(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / name) for name in ("first", "second")]
    for run, kl in zip(runs, (4.98, 5.86), strict=True):
        write_json(run / "results.json", {"demo": {"concept KL": 2.0}, "demo baseline": {"concept KL": kl}})
    page = written(*map(str, runs))
    assert "baseline of first4.980" in page.text
    assert "baseline of second5.860" in page.text


def test_the_papers_rows_stand_beside_what_was_measured(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    suite = suite_of(0.5, {"anaphora": 0.5})
    seeds = {
        seed: SeedResult(None if failure else 0.5, 1, failure, 0)
        for seed, failure in ((12, ""), (13, "the loss became nan"))
    }
    results = results_json(Results(glue={"cola": GlueResult(seeds, FineTuneSettings())}))
    write_json(run / "results.json", {"blimp": suite, **results})
    page = written(str(run), "--paper", "100M", "--output", str(tmp_path / "page.html"))
    for told in ("LSM, third phase (quoted: 100M words, Table 4)", "0.684", "0.541", "about 50 h", "failed"):
        assert told in page.text
    assert "10M words" not in page.text.replace("100M words", "")
    assert "WSC" not in page.text  # not measured here


def test_runs_that_differ_in_their_seed_get_a_row_of_means(tmp_path: Path) -> None:
    runs = [made_run(tmp_path / name) for name in ("first", "second", "other")]
    for run, score in zip(runs, (0.5, 0.75, 0.125), strict=True):
        config = json.loads((run / "config.json").read_text())
        config["train"] |= {"seed": int(1000 * score)} | ({"num_steps": 999} if run.name == "other" else {})
        write_json(run / "config.json", config)
        suite = suite_of(score, {})
        demo = {"word accuracy": score / 2, "pairs: a": 0.5}
        write_json(run / "results.json", {"blimp": suite, "demo": demo})
    page = written(*map(str, runs))
    assert "mean of first, second0.312 ±0.088 (2)" in page.text  # words of the demo; cells follow each other
    assert "mean of first, second0.625 ±0.177 (2)" in page.text  # BLiMP
    assert page.text.count("mean of") == 2


def test_the_papers_compute_has_the_columns_of_ours(tmp_path: Path) -> None:
    columns = compute_row(read_facts(made_run(tmp_path / "run"), "run")).keys()
    for size in paper.SIZES:
        assert all(row.keys() <= columns for row in paper.quoted_compute(size).values())
    students = {
        size: paper.quoted_compute(size)[f"phase 2 (quoted: {size} words, Table 1)"] for size in paper.SIZES
    }
    assert [(row["updates"], row["time"]) for row in students.values()] == [
        ("10,000", "about 5 h"),
        ("100,000", "about 50 h"),
    ]


def test_many_runs_can_be_told_apart() -> None:
    runs = [RunFacts(f"run {n}", {}, [{"step": 1, "concept_kl": 1.0 + n}], {}, {}, {}) for n in range(8)]
    assert len(set(run_view.STYLES)) == len(runs)
    ElementTree.fromstring(run_view.draw_curves(runs))


@pytest.mark.parametrize("flags", [["nothing-here"], ["run", "--output", "."], ["run", "--paper", "1M"]])
def test_mistakes_are_named(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made_run(tmp_path / "run")
    with pytest.raises(ValueError, match=r"nothing-here|is a directory|invalid choice"):
        report.main(flags)
