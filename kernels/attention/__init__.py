"""Disentangled attention (DeBERTa v1) on flat sequences, which lie one after another without padding."""

from kernels.attention.attend import allow_compiling, disentangled_attention, pads_sequences

__all__ = ["allow_compiling", "disentangled_attention", "pads_sequences"]
