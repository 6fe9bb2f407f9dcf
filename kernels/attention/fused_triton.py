"""Fused disentangled attention on flat sequences as two operators of torch, forward and backward, in Triton.

    s_ij = (q_i.k_j + q_i.rel_k[i - j] + k_j.rel_q[i - j]) / sqrt(3 E);   out_i = sum_j softmax_j(s_i) v_j

No tensor of size L x L is ever in memory: `tile_triton` shows how a tile reads its distances. A tile costs
these products of BLOCK x BLOCK x E: forward 6 (plain attention: 2), backward 9 + 10 + 10 (plain attention
without atomics: 7). The kernel of the tables' gradients leaves partial sums over parts of the batch: about
1,024 blocks of BLOCK x E float32, 8 MB a table, whatever the batch.

**Short sequences** (`uses_bands`) have another backward pass, with the position terms as matrix products of
tokens and distances (`band_triton`). It executes about a quarter of the instructions, and four tensors of
tokens x heads x distances are in memory while it runs. The forward pass has no such variant: by the model in
`results/attention-designs.md`, reading the products takes longer there than computing the terms in the tile.
That file also has the counts, and the designs that lost.

Dropout masks are not stored but drawn again. Whether weight (i, j) is dropped is a Philox number (Salmon et
al. 2011) of j, i, the head and the sequence's number in the batch. So neither the tile nor another sequence
changes it. One call of Philox gives the numbers of four weights.

The gradient of queries, keys and values is one tensor in the layout of their projection.

Scores, softmax and sums are float32, results have the dtype of the inputs. Products with bands are rounded to
it, as those of the model's linear layers. Float32 products have float32 accuracy (three tf32 products on
NVIDIA). A sequence's output depends on the rest of its batch only through `max_length`, which decides the
tile. **No part of this has run on a GPU yet**: the numerics are tested in Triton's interpreter and by
executing the compiled code in an emulator, registers and shared memory by ahead-of-time compilation.

Legend: T tokens of all sequences, B sequences, H heads, X = 3: query, key and value, E width of a head, R = 2
max_length distances (row r is distance r - max_length), W columns of a band, P parts of the batch.
"""

import math
from typing import Any

import torch
import triton
from torch import Tensor

from kernels.attention.backward_triton import distances_kernel, keys_kernel, queries_kernel
from kernels.attention.band_triton import band_kernel
from kernels.attention.forward_triton import forward_kernel

NUM_PROGRAMS = 1024
"""About how many programs compute the tables' gradients. Enough for every GPU; it bounds the partial sums."""

# By bytes of a number and width of a head. From the compile check (no spills, shared memory of every target),
# not from timings; larger tiles spill, and so does float32 at 128.
BLOCKS = {2: {32: 32, 64: 32, 128: 16}, 4: {32: 16, 64: 16}}
BAND_LENGTHS: dict[int, dict[int, int]] = {2: {32: 128, 64: 128, 128: 64}, 4: {}}
"""The longest sequences whose gradients come from bands, by bytes of a number and width of a head. With more
keys, or in float32, the kernel spills registers or has too little shared memory."""
BAND_TILES = {16: (16, 2), 32: (32, 4), 64: (16, 4), 128: (16, 8)}
"""BLOCK_M and the number of warps of the kernel of bands, by BLOCK_N."""


def launch_options(
    kernel: object,
    dtype: torch.dtype,
    head_width: int,
    max_length: int,
    is_amd: bool = bool(torch.version.hip),
) -> dict[str, int]:
    """Tile and number of warps of a kernel (a warp has 32 threads on NVIDIA, 64 on AMD).

    Triton lays the warps of a product side by side, and each takes 8 columns. So BLOCK / 8 warps fill a tile,
    and further ones repeat work. Kernels whose registers do not suffice get more warps all the same.
    """
    block = 16 if max_length <= 16 else BLOCKS[dtype.itemsize][head_width]
    needs_registers = dtype.itemsize == 4 or kernel is distances_kernel
    num_warps = 4 if is_amd else block // (4 if needs_registers else 8)
    return {"BLOCK": block, "num_warps": num_warps, "num_stages": 1}


def uses_bands(dtype: torch.dtype, head_width: int, max_length: int) -> bool:
    """Whether the backward pass reads position terms from bands. Nothing else decides it."""
    return max_length <= BAND_LENGTHS[dtype.itemsize].get(head_width, 0)


def band_options(max_length: int, is_amd: bool = bool(torch.version.hip)) -> dict[str, int]:
    """Tile and number of warps of the kernel of bands."""
    block_n = max(16, triton.next_power_of_2(max_length))
    block_m, num_warps = BAND_TILES[block_n]
    return {
        "BLOCK_M": block_m, "BLOCK_N": block_n, "num_warps": min(num_warps, 4) if is_amd else num_warps,
        "num_stages": 1,
    }  # fmt: skip


Arguments = dict[str, Tensor | float | str]
"""Arguments of kernels by name."""


