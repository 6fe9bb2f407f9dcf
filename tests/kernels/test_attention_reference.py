"""The definition of disentangled attention, against its formula written out for each pair of tokens."""

import math

import torch
from attention_problems import arguments, layout

from kernels.attention.reference import disentangled_attention


def test_equals_the_formula_token_by_token() -> None:
    lengths, num_heads, head_width = [4, 1, 3], 2, 5
    qkv, rel_k, rel_q = arguments(num_heads, head_width, lengths, torch.float64)
    cu_seqlens, max_length = layout(lengths)
    out_THE = disentangled_attention(qkv, rel_k, rel_q, cu_seqlens, max_length)
    q, k, v = qkv.unbind(2)
    for first, length in zip(cu_seqlens.tolist(), lengths, strict=False):
        tokens = range(first, first + length)
        for head in range(num_heads):
            for i in tokens:
                exponentials = []
                for j in tokens:
                    row = i - j + max_length
                    score = q[i, head] @ (k[j, head] + rel_k[row, head]) + k[j, head] @ rel_q[row, head]
                    exponentials.append(math.exp(float(score) / math.sqrt(3 * head_width)))
                expected_E = sum(e * v[j, head] for e, j in zip(exponentials, tokens, strict=True))
                torch.testing.assert_close(out_THE[i, head], expected_E / sum(exponentials))
