"""How the operations in C are compiled and kept."""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from kernels import c_library
from kernels.c_library import load_library

FUNCTIONS = {"seven": []}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "seven.c"
    path.write_text("#ifndef SEVEN\n#define SEVEN 7\n#endif\nint seven(void) { return SEVEN; }\n")
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    path = tmp_path / "cache"
    path.mkdir()
    return path


LOAD = """
import sys
from pathlib import Path
from kernels.c_library import load_library
source, cache = map(Path, sys.argv[1:])
assert load_library(source, {"seven": []}, cache_directory=cache).seven() == 7
"""


def fake_compiler(folder: Path, on_version: str, on_compile: str) -> Path:
    """A shell script in the place of a compiler. $CC is the real one, $OUT the file to write."""
    path = folder / "cc"
    path.write_text(
        f"""#!/bin/sh
CC={shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")}
if [ "$1" = --version ]; then {on_version}; exit; fi
for OUT in "$@"; do [ "$previous" = -o ] && break; previous=$OUT; done
{on_compile}
"""
    )
    path.chmod(0o755)
    return path


def load_with(compiler: Path, source: Path, cache: Path) -> object:
    return load_library(source, FUNCTIONS, find=lambda name: str(compiler), cache_directory=cache)


def test_other_flags_are_another_library(source, cache):
    """The second time both come from the cache."""
    for _ in range(2):
        for flags, value in [((), 7), (("-DSEVEN=8",), 8)]:
            assert load_library(source, FUNCTIONS, flags, cache_directory=cache).seven() == value
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("num_bytes", [0, 100, 3000])
def test_a_damaged_library_in_the_cache_is_compiled_again(num_bytes, source, cache):
    """Each load is a process of its own, since loading a file that is cut short ends a process."""
    load = [sys.executable, "-c", LOAD, str(source), str(cache)]
    subprocess.run(load, check=True)
    (path,) = cache.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:num_bytes])
    subprocess.run(load, check=True)
    (again,) = cache.iterdir()
    assert again.read_bytes()[:4] == b"\x7fELF"
    assert again.stat().st_size == len(content)


@pytest.mark.parametrize(
    "on_compile", ["echo junk > $OUT", '$CC "$@" && truncate -s 3000 $OUT', "touch $OUT", ":"]
)
def test_a_compiler_that_writes_no_library_leaves_nothing(on_compile, source, cache, tmp_path):
    reason = load_with(fake_compiler(tmp_path, "echo 1", on_compile), source, cache)
    assert isinstance(reason, str)
    assert "could not compile seven.c: what it wrote cannot be loaded" in reason
    assert not list((cache).iterdir())


def test_a_version_that_is_not_utf8(source, cache, tmp_path):
    compiler = fake_compiler(tmp_path, r"printf 'caf\351\n'", '$CC "$@"')
    assert not isinstance(load_with(compiler, source, cache), str)


def test_a_compiler_that_fails_is_an_obstacle_with_its_message(source, cache, tmp_path):
    compiler = fake_compiler(tmp_path, "echo 1", r"printf 'no such target caf\351\n' >&2; exit 1")
    reason = load_with(compiler, source, cache)
    assert isinstance(reason, str)
    assert "could not compile seven.c: no such target caf" in reason


@pytest.mark.parametrize("hangs", ["on_version", "on_compile"])
def test_a_compiler_that_hangs_is_ended_with_its_children(hangs, source, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(c_library, "TIME_LIMIT_S", 1)
    commands = {"on_version": "echo 1", "on_compile": ":"}
    commands[hangs] = f"sleep 600 & echo $! > {tmp_path}/child; wait"
    reason = load_with(fake_compiler(tmp_path, **commands), source, cache)
    assert isinstance(reason, str)
    assert "did not answer within 1 s" in reason
    command_line = Path("/proc", (tmp_path / "child").read_text().strip(), "cmdline")
    for _ in range(100):
        if not command_line.exists() or not command_line.read_bytes():  # gone, or waits for its parent
            return
        time.sleep(0.1)
    pytest.fail("the compiler's child still runs")


def test_two_processes_may_compile_at_once(source, cache):
    running = [subprocess.Popen([sys.executable, "-c", LOAD, str(source), str(cache)]) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    assert {path.suffix for path in cache.iterdir()} == {".so"}


def test_without_a_cache_nothing_is_left_on_the_disk(source, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    assert c_library.default_cache_directory() is None
    assert not isinstance(load_library(source, FUNCTIONS), str)
    assert not list((tmp_path / "temporary").iterdir())


def test_a_user_without_a_home_has_no_cache(monkeypatch):
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    assert c_library.default_cache_directory() is None
