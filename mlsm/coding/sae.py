"""A sparse autoencoder (SAE) that was trained elsewhere, beside the atoms of a dictionary: how it scales
hidden states, its offset, and its encoder.

An SAE reads a hidden state x as p = c (x - m), with a factor c and a mean m of its own (`SCALINGS`). It
computes activations f >= 0 and reconstructs p as W f + b, with its decoder W and its offset b. Its codes here
are those of the signal (p - b) / |p - b| on atoms of norm 1: activation f_k becomes f_k |w_k| / |p - b|. So
they have the scale of our own codes.

Shape suffixes: N signals, D width of a signal, K atoms, 1 a factor for each signal. float32 throughout.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from mlsm.settings import check_fields

ACTIVATIONS = ("none", "relu", "jumprelu", "topk", "groupmax")
SCALINGS = ("none", "constant_norm_rescale", "layer_norm")
"""Under the names of SAELens: the state itself; scaled to norm sqrt(D); standardised over its D numbers."""
LAYER_NORM_EPS = 1e-5  # that SAELens adds to the standard deviation
UNIT_NORM_TOLERANCE = 1e-5  # of the atoms of a decoder that is not normalised again
LEAST_NORM = 1e-8  # of an atom or a state; a smaller one is not divided by its norm


class Signals(NamedTuple):
    """Hidden states as the sparse coder takes them."""

    unit_ND: Tensor  # of norm 1, or 0
    scale_N1: Tensor  # a change of the code by a moves the hidden state by scale * D a


@dataclass(frozen=True)
class SaeSettings:
    """What an SAE computes, apart from its weights."""

    activation: str = "none"  # of ACTIVATIONS; none: the SAE has no encoder
    scaling: str = "none"  # of SCALINGS
    subtracts_offset: bool = True  # the encoder reads p - b, otherwise p
    k: int | None = None  # topk: number of the largest activations that stay; groupmax: number of groups
    selects_by_norm: bool = False  # topk: activations are compared after multiplication by |w_k|
    residual_threshold: float = 0.01  # of SAELens' matching pursuit, which this project does not run
    max_iterations: int | None = None  # of matching pursuit; None: D
    stop_on_duplicate_support: bool = True  # of matching pursuit

    def __post_init__(self) -> None:
        check_fields(self)
        if self.activation not in ACTIVATIONS or self.scaling not in SCALINGS:
            raise ValueError(f"an SAE with activation {self.activation!r} and scaling {self.scaling!r}")
        if (self.activation in ("topk", "groupmax")) != (self.k is not None):
            raise ValueError(f"an SAE with activation {self.activation} and k {self.k}")


@dataclass(frozen=True, eq=False)
class Sae:
    """Weights and settings of an SAE. Raises ValueError if they do not fit together."""

    settings: SaeSettings
    offset_D: Tensor  # b
    decoder_DK: Tensor | None = None  # W, if its columns are not of norm 1; None: they are the atoms
    encoder_DK: Tensor | None = None
    bias_K: Tensor | None = None
    threshold_K: Tensor | None = None  # of jumprelu: smaller activations are 0

    def __post_init__(self) -> None:
        activation = self.settings.activation
        wanted = {"offset_D"} | (set() if activation == "none" else {"encoder_DK", "bias_K"})
        wanted |= {"threshold_K"} if activation == "jumprelu" else set()
        if (found := self.tensors().keys() - {"decoder_DK"}) != wanted:
            raise ValueError(f"an SAE with activation {activation} has {sorted(wanted)}, not {sorted(found)}")
        for name, tensor in self.tensors().items():
            if tensor.dtype != torch.float32 or tensor.ndim != len(name.rpartition("_")[2]):
                raise ValueError(f"{name} of an SAE is {tensor.dtype} {tuple(tensor.shape)}")
            if not tensor.isfinite().all():
                raise ValueError(f"{name} of an SAE must be finite")

    def check_fits(self, atoms_DK: Tensor) -> None:
        """Raise ValueError for weights or a k that do not fit the shape of the atoms."""
        sizes = dict(zip("DK", atoms_DK.shape, strict=True))
        for name, tensor in self.tensors().items():
            if list(tensor.shape) != [sizes[axis] for axis in name.rpartition("_")[2]]:
                raise ValueError(
                    f"{name} of an SAE is {tuple(tensor.shape)}, its atoms {tuple(atoms_DK.shape)}"
                )
        k, activation, num_atoms = self.settings.k, self.settings.activation, sizes["K"]
        if k is not None and not (0 < k <= num_atoms and (activation == "topk" or num_atoms % k == 0)):
            raise ValueError(f"an SAE with {activation} of k {k} and {num_atoms} atoms")

    def tensors(self) -> dict[str, Tensor]:
        """The weights that there are, by the names of their fields."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def to(self, device: torch.device | str) -> Self:
        """The same SAE on a device."""
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return dataclasses.replace(self, **moved)

    @cached_property
    def norms_K(self) -> Tensor | None:
        """|w_k| of the decoder; None if they are 1."""
        return None if self.decoder_DK is None else self.decoder_DK.norm(dim=0).clamp_min(LEAST_NORM)

    def signals(self, states_ND: Tensor) -> Signals:
        """(p - b) / |p - b| of hidden states x, and |p - b| / c."""
        scaled_ND, factor_N1 = self._scaled(states_ND)
        centred_ND = scaled_ND - self.offset_D
        norm_N1 = centred_ND.norm(dim=1, keepdim=True)
        return Signals(F.normalize(centred_ND, dim=1), norm_N1 / factor_N1)

    @torch.no_grad()
    def encode(self, states_ND: Tensor) -> Tensor:
        """Codes (N, K) of hidden states by the encoder: activations times |w_k| / |p - b|. Raises ValueError
        for an SAE without encoder.
        """
        if self.encoder_DK is None or self.bias_K is None:
            raise ValueError("this SAE has no encoder")
        scaled_ND, _ = self._scaled(states_ND)
        centred_ND = scaled_ND - self.offset_D
        input_ND = centred_ND if self.settings.subtracts_offset else scaled_ND
        codes_NK = self._activated(input_ND @ self.encoder_DK + self.bias_K)
        if self.norms_K is not None and not self.settings.selects_by_norm:
            codes_NK = codes_NK * self.norms_K
        return codes_NK / centred_ND.norm(dim=1, keepdim=True).clamp_min(LEAST_NORM)

    def _activated(self, sums_NK: Tensor) -> Tensor:
        """The activations. With `selects_by_norm` they have been multiplied by |w_k|."""
        settings = self.settings
        if settings.selects_by_norm and self.norms_K is not None:
            sums_NK = sums_NK * self.norms_K
        positive_NK = sums_NK.clamp_min(0)
        if self.threshold_K is not None:
            return positive_NK * (sums_NK > self.threshold_K)
        if settings.k is None:
            return positive_NK
        if settings.activation == "groupmax":
            groups_NGC = positive_NK.unflatten(1, (settings.k, -1))
            largest_NG1, at_NG1 = groups_NGC.max(dim=2, keepdim=True)
            return torch.zeros_like(groups_NGC).scatter(2, at_NG1, largest_NG1).flatten(1)
        largest_NC, at_NC = positive_NK.topk(settings.k, dim=1)
        return torch.zeros_like(sums_NK).scatter(1, at_NC, largest_NC)

    def _scaled(self, states_ND: Tensor) -> tuple[Tensor, Tensor]:
        """p = c (x - m) and c, by the scaling."""
        if self.settings.scaling == "constant_norm_rescale":
            norm_N1 = states_ND.norm(dim=1, keepdim=True).clamp_min(LEAST_NORM)
            factor_N1 = math.sqrt(states_ND.shape[1]) / norm_N1
            return states_ND * factor_N1, factor_N1
        if self.settings.scaling == "layer_norm":
            centred_ND = states_ND - states_ND.mean(dim=1, keepdim=True)
            degrees_of_freedom = max(1, states_ND.shape[1] - 1)  # as torch.std has them
            deviation_N1 = centred_ND.norm(dim=1, keepdim=True) / math.sqrt(degrees_of_freedom)
            return centred_ND / (deviation_N1 + LAYER_NORM_EPS), 1 / (deviation_N1 + LAYER_NORM_EPS)
        return states_ND, torch.ones_like(states_ND[:, :1])


def atoms_of(decoder_DK: Tensor) -> tuple[Tensor, Tensor | None]:
    """The columns of a decoder as atoms of norm 1; and the decoder, or None if its columns have that norm."""
    norms_K = decoder_DK.norm(dim=0)
    if ((norms_K - 1).abs() <= UNIT_NORM_TOLERANCE).all():
        return decoder_DK, None
    return decoder_DK / norms_K.clamp_min(LEAST_NORM), decoder_DK
