"""The circumstances of a measurement: machine, versions, commit, load and command."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "triton", "numpy", "spams-bin", "scikit-learn", "transformers", "minicons", "sae-lens")


def circumstances(command: str) -> str:
    """A Markdown list of machine, versions, commit, load and command."""
    if policy := os.environ.get("OMP_WAIT_POLICY"):
        # "passive": threads that wait do not spin, which matters where other work runs.
        command = f"OMP_WAIT_POLICY={policy} {command}"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    installed = {item.name: item.version for item in importlib.metadata.distributions()}
    versions = ", ".join(f"{name} {installed[name]}" for name in PACKAGES if name in installed)
    return f"""- {_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; {device}
- Python {platform.python_version()}, {versions}
- commit {_commit()}; load of the last minute {os.getloadavg()[0]:.1f}
- `{command}`"""


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    """The commit that is checked out, and whether files outside results/ differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(REPOSITORY), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ":/", ":!results")
        return git("rev-parse", "--short=12", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
