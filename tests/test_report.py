"""The page about runs: its numbers are those of the files, and whatever a name holds stays text."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from logged_runs import logged_run

from mlsm import report
from mlsm.evaluation.finetune import FineTuneSettings
from mlsm.evaluation.glue_scores import GlueResult, SeedResult
from mlsm.evaluation.results import Results, results_json
from mlsm.files import write_json

HOSTILE = "a<script>alert(1)</script>&\"'$\\frac{$"
VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """Which tags opened, that all closed, and what is read."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
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


def test_the_page_holds_everything_itself_and_runs_only_its_own_script(tmp_path: Path) -> None:
    runs = [logged_run(tmp_path / HOSTILE.replace("/", "|")), logged_run(tmp_path / "plain", objective="mlm")]
    results = {"demo": {"word accuracy": 0.25, "pairs: a_b": 0.75}, "demo baseline": {"word accuracy": 0.125}}
    write_json(runs[0] / "results.json", results)
    page = written(*map(str, runs))
    assert page.tags.isdisjoint({"iframe", "object", "img"})
    assert HOSTILE.replace("/", "|") in page.text
    assert "0.250" in page.text
    assert "0.125" in page.text
    text = (runs[-1] / "report.html").read_text(encoding="utf-8")
    assert text.count("<script") == 2  # its data and its script
    for kind in ("script", "style"):
        [inner] = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in text
    assert "default-src 'none'" in text
    assert re.findall(r"(?:src|href)=\S+", text) == ['href="data:,">']
    assert not re.search(r"\sstyle=|\son\w+=\"", text)  # the policy would refuse them
    written(*map(str, runs))
    assert (runs[-1] / "report.html").read_text(encoding="utf-8") == text  # the same page for the same runs


def test_the_page_holds_no_control_character(tmp_path: Path) -> None:
    hostile = "a\x1b[31m\u202eb\x9b"
    runs = [logged_run(tmp_path / hostile), logged_run(tmp_path / "plain")]
    config = json.loads((runs[0] / "config.json").read_text())
    config["data"] |= {"corpus": [hostile], "cache_dir": hostile}
    config["versions"] = {hostile: hostile}
    write_json(runs[0] / "config.json", config)
    write_json(runs[0] / "results.json", {"blimp": suite_of(0.5, {hostile: 0.5}), "demo": {hostile: 0.5}})
    output = tmp_path / "page.html"
    page = written(*map(str, runs), "--output", str(output))
    assert output.read_text(encoding="utf-8").replace("\n", "").isprintable()
    assert page.text.count("a\ufffd[31m\ufffdb\ufffd") > 6


def suite_of(average: float, subtasks: dict[str, float]) -> dict:
    parts = {"groups": {}, "num_pairs": 1, "num_ties": 0, "score": "mean", "ties": "wrong", "prefix": False}
    return {"average": average, "subtasks": subtasks, "average_by_ties": {"correct": average}, **parts}


DAMAGED = ([], {"blimp": 3}, {"glue": {"cola": {}}}, {"glue": {"nothing": {"mean": 1}}}, {"demo": {"a": []}})


@pytest.mark.parametrize("results", DAMAGED)
def test_damaged_results_are_named(results: object, tmp_path: Path) -> None:
    run = logged_run(tmp_path / "run")
    write_json(run / "results.json", results)
    with pytest.raises(ValueError, match=r"results\.json holds no results of this program"):
        report.main([str(run)])


def test_a_run_that_was_not_evaluated_says_so(tmp_path: Path) -> None:
    assert "None of these runs has been evaluated" in written(str(logged_run(tmp_path / "run"))).text


def test_baselines_that_differ_have_a_row_each(tmp_path: Path) -> None:
    runs = [logged_run(tmp_path / name) for name in ("first", "second")]
    for run, kl in zip(runs, (4.98, 5.86), strict=True):
        write_json(run / "results.json", {"demo": {"concept KL": 2.0}, "demo baseline": {"concept KL": kl}})
    page = written(*map(str, runs))
    assert "baseline of first4.980" in page.text
    assert "baseline of second5.860" in page.text


def test_the_papers_rows_stand_beside_what_was_measured(tmp_path: Path) -> None:
    run = logged_run(tmp_path / "run")
    suite = suite_of(0.5, {"anaphora": 0.5})
    seeds = {
        seed: SeedResult(None if failure else 0.5, 1, failure, 0)
        for seed, failure in ((12, ""), (13, "the loss became nan"))
    }
    results = results_json(Results(glue={"cola": GlueResult(seeds, FineTuneSettings())}))
    write_json(run / "results.json", {"blimp": suite, **results})
    page = written(str(run), "--paper", "100M", "--output", str(tmp_path / "page.html"))
    for text in (
        "LSM, third phase (quoted: 100M words, Table 4)",
        "Table 4: the teacher, and",
        "0.684",
        "0.541",
        "about 50 h",
        "seed 13failed",  # cells follow each other
    ):
        assert text in page.text
    assert "10M words" not in page.text.replace("100M words", "")
    assert "WSC" not in page.text  # not measured here


def test_runs_that_differ_in_their_seed_get_a_row_of_means(tmp_path: Path) -> None:
    runs = [logged_run(tmp_path / name) for name in ("first", "second", "other")]
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
    assert page.text.count("mean of first") == 2
    assert "mean of other" not in page.text


@pytest.mark.parametrize("flags", [["nothing-here"], ["run", "--output", "."], ["run", "--paper", "1M"]])
def test_mistakes_are_named(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    logged_run(tmp_path / "run")
    with pytest.raises(ValueError, match=r"nothing-here|is a directory|invalid choice"):
        report.main(flags)
