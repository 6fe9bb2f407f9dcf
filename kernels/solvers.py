"""The names of the solvers of the sparse coder, for command lines: this file does not import PyTorch."""

MAX_STEPS = {"fista": 20_000, "descent": 10_000_000, "triton": 1_000_000}
"""Default limit per signal, in the unit of `LassoResult.steps_N`."""
SOLVERS = ("auto", *MAX_STEPS)
