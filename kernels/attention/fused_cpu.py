"""Disentangled attention for CPUs: `fused.c`, compiled at first use, as two operators of torch.

Sequences are not padded, and beside its results a pass keeps the weights only (none without gradients): the
backward pass takes them, and a minus sign tells it which of them dropout removed. The same seed removes the
same weights as in the Triton kernels. Computed and stored in float32.

Legend: T tokens of all sequences, B sequences, H heads, X = 3: query, key and value, E width of a head, R = 2
max_length distances (row r is distance r - max_length), P parts of the batch.
"""

import ctypes
import functools
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels.c_library import load_library

SOURCE = Path(__file__).with_name("fused.c")
NUM_TASKS = 32
"""About how many tasks the threads of a call share. It bounds the partial sums of the tables' gradients."""


def obstacle() -> str | None:
    """Why these operators cannot run on this machine, or None. The first call of a process compiles."""
    loaded = _library()
    return loaded if isinstance(loaded, str) else None


@functools.cache
def _library(flags: tuple[str, ...] = ()) -> ctypes.CDLL | str:
    """The compiled operators, or the reason why there are none."""
    pointer, integer, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    arguments = [*[pointer] * 4, *[integer] * 5, real, real, integer, integer, *[pointer] * 6]
    return load_library(SOURCE, {"disentangled_attention": arguments}, flags)


def _run(
    qkv_THXE: Tensor,
    rel_k_RHE: Tensor,
    rel_q_RHE: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor,
    dropout_p: float,
    *results: Tensor | None,
) -> None:
    """Run the C function. `results` are its pointers from the weights on."""
    library = _library()
    if isinstance(library, str):
        raise RuntimeError(library)
    num_heads, _, head_width = qkv_THXE.shape[1:]
    num_sequences = len(cu_seqlens) - 1
    inputs = [x.contiguous() for x in (qkv_THXE, rel_k_RHE, rel_q_RHE, cu_seqlens)]  # alive during the call
    failed = library.disentangled_attention(
        *(x.data_ptr() for x in inputs),
        num_sequences, num_heads, head_width, len(rel_k_RHE) // 2, _num_parts(num_sequences, num_heads),
        1 / math.sqrt(3 * head_width), dropout_p, int(seed), torch.get_num_threads(),
        *(None if x is None else x.data_ptr() for x in results),
    )  # fmt: skip
    if failed:
        raise MemoryError(f"attention on sequences of {len(rel_k_RHE) // 2} tokens did not fit the memory")


def _num_parts(num_sequences: int, num_heads: int) -> int:
    return min(num_sequences, -(-NUM_TASKS // num_heads))


@torch.library.custom_op("kernels::attention_forward_cpu", mutates_args=())
def _forward(
    qkv_THXE: Tensor,
    rel_k_RHE: Tensor,
    rel_q_RHE: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor,
    dropout_p: float,
    keeps_weights: bool,
) -> tuple[Tensor, Tensor]:
    """Output (T, H, E) and the weights for the backward pass."""
    lengths_B = cu_seqlens.diff()
    num_tokens, max_length = len(qkv_THXE), len(rel_k_RHE) // 2
    is_whole = int(cu_seqlens[0]) == 0 and int(cu_seqlens[-1]) == num_tokens
    if not is_whole or int(lengths_B.min()) < 0 or int(lengths_B.max()) > max_length:
        raise ValueError(
            f"cu_seqlens must ascend from 0 to {num_tokens} by at most {max_length}, "
            f"got {cu_seqlens.tolist()}"
        )
    out_THE, weights = _forward_shapes(
        qkv_THXE, rel_k_RHE, rel_q_RHE, cu_seqlens, seed, dropout_p, keeps_weights
    )
    kept = weights if keeps_weights else None
    _run(qkv_THXE, rel_k_RHE, rel_q_RHE, cu_seqlens, seed, dropout_p, kept, out_THE, *[None] * 4)
    return out_THE, weights


@_forward.register_fake
def _forward_shapes(
    qkv_THXE: Tensor,
    rel_k_RHE: Tensor,
    rel_q_RHE: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor,
    dropout_p: float,
    keeps_weights: bool,
) -> tuple[Tensor, Tensor]:
    num_tokens, num_heads, _, head_width = qkv_THXE.shape
    num_rows = num_tokens * num_heads if keeps_weights else 0
    out_THE = qkv_THXE.new_empty(num_tokens, num_heads, head_width)
    return out_THE, qkv_THXE.new_empty(num_rows, rel_k_RHE.shape[0] // 2)


@torch.library.custom_op("kernels::attention_backward_cpu", mutates_args=())
def _backward(
    d_out_THE: Tensor,
    weights: Tensor,
    qkv_THXE: Tensor,
    rel_k_RHE: Tensor,
    rel_q_RHE: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of qkv, rel_k, rel_q."""
    d_qkv_THXE, *_ = gradients = _backward_shapes(d_out_THE, weights, qkv_THXE, rel_k_RHE)
    num_parts = _num_parts(len(cu_seqlens) - 1, qkv_THXE.shape[1])
    tables = torch.empty(2, num_parts, *rel_k_RHE.shape)
    _run(
        qkv_THXE, rel_k_RHE, rel_q_RHE, cu_seqlens, seed, dropout_p,
        weights, None, d_out_THE.contiguous(), d_qkv_THXE, *tables,
    )  # fmt: skip
    torch.sum(tables[0], 0, out=gradients[1])
    torch.sum(tables[1], 0, out=gradients[2])
    return gradients


@_backward.register_fake
def _backward_shapes(
    d_out_THE: Tensor, weights: Tensor, qkv_THXE: Tensor, rel_k_RHE: Tensor, *_unused: object
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        qkv_THXE.new_empty(qkv_THXE.shape),
        rel_k_RHE.new_empty(rel_k_RHE.shape),
        rel_k_RHE.new_empty(rel_k_RHE.shape),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.dropout_p, _ = inputs
    ctx.save_for_backward(output[1], *tensors)


def _gradients(ctx: Any, d_out_THE: Tensor, _d_weights: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(d_out_THE, *ctx.saved_tensors, ctx.dropout_p), None, None, None, None


_forward.register_autograd(_gradients, setup_context=_save)


def disentangled_attention(
    qkv_THXE: Tensor,
    rel_k_RHE: Tensor,
    rel_q_RHE: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    *,
    dropout_p: float = 0.0,
) -> Tensor:
    """The same as `reference.disentangled_attention`. Raises ValueError for sequences that are no part of the
    tokens or longer than `max_length`.
    """
    seed = torch.randint(2**63 - 1, (1,)) if dropout_p else cu_seqlens[:1]
    keeps_weights = torch.is_grad_enabled() and any(x.requires_grad for x in (qkv_THXE, rel_k_RHE, rel_q_RHE))
    out_THE, _ = _forward(qkv_THXE, rel_k_RHE, rel_q_RHE, cu_seqlens, seed, dropout_p, keeps_weights)
    return out_THE
