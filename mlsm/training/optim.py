"""AdamW, its schedule, and their state in a checkpoint."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from mlsm.config import TrainConfig


def adamw(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW on every weight that is not frozen, with PyTorch's betas and eps."""
    weights = [w for w in model.parameters() if w.requires_grad]
    return torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Rate of update `step` (from 0): a linear rise over the warm-up, then a linear fall towards zero."""
    warmup_steps = int(config.warmup_share * config.num_steps)
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / (warmup_steps + 1)
    return config.learning_rate * (config.num_steps - step) / max(1, config.num_steps - warmup_steps)


def set_learning_rate_(optimizer: torch.optim.Optimizer, step: int, config: TrainConfig) -> float:
    """Give the optimiser the rate of update `step`, and return it."""
    rate = learning_rate(step, config)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def step_(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, clip_norm: float) -> float:
    """Unscale, clip, step, clear the gradients; returns their norm before clipping.

    Where the norm is not finite, no weight changes (and an fp16 loss scale shrinks).
    """
    scaler.unscale_(optimizer)
    weights = [w for group in optimizer.param_groups for w in group["params"]]
    norm = float(nn.utils.clip_grad_norm_(weights, clip_norm))
    if math.isfinite(norm):
        scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return norm


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimiser's state as named tensors: `NAME OF WEIGHT/exp_avg` and so on."""
    names = {id(weight): name for name, weight in model.named_parameters()}
    return {
        f"{names[id(weight)]}/{key}": value
        for weight, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer_(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave. Raises ValueError if it belongs to another set of weights."""
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    for name, num_parts in Counter(key.rpartition("/")[0] for key in tensors).items():
        if num_parts != 3:
            raise ValueError(f"the optimiser's state in the checkpoint is not whole ({name})")
    for key, value in tensors.items():
        name, _, part = key.rpartition("/")
        weight = trained.get(name)  # weights that are not used have no state
        shapes = {} if weight is None else {"step": (), "exp_avg": weight.shape, "exp_avg_sq": weight.shape}
        if weight is None or shapes.get(part) != value.shape or not value.is_floating_point():
            raise ValueError(f"the optimiser's state in the checkpoint is of another model ({key})")
        # A fused optimiser keeps the number of steps on the device of the weight, in float32.
        optimizer.state[weight][part] = value.to(
            weight.device, torch.float32 if part == "step" else weight.dtype
        )


def load_scaler_(scaler: torch.amp.GradScaler, state: Any) -> None:
    """Put back a loss scale; a run that had none (it ran in another precision) begins with a fresh one.
    Raises ValueError for what is no state of a scaler.
    """
    if not scaler.is_enabled() or state == {}:
        return
    names = scaler.state_dict().keys()
    if not isinstance(state, dict) or state.keys() != names or not all(map(_is_amount, state.values())):
        raise ValueError(f"the loss scale in the checkpoint is damaged: {state!r}")
    scaler.load_state_dict(state)


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < 1e30
