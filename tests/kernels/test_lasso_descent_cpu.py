"""The solver in C: hard problems, independence of the batch, and how its library is compiled and kept."""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from lasso_problems import check_contract, common_direction, gaussian, relative_gap, uneven_atoms

from kernels.lasso import descent_cpu, nonneg_lasso

quick = hypothesis.settings(derandomize=True, max_examples=30, deadline=None, database=None)


def test_a_support_larger_than_the_first_working_set():
    generator = torch.Generator().manual_seed(0)
    dictionary_DK = torch.nn.functional.normalize(torch.randn(700, 900, generator=generator), dim=0)
    signals_ND = torch.nn.functional.normalize(torch.rand(2, 900, generator=generator) @ dictionary_DK.mT)
    result = nonneg_lasso(signals_ND, dictionary_DK, 1e-3, solver="descent")
    assert (result.codes_NK > 0).sum(1).min() > first_capacity()
    check_contract(signals_ND, dictionary_DK, result, 1e-3, 1e-3)


def first_capacity() -> int:
    line = next(line for line in descent_cpu.SOURCE.read_text().splitlines() if "ATOMS_AT_FIRST" in line)
    return int(line.split()[2])


def test_atoms_that_are_nearly_one_atom():
    """Without Newton steps this takes four times the updates."""
    generator = torch.Generator().manual_seed(0)
    dictionary_DK = torch.nn.functional.normalize(1 + 0.05 * torch.randn(64, 500, generator=generator), dim=0)
    signals_ND = torch.nn.functional.normalize(torch.rand(20, 500, generator=generator) @ dictionary_DK.mT)
    result = nonneg_lasso(signals_ND, dictionary_DK, 0.01, solver="descent")
    check_contract(signals_ND, dictionary_DK, result, 0.01, 1e-3)
    assert result.steps_N.max() < 4000


def test_more_atoms_than_any_array_was_made_for():
    signals_ND, dictionary_DK = gaussian(4, 12, 5003)
    result = nonneg_lasso(signals_ND, dictionary_DK, 0.1, solver="descent")
    check_contract(signals_ND, dictionary_DK, result, 0.1, 1e-3)


@quick
@hypothesis.given(
    num_signals=st.integers(1, 70),
    width=st.integers(1, 40),
    num_atoms=st.integers(1, 120),
    lam=st.floats(0.01, 0.8),
    scale=st.floats(1e-3, 1e3),
    problem=st.sampled_from([gaussian, common_direction, uneven_atoms]),
    seed=st.integers(0, 1000),
)
def test_descent_is_certified_on_anything(num_signals, width, num_atoms, lam, scale, problem, seed):
    signals_ND, dictionary_DK = problem(num_signals, width, num_atoms, seed)
    result = nonneg_lasso(signals_ND * scale, dictionary_DK, lam * scale, solver="descent")
    gap_N = relative_gap(signals_ND * scale, dictionary_DK, lam * scale, result.codes_NK)
    assert gap_N.max() <= 1e-3


@quick
@hypothesis.given(
    num_signals=st.integers(2, 150), width=st.integers(1, 40), num_atoms=st.integers(1, 120), data=st.data()
)
def test_no_code_depends_on_the_rest_of_the_batch_or_on_threads(num_signals, width, num_atoms, data):
    signals_ND, dictionary_DK = gaussian(num_signals, width, num_atoms)
    together = nonneg_lasso(signals_ND, dictionary_DK, 0.1, solver="descent")
    some = data.draw(st.lists(st.integers(0, num_signals - 1), min_size=1, max_size=6))
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(data.draw(st.integers(1, 3)))
        apart = nonneg_lasso(signals_ND[some], dictionary_DK, 0.1, solver="descent")
    finally:
        torch.set_num_threads(num_threads)
    for whole, part in zip(together, apart, strict=True):
        assert torch.equal(whole[some], part)


def test_a_gram_matrix_that_is_no_number_is_refused():
    signals_ND, dictionary_DK = gaussian(3, 8, 20)
    gram_KK = torch.full((20, 20), float("nan"))
    with pytest.raises(ValueError, match="the Gram matrix holds NaN or infinity"):
        nonneg_lasso(signals_ND, dictionary_DK, 0.05, solver="descent", gram_KK=gram_KK)


