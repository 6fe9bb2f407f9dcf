"""The operations in C: their source is compiled with the system's C compiler at first use.

A compiled library is kept in the user's cache directory. Its name has a digest of the source, the flags, the
compiler and the processor, so it is never used where it does not fit, and a digest of its own content, so a
damaged file is never loaded: loading one could end the process. No wheel has to be built.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HEADER = Path(__file__).with_name("vectors.h")

# Not -ffast-math: it would switch the whole process to flushing denormals when the library is loaded.
COMMON_FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-pthread", "-fno-math-errno")
FLAGS_TO_TRY = (("-march=native",), ("-mcpu=native",), ())
"""Tried in this order until one compiles: some compilers know one spelling, some do not know the
processor."""
TIME_LIMIT_S = 120
"""For one run of the compiler, which takes some seconds."""


def load_library(
    source: Path,
    functions: Mapping[str, Sequence[Any]],
    flags: Sequence[str] = (),
    find: Callable[[str], str | None] = shutil.which,
    cache_directory: Path | None = None,
) -> ctypes.CDLL | str:
    """The compiled source, or the reason why there is none. `functions` has the types of the arguments of
    each function by its name; each returns an int.
    """
    compiler = next(filter(None, map(find, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")))), None)
    if compiler is None:
        return "no C compiler (cc, gcc or clang) on this machine"
    try:
        cache = cache_directory or default_cache_directory()
        library = _load_or_compile(source, list(functions), flags, compiler, cache)
    except subprocess.TimeoutExpired:
        return f"{compiler} did not answer within {TIME_LIMIT_S} s"
    except (OSError, subprocess.CalledProcessError) as error:
        message = getattr(error, "stderr", b"").decode(errors="replace").strip() or str(error)
        return f"{compiler} could not compile {source.name}: {message.splitlines()[0]}"
    for name, types in functions.items():
        getattr(library, name).argtypes = types
        getattr(library, name).restype = ctypes.c_int
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


def _load_or_compile(
    source: Path, functions: Sequence[str], flags: Sequence[str], compiler: str, cache: Path | None
) -> ctypes.CDLL:
    """The library from the cache, or compiled and then kept there. Without a cache nothing is left on the
    disk.

    Several processes may compile at once: each works in a folder of its own and moves a whole file into the
    cache at the end.
    """
    version = _run(compiler, "--version").stdout
    parts = (
        source.read_bytes(),
        HEADER.read_bytes(),
        COMMON_FLAGS,
        flags,
        FLAGS_TO_TRY,
        version,
        _processor(),
    )
    identity = _digest(repr(parts).encode())
    for path in cache.glob(f"{source.stem}-{identity}-*.so") if cache else ():
        if path.stem.endswith(_digest(path.read_bytes())):
            return ctypes.CDLL(str(path))
        path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="mlsm-kernels-", dir=cache) as folder:
        built = Path(folder) / "library.so"
        for target in FLAGS_TO_TRY:
            arguments = (
                *COMMON_FLAGS,
                f"-I{HEADER.parent}",
                *flags,
                *target,
                str(source),
                "-o",
                str(built),
                "-lm",
            )
            if _run(compiler, *arguments, check=target == FLAGS_TO_TRY[-1]).returncode == 0:
                break
        # In a process of its own first: loading a file that is no library can end the process.
        program = "import ctypes, sys; [getattr(ctypes.CDLL(sys.argv[1]), name) for name in sys.argv[2:]]"
        if _run(sys.executable, "-I", "-c", program, str(built), *functions, check=False).returncode != 0:
            raise OSError("what it wrote cannot be loaded")
        library = ctypes.CDLL(str(built))
        if cache:
            with built.open("rb+") as file:
                os.fsync(file.fileno())
                name = f"{source.stem}-{identity}-{_digest(file.read())}.so"
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
