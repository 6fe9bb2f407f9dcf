"""What a run takes, said before its first update: words, updates, memory, and a time that follows from two
measured micro-batches. Measuring changes no weight and no random state of the run.
"""

from __future__ import annotations

import resource
import sys
import time
from typing import NamedTuple

import torch
from torch import Tensor

from mlsm import distributed
from mlsm.coding.targets import Teacher
from mlsm.config import TrainConfig
from mlsm.device import Precision
from mlsm.log import duration, say
from mlsm.model.language_model import LanguageModel
from mlsm.runs.record import RunRecord
from mlsm.text.batches import Corpus, MicroBatch, Update
from mlsm.training.objectives import find_objective

# On a CPU, tokens of a measured micro-batch times weights of the model, which take seconds on one core. A
# larger micro-batch takes as long per token.
MOST_WORK, FEWEST_TOKENS = 6e10, 256
LEAST_RATIO = 40  # tokens of a run to tokens that would be measured; a run with fewer is not measured
DAY_S = 24 * 3600
BYTES_OF_MOMENTS = 8  # per trained weight, kept by AdamW


class Cost(NamedTuple):
    """What a run takes on this machine."""

    seconds: float  # without the optimiser's steps
    memory: float  # bytes: of the GPU, or of this process


def check_cost(
    model: LanguageModel,
    teacher: Teacher | None,
    corpus: Corpus,
    record: RunRecord,
    precision: Precision,
    *,
    is_confirmed: bool,
) -> None:
    """Print what the run takes. Raises ValueError if it would train for more than a day on a CPU and the user
    has not confirmed that.
    """
    config, is_on_cpu = record.train, model.device.type == "cpu"
    num_epochs = config.num_steps * config.batch_size / len(corpus.training)
    num_words = f"{record.words.own:,} words, " if record.words else ""
    epochs = f"{num_epochs:,.0f}" if num_epochs >= 10 else f"{num_epochs:.2g}"
    say(f"{config.num_steps:,} updates, {num_words}{epochs} epochs")
    budget = config.token_budget
    if is_on_cpu:
        num_weights = sum(weight.numel() for weight in model.parameters())
        budget = min(budget, max(FEWEST_TOKENS, int(MOST_WORK / num_weights)))
    selection = find_objective(config.objective).selection(config.mask_share.first)
    update = corpus.update(0, config.batch_size, budget, selection, config.seed)
    num_measured = sum(len(micro.inputs.ids_T) for micro in measured_micro_batches(update))
    if update.num_tokens * config.num_steps < LEAST_RATIO * num_measured:
        return
    cost = measure_cost(model, teacher, update, config, precision)
    seconds = distributed.all_reduce_max(max(1, round(cost.seconds)))
    where = "CPU" if is_on_cpu else "GPU"
    say(f"about {duration(seconds)}, and {cost.memory / 1e9:.1f} GB of memory, on this {where}")
    if is_on_cpu and seconds > DAY_S and not is_confirmed:
        shorter = "--preset tiny takes minutes to hours"
        if record.preset == "tiny":
            shorter = f"--num-steps {int(config.num_steps * DAY_S / seconds)} takes a day"
        raise ValueError(f"training takes about {duration(seconds)} here: {shorter}, --yes starts it anyway")


def measured_micro_batches(update: Update) -> list[MicroBatch]:
    """Three of an update: one to warm up, the one with the longest sequences, and one from the middle."""
    micro_batches = update.micro_batches
    return [micro_batches[-1], micro_batches[0], micro_batches[len(micro_batches) // 2]]


def measure_cost(
    model: LanguageModel, teacher: Teacher | None, update: Update, config: TrainConfig, precision: Precision
) -> Cost:
    """Compute the loss and the gradient of three micro-batches and discard them. The times of the last two,
    by token, give that of the run.
    """
    objective, device = find_objective(config.objective), model.device
    devices = [device] if device.type == "cuda" else []
    num_tokens, seconds, saved_bytes = 0, 0.0, 0.0
    with torch.random.fork_rng(devices):
        for number, micro in enumerate(measured_micro_batches(update)):
            start, saved = _now(device), _SavedTensors(model)
            with saved, precision.autocast():
                outcome = objective.loss(model, micro.to(device), teacher, config)
            outcome.loss.backward()
            if number > 0:
                num_tokens += len(micro.inputs.ids_T)
                seconds += _now(device) - start
                saved_bytes += saved.num_bytes()
    model.zero_grad(set_to_none=True)
    if teacher:
        teacher.coding_time.read()
    num_micro_tokens = min(config.token_budget, update.num_tokens)
    # The peak has what one measured micro-batch saves, which is half of `saved_bytes`.
    memory = _peak_memory(device) + max(0.0, saved_bytes * (num_micro_tokens / num_tokens - 0.5))
    memory += BYTES_OF_MOMENTS * sum(w.numel() for w in model.parameters() if w.requires_grad)
    total_tokens = config.num_steps * update.num_tokens / distributed.world_size()
    return Cost(seconds * total_tokens / num_tokens, memory)


class _SavedTensors(torch.autograd.graph.saved_tensors_hooks):
    """In a `with` block, counts the memory of the tensors that are saved for the backward pass, without
    weights and their copies in another precision: those do not grow with the micro-batch.
    """

    def __init__(self, model: LanguageModel) -> None:
        super().__init__(self._note, lambda tensor: tensor)
        self._sizes_of_weights = {weight.numel() for weight in model.parameters()}
        self._sizes: dict[int, int] = {}

    def _note(self, tensor: Tensor) -> Tensor:
        if tensor.numel() not in self._sizes_of_weights:
            storage = tensor.untyped_storage()
            self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    def num_bytes(self) -> int:
        """The bytes of all storages, each counted once."""
        return sum(self._sizes.values())


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak_memory(device: torch.device) -> float:
    """The most bytes that were in use so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
