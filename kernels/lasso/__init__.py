"""The sparse coder: non-negative lasso with a certified duality gap for each signal."""

from kernels.lasso.reference import duality_gap, gram, largest_step
from kernels.lasso.solve import SOLVERS, LassoResult, nonneg_lasso

__all__ = ["SOLVERS", "LassoResult", "duality_gap", "gram", "largest_step", "nonneg_lasso"]
