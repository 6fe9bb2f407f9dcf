"""The CPU solver: `descent.c`, compiled at first use. Where there is no compiler, `obstacle` says so, and
"auto" takes FISTA.
"""

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from kernels.c_library import load_library
from kernels.lasso.reference import gram

SOURCE = Path(__file__).with_name("descent.c")
FLAGS = ("-ffinite-math-only", "-fno-signed-zeros")  # with which the compiler vectorises maxima


def obstacle() -> str | None:
    """Why this solver cannot run on this machine, or None. The first call of a process compiles."""
    loaded = _library()
    return loaded if isinstance(loaded, str) else None


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The compiled solver, or the reason why there is none."""
    pointer, integer, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    arguments = [
        pointer, pointer, pointer, pointer, real, integer, ctypes.c_int, integer, integer, integer,
        pointer, pointer, pointer,
    ]  # fmt: skip
    return load_library(SOURCE, {"nonneg_lasso_descent": arguments}, FLAGS)


def nonneg_descent(
    signals_ND: Tensor,
    dictionary_DK: Tensor,
    lam_N: Tensor,
    tol: float,
    gram_KK: Tensor | None,
    max_updates: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, gaps and numbers of coordinate updates, in float32 on the CPU.

    Scratch memory does not grow with N. A gap is NaN where an argument holds NaN or infinity.
    """
    library = _library()
    if isinstance(library, str):
        raise RuntimeError(library)
    signals_ND, dictionary_DK, lam_N = signals_ND.contiguous(), dictionary_DK.contiguous(), lam_N.contiguous()
    gram_KK = gram(dictionary_DK) if gram_KK is None else gram_KK.contiguous()
    num_signals, width = signals_ND.shape
    num_atoms = dictionary_DK.shape[1]
    codes_NK = torch.empty(num_signals, num_atoms)
    gap_N = torch.empty(num_signals)
    steps_N = torch.empty(num_signals, dtype=torch.int32)
    failed = library.nonneg_lasso_descent(
        signals_ND.data_ptr(), dictionary_DK.data_ptr(), gram_KK.data_ptr(), lam_N.data_ptr(),
        tol, max_updates, torch.get_num_threads(), num_signals, width, num_atoms,
        codes_NK.data_ptr(), gap_N.data_ptr(), steps_N.data_ptr(),
    )  # fmt: skip
    if failed:
        raise MemoryError(f"the coder's working set did not fit the memory ({num_atoms} atoms)")
    return codes_NK, gap_N, steps_N
