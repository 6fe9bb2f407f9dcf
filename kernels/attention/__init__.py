"""Disentangled attention (DeBERTa v1) on flat sequences, which lie one after another without padding."""

from kernels.attention.attend import disentangled_attention

__all__ = ["disentangled_attention"]
