"""AdamW: its schedule, a step that is skipped, and its state in a checkpoint."""

import math

import pytest
import torch
from torch import nn

from mlsm.config import TrainConfig
from mlsm.training.optim import adamw, learning_rate, load_optimizer_, optimizer_tensors, step_


def test_the_learning_rate_rises_then_falls() -> None:
    config = TrainConfig(num_steps=1000, warmup_share=0.01, learning_rate=2.0)
    rates = [learning_rate(step, config) for step in range(1000)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10] == max(rates) == 2.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01
    assert all(rate > 0 for rate in rates)


def two_layers(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


def updated(model: nn.Sequential, optimizer: torch.optim.AdamW, scale: float = 1.0) -> float:
    (model(torch.ones(5, 4)).square().sum() * scale).backward()
    return step_(optimizer, torch.amp.GradScaler("cpu", enabled=False), clip_norm=1.0)


def test_the_state_of_the_optimiser_continues_bit_for_bit() -> None:
    model, config = two_layers(), TrainConfig()
    optimizer = adamw(model, config)
    updated(model, optimizer)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    tensors = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, model).items()}
    updated(model, optimizer)
    again = two_layers(seed=1)
    again.load_state_dict(weights)
    optimizer = adamw(again, config)
    load_optimizer_(optimizer, again, tensors)
    updated(again, optimizer)
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())


def test_a_gradient_that_is_not_finite_changes_no_weight() -> None:
    model = two_layers()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    optimizer = adamw(model, TrainConfig())
    assert not math.isfinite(updated(model, optimizer, scale=math.inf))
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_a_gradient_is_clipped_to_the_norm() -> None:
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = torch.cat([weight.detach().flatten().clone() for weight in model.parameters()])
    norm = updated(model, optimizer, scale=100.0)  # type: ignore[arg-type]
    after = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    assert norm > 1
    assert float((after - before).norm()) == pytest.approx(1.0, rel=1e-4)


def test_a_state_of_other_weights_is_refused() -> None:
    model = two_layers()
    optimizer = adamw(model, TrainConfig())
    updated(model, optimizer)
    tensors = optimizer_tensors(optimizer, model)
    other = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5))
    with pytest.raises(ValueError, match="is of another model"):
        load_optimizer_(adamw(other, TrainConfig()), other, tensors)
    del tensors["0.weight/exp_avg"]
    with pytest.raises(ValueError, match="is not whole"):
        load_optimizer_(adamw(model, TrainConfig()), model, tensors)
