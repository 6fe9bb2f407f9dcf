"""From a teacher to the targets of its student: hidden states, sparse codes, distributions over latent
concepts.

Nothing is precomputed: the teacher reads the unmasked text of each micro-batch in eval mode, and only the
selected positions are coded. Hidden states are divided by their L2 norm, both to learn the dictionary and to
compute codes. Otherwise the same lambda would be a different penalty in every layer. An SAE from
elsewhere scales states in its own way, and its encoder may compute the codes instead.

Legend: N selected positions, D width of the teacher, K concepts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mlsm import distributed
from mlsm.coding.dictionary import Dictionary
from mlsm.device import Precision
from mlsm.log import Stopwatch, progress
from mlsm.model.outside import AnyEncoder
from mlsm.seeds import generator_for
from mlsm.text.batches import Corpus, MicroBatch, Selection

EVERY_TOKEN = Selection(share=1.0, is_masked=False)


class Targets(NamedTuple):
    """The distributions that a student learns to predict, and facts about the codes behind them."""

    distribution_NK: Tensor  # by default codes divided by their L1 norm; a zero code stays zero
    num_uses_K: Tensor  # number of targets in which a concept is not zero
    worst_gap: Tensor | None  # largest relative duality gap of a code; None: codes of an SAE, which have none


class Codes(NamedTuple):
    """The codes of hidden states."""

    codes_NK: Tensor
    gap_N: Tensor | None  # duality gaps; None: codes of an SAE's encoder


@dataclasses.dataclass(frozen=True)
class TargetRule:
    """How a code becomes the distribution that a student learns."""

    kind: str = "code"  # of mlsm.config.TARGETS
    temperature: float = 1.0  # of soft-code
    top_k: int = 8

    def distribution(self, codes_NK: Tensor) -> Tensor:
        """Rows (N, K) that sum to 1, or to 0 for codes of zeros. Concepts of weight 0 stay at 0.

        "code" is a / |a|_1. "soft-code" is a^(1/T) / sum a^(1/T), the softmax of log a / T. "top-k" is "code"
        of the `top_k` largest weights.
        """
        if self.kind == "soft-code" and self.temperature != 1:
            largest_N1 = codes_NK.amax(dim=1, keepdim=True)  # scaled, so that no power overflows
            codes_NK = F.normalize(codes_NK, p=torch.inf, dim=1).pow(1 / self.temperature) * (largest_N1 > 0)
        elif self.kind == "top-k" and self.top_k < codes_NK.shape[1]:
            largest_NC, at_NC = codes_NK.topk(self.top_k, dim=1)
            codes_NK = torch.zeros_like(codes_NK).scatter(1, at_NC, largest_NC)
        return F.normalize(codes_NK, p=1, dim=1)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A frozen encoder and the dictionary of the concepts in one of its layers."""

    encoder: AnyEncoder
    dictionary: Dictionary
    precision: Precision
    tolerance: float = 1e-3  # relative duality gap at which a code is finished
    solver: str = "auto"
    max_steps: int | None = None  # steps after which a code is taken as it is, whatever its gap
    rule: TargetRule = TargetRule()
    coder: str = "lasso"  # of mlsm.config.CODERS
    coding_time: Stopwatch = dataclasses.field(default_factory=Stopwatch)

    def __post_init__(self) -> None:
        check_coder(self.dictionary, self.coder)

    @torch.no_grad()
    def targets(self, micro: MicroBatch) -> Targets:
        """The codes at every selected position of a micro-batch, as distributions by the rule."""
        with self.precision.autocast():
            states_ND = states_at(self.encoder, micro, self.dictionary.layer)
        with self.coding_time.block(states_ND.device):
            codes_NK, gap_N = self._code(states_ND)
        distribution_NK = self.rule.distribution(codes_NK)
        worst_gap = gap_N
        if gap_N is not None:
            worst_gap = gap_N.max() / 0.5 if len(gap_N) else gap_N.new_zeros(())
        return Targets(distribution_NK, (distribution_NK > 0).sum(0), worst_gap)

    @torch.no_grad()
    def codes(self, hidden_ND: Tensor) -> Tensor:
        """The codes (N, K) of hidden states of the dictionary's layer: those of Eq. 2, of the states divided
        by their norm, or those of the SAE's own encoder.
        """
        return self._code(hidden_ND).codes_NK

    @torch.no_grad()
    def reconstructed(self, hidden_ND: Tensor) -> Tensor:
        """|x| D a for every hidden state x of the dictionary's layer, where a is the code of x / |x|; or what
        the SAE of the atoms makes of the code.
        """
        reconstructed_ND = self.codes(hidden_ND) @ self.dictionary.atoms_DK.mT
        if self.dictionary.sae:
            unit_ND, scale_N1 = self.dictionary.signals(hidden_ND)
            return hidden_ND + scale_N1 * (reconstructed_ND - unit_ND)
        return torch.linalg.vector_norm(hidden_ND, dim=1, keepdim=True) * reconstructed_ND

    def _code(self, hidden_ND: Tensor) -> Codes:
        if self.coder == "sae":
            assert self.dictionary.sae
            return Codes(self.dictionary.sae.encode(hidden_ND), None)
        unit_ND = self.dictionary.signals(hidden_ND).unit_ND
        result = self.dictionary.code(
            unit_ND, tol=self.tolerance, solver=self.solver, max_steps=self.max_steps
        )
        return Codes(result.codes_NK, result.gap_N)


