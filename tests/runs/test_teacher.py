"""A teacher as the settings of its student ask for it: lambda and steps of soft codes."""

import dataclasses
from pathlib import Path

import pytest
import torch
from small_runs import random_run, write_dictionary
from torch import Tensor

from kernels.lasso.reference import largest_step
from mlsm.coding.dictionary import Dictionary
from mlsm.coding.targets import EVERY_TOKEN, Teacher, unit_states
from mlsm.config import TrainConfig
from mlsm.files import read_json, write_json
from mlsm.runs.record import read_record
from mlsm.runs.teacher import load_teacher, target_settings
from mlsm.text.batches import MicroBatch
from mlsm.text.sequences import Sequences

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("teacher") / "run")


def teacher_for(run: Path, **settings: object) -> Teacher:
    dictionary = Dictionary.load(write_dictionary(run))
    config = dataclasses.replace(TrainConfig(amp="off", code_tolerance=1e-6), **settings)  # type: ignore[arg-type]
    return load_teacher(run, dictionary, config, CPU)


def micro_batch() -> MicroBatch:
    row = torch.randint(5, 90, (30,), generator=torch.Generator().manual_seed(1))
    return MicroBatch.of(Sequences.of([row]), torch.ones(30, dtype=torch.bool), EVERY_TOKEN)


def plain_fista(states_ND: Tensor, atoms_DK: Tensor, lam: float, num_steps: int) -> Tensor:
    """FISTA of Beck and Teboulle 2009 in float64, without restarts and without a stopping rule."""
    step, t = largest_step(atoms_DK), 1.0
    codes_NK = ahead_NK = states_ND.new_zeros(len(states_ND), atoms_DK.shape[1])
    for _ in range(num_steps):
        gradient_NK = (ahead_NK @ atoms_DK.mT - states_ND) @ atoms_DK + lam
        previous_NK, codes_NK = codes_NK, (ahead_NK - step * gradient_NK).clamp_min(0)
        t_previous, t = t, (1 + (1 + 4 * t * t) ** 0.5) / 2
        ahead_NK = codes_NK + (t_previous - 1) / t * (codes_NK - previous_NK)
    return codes_NK


def test_steps_of_soft_codes_are_those_of_fista_from_zero(run: Path) -> None:
    """Few steps, before the momentum is reset. The codes have concepts that the optimum does not have."""
    teacher, micro = teacher_for(run, targets="soft-code", code_steps=3), micro_batch()
    states_ND = unit_states(teacher.encoder, micro, teacher.dictionary.layer).double()
    codes_NK = plain_fista(states_ND, teacher.dictionary.atoms_DK.double(), teacher.dictionary.lam, 3)
    found_NK = teacher.targets(micro).distribution_NK
    torch.testing.assert_close(found_NK.double(), codes_NK / codes_NK.sum(1, keepdim=True), rtol=0, atol=1e-5)
    optimum_NK = teacher_for(run).targets(micro).distribution_NK
    assert (found_NK > 0).sum() > (optimum_NK > 0).sum()


def test_a_smaller_lambda_gives_the_codes_of_that_lambda(run: Path) -> None:
    micro, usual = micro_batch(), teacher_for(run)
    softer = teacher_for(run, targets="soft-code", target_lam=0.01)
    states_ND = unit_states(usual.encoder, micro, usual.dictionary.layer).double()
    codes_NK = plain_fista(states_ND, usual.dictionary.atoms_DK.double(), 0.01, 20_000)
    expected_NK = codes_NK / codes_NK.sum(1, keepdim=True)
    found_NK = softer.targets(micro).distribution_NK
    torch.testing.assert_close(found_NK.double(), expected_NK, rtol=0, atol=5e-3)
    assert (found_NK > 0).sum() > (usual.targets(micro).distribution_NK > 0).sum()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": "soft-code"}, "soft-code needs --target-temperature, --target-lam or --code-steps"),
        ({"target_temperature": 2.0}, "are for --targets soft-code"),
        ({"targets": "top-k", "target_lam": 0.1}, "are for --targets soft-code"),
        ({"targets": "top-k", "top_k": 0}, "top_k must be above 0"),
        ({"targets": "soft-code", "target_temperature": 0.0}, "target_temperature must be above 0"),
        ({"targets": "soft-code", "code_steps": 9, "solver": "descent"}, "are steps of FISTA"),
        ({"targets": "hard"}, "targets must be one of code, soft-code, top-k"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)  # type: ignore[arg-type]


def test_the_record_keeps_the_targets_and_old_records_mean_the_code(tmp_path: Path) -> None:
    run = random_run(tmp_path / "run")
    values = read_json(run / "config.json")
    for name in ("targets", "target_temperature", "target_lam", "top_k"):
        del values["train"][name]
    write_json(run / "config.json", values)
    assert target_settings(read_record(run).train) == []
    values["train"] |= {"targets": "top-k", "top_k": 3}
    write_json(run / "config.json", values)
    assert target_settings(read_record(run).train) == ["top-k", 1.0, None, 3]
