"""Learning the dictionary of concepts (Eq. 1 of the paper).

The method is online dictionary learning (Mairal et al. 2009, algorithm 1) with non-negative codes: code a
mini-batch with the present atoms, add the second moments of the codes to two running sums, improve the atoms
on those sums. Two decisions differ from SPAMS, which the paper used. The atoms are updated in blocks instead
of one by one, so that the work consists of matrix products (`update_atoms_`). The sums forget old batches,
which were coded with worse atoms (`forgetting_factor`).

Shape suffixes: N signals, D width of a signal, K atoms, B atoms of a block, J dead atoms. float32 throughout.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from kernels.lasso import nonneg_lasso
from mlsm import distributed
from mlsm.log import progress

IDLE_DRAWS = 20_000
"""An atom that no code of so many drawn signals uses is dead. With the paper's settings an average atom is
used by one signal in 30."""


@torch.no_grad()
def learn_dictionary(
    sample_ND: Tensor,
    num_atoms: int,
    lam: float,
    *,
    num_updates: int,
    batch_size: int,
    generator: torch.Generator,
    device: torch.device | str | None = None,
    tol: float = 1e-2,
    solver: str = "auto",
) -> Tensor:
    """Atoms (D, K) of norm 1 at most that lower Eq. 1 on a sample of unit-norm signals. They are contiguous,
    on `device`, and the same for the same state of the generator.

    The sample may be larger than the memory of the device (a memory-mapped CPU tensor): mini-batches are
    moved to `device`, by default the sample's own. Signals are drawn without replacement, pass after pass.
    Batches of about 1,000 are best on a CPU: the update of the atoms costs as much as coding 1,000 signals,
    and larger batches learn less from as many draws. All ranks have the sample, and each codes a part of a
    batch. Raises ValueError for a sample with fewer signals than atoms, and for numbers below 1.
    """
    num_signals, _width = sample_ND.shape
    if num_atoms > num_signals:
        raise ValueError(f"{num_atoms} atoms need at least as many signals, the sample has {num_signals}")
    if min(num_atoms, num_updates, batch_size) < 1:
        raise ValueError(
            "num_atoms, num_updates and batch_size must be at least 1, "
            f"got {num_atoms}, {num_updates}, {batch_size}"
        )
    device = sample_ND.device if device is None else torch.device(device)
    batch_size = min(batch_size, num_signals)
    batches = row_batches(num_signals, batch_size, generator)

    # Atoms are rows while they are learnt: a block of them is then contiguous.
    chosen = torch.randperm(num_signals, generator=generator)[:num_atoms]
    atoms_KD = normalize(sample_ND[chosen.to(sample_ND.device)].to(device, torch.float32))
    code_gram_KK = atoms_KD.new_zeros(num_atoms, num_atoms)
    code_signal_KD = torch.zeros_like(atoms_KD)
    idle_K = torch.zeros(num_atoms, dtype=torch.long, device=device)
    with progress(num_updates, "dictionary", unit="update") as bar:
        for update in range(num_updates):
            signals_ND = sample_ND[distributed.shard(next(batches)).to(sample_ND.device)]
            signals_ND = signals_ND.to(device, torch.float32)
            atoms_DK = atoms_KD.mT.contiguous()
            codes_NK = nonneg_lasso(signals_ND, atoms_DK, lam, tol=tol, solver=solver).codes_NK
            codes_KN = codes_NK.mT
            if device.type == "cpu":
                codes_KN = codes_KN.to_sparse()  # 3 % are not zero: the product below takes 14 ms, not 81
            batch_gram_KK, batch_signal_KD = codes_KN @ codes_NK, codes_KN @ signals_ND
            num_uses_K = (codes_NK > 0).sum(dim=0)
            distributed.all_reduce_sum_(batch_gram_KK, batch_signal_KD, num_uses_K)
            factor = forgetting_factor(update)
            code_gram_KK.mul_(factor).add_(batch_gram_KK)
            code_signal_KD.mul_(factor).add_(batch_signal_KD)
            update_atoms_(atoms_KD, code_gram_KK, code_signal_KD)

            idle_K = (idle_K + batch_size).masked_fill_(num_uses_K > 0, 0)
            dead_J = (idle_K > IDLE_DRAWS).nonzero()[:batch_size, 0]
            if len(dead_J):
                error_N = (signals_ND - codes_NK @ atoms_DK.mT).square().sum(dim=1)
                gathered = map(distributed.all_gather_rows, (signals_ND, error_N))
                replace_atoms_(atoms_KD, code_gram_KK, code_signal_KD, dead_J, *gathered)
                idle_K[dead_J] = 0
            bar.update()
    return atoms_KD.mT.contiguous()


def forgetting_factor(update: int) -> float:
    """Factor of the sums over earlier batches at an update, counted from 0. It gives batch i a weight of
    about ((i + 1) / (update + 1))^5.

    The form is from Mairal et al. (2010, JMLR 11). The power is measured (results/dictionary.md): 3 is as
    good in short runs, and less good in long ones.
    """
    return (1 - 1 / (update + 1)) ** 5


def row_batches(num_rows: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Row numbers of endless batches. A pass has each row at most once; a short last batch is dropped."""
    while True:
        order = torch.randperm(num_rows, generator=generator)
        for start in range(0, num_rows - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


def replace_atoms_(
    atoms_KD: Tensor,
    code_gram_KK: Tensor,
    code_signal_KD: Tensor,
    dead_J: Tensor,
    signals_ND: Tensor,
    error_N: Tensor,
) -> None:
    """Replace dead atoms by the signals with the largest errors, and clear their rows of the sums."""
    atoms_KD[dead_J] = normalize(signals_ND[error_N.topk(len(dead_J)).indices])
    code_gram_KK[dead_J] = 0
    code_gram_KK[:, dead_J] = 0
    code_signal_KD[dead_J] = 0


def update_atoms_(
    atoms_KD: Tensor,
    code_gram_KK: Tensor,
    code_signal_KD: Tensor,
    *,
    block_size: int = 64,
    num_steps: int = 10,
) -> None:
    """One sweep of block-coordinate descent on min over |d_j| <= 1 of 1/2 tr(D G D^T) - tr(D^T S).

    G = sum a a^T (code_gram_KK, never negative), S = sum x a^T (code_signal_KD is its transpose). With blocks
    of one atom this is algorithm 2 of Mairal et al. (2009): d_j <- P(d_j + (s_j - D g_j) / G_jj), where P
    projects on the unit ball. A block of atoms is minimised together, by FISTA in the metric of a separable
    bound: G_jj becomes m_j = G_jj * sum_i c_ji over the block, c the correlations of the codes, and
    diag(m) - G_BB is diagonally dominant after scaling. No sweep raises the objective F: a step of FISTA does
    not raise F + 1/2 |previous move|_m^2, and the first step has no previous move.

    Ten steps solve a block well enough, and cost little compared with the gradient over all atoms. On real
    states one step is as good (results/dictionary.md); where codes overlap much, as in the tests with planted
    atoms, it is much worse.
    """
    for start in range(0, len(atoms_KD), block_size):
        block = slice(start, start + block_size)
        gram_BB = code_gram_KK[block, block]
        root_B = gram_BB.diagonal().sqrt().clamp_min(1e-20)
        bound_B = root_B * (gram_BB @ root_B.reciprocal())
        rate_B1 = bound_B.clamp_min(1e-20).reciprocal()[:, None]
        gradient_BD = torch.addmm(code_signal_KD[block], code_gram_KK[block], atoms_KD, beta=-1)
        start_BD = block_BD = ahead_BD = atoms_KD[block].clone()
        t = 1.0
        for _ in range(num_steps):
            ahead_gradient_BD = torch.addmm(gradient_BD, gram_BB, ahead_BD - start_BD)
            previous_BD, block_BD = block_BD, in_unit_ball(ahead_BD - rate_B1 * ahead_gradient_BD)
            t_previous, t = t, (1 + math.sqrt(1 + 4 * t * t)) / 2
            ahead_BD = block_BD + (t_previous - 1) / t * (block_BD - previous_BD)
        atoms_KD[block] = block_BD  # an atom without codes has no gradient, and has not moved


def in_unit_ball(atoms_KD: Tensor) -> Tensor:
    """The atoms projected on the unit ball."""
    return atoms_KD / torch.linalg.vector_norm(atoms_KD, dim=1, keepdim=True).clamp_min(1)
