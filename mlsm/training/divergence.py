"""When training diverges. An update without a finite gradient changes no weight and is counted; ten in a row
end the run, and so does a loss scale of fp16 that keeps falling. The update is written down beside the run:

    python -m mlsm.training.divergence RUN/divergence-step-N.json   computes it again
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlsm import cli
from mlsm.coding.targets import Teacher
from mlsm.config import TrainConfig, from_json
from mlsm.device import Precision, choose_device, choose_precision
from mlsm.files import read_json, read_tensors, write_json, write_tensors
from mlsm.log import say
from mlsm.model.language_model import LanguageModel
from mlsm.runs.run import load_weights_, model_config, run_config
from mlsm.runs.teacher import load_teacher
from mlsm.seeds import seed_for
from mlsm.text.batches import MicroBatch, Update
from mlsm.text.sequences import Sequences
from mlsm.training.objectives import OBJECTIVES

MOST_SKIPPED = 10  # updates in a row
LEAST_LOSS_SCALE = 1.0  # of fp16; it starts at 65,536, and below 1 small gradients are lost

STORED = ("ids_T", "inputs_T", "cu_seqlens", "selected_N")  # of a micro-batch


class Watch:
    """Counts the updates that were skipped, and says when there is no point in going on."""

    def __init__(self) -> None:
        self.skipped_in_a_row = 0

    def add(self, gradient_norm: float) -> bool:
        """Whether this update was skipped."""
        was_skipped = not math.isfinite(gradient_norm)
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if was_skipped else 0
        return was_skipped

    def problem(self, scaler: torch.amp.GradScaler) -> str | None:
        """Why the run should end here; None if it should not."""
        if self.skipped_in_a_row == MOST_SKIPPED:
            return f"{MOST_SKIPPED} updates in a row had a loss or gradient that is not finite"
        if self.skipped_in_a_row and scaler.is_enabled() and scaler.get_scale() < LEAST_LOSS_SCALE:
            return f"the loss scale of fp16 has fallen to {scaler.get_scale():.3g}"
        return None


@dataclass(frozen=True)
class Record:
    """An update that went wrong. In divergence-step-N.json beside what its micro-batches do; weights and
    micro-batches are in the safetensors of the same name.
    """

    problem: str
    step: int
    """The update, from 1; the weights are as before it."""
    seed: int
    learning_rate: float
    loss_scale: float
    num_selected: int
    sequences: list[int]
    """Their numbers in the corpus, as they were drawn."""


class Finding(NamedTuple):
    """What a micro-batch does; sums over its positions, divided by the selected positions of the update."""

    loss: float
    gradient_norm: float
    not_finite: list[str]  # weights whose gradient is not finite


def describe(
    problem: str,
    step: int,
    rate: float,
    update: Update,
    sequences: np.ndarray,
    config: TrainConfig,
    precision: Precision,
) -> Record:
    """The record of an update that was just skipped."""
    scaler = precision.scaler
    scale = scaler.get_scale() / scaler.get_backoff_factor() if scaler.is_enabled() else 1.0  # before it fell
    return Record(problem, step, config.seed, rate, scale, update.num_selected, sequences.tolist())


def examine(
    record: Record,
    model: LanguageModel,
    micro_batches: Sequence[MicroBatch],
    teacher: Teacher | None,
    config: TrainConfig,
    precision: Precision,
) -> list[Finding]:
    """Loss and gradient of each micro-batch by itself, with the dropout that the update had."""
    findings = []
    device = next(model.parameters()).device
    for index, micro in enumerate(micro_batches):
        model.zero_grad(set_to_none=True)
        torch.manual_seed(seed_for("dropout", record.seed, record.step - 1, index))
        with precision.autocast():
            outcome = OBJECTIVES[config.objective].loss(model, micro.to(device), teacher, config)
        loss = outcome.loss / max(1, record.num_selected)
        (loss * record.loss_scale).backward()
        gradients = {n: w.grad / record.loss_scale for n, w in model.named_parameters() if w.grad is not None}
        norm = torch.nn.utils.get_total_norm(gradients.values())
        not_finite = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
        findings.append(Finding(float(loss.detach()), float(norm), not_finite))
    return findings


def record_update(
    run: Path,
    record: Record,
    model: LanguageModel,
    update: Update,
    teacher: Teacher | None,
    config: TrainConfig,
    precision: Precision,
) -> str:
    """Write down an update that changed no weight. Returns what to tell the user."""
    path = run / f"divergence-step-{record.step}.json"
    findings = examine(record, model, update.micro_batches, teacher, config, precision)
    tensors: dict[str, Tensor] = {f"model/{name}": weight for name, weight in model.state_dict().items()}
    for index, micro in enumerate(update.micro_batches):
        stored = (micro.text.ids_T, micro.inputs.ids_T, micro.text.cu_seqlens, micro.selected_N)
        tensors |= {f"{index}/{name}": tensor.clone() for name, tensor in zip(STORED, stored, strict=True)}
    write_tensors(path.with_suffix(".safetensors"), tensors)
    write_json(path, {**asdict(record), "micro_batches": [_for_json(finding) for finding in findings]})
    return (
        f"{record.problem}, the last one {record.step} (learning rate {record.learning_rate:.3g}; "
        f"{_summary(findings)}); start another run with a lower --learning-rate and another --output, or see "
        f"python -m mlsm.training.divergence {path}"
    )


def _for_json(finding: Finding) -> dict[str, Any]:
    """A number that is not finite as text: "nan", "inf"; JSON has none."""
    values = finding._asdict()
    return {n: str(v) if isinstance(v, float) and not math.isfinite(v) else v for n, v in values.items()}


def read_record(path: Path) -> tuple[Record, dict[str, Tensor], list[MicroBatch]]:
    """Record, weights, micro-batches. Raises ValueError for files that are not of `record_update`."""
    try:
        values = read_json(path)
        num_micro_batches = len(values.pop("micro_batches"))
        record = Record(**values)
        tensors = read_tensors(path.with_suffix(".safetensors"))
        weights = {n.removeprefix("model/"): w for n, w in tensors.items() if n.startswith("model/")}
        micro_batches = []
        for index in range(num_micro_batches):
            ids_T, inputs_T, cu_seqlens, selected_N = (tensors[f"{index}/{name}"] for name in STORED)
            text = Sequences(ids_T, cu_seqlens, int(cu_seqlens.diff().max()))
            micro_batches.append(MicroBatch(text, text._replace(ids_T=inputs_T), selected_N))
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} does not describe an update ({error})") from None
    return record, weights, micro_batches


def _summary(findings: Sequence[Finding]) -> str:
    bad = [index for index, finding in enumerate(findings) if not math.isfinite(finding.gradient_norm)]
    if not bad:
        return "each micro-batch by itself is finite"
    first = findings[bad[0]]
    where = f", first in {first.not_finite[0]}" if first.not_finite else ""
    return f"micro-batches {', '.join(map(str, bad))} of {len(findings)}: loss {first.loss:.3g}{where}"


def main(argv: list[str]) -> None:
    """Read the command line, compute the update again, show what each micro-batch does."""
    parser = cli.plain_parser(__doc__ or "")
    parser.add_argument("record", type=Path, metavar="FILE", help="divergence-step-N.json of a run")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda or cuda:N (default: a GPU if there is one)"
    )
    parser.add_argument("--amp", default=None, help="another precision than the run's: bf16, fp16 or off")
    args = parser.parse_args(argv)
    record, weights, micro_batches = read_record(args.record)
    run, device = args.record.parent, choose_device(args.device)
    saved = run_config(run)
    config = from_json(TrainConfig, saved["train"])
    precision = choose_precision(args.amp or config.amp, device)
    model = LanguageModel(model_config(run))
    load_weights_(model, weights, str(args.record))
    model.to(device).train(config.objective != "token-head")
    if config.objective == "token-head":
        model.freeze_all_but_token_head_()
    teacher = None
    if OBJECTIVES[config.objective].needs_teacher:
        teacher = load_teacher(Path(config.teacher), Path(saved["concepts"]["dictionary"]), config, device)
    findings = examine(record, model, micro_batches, teacher, config, precision)
    for index, finding in enumerate(findings):
        print(f"micro-batch {index}: loss {finding.loss:.6g}, gradient norm {finding.gradient_norm:.6g}")
        if finding.not_finite:
            print(f"    gradient not finite: {', '.join(finding.not_finite)}")
    say(_summary(findings))


if __name__ == "__main__":
    cli.run(main)
