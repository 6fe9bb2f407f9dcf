"""Results as Markdown: a table, and the circumstances without which a number means nothing."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "triton", "numpy", "spams-bin", "scikit-learn", "transformers", "minicons")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def circumstances(command: str) -> str:
    """Machine, versions, commit, load and command, one bullet each."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in PACKAGES if _installed(name)
    )
    policy = os.environ.get("OMP_WAIT_POLICY")
    if policy:  # passive: threads that wait do not spin, which matters where other work runs
        command = f"OMP_WAIT_POLICY={policy} {command}"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return "\n".join(
        [
            f"- {_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; {device}",
            f"- Python {platform.python_version()}, {versions}",
            f"- commit {_commit()}; load of the last minute {os.getloadavg()[0]:.1f}",
            f"- `{command}`",
        ]
    )


def write(name: str, text: str) -> Path:
    path = REPOSITORY / "results" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text.strip() + "\n")
    print(f"wrote {path.relative_to(REPOSITORY)}", file=sys.stderr)
    return path


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(REPOSITORY), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ":/", ":!results")
        return git("rev-parse", "--short=12", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
