"""Our sparse coder as an architecture of SAELens: after `import mlsm.saelens`, `SAE.load_from_disk` of
sae_lens loads what `python -m mlsm.dictionary export --format saelens-exact` wrote.

    pip install sae-lens==6.54.12

Its activations are our codes (Eq. 2) of states that are divided by their norm, with a certified duality gap.
No gradient flows through them. As with SAELens' own scalings, `decode` belongs to the last `encode`: it gives
reconstructions the norms that the states had.

Shape suffixes: N signals, D width of a signal, K atoms; "..." any number of dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.lasso import gram, largest_step, nonneg_lasso
from mlsm.coding.sae_import import EXACT

try:
    from sae_lens import SAE, SAEConfig, register_sae_class
except ImportError as error:
    raise ImportError(f"mlsm.saelens needs SAELens ({error}): pip install sae-lens==6.54.12") from error


@dataclass
class LassoSAEConfig(SAEConfig):
    """The configuration of SAELens, and the settings of the sparse coder."""

    lam: float = 0.05  # penalty of the codes of states of norm 1
    tolerance: float = 1e-3  # duality gap of a code, relative to half the squared norm of its signal
    solver: str = "auto"

    @classmethod
    def architecture(cls) -> str:
        """The name in cfg.json."""
        return EXACT


class LassoSAE(SAE[LassoSAEConfig]):
    """An SAE whose encoder is the sparse coder. The rows of W_dec are the atoms."""

    def initialize_weights(self) -> None:
        """Zeros, which loading replaces."""
        options: dict[str, Any] = {"dtype": self.dtype, "device": self.device}
        self.b_dec = nn.Parameter(torch.zeros(self.cfg.d_in, **options))
        self.W_dec = nn.Parameter(torch.zeros(self.cfg.d_sae, self.cfg.d_in, **options))

    @property
    def W_enc(self) -> Tensor:
        """(D, K): the atoms, as the encoder's directions."""
        return self.W_dec.mT

    def encode(self, x: Tensor) -> Tensor:
        """Codes (..., K) of hidden states (..., D)."""
        states = self.process_sae_in(x)
        self._norms = states.norm(dim=-1, keepdim=True)
        signals_ND = F.normalize(states, dim=-1).reshape(-1, self.cfg.d_in)
        atoms_DK, gram_KK, step = self._prepared()
        codes_NK = nonneg_lasso(
            signals_ND.float(),
            atoms_DK,
            self.cfg.lam,
            tol=self.cfg.tolerance,
            solver=self.cfg.solver,
            gram_KK=gram_KK,
            step=step,
        ).codes_NK
        codes = codes_NK.reshape(*states.shape[:-1], self.cfg.d_sae).to(states.dtype)
        return self.hook_sae_acts_post(codes)

    def decode(self, feature_acts: Tensor) -> Tensor:
        """Hidden states (..., D) of codes (..., K) of the last states that were encoded."""
        states = self.hook_sae_recons(feature_acts @ self.W_dec * self._norms + self.b_dec)
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(states), self.d_head)

    def _prepared(self) -> tuple[Tensor, Tensor, float]:
        """The atoms (D, K), their Gram matrix and step, computed again only after W_dec has changed."""
        key = (self.W_dec.data_ptr(), self.W_dec._version, self.W_dec.dtype, self.W_dec.device)
        if getattr(self, "_key", None) != key:
            atoms_DK = self.W_dec.detach().float().mT.contiguous()
            self._atoms, self._key = (atoms_DK, gram(atoms_DK), largest_step(atoms_DK)), key
        return self._atoms

    def fold_W_dec_norm(self) -> NoReturn:
        """Raises NotImplementedError, as SAELens' matching pursuit does: atoms of other norms have other
        codes.
        """
        raise NotImplementedError("the codes of a lasso change with the norms of the atoms")

    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> NoReturn:
        """Raises NotImplementedError: the coder divides every state by its norm, so there is no factor that
        the weights could take.
        """
        raise NotImplementedError("the coder divides every state by its norm already")


register_sae_class(EXACT, LassoSAE, LassoSAEConfig)
