"""The door to disentangled attention (DeBERTa v1): checks the arguments, then runs the implementation that
fits.

Sequences of different lengths lie one after another in flat tensors, without padding.

Legend: T tokens of all sequences, B sequences, H heads, E width of a head, R = 2 max_length relative
distances (row r is distance r - max_length).
"""

from torch import Tensor

from kernels import attention_reference, attention_strided
from kernels.backend import Candidate, choose

IMPLEMENTATIONS = {
    "reference": attention_reference.disentangled_attention,
    "strided": attention_strided.disentangled_attention,
}
_CANDIDATES = [
    Candidate("strided", "reads the position terms as diagonals, runs anywhere", lambda: None),
    Candidate("reference", "the definition", lambda: None),
]


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
    implementation: str = "auto",
) -> Tensor:
    """Attention whose scores add content-to-position and position-to-content terms (He et al. 2021, eq. 4).

    Sequence b is the tokens `cu_seqlens[b]` to `cu_seqlens[b + 1]` (B + 1 int32 values from 0 to T), none
    longer than `max_length`, none empty. Scores are (q_i.k_j + q_i.rel_k[i - j] + k_j.rel_q[i - j]) /
    sqrt(3 E). Dropout draws from torch's generator. Returns (T, H, E). Raises ValueError on shapes that do
    not fit together and on an unknown implementation.
    """
    num_tokens, num_heads, head_width = q_THE.shape
    table_shape = (num_heads, 2 * max_length, head_width)
    if k_THE.shape != q_THE.shape or v_THE.shape != q_THE.shape:
        raise ValueError(f"q, k, v must share a shape, got {q_THE.shape}, {k_THE.shape}, {v_THE.shape}")
    if rel_k_HRE.shape != table_shape or rel_q_HRE.shape != table_shape:
        raise ValueError(f"rel_k, rel_q must be {table_shape}, got {rel_k_HRE.shape}, {rel_q_HRE.shape}")
    if cu_seqlens.ndim != 1 or not 1 < len(cu_seqlens) <= num_tokens + 1:
        raise ValueError(f"cu_seqlens must have 2 to {num_tokens + 1} entries, got {tuple(cu_seqlens.shape)}")
    if num_tokens > (len(cu_seqlens) - 1) * max_length:
        raise ValueError(
            f"{num_tokens} tokens in {len(cu_seqlens) - 1} sequences: some are longer than {max_length}"
        )
    attend = IMPLEMENTATIONS[choose("disentangled_attention", _CANDIDATES, implementation)]
    return attend(q_THE, k_THE, v_THE, rel_k_HRE, rel_q_HRE, cu_seqlens, max_length, dropout_p=dropout_p)
