"""Loss recovered: states as they are give 1, zeros give 0, and a smaller lambda keeps more."""

import dataclasses
from pathlib import Path

import pytest
import torch
from hub_checkpoints import v2_checkpoint
from torch import Tensor
from torch.nn import functional as F

from mlsm.coding.dictionary import Dictionary
from mlsm.coding.targets import Teacher
from mlsm.config import TrainConfig
from mlsm.evaluation.heldout import MASKED, SEED
from mlsm.evaluation.splicing import recovered_loss, splice
from mlsm.runs import hub_import
from mlsm.runs.run import Run, load_run
from mlsm.runs.teacher import find_dictionary, load_dictionary, load_teacher
from mlsm.seeds import generator_for
from mlsm.text.batches import Corpus
from mlsm.text.tokenizer import CLS_ID, SEP_ID

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(teacher: Path) -> Run:
    return load_run(teacher)


@pytest.fixture(scope="module")
def corpus(run: Run) -> Corpus:
    return Corpus(dataclasses.replace(run.record.data, heldout_share=0.2), run.tokenizer)


@pytest.fixture(scope="module")
def coder(teacher: Path) -> Teacher:
    path = find_dictionary(teacher)
    assert path is not None
    return load_teacher(teacher, load_dictionary(path, teacher), TrainConfig(), CPU)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_states_as_they_are_give_1_and_zeros_give_0(run: Run, corpus: Corpus, layer: int) -> None:
    same = splice(run.model, layer, lambda state_ND: state_ND, corpus)
    assert same is not None
    assert same.spliced_cross_entropy == same.cross_entropy < same.zero_cross_entropy
    assert (same.spliced_kl, same.loss_recovered, same.kl_recovered) == (0, 1, 1)
    zeros = splice(run.model, layer, torch.zeros_like, corpus)
    assert zeros is not None
    assert zeros.spliced_cross_entropy == zeros.zero_cross_entropy == same.zero_cross_entropy
    assert (zeros.loss_recovered, zeros.kl_recovered) == (0, 0)


@pytest.mark.parametrize("layer", [1, 2])
def test_a_smaller_lambda_keeps_more_until_nothing_is_lost(run: Run, corpus: Corpus, layer: int) -> None:
    """An atom for each direction and its opposite explains every state."""
    axes_DK = torch.cat([torch.eye(16), -torch.eye(16)], dim=1)
    recovered = []
    for lam in (1.0, 0.3, 0.1, 0.03, 0.01, 1e-5):
        dictionary = Dictionary(axes_DK, lam, layer=layer, teacher="")
        teacher = Teacher(run.model.encoder, dictionary, precision=None, tolerance=1e-9)  # type: ignore[arg-type]
        loss = splice(run.model, layer, teacher.reconstructed, corpus)
        assert loss is not None
        recovered.append((loss.loss_recovered, loss.kl_recovered))
    losses, kls = zip(*recovered, strict=True)
    assert recovered[0] == (0, 0)  # above every correlation of a state of norm 1, all codes are zero
    assert list(kls) == sorted(kls)
    assert list(losses) == pytest.approx(sorted(losses), abs=0.02)
    assert recovered[-1] == (pytest.approx(1, abs=1e-4), pytest.approx(1, abs=1e-4))


def test_the_losses_are_those_of_a_reference_in_float64(run: Run, corpus: Corpus, coder: Teacher) -> None:
    """One sequence after another, through the layers one by one, with Eq. 2 for one state after another."""
    layer = coder.dictionary.layer - 1
    measured = splice(run.model, layer, coder.reconstructed, corpus, num_words=60)
    assert measured is not None
    wide = load_run(run.directory).model.double()
    [micro] = corpus.sample(
        [corpus.heldout],
        MASKED,
        num_selected=60,
        token_budget=8192,
        generator=generator_for("spliced words", SEED),
    )
    ids_T = micro.text.ids_T
    table_RD = wide.encoder._table(micro.inputs.max_length)

    def log_words(replace: object) -> Tensor:
        with torch.no_grad():
            x_TD = wide.encoder(micro.inputs, num_layers=layer)
            for place, state_D in enumerate(x_TD.clone()):
                if ids_T[place] in (CLS_ID, SEP_ID) or replace == "nothing":
                    continue
                x_TD[place] = 0
                if replace == "codes":
                    norm = state_D.square().sum().sqrt()
                    code_K = coder.codes(state_D.float()[None])[0].double()
                    for weight, atom_D in zip(code_K, coder.dictionary.atoms_DK.mT.double(), strict=True):
                        x_TD[place] += norm * weight * atom_D
            for module in wide.encoder.layers[layer:]:
                x_TD = module(x_TD, table_RD, micro.inputs)
            hidden_PD = x_TD[micro.selected_N]
            return F.log_softmax(wide.decoder_logits(wide.transformed(hidden_PD)), dim=1)

    words = ids_T[micro.selected_N]
    logs = {name: log_words(name) for name in ("nothing", "codes", "zeros")}
    losses = {name: -float(log_PV[range(len(words)), words].mean()) for name, log_PV in logs.items()}
    kls = {name: float(F.kl_div(log_PV, logs["nothing"], log_target=True, reduction="batchmean"))
           for name, log_PV in logs.items()}  # fmt: skip
    assert measured.num_words == len(words) == 60
    expected = (losses["nothing"], losses["codes"], losses["zeros"], kls["codes"], kls["zeros"])
    assert dataclasses.astuple(measured)[:5] == pytest.approx(expected, abs=2e-4)


def test_fitting_and_reading_say_what_a_dictionary_is_worth(teacher: Path, coder: Teacher) -> None:
    statistics = coder.dictionary.statistics
    assert statistics is not None
    assert statistics.spliced is not None
    assert statistics.spliced.num_words > 0
    run = load_run(teacher)
    corpus = Corpus(run.record.data, run.tokenizer)
    again = recovered_loss(teacher, coder, corpus)
    assert again is not None
    assert dataclasses.astuple(again) == pytest.approx(dataclasses.astuple(statistics.spliced), abs=2e-3)


def test_a_teacher_without_words_and_a_text_without_held_out_part_have_none(
    teacher: Path, coder: Teacher, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Corpus(dataclasses.replace(run.record.data, heldout_share=0.0), run.tokenizer)
    assert recovered_loss(teacher, coder, whole) is None
    assert "no text is held out (--heldout-share)" in capsys.readouterr().err
    v2_checkpoint(tmp_path / "v2")
    hub_import.convert(tmp_path / "v2", tmp_path / "encoder")
    assert recovered_loss(tmp_path / "encoder", coder, whole) is None
    assert f"{tmp_path / 'encoder'} predicts no words" in capsys.readouterr().err
