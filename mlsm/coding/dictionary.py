"""The dictionary of concepts: its file, its statistics, and the coding of hidden states with it (Eq. 2).

Gram matrix, step size and fingerprint depend on the atoms alone, so they are computed once and kept with
them. None of them is read from a file, which may be damaged.

Shape suffixes: N signals, D width of a signal, K atoms. float32 throughout; the Gram matrix and the step size
are computed in float64.
"""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from kernels.lasso import LassoResult, gram, largest_step, nonneg_lasso
from mlsm import distributed
from mlsm.coding.sae import Sae, SaeSettings, Signals
from mlsm.coding.statistics import DENSE_ACTIVITY, Statistics
from mlsm.config import MOST_ATOMS
from mlsm.files import open_tensors, parse_json, write_tensors
from mlsm.settings import check_fields, from_json

SIGNALS_PER_BLOCK = 4096  # coded together when a dictionary is measured: bounds the memory of the codes
LEAST_VARIATION = 1e-6  # share of the energy of signals: below it, equal signals differ by rounding alone


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Atoms with everything that coding and later phases need to know about them."""

    atoms_DK: Tensor
    lam: float
    layer: int  # whose states are coded; 0 is the output of the embeddings
    teacher: str  # fingerprint of the teacher whose states are coded
    statistics: Statistics | None = None
    settings: dict[str, object] | None = None  # of fit_dictionary.py, from which these atoms were learnt
    words: int | None = None  # of the text whose states they were learnt from; None: not counted
    sae: Sae | None = None  # that the atoms are from; None: they were learnt here

    def __post_init__(self) -> None:
        check_fields(self)
        atoms_DK = self.atoms_DK
        if atoms_DK.ndim != 2 or atoms_DK.dtype != torch.float32:
            raise ValueError(f"atoms must be a float32 matrix, got {atoms_DK.dtype} {tuple(atoms_DK.shape)}")
        if not atoms_DK.isfinite().all():
            raise ValueError("atoms must be finite")
        if not (self.lam > 0 and self.layer >= 0):
            raise ValueError(f"lam must be above 0, layer at least 0, got lam {self.lam}, layer {self.layer}")
        if self.sae:
            self.sae.check_fits(atoms_DK)

    @cached_property
    def step(self) -> float:
        """1 / L, where L is the largest eigenvalue of D^T D, rounded down."""
        return largest_step(self.atoms_DK)

    @cached_property
    def gram_KK(self) -> Tensor:
        """D^T D."""
        return gram(self.atoms_DK)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that identify the atoms and the SAE; a student stores them."""
        digest = hashlib.sha256(repr(tuple(self.atoms_DK.shape)).encode())
        digest.update(self.atoms_DK.cpu().numpy().tobytes())
        if self.sae:
            digest.update(repr(self.sae.settings).encode())
            for name, tensor in self.sae.tensors().items():
                digest.update(name.encode() + tensor.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def to(self, device: torch.device | str) -> Self:
        """The same dictionary on a device."""
        sae = self.sae and self.sae.to(device)
        return dataclasses.replace(self, atoms_DK=self.atoms_DK.to(device), sae=sae)

    def signals(self, states_ND: Tensor) -> Signals:
        """Hidden states as `code` takes them: divided by their norm, or as the SAE of the atoms has them."""
        if self.sae:
            return self.sae.signals(states_ND)
        return Signals(F.normalize(states_ND, dim=1), states_ND.norm(dim=1, keepdim=True))

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

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the dictionary, whole or not at all: an error leaves the old file as it was."""
        about = {"step": self.step, "fingerprint": self.fingerprint, **self.about()}
        tensors = {"atoms_DK": self.atoms_DK}
        if self.sae:
            about["sae"] = dataclasses.asdict(self.sae.settings)
            tensors |= self.sae.tensors()
        write_tensors(Path(path), tensors, {name: json.dumps(value) for name, value in about.items()})

    def about(self) -> dict[str, object]:
        """What is known of the atoms, as JSON holds it."""
        names = ("lam", "layer", "teacher", "settings", "words")
        about = {name: getattr(self, name) for name in names}
        return about | {"statistics": self.statistics and dataclasses.asdict(self.statistics)}

    @classmethod
    def described(cls, atoms_DK: Tensor, about: dict[str, Any], sae: Sae | None) -> Self:
        """The dictionary of these atoms with what `about` says. Raises KeyError, TypeError or ValueError for
        what `about` does not give.
        """
        return cls(
            atoms_DK,
            lam=about["lam"],
            layer=about["layer"],
            teacher=about["teacher"],
            statistics=about["statistics"] and from_json(Statistics, about["statistics"]),
            settings=about.get("settings"),
            words=about.get("words"),
            sae=sae,
        )

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, teacher: str | None = None, layer: int | None = None
    ) -> Self:
        """Read a file of `save`. Raises ValueError if it is damaged, or if it does not belong to the teacher
        and the layer that are given here.
        """
        if not Path(path).is_file():
            raise ValueError(f"no dictionary at {path}: make one with fit_dictionary.py --output {path}")
        try:
            with open_tensors(Path(path)) as file:
                about = {n: parse_json(v.encode(), n) for n, v in (file.metadata() or {}).items()}
                shape = file.get_slice("atoms_DK").get_shape()
                if len(shape) != 2 or shape[1] > MOST_ATOMS:  # checked before the atoms take memory
                    raise ValueError(f"atoms of shape {shape}")
                atoms_DK, sae = file.get_tensor("atoms_DK"), None
                if "sae" in about:
                    names = set(file.keys()) - {"atoms_DK"}
                    tensors = {name: file.get_tensor(name) for name in names}
                    sae = Sae(from_json(SaeSettings, about["sae"]), **tensors)
            dictionary = cls.described(atoms_DK, about, sae)
            if dictionary.fingerprint != about["fingerprint"]:
                raise ValueError("the atoms do not match their fingerprint")
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                "not a dictionary file, or a damaged one; "
                f"remove it and run fit_dictionary.py again, or restore a copy: {path}"
            ) from error
        if teacher not in (None, dictionary.teacher):
            raise ValueError(
                f"dictionary {path} is of another teacher ({dictionary.teacher}, not {teacher}); "
                "fit one for this teacher with fit_dictionary.py"
            )
        if layer not in (None, dictionary.layer):
            raise ValueError(
                f"dictionary {path} is of layer {dictionary.layer}, not {layer}; "
                f"fit one with fit_dictionary.py --layer {layer}"
            )
        return dictionary


@torch.no_grad()
def measure(
    dictionary: Dictionary,
    signals_ND: Tensor,
    *,
    tol: float = 1e-3,
    solver: str = "auto",
    max_steps: int | None = None,
) -> Statistics:
    """Statistics of the codes of these signals. They are moved to the device of the atoms block by block. All
    ranks have all signals, and each codes a part of them. Raises ValueError without signals.
    """
    if not len(signals_ND):
        raise ValueError("no signals to measure a dictionary on")
    atoms_DK = dictionary.atoms_DK
    num_uses_K = torch.zeros(atoms_DK.shape[1], dtype=torch.long, device=atoms_DK.device)
    sum_D = torch.zeros(len(atoms_DK), dtype=torch.float64, device=atoms_DK.device)
    error = energy = penalty = 0.0
    for block_ND in distributed.shard(signals_ND.split(SIGNALS_PER_BLOCK)):
        block_ND = block_ND.to(atoms_DK.device, torch.float32)
        codes_NK = dictionary.code(block_ND, tol=tol, solver=solver, max_steps=max_steps).codes_NK
        error += float((block_ND - codes_NK @ atoms_DK.mT).square().sum(dtype=torch.float64))
        energy += float(block_ND.square().sum(dtype=torch.float64))
        penalty += float(codes_NK.sum(dtype=torch.float64))
        num_uses_K += (codes_NK > 0).sum(dim=0)
        sum_D += block_ND.sum(dim=0, dtype=torch.float64)
    sums = torch.tensor([error, energy, penalty], dtype=torch.float64)
    distributed.all_reduce_sum_(sums, num_uses_K, sum_D)
    error, energy, penalty = sums.tolist()
    num_signals = len(signals_ND)
    variation = energy - float(sum_D.square().sum()) / num_signals
    return Statistics(
        objective=(0.5 * error + dictionary.lam * penalty) / num_signals,
        mean_nonzeros=int(num_uses_K.sum()) / num_signals,
        explained_share=1 - error / energy if energy else 0.0,
        unused_atoms=int((num_uses_K == 0).sum()),
        num_signals=num_signals,
        explained_variance=1 - error / variation if variation > LEAST_VARIATION * energy else 0.0,
        dense_atoms=int((num_uses_K > DENSE_ACTIVITY * num_signals).sum()),
    )
