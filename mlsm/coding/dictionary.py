"""The dictionary of concepts: its file, its statistics, and the coding of hidden states with it (Eq. 2).

What belongs to the atoms and not to a batch of signals (Gram matrix, step size, fingerprint) is computed
once and kept with them.

Shape suffixes: N signals, D width of a signal, K atoms. float32 throughout; the Gram matrix and the step size
are computed in float64.
"""

import dataclasses
import hashlib
import json
import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kernels.lasso import LassoResult, gram, largest_step, nonneg_lasso
from mlsm import distributed
from mlsm.config import MOST_ATOMS
from mlsm.files import parse_json, write_tensors

CODED_AT_ONCE = 4096
"""Signals coded in one go where a whole sample is measured: bounds the memory of the codes."""


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
    for part_ND in distributed.shard(signals_ND.split(CODED_AT_ONCE)):
        part_ND = part_ND.to(atoms_DK.device, torch.float32)
        codes_NK = dictionary.code(part_ND, tol=tol, solver=solver).codes_NK
        error += float((part_ND - codes_NK @ atoms_DK.mT).square().sum(dtype=torch.float64))
        energy += float(part_ND.square().sum(dtype=torch.float64))
        penalty += float(codes_NK.sum(dtype=torch.float64))
        num_uses_K += (codes_NK > 0).sum(dim=0)
    sums = torch.tensor([error, energy, penalty], dtype=torch.float64)
    distributed.all_reduce_sum_(sums, num_uses_K)
    error, energy, penalty = sums.tolist()
    num_signals = len(signals_ND)
    return Statistics(
        objective=(0.5 * error + dictionary.lam * penalty) / num_signals,
        mean_nonzeros=int(num_uses_K.sum()) / num_signals,
        explained_share=1 - error / energy if energy else 0.0,
        unused_atoms=int((num_uses_K == 0).sum()),
        num_signals=num_signals,
    )
