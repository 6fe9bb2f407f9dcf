"""Fused disentangled attention on flat sequences as two operators of torch, forward and backward, in Triton.

    s_ij = (q_i.k_j + q_i.rel_k[i - j] + k_j.rel_q[i - j]) / sqrt(3 E);   out_i = sum_j softmax_j(s_i) v_j

No tensor of size L x L or tokens x distances is ever in memory: `tile_triton` shows how a tile reads its
distances. A tile costs these products of BLOCK x BLOCK x E: forward 6 (plain attention: 2), backward
9 + 10 + 10 (plain attention without atomics: 7). `results/attention-designs.md` has the designs that lost.

The kernel of the tables' gradients leaves partial sums over parts of the batch: about 1,024 blocks of BLOCK x
E float32, 8 MB a table, whatever the batch. With few distances there are many parts, with many there are few.

Dropout masks are not stored but drawn again. Whether weight (i, j) is dropped is a Philox number (Salmon et
al. 2011) of j, i, the head and the sequence's number in the batch. So neither the tile nor another sequence
changes it.

Scores, softmax and sums are float32, results have the dtype of the inputs. Float32 products have float32
accuracy (three tf32 products on NVIDIA). A sequence's result depends on the rest of its batch only through
`max_length`, which decides the tile. **No part of this has run on a GPU yet**: the numerics are tested in
Triton's interpreter (which computes bf16 wrongly, so bf16 is not tested), registers and shared memory by
ahead-of-time compilation.

Legend: T tokens of all sequences, B sequences, H heads, E width of a head, R = 2 max_length distances (row r
is distance r - max_length), P parts of the batch.
"""

import math
from typing import Any

import torch
import triton
from torch import Tensor

from kernels.attention.backward_triton import distances_kernel, keys_kernel, queries_kernel
from kernels.attention.forward_triton import forward_kernel

NUM_PROGRAMS = 1024
"""About how many programs compute the tables' gradients. Enough for every GPU; it bounds the partial sums."""

# By bytes of a number and width of a head. From the compile check (no spills, shared memory of every target),
# not from timings; larger tiles spill, and so does float32 at 128.
BLOCKS = {2: {32: 32, 64: 32, 128: 16}, 4: {32: 16, 64: 16}}


def launch_options(
    kernel: Any,
    dtype: torch.dtype,
    head_width: int,
    max_length: int,
    is_amd: bool = bool(torch.version.hip),
) -> dict[str, int]:
    """Tile and number of warps of a kernel (a warp has 32 threads on NVIDIA, 64 on AMD).

    Triton lays the warps of a product side by side, and each takes 8 columns. So BLOCK / 8 warps fill a tile,
    and further ones repeat work. Kernels whose registers do not suffice get
    more warps all the same.
    """
    block = 16 if max_length <= 16 else BLOCKS[dtype.itemsize][head_width]
    needs_registers = dtype.itemsize == 4 or kernel is distances_kernel
    num_warps = 4 if is_amd else block // (4 if needs_registers else 8)
    return {"BLOCK": block, "num_warps": num_warps, "num_stages": 1}


def _shared_arguments(
    q_THE: Tensor,
    k_THE: Tensor,
    v_THE: Tensor,
    rel_k_HRE: Tensor,
    rel_q_HRE: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor,
    dropout_p: float,
) -> dict[str, Any]:
    """The arguments that all kernels share. Slices of one projection are read in place, other layouts
    copied."""
    if q_THE.stride(2) != 1 or not q_THE.stride() == k_THE.stride() == v_THE.stride():
        q_THE, k_THE, v_THE = q_THE.contiguous(), k_THE.contiguous(), v_THE.contiguous()
    num_tokens, num_heads, head_width = q_THE.shape
    return {
        "q_ptr": q_THE, "k_ptr": k_THE, "v_ptr": v_THE, "rel_k_ptr": rel_k_HRE.contiguous(),
        "rel_q_ptr": rel_q_HRE.contiguous(), "cu_seqlens_ptr": cu_seqlens, "seed_ptr": seed,
        "T": num_tokens, "H": num_heads, "stride_T": q_THE.stride(0), "stride_H": q_THE.stride(1),
        "max_length": rel_k_HRE.shape[1] // 2, "scale": 1 / math.sqrt(3 * head_width),
        "dropout_p": dropout_p, "HAS_DROPOUT": dropout_p > 0, "E": head_width,
        "PRECISION": "tf32x3" if q_THE.is_cuda and not torch.version.hip else "ieee",
    }  # fmt: skip


