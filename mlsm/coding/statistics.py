"""Measures of a dictionary, as its file holds them: how well it codes hidden states that it was not learnt
from, and what is left of its teacher's predictions when the codes replace the states.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mlsm.settings import check_fields

DENSE_ACTIVITY = (
    0.1  # a concept that more positions use is dense, as latents of sparse autoencoders are called
)


@dataclass(frozen=True)
class SplicedLoss:
    """The prediction of masked words by a teacher whose hidden states in one layer were replaced, as means
    over the words, in nats. The reconstruction of a state is what its code explains of it.
    """

    cross_entropy: float  # of the teacher as it is
    spliced_cross_entropy: float  # with reconstructions as states
    zero_cross_entropy: float  # with zeros as states
    spliced_kl: float  # KL(prediction as it is || prediction with reconstructions)
    zero_kl: float  # KL(prediction as it is || prediction with zeros)
    num_words: int

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def loss_recovered(self) -> float:
        """(zero - spliced) / (zero - original) of the cross-entropies: 1 for states as they are, 0 for zeros.
        Not a number for a teacher whose loss zeros do not change.
        """
        return _ratio(
            self.zero_cross_entropy - self.spliced_cross_entropy, self.zero_cross_entropy - self.cross_entropy
        )

    @property
    def kl_recovered(self) -> float:
        """(zero - spliced) / zero of the KLs: 1 for states as they are, 0 for zeros. Not a number for a
        teacher whose predictions zeros do not change.
        """
        return _ratio(self.zero_kl - self.spliced_kl, self.zero_kl)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


@dataclass(frozen=True)
class Statistics:
    """How well a dictionary codes signals that it was not learnt from."""

    objective: float  # Eq. 1 as a mean over the signals
    mean_nonzeros: float  # of a code
    explained_share: float  # 1 - |X - DA|^2 / |X|^2 over all signals
    unused_atoms: int  # number of atoms that no code of these signals uses
    num_signals: int
    # Files of early versions lack the measures below.
    explained_variance: float | None = None  # 1 - |X - DA|^2 / |X - mean|^2 over all signals
    dense_atoms: int | None = None  # number of atoms that more than a tenth of the codes use
    spliced: SplicedLoss | None = None  # None also for a teacher that predicts no words

    def __post_init__(self) -> None:
        check_fields(self)

    def __str__(self) -> str:
        variance, dense, recovered = "", "", ""
        if self.explained_variance is not None:
            variance = f" and {self.explained_variance:.1%} of the variance"
        if self.dense_atoms is not None:
            dense = f" and {self.dense_atoms} dense"
        if spliced := self.spliced:
            loss, kl = spliced.loss_recovered, spliced.kl_recovered
            recovered = f"{loss:.1%} of the loss and {kl:.1%} of the KL recovered, "
        return (
            f"{self.mean_nonzeros:.1f} non-zeros per code, "
            f"{self.explained_share:.1%} of the energy{variance} explained, {recovered}"
            f"{self.unused_atoms} dead{dense} concepts in {self.num_signals:,} held-out states"
        )
