"""The optimisers, the schedule of the learning rate, the average of the last weights, and their state in a
checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mlsm.config import TrainConfig

STATE = {torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"), torch.optim.Muon: ("momentum_buffer",)}
"""What each optimiser keeps per weight."""


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW on every weight that is not frozen, with PyTorch's betas and eps. With `muon`, Muon (Jordan et
    al. 2024) has the matrices of the layers, and AdamW the rest.

    Muon's update is scaled to the root mean square of AdamW's (Liu et al. 2025, arXiv 2502.16982, section
    2.2), so that both take the same learning rate and weight decay.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            is_matrix = config.optimizer == "muon" and ".layers." in name and weight.ndim == 2
            (matrices if is_matrix else others).append(weight)
    rate, decay = config.learning_rate, config.weight_decay
    optimizers: list[torch.optim.Optimizer] = []
    if others:
        optimizers.append(torch.optim.AdamW(others, lr=rate, weight_decay=decay, fused=True))
    if matrices:
        muon = torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        optimizers.append(muon)
    return optimizers


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of update `step` (from 0): a linear rise over the warm-up, then a fall towards zero.

    `linear` and `cosine` fall from there on; `wsd` (warm-up, stable, decay) stays, and falls in a line over
    the last `decay_share` of the updates.
    """
    warmup_steps = int(config.warmup_share * config.num_steps)
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / (warmup_steps + 1)
    left = (config.num_steps - step) / max(1, config.num_steps - warmup_steps)  # from 1 towards 0
    if config.schedule == "cosine":
        left = (1 - math.cos(math.pi * left)) / 2
    elif config.schedule == "wsd":
        left = min(1.0, (config.num_steps - step) / max(1.0, config.decay_share * config.num_steps))
    return config.learning_rate * left


def set_learning_rate_(optimizers: Sequence[torch.optim.Optimizer], step: int, config: TrainConfig) -> float:
    """Give the optimisers the rate of update `step`, and return it."""
    rate = learning_rate(step, config)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
    return rate


def step_(
    optimizers: Sequence[torch.optim.Optimizer], scaler: torch.amp.GradScaler, clip_norm: float
) -> Tensor:
    """Unscale, clip, step, clear the gradients; returns their norm before clipping, on the device.

    Where the norm is not finite, no weight changes (and an fp16 loss scale shrinks). The host does not wait
    for the device, except for Muon.
    """
    weights = [w for optimizer in optimizers for group in optimizer.param_groups for w in group["params"]]
    scaler.scale(weights[0].new_zeros(()))  # creates the scale on a rank that had no micro-batch
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(weights, clip_norm)
    for optimizer in optimizers:
        if isinstance(optimizer, torch.optim.AdamW):
            # A fused AdamW reads on the device whether to skip, as it does for a GradScaler.
            optimizer.found_inf = norm.isfinite().logical_not().float()  # type: ignore[attr-defined]
            optimizer.step()
            del optimizer.found_inf  # type: ignore[attr-defined]
        elif norm.isfinite():
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    scaler.update()
    return norm


class WeightAverage:
    """The running mean of a model's weights over the last share of its updates."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.first_step = config.num_steps - round(config.average_last * config.num_steps)
        self.weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.mean: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, step: int) -> None:
        """Take the weights after update `step` (from 0) into the mean, if it is one of the last."""
        count = step - self.first_step + 1
        if count < 1:
            return
        for name, weight in self.weights.items():
            mean = self.mean.setdefault(name, torch.zeros_like(weight))
            mean.lerp_(weight, 1 / count)

    def tensors(self) -> dict[str, Tensor]:
        """The mean as named tensors for a checkpoint: `NAME OF WEIGHT/average`."""
        return {f"{name}/average": mean for name, mean in self.mean.items()}


def optimizer_tensors(optimizers: Sequence[torch.optim.Optimizer], model: nn.Module) -> dict[str, Tensor]:
    """The optimisers' state as named tensors: `NAME OF WEIGHT/exp_avg` and so on."""
    names = {id(weight): name for name, weight in model.named_parameters()}
    return {
        f"{names[id(weight)]}/{key}": value
        for optimizer in optimizers
        for weight, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizers_(
    optimizers: Sequence[torch.optim.Optimizer],
    average: WeightAverage,
    model: nn.Module,
    tensors: dict[str, Tensor],
) -> None:
    """Put back what `optimizer_tensors` and `WeightAverage.tensors` gave. Raises ValueError if it belongs to
    another set of weights, or is not whole.
    """
    of_weight = {w: o for o in optimizers for group in o.param_groups for w in group["params"]}
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    parts: dict[str, set[str]] = {}
    for key, value in tensors.items():
        name, _, part = key.rpartition("/")
        weight = trained.get(name)
        is_known = weight is not None and (part == "average" or part in STATE[type(of_weight[weight])])
        if not is_known or not value.is_floating_point():
            raise ValueError(f"the optimiser's state in the checkpoint is of another model ({key})")
        assert weight is not None
        if value.shape != (() if part == "step" else weight.shape):
            raise ValueError(f"the optimiser's state in the checkpoint is of another model ({key})")
        # A fused AdamW keeps the number of steps on the device of the weight, in float32.
        value = value.to(weight.device, torch.float32 if part == "step" else weight.dtype)
        if part == "average":
            average.mean[name] = value
        else:
            of_weight[weight].state[weight][part] = value
            parts.setdefault(name, set()).add(part)
    for name, found in parts.items():
        if found != {*STATE[type(of_weight[trained[name]])]}:
            raise ValueError(f"the optimiser's state in the checkpoint is not whole ({name})")


def load_scaler_(scaler: torch.amp.GradScaler, state: object) -> None:
    """Put back a loss scale; a run that had none (it ran in another precision) begins with a fresh one.
    Raises ValueError for what is no state of a scaler.
    """
    if not scaler.is_enabled() or state == {}:
        return
    names = scaler.state_dict().keys()
    if not isinstance(state, dict) or state.keys() != names or not all(map(_is_amount, state.values())):
        raise ValueError(f"the loss scale in the checkpoint is damaged: {state!r}")
    scaler.load_state_dict(state)


def _is_amount(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < 1e30