@torch.library.custom_op("kernels::attention_forward", mutates_args=())
def _forward(
    q_THE: Tensor,
    k_THE: Tensor,
    v_THE: Tensor,
    rel_k_HRE: Tensor,
    rel_q_HRE: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    """Output (T, H, E) and the logarithms of the softmax's denominators (H, T)."""
    num_tokens, num_heads, head_width = q_THE.shape
    max_length = rel_k_HRE.shape[1] // 2
    out_THE = torch.empty(q_THE.shape, dtype=q_THE.dtype, device=q_THE.device)
    lse_HT = torch.empty(num_heads, num_tokens, dtype=torch.float32, device=q_THE.device)
    shared = _shared_arguments(q_THE, k_THE, v_THE, rel_k_HRE, rel_q_HRE, cu_seqlens, seed, dropout_p)
    options = launch_options(forward_kernel, q_THE.dtype, head_width, max_length)
    grid = (len(cu_seqlens) - 1, triton.cdiv(max_length, options["BLOCK"]), num_heads)
    with torch.cuda.device_of(q_THE):  # Triton launches on the current device
        forward_kernel[grid](**shared, out_ptr=out_THE, lse_ptr=lse_HT, **options)
    return out_THE, lse_HT


@_forward.register_fake
def _forward_shapes(q_THE: Tensor, *_unused: object) -> tuple[Tensor, Tensor]:
    num_tokens, num_heads, _ = q_THE.shape
    out_THE = torch.empty(q_THE.shape, dtype=q_THE.dtype, device=q_THE.device)
    return out_THE, q_THE.new_empty(num_heads, num_tokens, dtype=torch.float32)


@torch.library.custom_op("kernels::attention_backward", mutates_args=())
def _backward(
    d_out_THE: Tensor,
    out_THE: Tensor,
    lse_HT: Tensor,
    q_THE: Tensor,
    k_THE: Tensor,
    v_THE: Tensor,
    rel_k_HRE: Tensor,
    rel_q_HRE: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, rel_k, rel_q."""
    num_heads, num_distances, head_width = rel_k_HRE.shape
    num_sequences, max_length = len(cu_seqlens) - 1, num_distances // 2
    shared = _shared_arguments(q_THE, k_THE, v_THE, rel_k_HRE, rel_q_HRE, cu_seqlens, seed, dropout_p)
    d_out_THE = d_out_THE.contiguous()
    delta_HT = torch.empty_like(lse_HT)
    d_q_THE, d_k_THE, d_v_THE = (torch.empty_like(out_THE) for _ in range(3))
    query_options, key_options, distance_options = (
        launch_options(kernel, q_THE.dtype, head_width, max_length)
        for kernel in (queries_kernel, keys_kernel, distances_kernel)
    )
    num_distance_blocks = 2 * triton.cdiv(max_length, distance_options["BLOCK"])
    num_parts = min(num_sequences, triton.cdiv(NUM_PROGRAMS, num_distance_blocks * num_heads))
    shape = (num_parts, *rel_k_HRE.shape)
    d_rel_k_PHRE, d_rel_q_PHRE = (
        torch.empty(shape, dtype=torch.float32, device=q_THE.device) for _ in range(2)
    )
    with torch.cuda.device_of(q_THE):
        queries_kernel[(num_sequences, triton.cdiv(max_length, query_options["BLOCK"]), num_heads)](
            **shared, out_ptr=out_THE, d_out_ptr=d_out_THE, lse_ptr=lse_HT, delta_ptr=delta_HT,
            d_q_ptr=d_q_THE, **query_options,
        )  # fmt: skip
        keys_kernel[(num_sequences, triton.cdiv(max_length, key_options["BLOCK"]), num_heads)](
            **shared, d_out_ptr=d_out_THE, lse_ptr=lse_HT, delta_ptr=delta_HT, d_k_ptr=d_k_THE,
            d_v_ptr=d_v_THE, **key_options,
        )  # fmt: skip
        shared["PRECISION"] = "ieee"  # for float32, whose three tf32 products spill in this kernel
        distances_kernel[(num_distance_blocks, num_parts, num_heads)](
            **shared, d_out_ptr=d_out_THE, lse_ptr=lse_HT, delta_ptr=delta_HT, d_rel_k_ptr=d_rel_k_PHRE,
            d_rel_q_ptr=d_rel_q_PHRE, B=num_sequences, **distance_options,
        )  # fmt: skip
    d_rel_k_HRE, d_rel_q_HRE = (x.sum(0).to(rel_k_HRE.dtype) for x in (d_rel_k_PHRE, d_rel_q_PHRE))
    return d_q_THE, d_k_THE, d_v_THE, d_rel_k_HRE, d_rel_q_HRE


@_backward.register_fake
def _backward_shapes(
    d_out_THE: Tensor,
    out_THE: Tensor,
    lse_HT: Tensor,
    q_THE: Tensor,
    k_THE: Tensor,
    v_THE: Tensor,
    rel_k_HRE: Tensor,
    *_unused: object,
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (q_THE, q_THE, q_THE, rel_k_HRE, rel_k_HRE))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.dropout_p = inputs
    ctx.save_for_backward(*output, *tensors)


def _gradients(ctx: Any, d_out_THE: Tensor, _d_lse: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(d_out_THE, *ctx.saved_tensors, ctx.dropout_p), None, None, None


_forward.register_autograd(_gradients, setup_context=_save)


def disentangled_attention(
    q_THE: Tensor,
    k_THE: Tensor,
    v_THE: Tensor,
    rel_k_HRE: Tensor,
    rel_q_HRE: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    *,
    dropout_p: float = 0.0,
) -> Tensor:
    """The same as `reference.disentangled_attention`.

    The dropout's seed is drawn on the device, so that the host does not wait for it.
    """
    seed = torch.randint(2**63 - 1, (1,), device=q_THE.device) if dropout_p else cu_seqlens[:1]
    out_THE, _ = _forward(q_THE, k_THE, v_THE, rel_k_HRE, rel_q_HRE, cu_seqlens, seed, dropout_p)
    return out_THE
