"""`disentangled_attention` (DeBERTa v1): it checks the arguments and runs the implementation that fits.

Sequences of different lengths lie one after another in flat tensors, without padding.

Legend: T tokens of all sequences, B sequences, H heads, X = 3: query, key and value, E width of a head,
R = 2 max_length relative distances (row r is distance r - max_length).
"""

import torch
from torch import Tensor

from kernels.attention.fused_cpu import disentangled_attention as fused_attention
from kernels.attention.fused_cpu import obstacle as why_not_in_c
from kernels.attention.reference import disentangled_attention as reference_attention
from kernels.attention.strided import disentangled_attention as strided_attention
from kernels.backend import Candidate, choose, triton_obstacle

WIDTHS_FOR_TRITON = {
    torch.float32: (32, 64),
    torch.float16: (32, 64, 128),
    torch.bfloat16: (32, 64, 128),
}
"""Widths of heads whose kernels compile without spills (`tests/kernels/aot_attention.py`)."""
_WITHOUT_TRITON = {
    "c": fused_attention,
    "strided": strided_attention,
    "reference": reference_attention,
}


def disentangled_attention(
    qkv_THXE: Tensor,
    rel_k_RHE: Tensor,
    rel_q_RHE: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    *,
    dropout_p: float = 0.0,
    implementation: str = "auto",
) -> Tensor:
    """Attention whose scores add content-to-position and position-to-content terms (He et al. 2021, eq. 4).

    Returns (T, H, E). Sequence b is the tokens `cu_seqlens[b]` to `cu_seqlens[b + 1]` (B + 1 int32 values
    from 0 to T), none longer than `max_length`, none empty. Scores are (q_i.k_j + q_i.rel_k[i - j] +
    k_j.rel_q[i - j]) / sqrt(3 E). Dropout draws from torch's generator, differently in each implementation.
    Raises ValueError on shapes that do not fit together, on a dropout_p outside [0, 1), and on an
    implementation that is unknown or cannot run here."""
    if qkv_THXE.ndim != 4 or qkv_THXE.shape[2] != 3:
        raise ValueError(f"qkv must be (tokens, heads, 3, width of a head), got {tuple(qkv_THXE.shape)}")
    num_tokens, num_heads, _, head_width = qkv_THXE.shape
    table_shape = (2 * max_length, num_heads, head_width)
    if rel_k_RHE.shape != table_shape or rel_q_RHE.shape != table_shape:
        raise ValueError(
            f"rel_k, rel_q must be {table_shape}, got {tuple(rel_k_RHE.shape)}, {tuple(rel_q_RHE.shape)}"
        )
    if cu_seqlens.ndim != 1 or not 1 < len(cu_seqlens) <= num_tokens + 1:
        raise ValueError(f"cu_seqlens must have 2 to {num_tokens + 1} entries, got {tuple(cu_seqlens.shape)}")
    if num_tokens > (len(cu_seqlens) - 1) * max_length:
        raise ValueError(
            f"{num_tokens} tokens in {len(cu_seqlens) - 1} sequences: some are longer than {max_length}"
        )
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p must be at least 0 and less than 1, got {dropout_p}")
    has_kernel = _has_kernel(qkv_THXE.dtype, head_width)
    name = _choice(implementation, qkv_THXE.device, qkv_THXE.dtype, has_kernel)
    if name == "triton":
        # Imported here, so that a machine without triton can import this module.
        from kernels.attention.fused_triton import disentangled_attention as attend
    else:
        attend = _WITHOUT_TRITON[name]
    return attend(qkv_THXE, rel_k_RHE, rel_q_RHE, cu_seqlens, max_length, dropout_p=dropout_p)


def pads_sequences(device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    """Whether the implementation that "auto" runs computes sequences as if all were as long as the
    longest.
    """
    return _choice("auto", device, dtype, _has_kernel(dtype, head_width)) == "strided"


def allow_compiling() -> None:
    """Let torch.compile trace `disentangled_attention`: the compiler must not trace the choice of an
    implementation, and guards on all arguments of that choice. This is not done at import, because it imports
    the compiler, which takes a second.
    """
    torch.compiler.assume_constant_result(_choice)


def _has_kernel(dtype: torch.dtype, head_width: int) -> bool:
    # any() and not "in", which a compiler with symbolic widths would leave undecided.
    return any(width == head_width for width in WIDTHS_FOR_TRITON.get(dtype, ()))


def _choice(wanted: str, device: torch.device, dtype: torch.dtype, has_kernel: bool) -> str:
    """The name of the implementation to run."""

    def obstacle() -> str | None:
        if not has_kernel:
            return f"it is for {dtype} heads of width {WIDTHS_FOR_TRITON.get(dtype, 'none')}"
        return triton_obstacle(device)

    def obstacle_to_c() -> str | None:
        if device.type != "cpu" or dtype != torch.float32:
            return f"it is for float32 on a CPU, not {dtype} on {device}"
        return why_not_in_c()

    triton = Candidate("triton", "fused, nothing of size L x L in memory", obstacle)
    in_c = Candidate(
        "c", "fused, without padding, the fastest on a CPU", obstacle_to_c, expected=dtype != torch.float32
    )
    strided = Candidate("strided", "reads the position terms as diagonals, runs anywhere", lambda: None)
    reference = Candidate("reference", "the definition", lambda: None)
    if device.type == "cuda":
        candidates = [triton, strided, reference, in_c]
    else:
        candidates = [in_c, strided, reference, triton]
    return choose("disentangled_attention", candidates, wanted)
