"""Fine-tuning of one seed: micro-batches, the choice of the epoch, and failure."""

import math
import random
from pathlib import Path

import pytest
import torch
from small_runs import random_run
from small_text import sentences

from mlsm.evaluation import finetune
from mlsm.evaluation.finetune import (
    Classifier,
    EncodedItem,
    FineTuneSettings,
    micro_batches,
    settings_of_2026,
)
from mlsm.runs.run import load_run
from mlsm.text.sequences import Sequences
from mlsm.text.tokenizer import CLS_ID, SEP_ID


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("runs") / "mine")


def test_micro_batches_hold_every_row_once_with_little_padding() -> None:
    draw = random.Random(0)
    rows = [EncodedItem([7] * draw.randrange(3, 128), 0) for _ in range(64)]
    cut = micro_batches(rows, torch.device("cpu"))
    assert sorted(i for numbers in cut for i in numbers) == list(range(64))
    for numbers in cut:
        lengths = [len(rows[i].ids) for i in numbers]
        assert min(lengths) >= finetune.SHORTEST_SHARE * max(lengths)


def test_micro_batches_do_not_change_an_update(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_run(run)
    rows = [
        EncodedItem([CLS_ID, *loaded.tokenizer.encode(s), SEP_ID], i % 2) for i, s in enumerate(sentences(9))
    ]
    rows += [EncodedItem(rows[0].ids[:4], 1), EncodedItem(rows[1].ids[:7], 0)]
    weights = []
    for shortest_share in (0.0, 1.0):
        monkeypatch.setattr(finetune, "SHORTEST_SHARE", shortest_share)
        model = Classifier(loaded.model.encoder, 2, 0.02, seed=12).eval()
        # no dropout, whose draws depend on the shapes
        monkeypatch.setattr(model, "train", lambda model=model: model)
        finetune._update(model, torch.optim.SGD(model.parameters(), lr=1.0), rows, 1e9)
        weights.append(torch.cat([w.detach().flatten() for w in model.parameters()]))
    assert torch.allclose(weights[0], weights[1], atol=1e-5)


def test_a_gradient_that_is_not_finite_is_no_result(run: Path) -> None:
    model = Classifier(load_run(run).model.encoder, 2, 0.02, seed=12)
    model.classifier.bias.register_hook(lambda gradient: gradient * float("nan"))
    rows = [EncodedItem([CLS_ID, 7, SEP_ID], 0), EncodedItem([CLS_ID, 8, SEP_ID], 1)]
    with finetune.tqdm(disable=True) as bar, pytest.raises(finetune.Diverged, match="gradient nan"):
        finetune.fine_tune(model, rows, [rows], FineTuneSettings(max_epochs=1), 12, bar)


def test_the_best_epoch_and_patience(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([0.5, 0.6, 0.6005, 0.55, 0.6008, 0.9])
    monkeypatch.setattr(finetune, "selecting_metric", lambda *_: next(values))
    loaded = load_run(run)
    rows = [EncodedItem([CLS_ID, 7, SEP_ID], 0), EncodedItem([CLS_ID, 8, SEP_ID], 1)]
    model = Classifier(loaded.model.encoder, 2, 0.02, seed=12)
    before = torch.random.get_rng_state()
    with finetune.tqdm(disable=True) as bar:
        best = finetune.fine_tune(model, rows, [rows], FineTuneSettings(), 12, bar)
    assert torch.equal(torch.random.get_rng_state(), before)
    # epochs 3 to 5 do not improve by more than 0.001: stopped before the 0.9, and epoch 5 is the best
    assert best.epoch == 5
    assert best.selected_by == [0.5, 0.6, 0.6005, 0.55, 0.6008]


def test_the_backbone_of_a_student_is_tuned_without_its_heads(tmp_path: Path) -> None:
    loaded = load_run(random_run(tmp_path / "student", num_concepts=6))
    model = Classifier(loaded.model.encoder, 2, 0.02, seed=12)
    names = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert names == {"encoder", "dense", "classifier"}
    assert all(w.requires_grad for w in model.parameters())
    assert model.encoder is not loaded.model.encoder


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="max_epochs must be above 0, got 0"):
        FineTuneSettings(max_epochs=0)
    with pytest.raises(ValueError, match="unknown recipe '2025'"):
        FineTuneSettings(recipe="2025")


def test_the_learning_rate_of_2026_rises_and_falls_to_a_tenth() -> None:
    settings = FineTuneSettings(learning_rate=2.0, recipe="2026")
    rates = [settings.rate(step, 1000) for step in range(1000)]
    assert rates[0] == 0
    assert rates[30] == pytest.approx(1.0)  # half of 60 updates
    assert max(rates) == rates[60] == pytest.approx(2.0)
    assert rates[530] == pytest.approx(1.1)  # half of the way from 2 to 0.2
    assert rates[999] == pytest.approx(0.2, abs=1e-4)
    assert rates[60:] == sorted(rates[60:], reverse=True)
    assert FineTuneSettings(learning_rate=2.0).rate(500, 1000) == 1.0


def test_the_head_of_2026_reads_the_last_position(run: Path) -> None:
    loaded = load_run(run)
    model = Classifier(loaded.model.encoder, 3, 0.02, seed=1, recipe="2026").eval()
    rows = [[CLS_ID, 7, 8, SEP_ID], [CLS_ID, 9, SEP_ID]]
    sequences = Sequences.of([torch.tensor(ids) for ids in rows])
    with torch.no_grad():
        last_BD = loaded.model.encoder(sequences, torch.tensor([3, 6]))

        def normalised(x_BD: torch.Tensor) -> torch.Tensor:
            centred_BD = x_BD - x_BD.mean(-1, keepdim=True)
            return centred_BD / (centred_BD.square().mean(-1, keepdim=True) + 1e-5).sqrt()

        hidden_BD = torch.nn.functional.gelu(model.dense(normalised(last_BD)))
        expected_BC = model.classifier(normalised(hidden_BD))
        torch.testing.assert_close(model(sequences), expected_BC, atol=1e-5, rtol=1e-5)
    bound = 32**-0.5  # 1 / the square root of the width
    assert 0.9 * bound < model.dense.weight.detach().abs().max().item() <= bound
    assert 0 < model.dense.bias.detach().abs().max().item() <= bound


@pytest.mark.parametrize(
    ("recipe", "updates"),
    [("2024", [(4, 1.0), (4, 1.0), (3, 1.0)] * 4), ("2026", [(4, math.inf)] * 2 * 6)],
)
def test_a_recipe_decides_which_batches_are_trained_and_whether_gradients_are_clipped(
    recipe: str, updates: list[tuple[int, float]], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No epoch improves on the first one. In the recipe of 2024 training stops after three more."""
    done: list[tuple[int, float]] = []
    monkeypatch.setattr(
        finetune, "_update", lambda model, optimizer, batch, clip: done.append((len(batch), clip))
    )
    monkeypatch.setattr(finetune, "selecting_metric", lambda *_: 0.5)
    rows = [EncodedItem([CLS_ID, 7, SEP_ID], 0)] * 11
    model = Classifier(load_run(run).model.encoder, 2, 0.02, seed=12, recipe=recipe)
    settings = FineTuneSettings(batch_size=4, max_epochs=6, recipe=recipe)
    with finetune.tqdm(disable=True) as bar:
        finetune.fine_tune(model, rows, [rows], settings, 12, bar)
    assert done == updates


def test_the_settings_of_2026_are_those_of_the_organisers() -> None:
    wsc, boolq, qqp = map(settings_of_2026, ("wsc", "boolq", "qqp"))
    assert (wsc.max_epochs, boolq.max_epochs) == (30, 10)
    assert (boolq.batch_size, qqp.batch_size) == (16, 32)
    assert (boolq.selects_by, qqp.selects_by) == ("accuracy", "f1")
    assert (qqp.learning_rate, qqp.max_length, qqp.weight_decay) == (3e-5, 512, 0.01)
