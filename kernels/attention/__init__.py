"""Disentangled attention of DeBERTa v1 on flat sequences."""

from kernels.attention.attend import disentangled_attention

__all__ = ["disentangled_attention"]
