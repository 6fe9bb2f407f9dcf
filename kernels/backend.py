"""The choice of the implementation that runs an operation, for every operation of this package.

The caller names an implementation, or "auto" takes the first in the operation's order of preference that can
run. The choice is logged once, with its reason, on this package's logger. Naming one that cannot run is an
error, because a measurement or a test of one implementation must never run another.
"""

import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

logger = logging.getLogger(__package__)

_logged: set[tuple[str, str]] = set()


class Candidate(NamedTuple):
    name: str
    """The name that callers pass."""
    reason: str
    """Why it is preferred where it can run; for the log."""
    obstacle: Callable[[], str | None]
    """Returns why it cannot run on this call, or None. Called only when no earlier candidate can run."""
    expected: bool = False
    """True where its obstacle on this call is ordinary (a GPU kernel for a CPU tensor) and needs no
    warning."""


def choose(operation: str, candidates: Sequence[Candidate], wanted: str = "auto") -> str:
    """The name of the candidate to run.

    Raises ValueError for a name that is unknown, for one that cannot run, and where no candidate can run.
    """
    by_name = {candidate.name: candidate for candidate in candidates}
    if wanted != "auto":
        if wanted not in by_name:
            raise ValueError(f"{operation}: no solver {wanted!r}, choose from {['auto', *by_name]}")
        if obstacle := by_name[wanted].obstacle():
            raise ValueError(f"{operation}: {wanted!r} cannot run here: {obstacle}")
        log_once(logging.INFO, operation, f"{wanted}, as the caller named it")
        return wanted
    obstacles = []
    for candidate in candidates:
        obstacle = candidate.obstacle()
        if obstacle is None:
            log_once(logging.INFO, operation, f"{candidate.name}: {candidate.reason}")
            return candidate.name
        obstacles.append(f"{candidate.name}: {obstacle}")
        if not candidate.expected:
            log_once(logging.WARNING, operation, f"{candidate.name} is left out: {obstacle}")
    raise ValueError(f"{operation}: nothing can run here ({'; '.join(obstacles)})")


def triton_obstacle(device: torch.device) -> str | None:
    """Why no Triton kernel can run on tensors of this device, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device.type != "cuda":
        is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        return None if is_interpreted else f"the tensors are on {device.type}, not on a GPU"
    # Triton cannot use the tensor cores of older GPUs, and the compile check has none of them.
    if not torch.version.hip and (capability := torch.cuda.get_device_capability(device)) < (8, 0):
        return f"it needs a GPU of compute capability 8.0, this one has {'.'.join(map(str, capability))}"
    return None


def log_once(level: int, operation: str, message: str) -> None:
    """Log a message once in a process: an operation that runs in every training step must not fill the
    log."""
    if (operation, message) not in _logged:
        _logged.add((operation, message))
        logger.log(level, "%s: %s", operation, message)