def _scale(head_width: int) -> float:
    return 1 / math.sqrt(3 * head_width)


def _shared_arguments(
    qkv_THXE: Tensor, max_length: int, cu_seqlens: Tensor, seed: Tensor, dropout_p: float
) -> Arguments:
    """The arguments that all kernels share. What a projection returns is read in place, other layouts are
    copied."""
    num_tokens, num_heads, _, head_width = qkv_THXE.shape
    return {
        "qkv_ptr": qkv_THXE.contiguous(), "cu_seqlens_ptr": cu_seqlens, "seed_ptr": seed, "T": num_tokens,
        "max_length": max_length, "scale": _scale(head_width), "dropout_p": dropout_p,
        "HAS_DROPOUT": dropout_p > 0, "H": num_heads, "E": head_width,
        "PRECISION": "tf32x3" if qkv_THXE.is_cuda and not torch.version.hip else "ieee",
    }  # fmt: skip


def _tables(rel_k_RHE: Tensor, rel_q_RHE: Tensor) -> Arguments:
    return {"rel_k_ptr": rel_k_RHE.contiguous(), "rel_q_ptr": rel_q_RHE.contiguous()}


@torch.library.custom_op("kernels::attention_forward", mutates_args=())
def _forward(
    qkv_THXE: Tensor,
    rel_k_RHE: Tensor,
    rel_q_RHE: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    """Output (T, H, E) and the logarithms of the softmax's denominators (H, T)."""
    num_tokens, num_heads, _, head_width = qkv_THXE.shape
    max_length = len(rel_k_RHE) // 2
    out_THE = torch.empty(num_tokens, num_heads, head_width, dtype=qkv_THXE.dtype, device=qkv_THXE.device)
    lse_HT = torch.empty(num_heads, num_tokens, dtype=torch.float32, device=qkv_THXE.device)
    shared = _shared_arguments(qkv_THXE, max_length, cu_seqlens, seed, dropout_p)
    shared |= _tables(rel_k_RHE, rel_q_RHE)
    options = launch_options(forward_kernel, qkv_THXE.dtype, head_width, max_length)
    grid = (len(cu_seqlens) - 1, triton.cdiv(max_length, options["BLOCK"]), num_heads)
    with torch.cuda.device_of(qkv_THXE):  # Triton launches on the current device
        forward_kernel[grid](**shared, out_ptr=out_THE, lse_ptr=lse_HT, **options)
    return out_THE, lse_HT


@_forward.register_fake
def _forward_shapes(qkv_THXE: Tensor, *_unused: object) -> tuple[Tensor, Tensor]:
    num_tokens, num_heads, _, head_width = qkv_THXE.shape
    out_THE = qkv_THXE.new_empty(num_tokens, num_heads, head_width)
    return out_THE, qkv_THXE.new_empty(num_heads, num_tokens, dtype=torch.float32)


@torch.library.custom_op("kernels::attention_backward", mutates_args=())
def _backward(
    d_out_THE: Tensor,
    out_THE: Tensor,
    lse_HT: Tensor,
    qkv_THXE: Tensor,
    rel_k_RHE: Tensor,
    rel_q_RHE: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of qkv, rel_k, rel_q."""
    max_length, num_sequences = len(rel_k_RHE) // 2, len(cu_seqlens) - 1
    shared = _shared_arguments(qkv_THXE, max_length, cu_seqlens, seed, dropout_p)
    shared |= {"d_out_ptr": d_out_THE.contiguous(), "lse_ptr": lse_HT}
    d_qkv_THXE = torch.empty(qkv_THXE.shape, dtype=qkv_THXE.dtype, device=qkv_THXE.device)
    with torch.cuda.device_of(qkv_THXE):
        if uses_bands(qkv_THXE.dtype, qkv_THXE.shape[-1], max_length):
            tables = _backward_by_bands_(d_qkv_THXE, shared, num_sequences, qkv_THXE, rel_k_RHE, rel_q_RHE)
        else:
            shared |= {**_tables(rel_k_RHE, rel_q_RHE), "delta_ptr": torch.empty_like(lse_HT)}
            tables = _backward_by_tiles_(d_qkv_THXE, shared, num_sequences, out_THE, rel_k_RHE)
    return d_qkv_THXE, *tables


def _backward_by_tiles_(
    d_qkv_THXE: Tensor, shared: Arguments, num_sequences: int, out_THE: Tensor, rel_k_RHE: Tensor
) -> tuple[Tensor, Tensor]:
    """Write the gradient of qkv, and return those of the tables, which have the shape of `rel_k_RHE`."""
    num_distances, num_heads, head_width = rel_k_RHE.shape
    max_length = num_distances // 2
    query_options, key_options, distance_options = (
        launch_options(kernel, rel_k_RHE.dtype, head_width, max_length)
        for kernel in (queries_kernel, keys_kernel, distances_kernel)
    )
    num_distance_blocks = 2 * triton.cdiv(max_length, distance_options["BLOCK"])
    num_parts = min(num_sequences, triton.cdiv(NUM_PROGRAMS, num_distance_blocks * num_heads))
    d_rel_k_PRHE, d_rel_q_PRHE = (
        torch.empty(num_parts, *rel_k_RHE.shape, dtype=torch.float32, device=rel_k_RHE.device)
        for _ in range(2)
    )
    queries_kernel[(num_sequences, triton.cdiv(max_length, query_options["BLOCK"]), num_heads)](
        **shared, out_ptr=out_THE, d_qkv_ptr=d_qkv_THXE, **query_options
    )
    keys_kernel[(num_sequences, triton.cdiv(max_length, key_options["BLOCK"]), num_heads)](
        **shared, d_qkv_ptr=d_qkv_THXE, **key_options
    )
    shared["PRECISION"] = "ieee"  # for float32, whose three tf32 products spill in this kernel
    distances_kernel[(num_distance_blocks, num_parts, num_heads)](
        **shared, d_rel_k_ptr=d_rel_k_PRHE, d_rel_q_ptr=d_rel_q_PRHE, B=num_sequences, **distance_options
    )
    d_rel_k_RHE, d_rel_q_RHE = (x.sum(0).to(rel_k_RHE.dtype) for x in (d_rel_k_PRHE, d_rel_q_PRHE))
    return d_rel_k_RHE, d_rel_q_RHE


def _backward_by_bands_(
    d_qkv_THXE: Tensor,
    shared: Arguments,
    num_sequences: int,
    qkv_THXE: Tensor,
    rel_k_RHE: Tensor,
    rel_q_RHE: Tensor,
) -> tuple[Tensor, Tensor]:
    """Write the gradient of qkv, and return those of the tables.

    The products write into given tensors. So autocast does not change their dtype.
    """
    num_distances, num_heads, head_width = rel_k_RHE.shape
    options = band_options(num_distances // 2)
    bands = torch.empty(
        4, num_heads, len(qkv_THXE), 2 * options["BLOCK_N"], dtype=rel_k_RHE.dtype, device=rel_k_RHE.device
    )
    q_HTE, k_HTE, _ = qkv_THXE.permute(2, 1, 0, 3)
    terms = (q_HTE, rel_k_RHE.transpose(0, 1)), (k_HTE, rel_q_RHE.transpose(0, 1))
    for (x_HTE, rel_HRE), band_HTW in zip(terms, bands, strict=False):
        torch.bmm(x_HTE, rel_HRE.mT, out=band_HTW[..., :num_distances])
    names = ("c2p_ptr", "p2c_ptr", "d_c2p_ptr", "d_p2c_ptr")
    band_kernel[(num_sequences, num_heads)](
        **shared, d_qkv_ptr=d_qkv_THXE, **dict(zip(names, bands, strict=True)), **options
    )
    d_rel_k_RHE, d_rel_q_RHE = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (rel_k_RHE, rel_q_RHE)
    )
    d_q_HTE, d_k_HTE, _ = d_qkv_THXE.permute(2, 1, 0, 3)
    scale = _scale(head_width)
    gradients = (d_q_HTE, d_rel_k_RHE), (d_k_HTE, d_rel_q_RHE)
    for (x_HTE, rel_HRE), d_band_HTR, (d_x_HTE, d_rel_RHE) in zip(
        terms, bands[2:, ..., :num_distances], gradients, strict=True
    ):
        d_x_HTE.baddbmm_(d_band_HTR, rel_HRE, alpha=scale)
        torch.baddbmm(rel_HRE, d_band_HTR.mT, x_HTE, beta=0, alpha=scale, out=d_rel_RHE.transpose(0, 1))
    return d_rel_k_RHE, d_rel_q_RHE


@_backward.register_fake
def _backward_shapes(
    d_out_THE: Tensor, out_THE: Tensor, lse_HT: Tensor, qkv_THXE: Tensor, rel_k_RHE: Tensor, *_unused: object
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (qkv_THXE, rel_k_RHE, rel_k_RHE))


def _save(ctx: Any, inputs: tuple[object, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.dropout_p = inputs
    ctx.save_for_backward(*output, *tensors)


def _gradients(ctx: Any, d_out_THE: Tensor, _d_lse: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(d_out_THE, *ctx.saved_tensors, ctx.dropout_p), None, None, None


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
    """The same as `reference.disentangled_attention`.

    The dropout's seed is drawn on the device, so that the host does not wait for it.
    """
    seed = draw_seed(qkv_THXE.device) if dropout_p else cu_seqlens[:1]
    out_THE, _ = _forward(qkv_THXE, rel_k_RHE, rel_q_RHE, cu_seqlens, seed, dropout_p)
    return out_THE


def draw_seed(device: torch.device) -> Tensor:
    """The seed (1,) of a call's dropout, from torch's generator."""
    return torch.randint(2**63 - 1, (1,), device=device)
