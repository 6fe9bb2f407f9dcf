"""The CPU solver: it compiles `descent.c` with the system's C compiler at first use, and calls it.

A compiled library is kept in the user's cache directory. Its name has a digest of the source, the flags, the
compiler and the processor, so it is never used where it does not fit, and a digest of its own content, so a
damaged file is never loaded: loading one could end the process. No wheel has to be built. Where there is no
compiler, `obstacle` says so, and "auto" takes FISTA.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from kernels.lasso.reference import gram

SOURCE = Path(__file__).with_name("descent.c")

# Not -ffast-math: it would switch the whole process to flushing denormals when the library is loaded. The
# flags of the second line let the compiler vectorise maxima.
COMMON_FLAGS = (
    *("-O3", "-std=gnu11", "-shared", "-fPIC", "-pthread"),
    *("-ffinite-math-only", "-fno-signed-zeros", "-fno-math-errno"),
)
FLAGS_TO_TRY = (("-march=native",), ("-mcpu=native",), ())
"""Tried in this order until one compiles: some compilers know one spelling, some do not know the
processor."""
TIME_LIMIT_S = 120
"""For one run of the compiler, which takes about a second."""


def obstacle() -> str | None:
    """Why this solver cannot run on this machine, or None. The first call of a process compiles."""
    loaded = load_library()
    return loaded if isinstance(loaded, str) else None


@functools.cache
def load_library(
    find: Callable[[str], str | None] = shutil.which, cache_directory: Path | None = None
) -> ctypes.CDLL | str:
    """The compiled solver, or the reason why there is none."""
    compiler = next(filter(None, map(find, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")))), None)
    if compiler is None:
        return "no C compiler (cc, gcc or clang) on this machine"
    try:
        library = _load_or_compile(compiler, cache_directory or default_cache_directory())
    except subprocess.TimeoutExpired:
        return f"{compiler} did not answer within {TIME_LIMIT_S} s"
    except (OSError, subprocess.CalledProcessError) as error:
        message = getattr(error, "stderr", b"").decode(errors="replace").strip() or str(error)
        return f"{compiler} could not compile {SOURCE.name}: {message.splitlines()[0]}"
    pointer, integer, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    library.nonneg_lasso_descent.argtypes = [
        pointer, pointer, pointer, pointer, real, integer, ctypes.c_int, integer, integer, integer,
        pointer, pointer, pointer,
    ]  # fmt: skip
    library.nonneg_lasso_descent.restype = ctypes.c_int
    return library


def default_cache_directory() -> Path | None:
    """A directory of this user, because one that others can write to could hold code of others. None where it
    cannot be written to."""
    try:
        directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlsm-kernels"
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: this user has no home
        return None
    return directory if os.access(directory, os.W_OK) else None


def _load_or_compile(compiler: str, cache: Path | None) -> ctypes.CDLL:
    """The library from the cache, or compiled and then kept there. Without a cache nothing is left on the
    disk.

    Several processes may compile at once: each works in a folder of its own and moves a whole file into the
    cache at the end.
    """
    version = _run(compiler, "--version").stdout
    identity = _digest(
        repr((SOURCE.read_bytes(), COMMON_FLAGS, FLAGS_TO_TRY, version, _processor())).encode()
    )
    for path in cache.glob(f"lasso-{identity}-*.so") if cache else ():
        if path.stem.endswith(_digest(path.read_bytes())):
            return ctypes.CDLL(str(path))
        path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="mlsm-kernels-", dir=cache) as folder:
        built = Path(folder) / "lasso.so"
        for flags in FLAGS_TO_TRY:
            arguments = (*COMMON_FLAGS, *flags, str(SOURCE), "-o", str(built), "-lm")
            if _run(compiler, *arguments, check=flags == FLAGS_TO_TRY[-1]).returncode == 0:
                break
        # In a process of its own first: loading a file that is no library can end the process.
        program = "import ctypes, sys; ctypes.CDLL(sys.argv[1]).nonneg_lasso_descent"
        if _run(sys.executable, "-I", "-c", program, str(built), check=False).returncode != 0:
            raise OSError("what it wrote cannot be loaded")
        library = ctypes.CDLL(str(built))
        if cache:
            with built.open("rb+") as file:
                os.fsync(file.fileno())
                name = f"lasso-{identity}-{_digest(file.read())}.so"
            built.replace(cache / name)
    return library


def _run(*command: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    """Run a command, and end it with all its children after TIME_LIMIT_S."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=TIME_LIMIT_S)
        except BaseException:  # Ctrl-C too
            os.killpg(process.pid, signal.SIGKILL)
            raise
    done = subprocess.CompletedProcess(command, process.returncode, output, errors)
    if check:
        done.check_returncode()
    return done


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:20]


def _processor() -> str:
    """What -march=native depends on. A home directory may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    known = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return " ".join(sorted(set(known))) or platform.machine()


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