def check_coder(dictionary: Dictionary, coder: str) -> None:
    """Raise ValueError for the coder "sae" if the dictionary has no encoder."""
    if coder == "sae" and (dictionary.sae is None or dictionary.sae.encoder_DK is None):
        raise ValueError(
            "--coder sae needs a dictionary with the encoder of an SAE: make one with "
            "python -m mlsm.dictionary import, or leave --coder out"
        )


@torch.no_grad()
def states_at(encoder: AnyEncoder, micro: MicroBatch, layer: int) -> Tensor:
    """Hidden states (N, D) of the unmasked text at the selected positions, float32."""
    return encoder(micro.text, micro.selected_N, num_layers=layer).float()


@torch.no_grad()
def unit_states(encoder: AnyEncoder, micro: MicroBatch, layer: int) -> Tensor:
    """Hidden states (N, D) of the unmasked text at the selected positions, float32, of unit L2 norm."""
    return F.normalize(states_at(encoder, micro, layer), dim=1)


class Sample(NamedTuple):
    """Hidden states to learn a dictionary from."""

    states_ND: Tensor  # of unit L2 norm
    num_words: int  # of the text that they were computed on


def sample_states(
    encoder: AnyEncoder,
    layer: int,
    corpus: Corpus,
    *,
    num_tokens: int,
    token_budget: int,
    seed: int,
    precision: Precision,
    device: torch.device,
    parts: Sequence[np.ndarray] | None = None,
) -> Sample:
    """The states of all ordinary tokens of sequences drawn at random, in the order drawn, on the CPU; N is
    `num_tokens`, or less if the text is smaller. `parts` are drawn from one after the other, by default the
    training sequences alone. Ranks share the work, and each gets all states.
    """
    micro_batches = corpus.sample(
        [corpus.training] if parts is None else parts,
        EVERY_TOKEN,
        num_selected=num_tokens,
        token_budget=token_budget,
        generator=generator_for("sample", seed),
    )
    blocks: list[Tensor] = []
    num_words = 0
    with progress(num_tokens, "hidden states", unit="token") as bar:
        for number, micro in enumerate(micro_batches):
            if distributed.is_mine(number):
                with precision.autocast():
                    block_ND = unit_states(encoder, micro.to(device), layer).cpu()
            else:
                block_ND = torch.zeros(len(micro.selected_N), encoder.width)
            blocks.append(block_ND)
            num_words += micro.num_words
            bar.update(len(block_ND))
    sample_ND = torch.cat(blocks)
    distributed.all_reduce_sum_(sample_ND)
    return Sample(sample_ND, num_words)
