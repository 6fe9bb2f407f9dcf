"""Pseudo-log-likelihood scoring against minicons: sentences a second on the same sentences and threads.

    pytest benchmarks/bench_scoring.py --benchmark-enable        writes results/scoring.md

Presets `tiny` and `small` with random weights (the time does not depend on them). The sentences are every
n-th minimal pair of our grammar, as in practice, and every n-th line of the embedded corpus. minicons scores
the exported model through transformers, with one sentence per call or 16. It makes a batch of the masked
copies of each sentence and computes the logits of every position.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import result_page
from minicons.scorer import MaskedLMScorer
from signals import cache_directory
from transformers import AutoModelForMaskedLM, AutoTokenizer

from mlsm.config import PRESETS, DataConfig, TrainConfig
from mlsm.evaluation.grammar import demo_pairs
from mlsm.evaluation.pseudo_likelihood import score_sentences
from mlsm.export import export
from mlsm.files import write_json, write_tensors
from mlsm.model.language_model import LanguageModel
from mlsm.runs.checkpoint import MODEL_FILE
from mlsm.runs.run import Run, load_run
from mlsm.text.corpus import corpus_files, corpus_tokenizer, read_lines
from mlsm.text.tokenizer import Tokenizer

NUM_SENTENCES = {"tiny": 128, "small": 32}
MOST_WORDS = 20  # of a line of the corpus
KINDS = ("minimal pairs", "lines of the corpus")
ROUNDS = 3
TOKEN_BUDGET = 4096  # of evaluate.py


class Row(NamedTuple):
    preset: str
    kind: str
    scorer: str
    num_sentences: int
    seconds: float
    difference: float
    """The largest difference of a score from ours."""


rows: list[Row] = []


def sentences(kind: str, num: int, config: DataConfig, tokenizer: Tokenizer) -> list[str]:
    """Evenly spaced sentences of a kind; of minimal pairs, good and bad ones in turn."""
    if kind == "minimal pairs":
        pairs = [pair for these in demo_pairs(tokenizer).values() for pair in these]
        return [sentence for pair in pairs[:: 2 * len(pairs) // num] for sentence in pair][:num]
    lines = [line for line in read_lines(corpus_files(config)) if 4 <= len(line.split()) <= MOST_WORDS]
    return lines[:: len(lines) // num][:num]


@pytest.fixture(scope="module", params=NUM_SENTENCES)
def subject(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Run, Path, dict[str, list[str]]]:
    """A preset's name, a run of its shape, its export, and sentences by kind."""
    folder, data = tmp_path_factory.mktemp(request.param), DataConfig(cache_dir=str(cache_directory()))
    config = PRESETS[request.param]().model
    tokenizer = corpus_tokenizer(data, config.vocab_size)
    config = dataclasses.replace(config, vocab_size=tokenizer.vocab_size)
    run = folder / "run"
    write_tensors(run / MODEL_FILE, LanguageModel(config).state_dict())
    (run / "tokenizer.model").write_bytes(tokenizer.model)
    parts = {"model": config, "data": data, "train": TrainConfig()}
    record = {name: dataclasses.asdict(part) for name, part in parts.items()}
    write_json(run / "config.json", {**record, "preset": request.param, "tokenizer": tokenizer.fingerprint})
    export(run, folder / "exported")
    texts = {kind: sentences(kind, NUM_SENTENCES[request.param], data, tokenizer) for kind in KINDS}
    return request.param, load_run(run), folder / "exported", texts


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


SCORERS = {
    "ours": ours,
    "minicons, one sentence per call": minicons(1),
    "minicons, 16 per call": minicons(16),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SCORERS)
def test_scorers(benchmark, subject, name, kind):
    preset, run, exported, texts = subject[0], subject[1], subject[2], subject[3][kind]
    score = SCORERS[name](run, exported)
    score(texts[:2])
    scores = benchmark.pedantic(score, args=(texts,), rounds=ROUNDS)
    expected = score_sentences(run, texts, token_budget=TOKEN_BUDGET)
    difference = max(abs(a - b) for a, b in zip(scores, expected, strict=True))
    assert difference < 1e-4
    seconds = benchmark.stats.stats.min if benchmark.stats else float("nan")
    rows.append(Row(preset, kind, name, len(texts), seconds, difference))


@pytest.fixture(scope="module", autouse=True)
def write_results(request) -> Iterator[None]:
    yield
    if request.config.getoption("benchmark_enable") and len(rows) > 1:
        result_page.write("scoring.md", _text())


def _text() -> str:
    own = {(row.preset, row.kind): row for row in rows if row.scorer == "ours"}
    lines = [
        (
            row.preset,
            row.kind,
            row.scorer,
            row.num_sentences,
            f"{row.num_sentences / row.seconds:.1f}",
            f"{row.seconds / own[row.preset, row.kind].seconds:.2f}" if (row.preset, row.kind) in own else "",
            f"{row.difference:.1e}",
        )
        for row in sorted(rows, key=lambda row: (list(NUM_SENTENCES).index(row.preset), row.kind))
    ]
    header = [
        "preset",
        "sentences are",
        "scorer",
        "sentences",
        "sentences/s",
        "ours is x times as fast",
        "largest difference",
    ]
    return f"""# Scoring sentences against minicons

Written by the command below. Random weights. Best of {ROUNDS} runs. Both sides spend most of the time in
the same float32 matrix products: what ours leaves out is the last layer and the logits where nothing is
masked, padding, small batches, and a masked copy that two sentences share.

{result_page.circumstances("pytest benchmarks/bench_scoring.py --benchmark-enable")}

{result_page.table(header, lines)}
"""
