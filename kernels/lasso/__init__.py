"""The sparse coder: the non-negative lasso, with a duality gap for each signal that certifies its code."""

from kernels.lasso.reference import duality_gap, gram, largest_step
from kernels.lasso.solve import LassoResult, nonneg_lasso
from kernels.solvers import SOLVERS

__all__ = ["SOLVERS", "LassoResult", "duality_gap", "gram", "largest_step", "nonneg_lasso"]
