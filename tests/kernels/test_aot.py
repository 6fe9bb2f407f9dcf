"""Every Triton kernel compiles for every target, without spills and within its shared memory."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
HERE = Path(__file__).parent


@pytest.mark.parametrize("specifications", sorted(path.name for path in HERE.glob("aot_*.py")))
def test_kernels_compile_for_every_target(specifications):
    # In a process of its own, because this one interprets kernels.
    command = [sys.executable, str(HERE / "aot.py"), str(HERE / specifications)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 problems" in done.stdout
