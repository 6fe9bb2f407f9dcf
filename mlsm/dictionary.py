"""The dictionary of concepts: learnt (Eq. 1 of the paper), kept in a file, used to code states (Eq. 2).

Learning is the online dictionary learning of Mairal et al. (2009, algorithm 1) with non-negative codes: code
a mini-batch with the present atoms, add what the codes say to two running sums, improve the atoms on those
sums. Two decisions differ from SPAMS, the paper's tool. The atom update goes through blocks of atoms instead
of single atoms, so that it is matrix work (`update_atoms_`). The sums forget old batches, whose codes were
made with worse atoms (`kept_share`).

What belongs to the atoms and not to a batch of signals (Gram matrix, step size, fingerprint) is computed
once and kept with them.

Shape suffixes: N signals, D width of a signal, K atoms, B atoms of a block, J dead atoms. float32 throughout;
the Gram matrix and the step size computed in float64.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import normalize

from kernels.lasso import LassoResult, gram, largest_step, nonneg_lasso
from mlsm import distributed
from mlsm.checkpoint import parse_json, write_tensors
from mlsm.config import MOST_ATOMS

CODED_AT_ONCE = 4096
"""Signals coded in one go where a whole sample is measured: bounds the memory of the codes."""

IDLE_DRAWS = 20_000
"""An atom that no code used for so many draws is dead; with the paper's settings an average atom serves one
draw in 30."""


@dataclass(frozen=True)
class Statistics:
    """What a dictionary does on signals it was not learnt from, and how it was learnt."""

    objective: float
    """Eq. 1 as a mean over the signals."""
    mean_nonzeros: float
    """Non-zero coefficients of a code."""
    explained_share: float
    """1 - |X - DA|^2 / |X|^2 over all signals."""
    unused_atoms: int
    """Atoms that no code of these signals uses."""
    num_signals: int
    """Signals measured on."""


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Atoms with everything that coding and later phases need to know about them."""

    atoms_DK: Tensor
    step: float
    """1 / L with L the largest eigenvalue of D^T D, rounded to the safe side."""
    lam: float
    layer: int
    """Whose states these are: 0 is the embedding output, as in hidden_states[layer]."""
    teacher: str
    """Fingerprint of the teacher whose states were coded."""
    statistics: Statistics | None = None
    settings: dict[str, Any] | None = None
    """Of fit_dictionary.py, from which these atoms were learnt."""

    def __post_init__(self) -> None:
        if self.atoms_DK.ndim != 2 or self.atoms_DK.dtype != torch.float32:
            raise ValueError(
                f"atoms must be a float32 matrix, got {self.atoms_DK.dtype} {tuple(self.atoms_DK.shape)}"
            )
        if not (0 < self.lam < math.inf and 0 < self.step < math.inf and self.layer >= 0):
            raise ValueError(
                "lam and step must be above 0 and finite, layer at least 0, "
                f"got lam {self.lam}, step {self.step}, layer {self.layer}"
            )

    @classmethod
    def of(cls, atoms_DK: Tensor, lam: float, *, layer: int, teacher: str) -> Self:
        atoms_DK = atoms_DK.contiguous()
        return cls(atoms_DK, largest_step(atoms_DK), lam, layer, teacher)

    @cached_property
    def gram_KK(self) -> Tensor:
        return gram(self.atoms_DK)

    @cached_property
    def fingerprint(self) -> str:
        """Which atoms these are; a student stores it."""
        digest = hashlib.sha256(repr(tuple(self.atoms_DK.shape)).encode())
        digest.update(self.atoms_DK.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def to(self, device: torch.device | str) -> Self:
        return dataclasses.replace(self, atoms_DK=self.atoms_DK.to(device))

    def code(
        self, signals_ND: Tensor, *, tol: float = 1e-3, solver: str = "auto", max_steps: int | None = None
    ) -> LassoResult:
        """Eq. 2: the codes of unit-norm signals, with their certified gaps."""
        return nonneg_lasso(
            signals_ND,
            self.atoms_DK,
            self.lam,
            tol=tol,
            solver=solver,
            gram_KK=self.gram_KK,
            step=self.step,
            max_steps=max_steps,
        )

    def measured(self, signals_ND: Tensor, *, tol: float = 1e-3, solver: str = "auto") -> Self:
        """The same dictionary with statistics of its codes of these signals."""
        statistics = measure(self, signals_ND, tol=tol, solver=solver)
        return dataclasses.replace(self, statistics=statistics)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Written whole or not at all: a reader never sees half a file, an error leaves the old one."""
        about = {
            "step": self.step,
            "lam": self.lam,
            "layer": self.layer,
            "teacher": self.teacher,
            "fingerprint": self.fingerprint,
            "statistics": self.statistics and dataclasses.asdict(self.statistics),
            "settings": self.settings,
        }
        metadata = {name: json.dumps(value) for name, value in about.items()}
        write_tensors(Path(path), {"atoms_DK": self.atoms_DK}, metadata)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, teacher: str | None = None, layer: int | None = None
    ) -> Self:
        """From a file of `save`; ValueError if it is damaged, or not of the teacher and layer given here."""
        if not Path(path).is_file():
            raise ValueError(f"no dictionary at {path}: make one with fit_dictionary.py --output {path}")
        again = f"remove it and run fit_dictionary.py again, or restore a copy: {path}"
        try:
            with safe_open(path, framework="pt") as file:
                about = {n: parse_json(v.encode(), n) for n, v in (file.metadata() or {}).items()}
                shape = file.get_slice("atoms_DK").get_shape()
                if len(shape) != 2 or shape[1] > MOST_ATOMS:  # before anything is made of them
                    raise ValueError(f"atoms of shape {shape}")
                atoms_DK = file.get_tensor("atoms_DK")
            statistics = about["statistics"] and Statistics(**about["statistics"])
            numbers = dataclasses.astuple(statistics) if statistics else ()
            kinds = {"teacher": str, "layer": int, "step": float, "lam": float}
            if not all(type(about[name]) is kind for name, kind in kinds.items()):
                raise TypeError("teacher must be a string, layer an integer, step and lam numbers")
            if not all(isinstance(number, int | float) for number in numbers):
                raise TypeError("statistics must be numbers")
            if not atoms_DK.isfinite().all():
                raise ValueError("atoms must be finite")
            found = cls(
                atoms_DK,
                about["step"],
                about["lam"],
                about["layer"],
                about["teacher"],
                statistics,
                about.get("settings"),
            )
            is_whole = found.fingerprint == about["fingerprint"]
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a dictionary file, or a damaged one; {again}") from error
        if not is_whole:
            raise ValueError(f"a damaged dictionary file, its atoms do not match their fingerprint; {again}")
        if teacher is not None and teacher != found.teacher:
            raise ValueError(
                f"dictionary {path} is of another teacher ({found.teacher}, not {teacher}); "
                "fit one for this teacher with fit_dictionary.py"
            )
        if layer is not None and layer != found.layer:
            raise ValueError(
                f"dictionary {path} is of layer {found.layer}, not {layer}; "
                f"fit one with fit_dictionary.py --layer {layer}"
            )
        return found


@torch.no_grad()
def measure(
    dictionary: Dictionary, signals_ND: Tensor, *, tol: float = 1e-3, solver: str = "auto"
) -> Statistics:
    """Statistics of the codes of these signals, which all ranks have and share the coding of; signals are
    moved to the atoms' device slice by slice.
    """
    if not len(signals_ND):
        raise ValueError("no signals to measure a dictionary on")
    atoms_DK = dictionary.atoms_DK
    num_uses_K = torch.zeros(atoms_DK.shape[1], dtype=torch.long, device=atoms_DK.device)
    error = energy = penalty = 0.0
    for part_ND in distributed.share(signals_ND.split(CODED_AT_ONCE)):
        part_ND = part_ND.to(atoms_DK.device, torch.float32)
        codes_NK = dictionary.code(part_ND, tol=tol, solver=solver).codes_NK
        error += float((part_ND - codes_NK @ atoms_DK.mT).square().sum(dtype=torch.float64))
        energy += float(part_ND.square().sum(dtype=torch.float64))
        penalty += float(codes_NK.sum(dtype=torch.float64))
        num_uses_K += (codes_NK > 0).sum(dim=0)
    sums = torch.tensor([error, energy, penalty], dtype=torch.float64)
    distributed.sum_(sums, num_uses_K)
    error, energy, penalty = sums.tolist()
    num_signals = len(signals_ND)
    return Statistics(
        objective=(0.5 * error + dictionary.lam * penalty) / num_signals,
        mean_nonzeros=int(num_uses_K.sum()) / num_signals,
        explained_share=1 - error / energy if energy else 0.0,
        unused_atoms=int((num_uses_K == 0).sum()),
        num_signals=num_signals,
    )


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
    progress: Callable[[range], Iterable[int]] = iter,
) -> Tensor:
    """Atoms (D, K) that lower Eq. 1 on a sample of unit-norm signals; no norm above 1, contiguous, on the
    device of learning, the same for the same generator state.

    The sample may be larger than the device's memory (a memory-mapped CPU tensor): mini-batches are moved to
    `device`, by default the sample's own. Signals are drawn without replacement, pass after pass. `progress`
    wraps the range of updates, as tqdm does. Batches of about 1,000 are best on a CPU: what is done once a
    batch costs as much as coding 1,000 signals, and larger batches learn less from as many draws. Ranks all
    have the sample, and share the coding of a batch.
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
    for update in progress(range(num_updates)):
        rows = distributed.share(next(batches))
        signals_ND = sample_ND[rows.to(sample_ND.device)].to(device, torch.float32)
        atoms_DK = atoms_KD.mT.contiguous()
        codes_NK = nonneg_lasso(signals_ND, atoms_DK, lam, tol=tol, solver=solver).codes_NK
        kept = kept_share(update)
        codes_KN = codes_NK.mT
        if device.type == "cpu":
            codes_KN = codes_KN.to_sparse()  # 3 % are not zero: the product below takes 14 ms, not 81
        batch_gram_KK, batch_signal_KD = codes_KN @ codes_NK, codes_KN @ signals_ND
        num_uses_K = (codes_NK > 0).sum(dim=0)
        distributed.sum_(batch_gram_KK, batch_signal_KD, num_uses_K)
        code_gram_KK.mul_(kept).add_(batch_gram_KK)
        code_signal_KD.mul_(kept).add_(batch_signal_KD)
        update_atoms_(atoms_KD, code_gram_KK, code_signal_KD)

        idle_K = (idle_K + batch_size).masked_fill_(num_uses_K > 0, 0)
        dead_J = (idle_K > IDLE_DRAWS).nonzero()[:batch_size, 0]
        if len(dead_J):
            error_N = (signals_ND - codes_NK @ atoms_DK.mT).square().sum(dim=1)
            signals_ND, error_N = distributed.joined(signals_ND), distributed.joined(error_N)
            replace_atoms_(atoms_KD, code_gram_KK, code_signal_KD, dead_J, signals_ND, error_N)
            idle_K[dead_J] = 0
    return atoms_KD.mT.contiguous()


def kept_share(update: int) -> float:
    """What the sums keep of earlier batches at an update: batch i weighs about ((i + 1) / (update + 1))^5.

    Forgetting by a power is from the longer paper of the same authors (2010, JMLR 11). The power is measured
    (results/dictionary.md): 3 is as good in short runs, and less good in long ones.
    """
    return (1 - 1 / (update + 1)) ** 5


def row_batches(num_rows: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Row numbers of batch after batch, each row once a pass; a pass's short remainder is left out."""
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
    """Put the worst coded signals in the place of dead atoms, which leave nothing behind in the sums."""
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
    diag(m) - G_BB is diagonally dominant once scaled. No sweep raises the objective F: one step of FISTA does
    not raise F + 1/2 |last move|_m^2, and the first has no move behind it.

    Ten steps solve a block well enough, and cost little beside the gradient over all atoms. On real states
    one step is as good (results/dictionary.md); where codes overlap much, as in the tests with planted atoms,
    it is far from it.
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
        atoms_KD[block] = block_BD  # an atom without codes has had no gradient: it is where it was


def in_unit_ball(atoms_KD: Tensor) -> Tensor:
    """The nearest atoms of a norm of at most 1."""
    return atoms_KD / torch.linalg.vector_norm(atoms_KD, dim=1, keepdim=True).clamp_min(1)
