"""The CPU solver: compiles `descent.c` with the system's C compiler at first use, and calls it.

A compiled file is kept in the user's cache directory under a name made of the source, the flags, the compiler
and the processor, so it is compiled once (about a second) and never reused where it does not fit. No wheel to
build, no package to install; a machine without a compiler says so and falls back to the reference.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from kernels.lasso.reference import gram

SOURCE = Path(__file__).with_name("descent.c")

# Not -ffast-math: it would switch the whole process to flushing denormals when the library is loaded. These
# let maxima be vectorised; the door has refused NaN and infinity.
COMMON_FLAGS = (
    *("-O3", "-std=gnu11", "-shared", "-fPIC", "-pthread"),
    *("-ffinite-math-only", "-fno-signed-zeros", "-fno-math-errno"),
)
FLAGS_TO_TRY = (("-march=native",), ("-mcpu=native",), ())
"""In this order until one compiles: not every compiler knows its own processor, or calls it so."""


def obstacle() -> str | None:
    """Why this solver cannot run on this machine, or None. Compiles at the first call of the process."""
    loaded = load_library()
    return loaded if isinstance(loaded, str) else None


@functools.cache
def load_library(
    find: Callable[[str], str | None] = shutil.which, cache_directory: Path | None = None
) -> ctypes.CDLL | str:
    """The compiled solver, or why there is none."""
    compiler = next(filter(None, map(find, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")))), None)
    if compiler is None:
        return "no C compiler (cc, gcc or clang) on this machine"
    try:
        library = ctypes.CDLL(str(compile_cached(compiler, cache_directory or default_cache_directory())))
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return f"{compiler} could not compile {SOURCE.name}: {said.strip().splitlines()[0]}"
    pointer, integer, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    library.nonneg_lasso_descent.argtypes = [
        pointer, pointer, pointer, pointer, real, integer, ctypes.c_int, integer, integer, integer,
        pointer, pointer, pointer,
    ]  # fmt: skip
    library.nonneg_lasso_descent.restype = ctypes.c_int
    return library


def default_cache_directory() -> Path:
    """Of this user alone. Where there is no writable home, a fresh directory: a shared one could hold
    another's code."""
    directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlsm-kernels"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="mlsm-kernels-"))
    return directory if os.access(directory, os.W_OK) else Path(tempfile.mkdtemp(prefix="mlsm-kernels-"))


def compile_cached(compiler: str, directory: Path) -> Path:
    """Path of the compiled library. Safe when several processes get here at once: each compiles to a name of
    its own and renames it, which replaces equal by equal."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    identity = repr((SOURCE.read_text(), COMMON_FLAGS, FLAGS_TO_TRY, version, _processor()))
    path = directory / f"lasso-{hashlib.sha256(identity.encode()).hexdigest()[:20]}.so"
    if path.exists():
        return path
    with tempfile.TemporaryDirectory(dir=directory) as workshop:
        made = Path(workshop) / path.name
        for flags in FLAGS_TO_TRY:
            command = [compiler, *COMMON_FLAGS, *flags, str(SOURCE), "-o", str(made), "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, check=flags == FLAGS_TO_TRY[-1])
            if done.returncode == 0:
                break
        os.replace(made, path)
    return path


def _processor() -> str:
    """What -march=native depends on; a home directory may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    told = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return " ".join(sorted(set(told))) or platform.machine()


def nonneg_descent(
    signals_ND: Tensor,
    dictionary_DK: Tensor,
    lam_N: Tensor,
    tol: float,
    gram_KK: Tensor | None,
    max_updates: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, gaps and numbers of coordinate updates, in float32 on the CPU. Scratch memory does not grow with
    N."""
    library = load_library()
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