def test_one_update_moves_one_atom():
    signals_ND, dictionary_DK = gaussian(3, 16, 50)
    result = nonneg_lasso(signals_ND, dictionary_DK, 0.05, solver="descent", max_steps=1)
    assert ((result.codes_NK > 0).sum(1) == 1).all()
    assert (result.steps_N == 1).all()


LOAD = """
import pathlib, shutil, sys
from kernels.lasso.descent_cpu import load_library
assert not isinstance(load_library(shutil.which, pathlib.Path(sys.argv[1])), str)
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


def load_with(compiler: Path, cache: Path) -> object:
    cache.mkdir(exist_ok=True)
    return descent_cpu.load_library.__wrapped__(lambda name: str(compiler), cache)


@pytest.mark.parametrize("num_bytes", [0, 100, 3000])
def test_a_damaged_library_in_the_cache_is_compiled_again(num_bytes, tmp_path):
    """Each load is a process of its own, since loading a file that is cut short ends a process."""
    load = [sys.executable, "-c", LOAD, str(tmp_path)]
    subprocess.run(load, check=True)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:num_bytes])
    subprocess.run(load, check=True)
    (again,) = tmp_path.iterdir()
    assert again.read_bytes()[:4] == b"\x7fELF"
    assert again.stat().st_size == len(content)


@pytest.mark.parametrize(
    "on_compile", ["echo junk > $OUT", '$CC "$@" && truncate -s 3000 $OUT', "touch $OUT", ":"]
)
def test_a_compiler_that_writes_no_library_leaves_nothing(on_compile, tmp_path):
    reason = load_with(fake_compiler(tmp_path, "echo 1", on_compile), tmp_path / "cache")
    assert isinstance(reason, str)
    assert "could not compile descent.c: what it wrote cannot be loaded" in reason
    assert not list((tmp_path / "cache").iterdir())


def test_a_version_that_is_not_utf8(tmp_path):
    compiler = fake_compiler(tmp_path, r"printf 'caf\351\n'", '$CC "$@"')
    assert not isinstance(load_with(compiler, tmp_path / "cache"), str)


def test_a_compiler_that_fails_is_an_obstacle_with_its_message(tmp_path):
    compiler = fake_compiler(tmp_path, "echo 1", r"printf 'no such target caf\351\n' >&2; exit 1")
    reason = load_with(compiler, tmp_path / "cache")
    assert isinstance(reason, str)
    assert "could not compile descent.c: no such target caf" in reason


@pytest.mark.parametrize("hangs", ["on_version", "on_compile"])
def test_a_compiler_that_hangs_is_ended_with_its_children(hangs, tmp_path, monkeypatch):
    monkeypatch.setattr(descent_cpu, "TIME_LIMIT_S", 1)
    commands = {"on_version": "echo 1", "on_compile": ":"}
    commands[hangs] = f"sleep 600 & echo $! > {tmp_path}/child; wait"
    reason = load_with(fake_compiler(tmp_path, **commands), tmp_path / "cache")
    assert isinstance(reason, str)
    assert "did not answer within 1 s" in reason
    command_line = Path("/proc", (tmp_path / "child").read_text().strip(), "cmdline")
    for _ in range(100):
        if not command_line.exists() or not command_line.read_bytes():  # gone, or waits for its parent
            return
        time.sleep(0.1)
    pytest.fail("the compiler's child still runs")


def test_two_processes_may_compile_at_once(tmp_path):
    running = [subprocess.Popen([sys.executable, "-c", LOAD, str(tmp_path)]) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    assert {path.suffix for path in tmp_path.iterdir()} == {".so"}


def test_without_a_cache_nothing_is_left_on_the_disk(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    assert descent_cpu.default_cache_directory() is None
    assert not isinstance(descent_cpu.load_library.__wrapped__(), str)
    assert not list((tmp_path / "temporary").iterdir())


def test_a_user_without_a_home_has_no_cache(monkeypatch):
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    assert descent_cpu.default_cache_directory() is None
