"""Optimisers: schedules, a step that is skipped, the average of the last weights, and their state in a
checkpoint.
"""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from small_text import NANO_FLAGS, text_flags, write_corpus
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import train
from mlsm.config import ModelConfig, TrainConfig
from mlsm.files import read_tensors
from mlsm.model.language_model import LanguageModel
from mlsm.runs.checkpoint import MODEL_FILE
from mlsm.runs.run import load_run
from mlsm.settings import Line
from mlsm.training.optim import (
    WeightAverage,
    learning_rate,
    load_optimizers_,
    make_optimizers,
    optimizer_tensors,
    step_,
)

SHAPE = ModelConfig(vocab_size=20, width=8, depth=2, num_heads=2, ffn_width=12, max_positions=8, dropout=0.0)
NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)


def test_the_learning_rate_rises_then_falls() -> None:
    config = TrainConfig(num_steps=1000, warmup_share=0.01, learning_rate=2.0)
    rates = [learning_rate(step, config) for step in range(1000)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10] == max(rates) == 2.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01
    assert all(rate > 0 for rate in rates)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
def test_schedules_rise_to_the_peak_and_fall_to_almost_zero(schedule: str) -> None:
    config = TrainConfig(num_steps=200, warmup_share=0.1, learning_rate=2.0, schedule=schedule)
    rates = [learning_rate(step, config) for step in range(200)]
    assert max(rates) == rates[20] == 2.0
    assert all(a < b for a, b in pairwise(rates[:21]))
    assert all(a >= b for a, b in pairwise(rates[20:]))
    assert 0 < rates[-1] < 0.06
    halfway = {"linear": 1.0, "cosine": 1.0, "wsd": 2.0}[schedule]
    assert rates[110] == pytest.approx(halfway)


def test_a_line_goes_through_its_ends() -> None:
    line = Line.parse("0.4:0.15")
    assert (line.at(0, 11), line.at(5, 11), line.at(10, 11)) == (0.4, pytest.approx(0.275), 0.15)
    assert line.at(0, 1) == 0.4
    assert [Line.parse(x).at(7, 9) for x in (0.3, "0.3", [0.3, None])] == [0.3] * 3
    assert Line.parse(str(line)) == line
    assert [line.in_halves(step, 5) for step in range(5)] == [0.4] * 3 + [0.15] * 2
    assert Line(0.3).in_halves(4, 5) == 0.3
    for odd in ("", "a", "1:2:3", None, [], [None, 1], {}):
        with pytest.raises(ValueError, match=r"a number, or two as 0\.4:0\.15, is needed"):
            Line.parse(odd)


def test_muon_has_the_matrices_of_the_layers_and_adamw_the_rest() -> None:
    model = LanguageModel(SHAPE)
    adamw, muon = make_optimizers(model, TrainConfig(optimizer="muon"))
    names = {id(weight): name for name, weight in model.named_parameters()}
    matrices, others = (
        {names[id(w)] for group in o.param_groups for w in group["params"]} for o in (muon, adamw)
    )
    assert matrices | others == set(names.values())
    assert all(".layers." in name and name.endswith("weight") and "norm" not in name for name in matrices)
    assert {"encoder.token_embedding.weight", "encoder.relative_embedding.weight", "decoder_bias"} <= others
    assert len(make_optimizers(model, TrainConfig())) == 1


def update_(model: nn.Module, optimizers: list[torch.optim.Optimizer], scale: float = 1.0) -> float:
    """One update towards weights of zero, with a gradient that differs between the weights of a matrix."""
    loss = torch.stack(
        [(w**2 * torch.arange(1.0, w.numel() + 1).view_as(w)).sum() for w in model.parameters()]
    )
    (loss.sum() * scale).backward()
    return float(step_(optimizers, NO_SCALER, clip_norm=1.0))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_state_continues_bit_for_bit(name: str) -> None:
    config = TrainConfig(optimizer=name, num_steps=4, average_last=0.75)
    model = LanguageModel(SHAPE)
    optimizers, average = make_optimizers(model, config), WeightAverage(model, config)
    for step in range(2):
        update_(model, optimizers)
        average.add(step)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    tensors = optimizer_tensors(optimizers, model) | average.tensors()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    again = LanguageModel(SHAPE, seed=1)
    again.load_state_dict(weights)
    optimizers_again, average_again = make_optimizers(again, config), WeightAverage(again, config)
    load_optimizers_(optimizers_again, average_again, again, tensors)
    for step in range(2, 4):
        update_(model, optimizers)
        average.add(step)
        update_(again, optimizers_again)
        average_again.add(step)
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())
    assert all(torch.equal(mean, average_again.mean[name]) for name, mean in average.mean.items())


