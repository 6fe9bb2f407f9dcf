"""The door to disentangled attention (DeBERTa v1): checks the arguments, then runs the implementation that
fits.

Legend: B sequences, H heads, L positions, E width of a head, R = 2 L relative distances (row r is distance r
- L).
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
    q_BHLE: Tensor,
    k_BHLE: Tensor,
    v_BHLE: Tensor,
    rel_k_HRE: Tensor,
    rel_q_HRE: Tensor,
    lengths_B: Tensor,
    *,
    dropout_p: float = 0.0,
    implementation: str = "auto",
) -> Tensor:
    """Attention whose scores add content-to-position and position-to-content terms (He et al. 2021, eq. 4).

    Scores are (q_i.k_j + q_i.rel_k[i - j + L] + k_j.rel_q[i - j + L]) / sqrt(3 E); keys at or beyond a
    sequence's length are ignored, and rows of queries beyond it carry no meaning. Dropout draws from torch's
    generator. Returns (B, H, L, E). Raises ValueError on shapes that do not fit together and on an unknown
    implementation.
    """
    num_sequences, num_heads, num_positions, head_width = q_BHLE.shape
    table_shape = (num_heads, 2 * num_positions, head_width)
    if k_BHLE.shape != q_BHLE.shape or v_BHLE.shape != q_BHLE.shape:
        raise ValueError(f"q, k, v must share a shape, got {q_BHLE.shape}, {k_BHLE.shape}, {v_BHLE.shape}")
    if rel_k_HRE.shape != table_shape or rel_q_HRE.shape != table_shape:
        raise ValueError(f"rel_k, rel_q must be {table_shape}, got {rel_k_HRE.shape}, {rel_q_HRE.shape}")
    if lengths_B.shape != (num_sequences,):
        raise ValueError(f"lengths must be ({num_sequences},), got {tuple(lengths_B.shape)}")
    attend = IMPLEMENTATIONS[choose("disentangled_attention", _CANDIDATES, implementation)]
    return attend(q_BHLE, k_BHLE, v_BHLE, rel_k_HRE, rel_q_HRE, lengths_B, dropout_p=dropout_p)
