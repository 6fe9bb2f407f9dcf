"""Numerical kernels for tensors: the sparse coder in `kernels.lasso`, disentangled attention in
`kernels.attention`, the cross-entropy of rows of logits in `kernels.cross_entropy`.

Each operation has a short reference in plain PyTorch, which defines what the fast versions must return.
Nothing here depends on language, files or command lines.
"""