def test_the_average_is_that_of_the_last_weights() -> None:
    config, model = TrainConfig(num_steps=10, average_last=0.3), LanguageModel(SHAPE)
    optimizers, average = make_optimizers(model, config), WeightAverage(model, config)
    seen = []
    for step in range(10):
        update_(model, optimizers)
        average.add(step)
        seen.append(model.transform.weight.detach().clone().double())
    expected = torch.stack(seen[-3:]).mean(0)
    assert average.mean["transform.weight"].double() == pytest.approx(expected, abs=1e-7)
    assert not WeightAverage(model, TrainConfig()).mean


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_gradient_that_is_not_finite_changes_neither_weights_nor_state(name: str) -> None:
    model = LanguageModel(SHAPE)
    optimizers = make_optimizers(model, TrainConfig(optimizer=name))
    update_(model, optimizers)
    before = {**model.state_dict(), **optimizer_tensors(optimizers, model)}
    before = {name: tensor.clone() for name, tensor in before.items()}
    assert not math.isfinite(update_(model, optimizers, scale=math.inf))
    after = {**model.state_dict(), **optimizer_tensors(optimizers, model)}
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert all(weight.grad is None for weight in model.parameters())
    update_(model, optimizers)
    assert not torch.equal(model.transform.weight, before["transform.weight"])


class NoReads(TorchDispatchMode):
    """Makes reading the value of a tensor an error: on a GPU the host would wait for it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        assert func != torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("has_scale", [True, False])
def test_a_step_does_not_wait_for_the_device(has_scale: bool) -> None:
    model = LanguageModel(SHAPE)
    optimizers = make_optimizers(model, TrainConfig())
    model.transform.weight.sum().backward()
    scaler = torch.amp.GradScaler("cpu", enabled=has_scale)
    with NoReads():
        step_(optimizers, scaler, clip_norm=1.0)
    with pytest.raises(AssertionError), NoReads():
        float(model.decoder_bias.sum())


def test_a_gradient_is_clipped_to_the_norm() -> None:
    model = LanguageModel(SHAPE)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = torch.cat([weight.detach().flatten().clone() for weight in model.parameters()])
    norm = update_(model, [optimizer], scale=100.0)
    after = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    assert norm > 1
    assert float((after - before).norm()) == pytest.approx(1.0, rel=1e-4)


def test_a_state_of_other_weights_is_refused() -> None:
    model, config = LanguageModel(SHAPE), TrainConfig(optimizer="muon")
    optimizers, average = make_optimizers(model, config), WeightAverage(model, config)
    update_(model, optimizers)
    tensors = optimizer_tensors(optimizers, model)
    for damage in (
        {"transform.weight/exp_avg": torch.zeros(3)},
        {"unknown/exp_avg": torch.zeros(3)},
        {"encoder.layers.0.up.weight/exp_avg": torch.zeros(12, 8)},  # AdamW's, and the weight has Muon
        {"transform.weight/exp_avg": torch.zeros(8, 8, dtype=torch.long)},
    ):
        with pytest.raises(ValueError, match="is of another model"):
            load_optimizers_(make_optimizers(model, config), average, model, tensors | damage)
    del tensors["transform.weight/exp_avg"]
    with pytest.raises(ValueError, match="is not whole"):
        load_optimizers_(make_optimizers(model, config), average, model, tensors)


def test_a_run_with_all_of_it_resumes_bit_for_bit_and_leaves_its_average(tmp_path: Path) -> None:
    write_corpus(tmp_path / "text.txt")
    flags = ["--objective=mlm", *text_flags(tmp_path), *NANO_FLAGS, "--optimizer=muon", "--schedule=wsd"]
    flags += ["--mask-share=0.4:0.15", "--average-last=0.8", "--length-schedule=8:20"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train.main([*flags, f"--output={whole}"])
    train.main([*flags, f"--output={stopped}"])
    (stopped / MODEL_FILE).unlink()
    for step in ("step-4", "step-6"):
        (stopped / "checkpoints" / step / MODEL_FILE).unlink()
    train.main([*flags, f"--output={stopped}", "--resume"])
    for folder in ("", "checkpoints/average"):
        one, other = (read_tensors(run / folder / MODEL_FILE) for run in (whole, stopped))
        assert all(torch.equal(weight, other[name]) for name, weight in one.items())
    assert load_run(whole).record.train.mask_share == Line(0.4, 0.15)
    average = load_run(whole / "checkpoints" / "average").model
    assert not torch.equal(average.transform.weight, load_run(whole).model.transform.weight)
