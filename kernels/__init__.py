"""The numerical kernels: they know tensors, not language, files or command lines, and could be published
alone.

Two public doors, `kernels.lasso.nonneg_lasso` and `kernels.attention.disentangled_attention`; behind each
stands a short plain-PyTorch reference that defines what the fast versions must return.
"""
