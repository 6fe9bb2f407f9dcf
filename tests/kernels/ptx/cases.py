"""The project's GPU operations, run through their host code, and what they must give, in float64.

This is the only file of the package that knows the project's kernels.

Legend: T tokens of all sequences, H heads, E width of a head, L tokens of a sequence, N signals, D their
dimension, K atoms.
"""

import math
from itertools import accumulate
from typing import NamedTuple
from unittest import mock

import torch
from cross_entropy_problems import GRADIENT_TOLERANCE, exact_rows, problem
from dropout_mask import masks
from torch import Tensor
from torch.nn import functional as F

from kernels.attention import disentangled_attention, fused_triton, reference
from kernels.cross_entropy.loss_triton import row_losses_
from kernels.lasso import nonneg_lasso
from kernels.lasso.solve import LassoResult

NAMES = ("out", "qkv", "rel_k", "rel_q")
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
"""The largest allowed error of a row, relative to the largest row: some six units in the last place."""


class Attention(NamedTuple):
    dtype: torch.dtype
    head_width: int
    lengths: tuple[int, ...]
    dropout_p: float = 0.0
    num_heads: int = 1
    has_bands: bool = True
    """Whether short sequences have the backward pass with bands. Else they have that of long ones."""
    offset: int = 0
    """Unused elements before each tensor, which leave no pointer a multiple of 16 bytes."""

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        dropout, offset = "-dropout" * bool(self.dropout_p), "-offset" * bool(self.offset)
        bands = "-bands" * self.has_bands
        return f"{dtype}-{self.head_width}-{'-'.join(map(str, self.lengths))}{dropout}{bands}{offset}"

    def sequences(self) -> tuple[Tensor, int]:
        """The arguments cu_seqlens and max_length of the operation."""
        return torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32), max(self.lengths)

    def tensors(self) -> list[Tensor]:
        """qkv (T, H, 3, E), rel_k and rel_q (R, H, E)."""
        generator = torch.Generator().manual_seed(sum(self.lengths))
        tables = (2 * max(self.lengths), self.num_heads, self.head_width)
        shapes = [(sum(self.lengths), self.num_heads, 3, self.head_width), tables, tables]
        return [
            torch.randn(self.offset + math.prod(shape), generator=generator)
            .to(self.dtype)[self.offset :]
            .view(shape)
            for shape in shapes
        ]

    def run(self) -> list[Tensor]:
        """The output and the three gradients."""
        torch.manual_seed(7)  # of the dropout
        inputs = [x.detach().requires_grad_() for x in self.tensors()]
        lengths = fused_triton.BAND_LENGTHS if self.has_bands else {2: {}, 4: {}}
        with mock.patch.object(fused_triton, "BAND_LENGTHS", lengths):
            out = disentangled_attention(
                *inputs, *self.sequences(), dropout_p=self.dropout_p, implementation="triton"
            )
            return [out.detach(), *torch.autograd.grad(out, inputs, self.gradient())]

    def kernels(self) -> set[str]:
        """The names of the kernels that run."""
        backward = ("band",) if self.has_bands else ("queries", "keys", "distances")
        return {f"{name}_kernel" for name in ("forward", *backward)}

    def gradient(self) -> Tensor:
        """A random gradient of the loss with respect to the output (T, H, E)."""
        shape = (sum(self.lengths), self.num_heads, self.head_width)
        return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(self.dtype)

    def expected(self) -> list[Tensor]:
        """The output and the gradients from the definition in float64, with the dropout of the kernels."""
        inputs = [x.detach().double().requires_grad_() for x in self.tensors()]
        torch.manual_seed(7)
        seed = int(fused_triton.draw_seed(torch.device("cpu")))
        remaining = iter(masks(seed, self.num_heads, list(self.lengths), self.dropout_p))

        def dropout(weights_HLL: Tensor, dropout_p: float) -> Tensor:
            return weights_HLL * next(remaining) / (1 - dropout_p) if dropout_p else weights_HLL

        with mock.patch.object(F, "dropout", dropout):
            out = reference.disentangled_attention(*inputs, *self.sequences(), dropout_p=self.dropout_p)
        return [out.detach(), *torch.autograd.grad(out, inputs, self.gradient().double())]

    def worst_rows(self, got: list[Tensor], want: list[Tensor]) -> dict[str, float]:
        """For each result the error of its worst row over 1 + the norm of its largest row."""
        return {
            name: float((own.double() - true).norm(dim=-1).max() / (1 + true.norm(dim=-1).max()))
            for name, own, true in zip(NAMES, got, want, strict=True)
        }


class CrossEntropy(NamedTuple):
    dtype: torch.dtype
    num_classes: int
    has_classes: bool
    num_rows: int = 3
    needs_gradient: bool = True
    offset: int = 0
    """Unused elements before the logits, which leave no row at a multiple of 16 bytes."""

    def __str__(self) -> str:
        kind = "classes" if self.has_classes else "distributions"
        dtype = str(self.dtype).removeprefix("torch.")
        rest = "-no gradient" * (not self.needs_gradient) + "-offset" * bool(self.offset)
        return f"{dtype}-{self.num_rows}x{self.num_classes}-{kind}{rest}"

    def run(self) -> tuple[Tensor, Tensor, Tensor]:
        """The losses and agreements of all rows, and what has replaced the logits."""
        given_NV, targets = problem(self.num_rows, self.num_classes, self.has_classes, self.dtype)
        logits_NV = torch.empty(self.offset + given_NV.numel(), dtype=self.dtype)[self.offset :]
        logits_NV = logits_NV.view_as(given_NV).copy_(given_NV)
        loss_N, agrees_N = row_losses_(logits_NV, targets, self.needs_gradient)
        return loss_N, agrees_N, logits_NV

    def check(self, loss_N: Tensor, agrees_N: Tensor, gradient_NV: Tensor) -> None:
        """Compare every row and every entry with float64."""
        logits_NV, targets = problem(self.num_rows, self.num_classes, self.has_classes, self.dtype)
        want_N, want_agrees_N, want_NV = exact_rows(logits_NV, targets)
        torch.testing.assert_close(loss_N.double(), want_N, rtol=2e-6, atol=4e-6)
        assert torch.equal(agrees_N.bool(), want_agrees_N)
        if self.needs_gradient:
            torch.testing.assert_close(gradient_NV.double(), want_NV, **GRADIENT_TOLERANCE[self.dtype])
        else:
            assert torch.equal(gradient_NV, logits_NV)


def solve(signals_ND: Tensor, dictionary_DK: Tensor, lam: float) -> LassoResult:
    return nonneg_lasso(signals_ND, dictionary_DK, lam, solver="triton")
