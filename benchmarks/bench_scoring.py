"""Pseudo-log-likelihood scoring against minicons: sentences a second on the same sentences and threads.

    pytest benchmarks/bench_scoring.py --benchmark-enable        writes results/scoring.md

Presets `tiny` and `small` with random weights (the time does not depend on them), sentences of the embedded
corpus at equal distances. minicons scores the exported model through transformers, a sentence a call or 16:
it makes a batch of the masked copies of one sentence and computes the logits of every position.
"""

import dataclasses
import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import report
from minicons.scorer import MaskedLMScorer
from signals import cache_directory
from transformers import AutoModelForMaskedLM, AutoTokenizer

from mlsm.checkpoint import MODEL_FILE, write_json, write_tensors
from mlsm.config import PRESETS, DataConfig
from mlsm.data import corpus_files, corpus_tokenizer, read_lines
from mlsm.evaluation.pseudo_likelihood import score_sentences
from mlsm.export import export
from mlsm.heads import LanguageModel, Run, load_run

NUM_SENTENCES = {"tiny": 128, "small": 32}
MOST_WORDS = 20  # about as long as those of minimal pairs
ROUNDS = 3
TOKEN_BUDGET = 4096  # of evaluate.py


class Row(NamedTuple):
    preset: str
    scorer: str
    num_sentences: int
    seconds: float
    difference: float
    """Largest, of a score, to ours."""


rows: list[Row] = []


def sentences(preset: str, config: DataConfig) -> list[str]:
    lines = [line for line in read_lines(corpus_files(config)) if 4 <= len(line.split()) <= MOST_WORDS]
    return lines[:: len(lines) // NUM_SENTENCES[preset]][: NUM_SENTENCES[preset]]


@pytest.fixture(scope="module", params=NUM_SENTENCES)
def subject(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Run, Path, list[str]]:
    """A preset's name, a run of its shape, its export, and sentences."""
    folder, data = tmp_path_factory.mktemp(request.param), DataConfig(cache_dir=str(cache_directory()))
    config = PRESETS[request.param]().model
    tokenizer = corpus_tokenizer(data, config.vocab_size, print)
    config = dataclasses.replace(config, vocab_size=tokenizer.vocab_size)
    run = folder / "run"
    write_tensors(run / MODEL_FILE, LanguageModel(config).state_dict())
    (run / "tokenizer.model").write_bytes(tokenizer.model)
    write_json(run / "config.json", {"model": dataclasses.asdict(config)})
    export(run, folder / "exported")
    return request.param, load_run(run), folder / "exported", sentences(request.param, data)


def ours(run: Run, exported: Path) -> Callable[[list[str]], list[float]]:
    return lambda texts: score_sentences(run, texts, token_budget=TOKEN_BUDGET)


def minicons(size: int) -> Callable[[Run, Path], Callable[[list[str]], list[float]]]:
    def make(run: Run, exported: Path) -> Callable[[list[str]], list[float]]:
        tokenizer = AutoTokenizer.from_pretrained(exported)
        tokenizer.batch_encode_plus = (
            tokenizer.__call__
        )  # the name that minicons calls; transformers 5 dropped it
        scorer = MaskedLMScorer(AutoModelForMaskedLM.from_pretrained(exported), "cpu", tokenizer=tokenizer)
        return lambda texts: [
            score for i in range(0, len(texts), size) for score in scorer.sequence_score(texts[i : i + size])
        ]

    return make


SCORERS = {"ours": ours, "minicons, a sentence a call": minicons(1), "minicons, 16 a call": minicons(16)}


@pytest.mark.parametrize("name", SCORERS)
def test_scorers(benchmark, subject, name):
    preset, run, exported, texts = subject
    score = SCORERS[name](run, exported)
    score(texts[:2])
    scores = benchmark.pedantic(score, args=(texts,), rounds=ROUNDS)
    expected = score_sentences(run, texts, token_budget=TOKEN_BUDGET)
    difference = max(abs(a - b) for a, b in zip(scores, expected, strict=True))
    assert difference < 1e-4
    seconds = benchmark.stats.stats.min if benchmark.stats else float("nan")
    rows.append(Row(preset, name, len(texts), seconds, difference))


@pytest.fixture(scope="module", autouse=True)
def write_results(request) -> Iterator[None]:
    yield
    if request.config.getoption("benchmark_enable") and len(rows) > 1:
        report.write("scoring.md", _text())


def _text() -> str:
    own = {row.preset: row for row in rows if row.scorer == "ours"}
    lines = [
        (
            row.preset,
            row.scorer,
            row.num_sentences,
            f"{row.num_sentences / row.seconds:.1f}",
            f"{row.seconds / own[row.preset].seconds:.2f}" if row.preset in own else "",
            f"{row.difference:.1e}",
        )
        for row in rows
    ]
    header = ["preset", "scorer", "sentences", "sentences/s", "ours is x times as fast", "largest difference"]
    peers = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("minicons", "transformers"))
    return f"""# Scoring sentences against minicons

Written by the command below. Sentences of the embedded corpus of at most {MOST_WORDS} words, random weights.
Best of {ROUNDS} runs. Both sides spend most of the time in the same float32 matrix products: what ours leaves
out is the logits of positions that are not masked, padding, and small batches.

{report.circumstances("pytest benchmarks/bench_scoring.py --benchmark-enable")}
- {peers}

{report.table(header, lines)}
"""
