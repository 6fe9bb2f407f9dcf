"""Loss recovered: how well a teacher still predicts masked words when its hidden states in one layer are
replaced by their reconstructions from sparse codes. Sparse autoencoders are judged by the same scores.

The formulas are those of SAELens (`ce_loss_score` and `kl_div_score` of sae_lens/evals.py). All passes share
the text, the masks and the replaced tokens: [CLS] and [SEP] stay as they are, and all others are replaced,
masked ones too. The dictionary was learnt from states of unmasked text.

Legend: T tokens, N tokens that are replaced, P masked tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from mlsm import distributed
from mlsm.coding.statistics import SplicedLoss
from mlsm.coding.targets import Teacher
from mlsm.evaluation.heldout import MASKED, SEED
from mlsm.log import progress, say
from mlsm.model.language_model import LanguageModel
from mlsm.runs.record import read_record
from mlsm.runs.run import load_run
from mlsm.seeds import generator_for
from mlsm.text.batches import Corpus, MicroBatch
from mlsm.text.masking import is_ordinary
from mlsm.training.objectives import find_objective

NUM_WORDS = 2_000  # masked words that are predicted, of about 13,000 tokens
TOKEN_BUDGET = 8192  # tokens in one forward pass


def recovered_loss(directory: Path, teacher: Teacher, corpus: Corpus) -> SplicedLoss | None:
    """The loss recovered by the dictionary of a teacher on text that was held out. None, with a message, for
    a teacher that predicts no words, and if no text was held out.
    """
    record = read_record(directory)
    if record.is_encoder_alone or not find_objective(record.train.objective).predicts_words:
        say(f"the loss recovered is left out: {directory} predicts no words")
        return None
    model = load_run(directory, teacher.dictionary.atoms_DK.device).model
    spliced = splice(model, teacher.dictionary.layer, teacher.reconstructed, corpus)
    if spliced is None:
        say("the loss recovered is left out: no text is held out (--heldout-share)")
    return spliced


@torch.no_grad()
def splice(
    model: LanguageModel,
    layer: int,
    replaced: Callable[[Tensor], Tensor],
    corpus: Corpus,
    num_words: int = NUM_WORDS,
) -> SplicedLoss | None:
    """The losses of a model whose hidden states (N, D) after a layer are `replaced`, for `num_words` masked
    words of held-out text, or fewer; None without such text. It is computed in float32. All ranks share the
    work.
    """
    micro_batches = corpus.sample(
        [corpus.heldout],
        MASKED,
        num_selected=num_words,
        token_budget=TOKEN_BUDGET,
        generator=generator_for("spliced words", SEED),
    )
    sums = torch.zeros(6, dtype=torch.float64)
    with progress(num_words, "loss recovered", unit="word") as bar:
        for number, micro in enumerate(micro_batches):
            if distributed.is_mine(number):
                sums += _sums(model, layer, replaced, micro.to(model.device)).cpu()
            bar.update(len(micro.selected_N))
    distributed.all_reduce_sum_(sums)
    if not (num_predicted := int(sums[-1])):
        return None
    original, spliced, zero, spliced_kl, zero_kl = (sums[:-1] / num_predicted).tolist()
    return SplicedLoss(original, spliced, zero, spliced_kl, zero_kl, num_predicted)


def _sums(
    model: LanguageModel, layer: int, replaced: Callable[[Tensor], Tensor], micro: MicroBatch
) -> Tensor:
    """The fields of `SplicedLoss`, summed over the words of a micro-batch, float64."""
    state_TD = model.encoder(micro.inputs, num_layers=layer)
    at_N = is_ordinary(micro.text.ids_T).nonzero().flatten()

    def log_words(state_ND: Tensor) -> Tensor:
        spliced_TD = state_TD.index_copy(0, at_N, state_ND)
        hidden_PD = model.encoder.run_layers(spliced_TD, micro.inputs, micro.selected_N, start=layer)
        return model.token_logits(model.transformed(hidden_PD)).log_softmax(-1)

    state_ND = state_TD[at_N]
    original_PV = log_words(state_ND)
    labels_P = micro.labels_N()
    losses, kls = [F.nll_loss(original_PV, labels_P, reduction="none")], []
    for changed_ND in (replaced(state_ND), torch.zeros_like(state_ND)):
        changed_PV = log_words(changed_ND)
        losses.append(F.nll_loss(changed_PV, labels_P, reduction="none"))
        kls.append((original_PV.exp() * (original_PV - changed_PV)).sum(1))
    return torch.stack([*losses, *kls, torch.ones_like(losses[0])]).sum(1, dtype=torch.float64)
