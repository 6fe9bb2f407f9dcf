"""Updates whose gradient is not finite change no weight and are counted. Ten in a row end the run, and so
does a loss scale of fp16 that keeps falling. The last update is then written beside the run, to be examined:

    python -m mlsm.training.divergence RUN/divergence-step-N.json

What is written is the number of the update and the weights before it: its batch is a function of the seed and
that number, and is computed again from the run's text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from mlsm import cli, command_line
from mlsm.coding.targets import Teacher
from mlsm.config import DEVICE_HELP, TrainConfig
from mlsm.device import Precision, choose_device, choose_num_threads, choose_precision
from mlsm.files import read_json, read_tensors, write_json, write_tensors
from mlsm.log import say
from mlsm.model.language_model import LanguageModel
from mlsm.runs.record import read_record
from mlsm.runs.run import load_tokenizer, load_weights_
from mlsm.runs.teacher import teacher_of, text_of
from mlsm.seeds import seed_for
from mlsm.settings import argument, check_fields, from_json, option
from mlsm.text.batches import Corpus, Update
from mlsm.training.objectives import find_objective
from mlsm.training.updates import make_update, pads_sequences

MOST_SKIPPED = 10  # updates in a row
LEAST_LOSS_SCALE = 1.0  # of fp16; it starts at 65,536, and below 1 small gradients are lost


class DivergenceMonitor:
    """Counts the updates that were skipped, and says when the run should end."""

    def __init__(self) -> None:
        self.skipped_in_a_row = 0

    def add(self, gradient_norm: float) -> bool:
        """Count an update; returns whether it was skipped."""
        was_skipped = not math.isfinite(gradient_norm)
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if was_skipped else 0
        return was_skipped

    def problem(self, scaler: torch.amp.GradScaler) -> str | None:
        """Why the run should end here; None if it should go on."""
        if self.skipped_in_a_row == MOST_SKIPPED:
            return f"{MOST_SKIPPED} updates in a row had a loss or gradient that is not finite"
        if self.skipped_in_a_row and scaler.is_enabled() and scaler.get_scale() < LEAST_LOSS_SCALE:
            return f"the loss scale of fp16 has fallen to {scaler.get_scale():.3g}"
        return None


@dataclass(frozen=True)
class SkippedUpdate:
    """An update that changed no weight, as divergence-step-N.json holds it. The weights before the update are
    in the safetensors file of the same name.
    """

    problem: str
    step: int  # the number of the update, from 1
    learning_rate: float
    loss_scale: float

    def __post_init__(self) -> None:
        check_fields(self)


class Finding(NamedTuple):
    """Loss and gradient of a micro-batch, divided by the selected positions of the whole update."""

    loss: float
    gradient_norm: float
    not_finite: list[str]  # names of the weights whose gradient is not finite


def examine(
    skipped: SkippedUpdate,
    model: LanguageModel,
    update: Update,
    teacher: Teacher | None,
    config: TrainConfig,
    precision: Precision,
) -> list[Finding]:
    """Loss and gradient of each micro-batch by itself, with the dropout that the update had."""
    findings = []
    device, objective = next(model.parameters()).device, find_objective(config.objective)
    for index, micro in enumerate(update.micro_batches):
        model.zero_grad(set_to_none=True)
        torch.manual_seed(seed_for("dropout", config.seed, skipped.step - 1, index))
        with precision.autocast():
            outcome = objective.loss(model, micro.to(device), teacher, config)
        loss = outcome.loss / max(1, update.num_selected)
        (loss * skipped.loss_scale).backward()
        gradients = {
            name: weight.grad / skipped.loss_scale
            for name, weight in model.named_parameters()
            if weight.grad is not None
        }
        norm = torch.nn.utils.get_total_norm(gradients.values())
        not_finite = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
        findings.append(Finding(float(loss.detach()), float(norm), not_finite))
    return findings


def record_update(
    run: Path,
    problem: str,
    step: int,
    rate: float,
    model: LanguageModel,
    update: Update,
    teacher: Teacher | None,
    config: TrainConfig,
    precision: Precision,
) -> str:
    """Write an update that was just skipped; returns the message for the user."""
    scaler = precision.scaler
    scale = scaler.get_scale() / scaler.get_backoff_factor() if scaler.is_enabled() else 1.0  # before it fell
    skipped = SkippedUpdate(problem, step, rate, scale)
    path = run / f"divergence-step-{step}.json"
    write_tensors(path.with_suffix(".safetensors"), model.state_dict())
    write_json(path, asdict(skipped))
    findings = examine(skipped, model, update, teacher, config, precision)
    return (
        f"{problem}, the last one {step} (learning rate {rate:.3g}; {_summary(findings)}); start another run "
        "with a lower --learning-rate and another --output, or see "
        f"python -m mlsm.training.divergence {path}"
    )


def _summary(findings: Sequence[Finding]) -> str:
    bad = [index for index, finding in enumerate(findings) if not math.isfinite(finding.gradient_norm)]
    if not bad:
        return "each micro-batch by itself is finite"
    first = findings[bad[0]]
    where = f", first in {first.not_finite[0]}" if first.not_finite else ""
    return f"micro-batches {', '.join(map(str, bad))} of {len(findings)}: loss {first.loss:.3g}{where}"


@dataclass(frozen=True)
class Arguments:
    """What is examined, and where it is computed."""

    record: Path = argument("divergence-step-N.json of a run", "FILE")
    device: str = option("auto", DEVICE_HELP, metavar="DEVICE")
    amp: str | None = option(None, "another precision than that of the run", ("bf16", "fp16", "off"))


def main(argv: list[str]) -> None:
    """Read the command line, compute the update again, print what each micro-batch does."""
    args = command_line.parse(Arguments, argv, __doc__ or "")
    try:
        skipped = from_json(SkippedUpdate, read_json(args.record))
    except ValueError as error:
        raise ValueError(f"{args.record} does not describe an update: {error}") from None
    run, device = args.record.parent, choose_device(args.device)
    record = read_record(run)
    choose_num_threads(None, device, before=record.num_threads)
    config, objective = record.train, find_objective(record.train.objective)
    precision = choose_precision(args.amp or config.amp, device, record.model.width, before=record.precision)
    model = LanguageModel(record.model)
    load_weights_(model, read_tensors(args.record.with_suffix(".safetensors")), str(args.record))
    objective.prepare_(model.to(device))
    teacher = None
    if objective.needs_teacher and record.concepts:
        teacher = teacher_of(record.concepts, config, device)
    corpus = Corpus(text_of(record, {}), load_tokenizer(run, record))
    pads = pads_sequences(model, teacher, precision)
    update = make_update(corpus, config, skipped.step - 1, pads=pads)
    findings = examine(skipped, model, update, teacher, config, precision)
    for index, finding in enumerate(findings):
        print(f"micro-batch {index}: loss {finding.loss:.6g}, gradient norm {finding.gradient_norm:.6g}")
        if finding.not_finite:
            print(f"    gradient not finite: {', '.join(finding.not_finite)}")
    say(_summary(findings))


if __name__ == "__main__":
    cli.run(main)
